"""Write files whole or not at all, on disks that may be full, and identify their content by digests."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

from tqdm import tqdm

from utils.common.errors import DAMAGED, OutOfRoom, refusal

PARTIAL = ".partial"  # in the name of an unfinished file or folder
MANIFEST = "manifest.json"  # lists the size and SHA-256 of each file of a folder, to detect damage

_UMASK = os.umask(0)  # the process's umask, which can be read only by setting another one
os.umask(_UMASK)


@contextmanager
def explain_disk_full(folder: Path) -> Iterator[None]:
    """In the block, a write that the disk refuses (see `refusal`) raises OutOfRoom, which names `folder`."""
    try:
        yield
    except OutOfRoom:
        raise
    except Exception as error:
        reason = refusal(error)
        if reason is None and isinstance(error, RuntimeError | OSError) and free_bytes(folder) < 2**20:
            reason = os.strerror(errno.ENOSPC)  # torch.save says only that its file ended early
        if reason is None:
            raise
        raise OutOfRoom(
            f"{folder} cannot be written ({reason}; {as_bytes(free_bytes(folder))} are free); make room, or name "
            "another folder"
        ) from error


def check_writable(folder: Path, flag: str) -> None:
    """Make the folder; UserError if it can't be made, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a page, which a full disk refuses even where it still makes files
            file.flush()
    except OSError as error:
        raise OutOfRoom(f"{flag}: {folder} cannot be written ({error.strerror}); name another folder") from error


def free_bytes(folder: Path) -> int:
    """Free bytes for this user on the disk of the folder, which need not exist yet. Quotas are not considered."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


as_bytes = partial(tqdm.format_sizeof, suffix="B")
"""A number of bytes as people read it: "340kB", "1.24GB"."""


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Yield a new path beside `final` that takes its place only when the block ends without error."""
    with explain_disk_full(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}{PARTIAL}-{secrets.token_hex(4)}{final.suffix}")
        try:
            yield partial
            take_place(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """`whole_file` for a folder, which exists in the block. What then has its final name is renamed, never removed."""
    with whole_file(final) as partial:
        partial.mkdir()
        yield partial


def take_place(partial: Path, final: Path) -> Path | None:
    """Rename a file or folder to its final name. What a folder finds there is renamed first, to the path returned."""
    for file in (partial, *partial.rglob("*")):  # some libraries make files with mode 0600; they get the usual one
        if stat.S_IMODE(mode := file.lstat().st_mode) == 0o600 and stat.S_ISREG(mode):
            file.chmod(0o666 & ~_UMASK)
    earlier, empty = None, final.is_dir() and not final.is_symlink() and not any(final.iterdir())
    if partial.is_dir() and os.path.lexists(final) and not empty:
        earlier = first_free(final)
        final.rename(earlier)
    partial.rename(final)  # over a file, or an empty folder
    return earlier


def first_free(path: Path) -> Path:
    """The first of `path`.1, .2, .3, … that does not exist."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in count(1))
    return next(each for each in numbered if not os.path.lexists(each))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str, **options) -> object:
    """json.loads that also refuses halves of surrogate pairs: UTF-8 can't encode them. Raises a one-line ValueError."""
    try:
        content = json.loads(text, **options)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair, which is not text") from error
    return content


def read_json(path: Path) -> object:
    """The JSON in a UTF-8 file, with or without a byte order mark. Raises OSError, or a one-line ValueError."""
    return parse_json(path.read_text(encoding="utf-8-sig"))


def without_nan(content: object) -> object:
    """`content` as JSON has it, with None for each NaN and infinity, which JSON doesn't know."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def digest(*parts: object) -> str:
    """SHA-256 (hex, 64 characters) of JSON-serialisable parts, independent of dictionary order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_manifest(folder: Path, **about: object) -> None:
    """Write the folder's manifest, as its last file: `about`, and the size and SHA-256 of every other file."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    write_json(folder / MANIFEST, {**about, "files": files})


def read_manifest(folder: Path) -> dict:
    """The manifest's content; ValueError, to print after the folder's name, unless each listed file is as it was."""
    try:
        content = read_json(folder / MANIFEST)
        listed = [(folder / name, int(known["size"]), known["sha256"]) for name, known in content["files"].items()]
    except DAMAGED as error:
        raise ValueError(f"is incomplete (no whole {MANIFEST})") from error
    for file, size, digest in listed:
        with suppress(OSError):  # a failing disk counts as damage
            # Sizes first: a file that was cut short is known without reading it.
            if file.is_file() and file.stat().st_size == size and sha256(file) == digest:
                continue
        raise ValueError(f"is damaged ({file.name})")
    return content


def sha256(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
