"""What a library says when memory runs out."""

import errno
import re

_TOLD = re.compile(
    r"can(?:no|')t allocate memory|not enough memory|out of memory|bad_alloc|_ALLOC_FAILED|os error 12\)",
    re.IGNORECASE,
)


def shortage(error: BaseException | None) -> str | None:
    """The line that tells of memory that ran out, on a CPU or a GPU; None if that isn't the cause."""
    while error is not None:
        known = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        # torch's is named so, and is a RuntimeError as what it says of a CPU is.
        if known or type(error).__name__ == "OutOfMemoryError" or _TOLD.search(str(error)):
            return " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
