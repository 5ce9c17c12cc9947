"""The manifest of a folder: the size and SHA-256 of each of its files, by which damage is told."""

import hashlib
from pathlib import Path

from utils.common.files import read_json, write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path, **about: object) -> None:
    """List all files below `folder` in its manifest, beside what else is to be known. Written last."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    write_json(folder / MANIFEST, {**about, "files": files})


def read_manifest(folder: Path) -> dict:
    """What the manifest says; ValueError, of words that follow the folder's name, unless all it lists is as it was."""
    try:
        content = read_json(folder / MANIFEST)
        listed = [(folder / name, int(known["size"]), known["sha256"]) for name, known in content["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is incomplete (no whole {MANIFEST})") from error
    for file, size, digest in listed:
        # Sizes first: a file that was cut short is known without reading it.
        if not file.is_file() or file.stat().st_size != size or sha256(file) != digest:
            raise ValueError(f"is damaged ({file.name})")
    return content


def sha256(file: Path) -> str:
    """Of a file's bytes, hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
