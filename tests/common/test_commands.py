"""What every command does before it begins."""

import os

import torch
from psutil import Process

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
