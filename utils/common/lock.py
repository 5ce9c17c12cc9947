"""One process at a time in an output folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from utils.common.disk import refusal, writing
from utils.common.errors import UserError
from utils.common.files import parse_json
from utils.common.temporary import stamp

_CLOCK_STEP = 60
"""Seconds by which the start of one and the same process may be told differently after the clock was set."""


def holder(lock: Path) -> str | None:
    """Who holds `lock`, in words; None if nobody does, or a process of this machine that is gone."""
    text = _read(lock)
    if text is None:
        return None
    try:
        owner = parse_json(text)
        pid, host, started = int(owner["pid"]), str(owner["host"]), float(owner["started"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return f"a process that is not known (if there is none, remove {lock})"
    if host != socket.gethostname():
        return f"process {pid} on {host} (if it is gone, remove {lock})"
    return f"process {pid}" if _alive(pid, started) else None


def check_free(lock: Path, what: str) -> None:
    """Raise UserError if a process holds `lock`."""
    if named := holder(lock):
        raise UserError(f"{what} is in use by {named}; wait for its end, or give another folder")


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` while the block runs; UserError, which begins with `what` is locked, if another process holds it."""
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()})
    while True:
        seen = _read(lock)
        check_free(lock, what)
        if seen is not None:
            _drop(lock, seen)
        try:
            _take(lock, mine)
            break
        except FileExistsError:  # another one was faster; who it is, the next round says
            continue
    try:
        yield
    finally:
        if _read(lock) == mine:
            lock.unlink()


def _take(lock: Path, mine: str) -> None:
    """Make the lock, which says whose it is from its first moment; FileExistsError if there is one, or Unwritten."""
    aside = lock.with_name(f"{lock.name}-{stamp()}")
    with writing(lock.parent):
        try:
            aside.write_text(mine, encoding="utf-8")
            os.link(aside, lock)
        except FileExistsError:
            raise
        except OSError as error:
            if refusal(error):
                raise
            # A disk without hard links: killed between these two, it leaves a lock of nobody's.
            with lock.open("x", encoding="utf-8") as file:
                file.write(mine)
        finally:
            aside.unlink(missing_ok=True)


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _drop(lock: Path, seen: str) -> None:
    """Remove the lock of a process that is gone, unless another process has done so and holds its own by now."""
    aside = lock.with_name(f"{lock.name}-{stamp()}")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return
    if aside.read_text(encoding="utf-8") == seen:
        aside.unlink()
    else:
        aside.rename(lock)


def _alive(pid: int, started: float) -> bool:
    """Whether this machine's process `pid` runs and is the one that began at `started` (seconds since 1970)."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < _CLOCK_STEP
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
