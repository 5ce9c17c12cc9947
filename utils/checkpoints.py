"""Checkpoints of a training: each whole or absent, and of this very training or passed over."""

import shutil
from pathlib import Path

from utils.common.manifest import read_manifest, write_manifest

UNFINISHED = ".unfinished"
"""In the folder of checkpoints: where one is written until it is whole."""

KEPT = 2
"""The latest, and the one before it, should that be damaged."""


def seal(written: Path, belongs: str) -> None:
    """Give a checkpoint that is all written, in UNFINISHED, its place; those older than the KEPT latest go.

    belongs: digest of all that it can be continued with. Killed anywhere, the one before it still stands.
    """
    checkpoints = written.parents[1]
    write_manifest(written, belongs=belongs)
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
        same = read_manifest(folder).get("belongs") == belongs
    except ValueError as error:
        return str(error)
    return None if same else "is of other samples, weights, heads or processes"


def _latest_first(checkpoints: Path) -> list[Path]:
    found = {}
    for folder in checkpoints.glob("checkpoint-*"):
        step = folder.name.partition("-")[2]
        if folder.is_dir() and step.isascii() and step.isdecimal():
            found[int(step)] = folder
    return [found[step] for step in sorted(found, reverse=True)]
