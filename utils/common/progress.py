"""How far long work is: a bar where somebody watches, a plain line every half minute where nobody does."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

EVERY = 30.0
"""Seconds from one plain line to the next: the log of an hour has a hundred of them, and no bar drawn over and over."""

OFF = "TQDM_DISABLE"
"""The environment variable that switches bars off, as tqdm reads it; plain lines with them."""


def progress(items: Iterable | None = None, **options) -> "tqdm | Lines":
    """`tqdm` with its options, if stderr is a terminal; else Lines. Both are iterated, updated and closed alike."""
    if OFF in os.environ:
        options["disable"] = True  # tqdm itself reads it only where it is imported
    return tqdm(items, **options) if sys.stderr.isatty() else Lines(items, **options)


class Lines:
    """What is used here of a tqdm bar, as lines on stderr, none before work has taken EVERY seconds.

    total: of `unit`; None or missing: the length of `items`, if it has one. initial: done before, so in no rate.
    Other options of tqdm say how a bar looks, and are taken and left.
    """

    def __init__(
        self,
        items: Iterable | None = None,
        total: float | None = None,
        desc: str | None = None,
        unit: str = "it",
        initial: float = 0,
        clock: Callable[[], float] = time.monotonic,
        disable: bool = False,
        **_,
    ):
        self.items, self.desc, self.unit, self.clock = items, desc, unit, clock
        self.total = len(items) if total is None and hasattr(items, "__len__") else total
        self.n = self.initial = initial
        self.silent = disable
        self.postfix = ""
        self.began = self.told = clock()

    def __iter__(self) -> Iterator:
        for item in self.items:
            yield item
            self.update()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def set_postfix(self, refresh: bool = True, **values) -> None:
        """What the next lines end with."""
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """What the next lines begin with."""
        self.desc = desc

    def update(self, n: float = 1) -> None:
        """`n` more of the unit are done."""
        self.n += n
        now = self.clock()
        if not self.silent and now - self.told >= EVERY:
            self.told = now
            print(self.line(now - self.began), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left to say: a stage's own line tells what it took."""

    def line(self, seconds: float) -> str:
        """What is done after that time, and what is left of it at the rate so far."""
        done = tqdm.format_sizeof(self.n) if self.n >= 1000 else f"{self.n:g}"
        text = f"      {self.desc}: {done}" if self.desc else f"      {done}"
        if self.total:
            whole = tqdm.format_sizeof(self.total) if self.total >= 1000 else f"{self.total:g}"
            text += f" of {whole} {self.unit} ({self.n / self.total:.0%}), {tqdm.format_interval(seconds)}"
            if self.n > self.initial:
                left = seconds / (self.n - self.initial) * (self.total - self.n)
                text += f", {tqdm.format_interval(max(left, 0))} left"
        else:
            text += f" {self.unit}, {tqdm.format_interval(seconds)}"
        return text + self.postfix
