"""Files and folders for the time being, by whose names a later process knows that nobody needs them any more."""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_NAMED = re.compile(r"(?:\..+[.-](?:partial|making|lock)|\.merge|restorelcc-[a-z]+)-([^-]+)-(\d+)(?:[-.]|$)")
"""A name of this project's that ends in a stamp: host and process."""


def stamp() -> str:
    """This process, for the name of what it is writing."""
    return f"{_host()}-{os.getpid()}"


@contextmanager
def workspace(purpose: str, folder: Path | None = None) -> Iterator[Path]:
    """A folder in the system's place for temporary files, or in `folder`; gone after the block.

    purpose: a word in its name, of small letters.
    """
    prefix = f"{'.' if folder else 'restorelcc-'}{purpose}-{stamp()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True) as place:
        yield Path(place)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left below `folder`, two levels deep, and among temporary files.

    Of another machine's processes nobody here knows whether they are gone; what they left stays.
    """
    kinds = [entry for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]
    places = [folder, *(Path(entry.path) for entry in kinds), Path(tempfile.gettempdir())]
    for place in places:
        for entry in _entries(place):
            if (found := _NAMED.match(entry.name)) and found[1] == _host() and _abandoned(entry, int(found[2])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        os.unlink(entry.path)


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _abandoned(entry: os.DirEntry, pid: int) -> bool:
    """Whether it is this user's, and its process gone, or a later one of the same number."""
    try:
        about = entry.stat(follow_symlinks=False)
        if about.st_uid != os.getuid():
            return False
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > about.st_mtime + 1
    except (psutil.NoSuchProcess, OverflowError):
        return True
    except (psutil.AccessDenied, OSError):
        return False


def _host() -> str:
    """This machine, and the container on it where numbers of processes are another's than outside."""
    name = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
    with suppress(OSError):
        name += "." + re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    return name
