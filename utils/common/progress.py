"""How far long work is: a bar where somebody watches, a plain line every half minute where nobody does."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

EVERY = 30.0  # seconds from one plain line to the next
OFF = "TQDM_DISABLE"  # tqdm's environment variable that switches off bars, and plain lines with them
LINE = "{desc}: {n_fmt} of {total_fmt} {unit} ({percentage:.0f}%), {elapsed}, {remaining} left{postfix}"


class _Log:
    """A file for tqdm that prints what it draws as lines on stderr, without those that only clear a bar."""

    def write(self, drawn: str) -> None:
        if line := drawn.strip():
            print(f"      {line}", file=sys.stderr, flush=True)


def progress(items: Iterable | None = None, **options) -> tqdm:
    """A bar of `tqdm` with these options if stderr is a terminal; else plain lines, the first after EVERY seconds."""
    if OFF in os.environ:
        options["disable"] = True  # tqdm reads the variable only at import
    if not sys.stderr.isatty():
        options |= {"file": _Log(), "bar_format": LINE, "leave": False}
        options |= {"mininterval": EVERY, "delay": EVERY, "miniters": 1, "smoothing": 0}
    return tqdm(items, **options)
