"""What every command does before it begins."""

import os

import torch

from utils.common.commands import TF32, run


def test_products_of_fp32_are_never_those_of_tf32(monkeypatch):
    """In this process by torch's own switch, in those that it starts since the variable is gone."""
    monkeypatch.setenv(TF32, "1")
    torch.set_float32_matmul_precision("high")
    run(lambda: None)
    assert TF32 not in os.environ and torch.get_float32_matmul_precision() == "highest"
