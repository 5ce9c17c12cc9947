"""Disks: asked for room before a run, and told of in one line when they take no more."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import OutOfRoom, UserError, causes

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a write can meet that no code mends: the disk is full, a quota or a limit is reached, it is read-only."""

_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""How libraries written in Rust or C++ name the system's error, which Python's OSError has as a number."""

_TORN = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|iostream error")
"""What torch.save says of a file that ended before its content did; why, it doesn't know."""

_PROBE = bytes(4096)
"""A page, which a full disk refuses even where it still makes files."""


class Unwritten(OutOfRoom):
    """A disk took no more. place: the folder that was written to; reason: the system's, in words."""

    def __init__(self, place: Path, reason: str, need: "Need | None" = None):
        self.place, self.reason = place, reason
        where = f"{need.flag}: {need.folder}" if need else str(place)
        room = f"{as_bytes(free_bytes(need.folder if need else place))} are free"
        if need:
            room += f", up to {as_bytes(need.size)} are needed"
        then = "name another folder" if reason == os.strerror(errno.EROFS) else "make room, or name another folder"
        super().__init__(f"{where} cannot be written ({reason}; {room}); {then}: what is finished is kept")


@dataclass(frozen=True)
class Need:
    """size: bytes that will be written to `folder`, which `flag` names, at most."""

    flag: str
    folder: Path
    size: int

    def holds(self, place: Path) -> bool:
        """Whether the folder `place` is this one, or lies in it."""
        mine, other = (Path(os.path.realpath(each.expanduser())) for each in (self.folder, place))
        return mine == other or mine in other.parents


def refusal(error: BaseException | None) -> str | None:
    """Why a disk took no more, in the system's words, whatever a library made of it; None if that isn't the cause."""
    for each in causes(error):
        number = each.errno if isinstance(each, OSError) else None
        if number is None and (found := _IN_TEXT.search(str(each))):
            number = int(found[1] or found[2])
        if number in REFUSALS:
            return os.strerror(number)
        if isinstance(each, RuntimeError) and _TORN.search(str(each)):
            return "a file could not be written to its end"
    return None


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Within it, a disk that takes no more raises Unwritten, which names the folder `place`."""
    try:
        yield
    except OutOfRoom:
        raise
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        raise Unwritten(place, reason) from error


@contextmanager
def told(needs: list[Need]) -> Iterator[None]:
    """Within it, Unwritten names the flag of the folder, and what the run needs there."""
    try:
        yield
    except Unwritten as error:
        known = [need for need in needs if need.holds(error.place)]
        if not known:
            raise
        raise Unwritten(error.place, error.reason, known[0]) from error


def check_room(needs: list[Need]) -> None:
    """Raise UserError, which names flags, folders, needed and free bytes, if a disk has less room than is needed."""
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(_standing(need.folder).stat().st_dev, []).append(need)
    for group in by_disk.values():
        needed, free = sum(need.size for need in group), free_bytes(group[0].folder)
        if needed > free:
            flags, folders = ", ".join(need.flag for need in group), " and ".join(str(need.folder) for need in group)
            raise UserError(
                f"{flags}: up to {as_bytes(needed)} will be written to {folders}, where {as_bytes(free)} are free; "
                "make room, or name a folder on another disk"
            )


def check_writable(folder: Path, flag: str, make: bool = False) -> None:
    """UserError unless something can be written to the folder, or to where it will be made. Nothing is left there.

    make: make the folder first, and leave it.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=_standing(folder)) as file:
            file.write(_PROBE)
            file.flush()
    except OSError as error:
        raise OutOfRoom(f"{flag}: {folder} cannot be written ({error.strerror}); name another folder") from error


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write where the folder is, or will be made. Quotas are not known."""
    return shutil.disk_usage(_standing(folder)).free


def as_bytes(size: float) -> str:
    """A number of bytes as people read it: "0 bytes", "340 kB", "1.24 GB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{int(size)} bytes"


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = Path(os.path.realpath(folder.expanduser()))
    return next(each for each in (place, *place.parents) if os.path.lexists(each))
