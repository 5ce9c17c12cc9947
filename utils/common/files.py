"""Files that appear whole or not at all, and what identifies their content."""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from utils.common.disk import explain_disk_full

PARTIAL = ".partial"
"""In names of what is being written."""

_UMASK = os.umask(0)
"""What this process takes from the modes of its files; the system tells it only for another one."""
os.umask(_UMASK)


def share_files(place: Path) -> None:
    """Give a file, or all of a folder's, that a library has made for its owner alone the mode of any other."""
    for file in (place, *place.rglob("*")):
        if stat.S_IMODE(mode := file.lstat().st_mode) == 0o600 and stat.S_ISREG(mode):
            file.chmod(0o666 & ~_UMASK)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a new folder beside `final`; it takes that name only when the block ends without error.

    What has that name by then is renamed to the first free of `final`.1, .2, …: no folder is removed but the new one,
    if the block fails. Raises DiskFull if the disk takes no more.
    """
    with explain_disk_full(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}{PARTIAL}-", dir=final.parent))
        partial.chmod(0o777 & ~_UMASK)  # mkdtemp makes it private; a published checkpoint is not
        try:
            yield partial
            share_files(partial)
            take_place(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def take_place(partial: Path, final: Path) -> Path | None:
    """Rename a folder to its final name; what is there is renamed first, and its new name returned."""
    earlier = None
    if os.path.lexists(final) and not (final.is_dir() and not final.is_symlink() and not any(final.iterdir())):
        earlier = first_free(final)
        final.rename(earlier)
    partial.rename(final)  # over an empty folder too
    return earlier


def first_free(path: Path) -> Path:
    """`path`.1, or the first of .2, .3, … that nothing has the name of."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in count(1))
    return next(each for each in numbered if not os.path.lexists(each))


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Yield a new path beside `final` that takes its name only when the block ends without error.

    Raises DiskFull if the disk takes no more.
    """
    with explain_disk_full(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}{PARTIAL}-{secrets.token_hex(4)}{final.suffix}")
        try:
            yield partial
            share_files(partial)
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def workspace(purpose: str) -> Iterator[Path]:
    """A folder in the system's place for temporary files; gone after the block."""
    with tempfile.TemporaryDirectory(prefix=f"restorelcc-{purpose}-", ignore_cleanup_errors=True) as place:
        yield Path(place)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


_NUMBER = r"(?:-?[\d.]+(?:e[+-]?\d+)?|-?Infinity|NaN|null)"
_NUMBERS = re.compile(rf"\[\n\s*{_NUMBER}(?:,\n\s*{_NUMBER})*\n\s*\]")
"""A list of numbers as json.dumps indents it: a line each. No text holds one, since JSON escapes line breaks."""


def write_json(path: Path, content: object) -> None:
    """Write indented JSON, whole or not at all; a list of numbers stays on one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, **options) -> object:
    """The JSON in `text`; ValueError, of one line, for whatever is wrong with it (JSONDecodeError if it is no JSON).

    Refused as well, because nothing could write it again: strings with half of a surrogate pair. options: json.loads's.
    """
    try:
        content = json.loads(text, **options)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair, which is no text") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "digits" not in str(error):  # a hook's own
            raise
        # int's own limit, whose message names a function of Python
        raise ValueError("a number of thousands of digits") from error
    return content


def fault(error: ValueError) -> str:
    """What `parse_json` found wrong, without the place that a JSONDecodeError tells."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def read_json(path: Path) -> object:
    """The JSON in a UTF-8 file, with or without a byte order mark; OSError, or ValueError of one line."""
    return parse_json(path.read_text(encoding="utf-8-sig"))


def without_nan(content: object) -> object:
    """`content` with None for each NaN and infinity, which JSON doesn't know."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def digest(*parts: object) -> str:
    """SHA-256 (hex, 64 characters) of JSON-serialisable parts, independent of dictionary order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def digest_files(paths: list[Path]) -> str:
    """SHA-256 (hex) over the names and contents of the files, in the order of their names."""
    whole = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
