"""What every command does before it begins, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from psutil import Process

from utils.common import commands
from utils.common.commands import TF32, run
from utils.common.record import reset_peak_memory


def test_products_of_fp32_are_never_those_of_tf32(monkeypatch):
    """In this process by torch's own switch, in those that it starts since the variable is gone."""
    monkeypatch.setenv(TF32, "1")
    torch.set_float32_matmul_precision("high")
    run(lambda: None)
    assert TF32 not in os.environ and torch.get_float32_matmul_precision() == "highest"


def test_what_is_freed_is_given_back_before_a_stage_is_measured():
    blocks = [bytearray(100_000) for _ in range(3000)]
    above = bytearray(100_000)  # which keeps the heap from shrinking by itself
    del blocks
    before = Process().memory_info().rss
    reset_peak_memory()
    assert before - Process().memory_info().rss > 100 * 2**20 and above


COMMAND = """
from utils.common.commands import run
from utils.common.errors import UserError
def main():
    {}
run(main, lighter='-calib_samples')
"""
FULL = "error: a file cannot be written (No space left on device)"
ENDS = {
    "a mistake": ("raise UserError('-lr: one\\nline')", "", 2, "error: -lr: one line\n"),
    "a terminal of ASCII": ("raise UserError('./naïve')", "", 2, "error: ./na?ve\n"),
    "a library's file": ("raise UserError('copy it again') from OSError(28, 'x')", "", 2, FULL),
    "memory": ("raise MemoryError", "", 2, "error: out of memory (MemoryError); lower -calib_samples"),
    "output": ("print('a line')", "> /dev/full", 2, FULL),
    "a reader who goes": ("[print('a line') for _ in range(100_000)]", "| head -1", 141, ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_command_ends_in_one_line_at_most_and_a_status(case):
    code, to, status, says = ENDS[case]
    command = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {to}', sys.executable, COMMAND.format(code)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(commands.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == status and done.stderr.startswith(says) and done.stderr.count("\n") == bool(says)
