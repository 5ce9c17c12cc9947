"""What a library says when memory runs out."""

import errno
import re

from utils.common.errors import causes

_TOLD = re.compile(
    r"can(?:no|')t allocate memory|not enough memory|out of memory|bad_alloc|_ALLOC_FAILED|os error 12\)", re.IGNORECASE
)


def shortage(error: BaseException | None) -> str | None:
    """The line that tells of memory that ran out, on a CPU or a GPU; None if that isn't the cause."""
    for each in causes(error):
        known = isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        # torch's is named so, and is a RuntimeError as what it says of a CPU is.
        if known or type(each).__name__ == "OutOfMemoryError" or _TOLD.search(str(each)):
            return " ".join(str(each).split()).partition(". ")[0][:200] or type(each).__name__
    return None
