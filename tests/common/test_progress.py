"""Long work tells how far it is: a bar where somebody watches, a line every half minute where nobody does."""

import sys

from utils.common.progress import EVERY, OFF, progress


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(total=3) as bar:
        assert not bar.disable and bar.leave and bar.mininterval < 1


def test_lines_come_every_half_minute_with_what_is_done_and_left(capsys):
    bar, now = progress(total=40, desc="training", unit="step", initial=4), 100.0
    bar.start_t = bar.last_print_t = now
    bar._time = lambda: now
    bar.set_postfix(loss="2.5", refresh=False)
    for _ in range(8):
        now += EVERY / 2 - 1
        bar.update(1)
    bar.close()
    # 14 s each; 3 steps make the first line, 6 the second: 42 and 84 s, 33 and 30 steps left of 14 s.
    assert capsys.readouterr().err.splitlines() == [
        "      training: 7 of 40 step (18%), 00:42, 07:42 left, loss=2.5",
        "      training: 10 of 40 step (25%), 01:24, 07:00 left, loss=2.5",
    ]


def test_short_and_silenced_work_says_nothing(capsys, monkeypatch):
    assert list(progress([1, 2], desc="short")) == [1, 2]
    monkeypatch.setenv(OFF, "1")
    monkeypatch.setattr("utils.common.progress.EVERY", 0)
    assert list(progress([1, 2], desc="silent")) == [1, 2] and capsys.readouterr().err == ""
