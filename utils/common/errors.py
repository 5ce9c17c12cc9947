"""Exceptions for a user's mistake and for a signal to stop, and what a library's error means for a user."""

import errno
import os
import re
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

DAMAGED = OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError
"""What may be raised when a damaged file is read, or one with other content than it should have."""

_NO_MEMORY = r"(?i)can(?:no|')t allocate memory|not enough memory|out of memory|bad_alloc|_ALLOC_FAILED|os error 12\)"


class UserError(Exception):
    """A mistake the user can mend: one line that names the flag or file, says what is wrong and what to do.

    Entry points print it to stderr and exit with 2.
    """

    def __init__(self, message: str):
        super().__init__(shortened(" ".join(message.splitlines()), 1000))


class OutOfRoom(UserError):
    """A disk or the memory is full; raised by code that knows which folder or stage that was."""


class Stopped(BaseException):
    """Raised to end on a signal; the run can be resumed later. then: what to do next, if not the command's default."""

    def __init__(self, number: int, then: str = ""):
        super().__init__(signal.Signals(number).name)
        self.number, self.then = number, then


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, the latest first: a library may have reported a full disk as a broken file."""
    if isinstance(error, UserError):  # begin at the error that it was raised from
        error = error.__cause__
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refusal(error: BaseException | None) -> str | None:
    """Why a disk refused a write (full, a quota or limit reached, read-only); None if that did not cause the error."""
    for each in causes(error):
        number = each.errno if isinstance(each, OSError) else None
        if number is None and (found := re.search(r"\(os error (\d+)\)", str(each))):  # as libraries in Rust say it
            number = int(found[1])
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return os.strerror(number)
    return None


def shortage(error: BaseException | None) -> str | None:
    """The message of an out-of-memory error, on a CPU or a GPU; None if that did not cause the error."""
    for each in causes(error):
        # torch raises a type of that name for a GPU, and a RuntimeError for a CPU.
        known = isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError"
        if known or getattr(each, "errno", None) == errno.ENOMEM or re.search(_NO_MEMORY, str(each)):
            return " ".join(str(each).split()).partition(". ")[0][:200] or type(each).__name__
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type, cut to 200 characters; plus the next if it ends with ":"."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])[:200]


@contextmanager
def explain(what: str, cure: str, kinds: tuple[type[Exception], ...] | type[Exception] = Exception) -> Iterator[None]:
    """Turn errors of these kinds in the block into UserErrors that say: what (the error's first line); cure."""
    try:
        yield
    except kinds as error:
        named = isinstance(error, OSError) and error.filename and str(error.filename) in what
        raise UserError(f"{what} ({error.strerror if named else first_line(error)}); {cure}") from error


def shortened(text: str, most: int = 60) -> str:
    """`text` cut to `most` characters, with "…" if it was longer."""
    return text if len(text) <= most else f"{text[:most]}…"
