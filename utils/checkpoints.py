"""Checkpoints of a training: each whole or absent, and of this very training or passed over."""

import json
import shutil
from pathlib import Path

from utils.common.files import digest_files, write_json

SEAL = "whole.json"
"""In a checkpoint: the digest of each of its files, and of what it was trained on. Written last."""

UNFINISHED = ".unfinished"
"""In the folder of checkpoints: where one is written until it is whole."""

KEPT = 2
"""The latest, and the one before it, should that be damaged."""


def seal(written: Path, belongs: str) -> None:
    """Give a checkpoint that is all written, in UNFINISHED, its place; those older than the KEPT latest go.

    belongs: digest of all that it can be continued with. Killed anywhere, the one before it still stands.
    """
    checkpoints = written.parents[1]
    files = {path.name: digest_files([path]) for path in sorted(written.iterdir())}
    write_json(written / SEAL, {"belongs": belongs, "files": files})
    final, replaced = checkpoints / written.name, checkpoints / f".{written.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():  # of the same step, before its validation
        final.rename(replaced)
    written.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    for older in _latest_first(checkpoints)[KEPT:]:
        shutil.rmtree(older)


def last_whole(checkpoints: Path, belongs: str) -> tuple[Path | None, list[str]]:
    """The latest checkpoint of this training that is as it was written, None if there is none; and a line for each
    later one, which says why it is passed over."""
    said = []
    for folder in _latest_first(checkpoints):
        if fault := _fault(folder, belongs):
            said.append(f"checkpoint {folder.name} {fault}; it is passed over")
        else:
            return folder, said
    return None, said


def _fault(folder: Path, belongs: str) -> str | None:
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        damaged = [name for name, sha256 in sealed["files"].items() if digest_files([folder / name]) != sha256]
        if sealed["belongs"] != belongs:
            return "is of other samples, weights, heads or processes"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "is incomplete"
    return f"is damaged ({damaged[0]})" if damaged else None


def _latest_first(checkpoints: Path) -> list[Path]:
    found = {}
    for folder in checkpoints.glob("checkpoint-*"):
        step = folder.name.partition("-")[2]
        if folder.is_dir() and step.isascii() and step.isdecimal():
            found[int(step)] = folder
    return [found[step] for step in sorted(found, reverse=True)]
