"""Disks: one line where they take no more."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.common.errors import OutOfRoom, causes

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a write can meet that no code mends: the disk is full, a quota or a limit is reached, it is read-only."""

_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust name the system's error, which Python's OSError has as a number."""

_FULL = 2**20
"""Bytes: a disk with less room than this is full, whatever error a library makes of it."""


class DiskFull(OutOfRoom):
    """A disk took no more."""


def refusal(error: BaseException | None) -> str | None:
    """Why a disk took no more, in the system's words; None if that isn't what led to the error."""
    for each in causes(error):
        number = each.errno if isinstance(each, OSError) else None
        if number is None and (found := _NUMBER_IN_TEXT.search(str(each))):
            number = int(found[1])
        if number in REFUSALS:
            return os.strerror(number)
    return None


@contextmanager
def explain_disk_full(folder: Path) -> Iterator[None]:
    """Within it, a disk that takes no more raises DiskFull, which names the folder that was written to."""
    try:
        yield
    except OutOfRoom:
        raise
    except Exception as error:
        reason = refusal(error)
        if reason is None and isinstance(error, RuntimeError | OSError) and free_bytes(folder) < _FULL:
            reason = os.strerror(errno.ENOSPC)  # torch.save says only that its file ended early
        if reason is None:
            raise
        raise DiskFull(
            f"{folder} cannot be written ({reason}; {as_bytes(free_bytes(folder))} are free); make room, or name "
            "another folder: what is finished is kept"
        ) from error


def check_writable(folder: Path, flag: str, make: bool = False) -> None:
    """UserError unless something can be written to the folder, or to where it will be made. Nothing is left there.

    make: make the folder first, and leave it.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=_standing(folder)) as file:
            file.write(bytes(4096))  # a page, which a full disk refuses even where it still makes files
            file.flush()
    except OSError as error:
        raise OutOfRoom(f"{flag}: {folder} cannot be written ({error.strerror}); name another folder") from error


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write where the folder is, or will be made. Quotas are not known."""
    return shutil.disk_usage(_standing(folder)).free


def as_bytes(size: float) -> str:
    """A number of bytes as people read it: "0 bytes", "340 kB", "1.24 GB"."""
    units = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    return next((f"{size / unit:.3g} {name}" for unit, name in units if size >= unit), f"{int(size)} bytes")


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = Path(os.path.realpath(folder.expanduser()))
    return next(each for each in (place, *place.parents) if os.path.lexists(each))
