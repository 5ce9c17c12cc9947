"""What every command does before it begins, how it tells of long work, and how it ends."""

import os
import sys
from resource import RUSAGE_SELF, getrusage
from unittest.mock import Mock

import pytest
import torch
from psutil import Process

from tests.runs import program
from utils.common.commands import TF32, run
from utils.common.errors import OutOfRoom
from utils.common.progress import EVERY, OFF, progress
from utils.common.record import reset_peak_memory


def test_products_of_fp32_are_never_those_of_tf32(monkeypatch):
    """In this process by torch's own switch, in those that it starts since the variable is gone."""
    monkeypatch.setenv(TF32, "1")
    torch.set_float32_matmul_precision("high")
    monkeypatch.setattr("sys.stdout", None)  # closed by `>&-`
    run(lambda: None)
    assert TF32 not in os.environ and torch.get_float32_matmul_precision() == "highest"


def test_a_mistake_that_the_main_process_does_not_meet_is_told_by_another(monkeypatch, capsys):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("utils.common.commands.PATIENCE", 0)
    with pytest.raises(SystemExit, match="2"):
        run(Mock(side_effect=OutOfRoom("no memory on this card")))
    assert capsys.readouterr().err == "error: process 3: no memory on this card\n"


def test_what_is_freed_is_given_back_before_a_stage_is_measured():
    blocks = [bytearray(100_000) for _ in range(3000)]
    above = bytearray(100_000)  # which keeps the heap from shrinking by itself
    del blocks
    before = Process().memory_info().rss
    reset_peak_memory()
    assert before - Process().memory_info().rss > 100 * 2**20 and above


def test_what_a_step_frees_the_next_one_uses():
    reset_peak_memory()
    faults = [getrusage(RUSAGE_SELF).ru_minflt for _ in range(3) if [torch.ones(2**22) for _ in range(10)]]
    assert faults[2] - faults[1] < 5_000  # of 40,960 pages


COMMAND = """
from utils.common.commands import run
from utils.common.errors import UserError
def main():
    {}
run(main, lighter='-calib_samples')
"""
FULL = "error: a file cannot be written (No space left on device)"
GONE = "import os, tempfile; os.chdir(here := tempfile.mkdtemp()); os.rmdir(here); run(print)"
ENDS = {
    "a mistake": ("raise UserError('-lr: one\\nline')", "", 2, "error: -lr: one line\n"),
    "a terminal of ASCII": ("raise UserError('./naïve')", "", 2, "error: ./na?ve\n"),
    "a library's file": ("raise UserError('copy it again') from OSError(28, 'x')", "", 2, FULL),
    "another's file": ("raise PermissionError(13, 'no', '/x')", "", 2, "error: /x: no; change its permissions"),
    "a folder that is gone": (GONE, "", 2, "error: the current folder is gone"),
    "memory": ("raise MemoryError", "", 2, "error: out of memory (MemoryError); lower -calib_samples"),
    "a signal": ("import signal; signal.raise_signal(15)", "", 143, "stopped (SIGTERM)"),
    "output": ("print('a line')", "> /dev/full", 2, FULL),
    "a reader who goes": ("[print('a line') for _ in range(100_000)]", "| head -1", 141, ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_command_ends_in_one_line_at_most_and_a_status(case):
    code, to, status, says = ENDS[case]
    command = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {to}', sys.executable, COMMAND.format(code)]
    done = program(*command, PYTHONIOENCODING="ascii")
    assert done.returncode == status and done.stderr.startswith(says) and done.stderr.count("\n") == bool(says)


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


def test_short_and_silenced_work_says_nothing_and_a_terminal_has_a_bar(capsys, monkeypatch):
    assert list(progress([1, 2], desc="short")) == [1, 2]
    monkeypatch.setenv(OFF, "1")
    monkeypatch.setattr("utils.common.progress.EVERY", 0)
    assert list(progress([1, 2], desc="silent")) == [1, 2] and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress([1]).disable
    monkeypatch.delenv(OFF)
    with progress([1]) as bar:
        assert not bar.disable and bar.leave and bar.mininterval < 1
