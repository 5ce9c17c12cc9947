"""Long work tells how far it is: a bar where somebody watches, a line every half minute where nobody does."""

import sys

import pytest
from tqdm import tqdm

from utils.common.progress import EVERY, OFF, Lines, progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_has_a_bar_and_a_log_has_lines(monkeypatch):
    assert isinstance(progress(total=3), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(total=3) as bar:
        assert isinstance(bar, tqdm) and not bar.disable
    monkeypatch.setenv(OFF, "1")
    with progress(total=3) as bar:
        assert bar.disable


def test_lines_come_every_half_minute_with_what_is_done_and_left(capsys):
    clock = Clock()
    with Lines(total=40, desc="training", unit="step", initial=4, clock=clock) as bar:
        bar.set_postfix(loss="2.5", refresh=False)
        for _ in range(8):
            clock.now += EVERY / 2 - 1
            bar.update(1)
    # 14 s each; 3 steps make the first line, 6 the second: 42 and 84 s, 33 and 30 steps left of 14 s.
    assert capsys.readouterr().err.splitlines() == [
        "      training: 7 of 40 step (18%), 00:42, 07:42 left, loss 2.5",
        "      training: 10 of 40 step (25%), 01:24, 07:00 left, loss 2.5",
    ]


def test_short_and_silenced_work_says_nothing(capsys, monkeypatch):
    clock = Clock()
    assert list(Lines([1, 2], clock=clock)) == [1, 2]
    clock.now += EVERY
    monkeypatch.setenv(OFF, "1")
    bar = progress(range(3), clock=clock)
    for _ in bar:
        clock.now += 2 * EVERY
    assert (bar.n, capsys.readouterr().err) == (3, "")


@pytest.mark.parametrize(
    ("total", "n", "line"),
    [
        (None, 12, "      tokens: 12 tok, 01:00"),
        (36_400, 18_200, "      tokens: 18.2k of 36.4k tok (50%), 01:00, 01:00 left"),
        (7, 0, "      tokens: 0 of 7 tok (0%), 01:00"),
    ],
)
def test_sizes_are_short_and_an_unknown_end_is_not_foretold(total, n, line):
    bar = Lines(total=total, desc="tokens", unit="tok")
    bar.update(n)
    assert bar.line(60.0) == line


def test_the_length_of_what_is_iterated_is_its_total():
    assert (Lines(range(5)).total, Lines(iter(range(5))).total) == (5, None)
