"""A calibration text, and pruning with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.prune_model import prune_into
from tests.runs import write_samples


@pytest.fixture
def text(tmp_path) -> str:
    """Twenty documents of about 100 bytes, as .jsonl."""
    rows = ({"text": f"Document {number}: " + " ".join(str(number * k * k) for k in range(25))} for number in range(20))
    return str(write_samples(tmp_path / "calibration.jsonl", rows))


@pytest.fixture
def prune(tmp_path, text) -> Callable[..., tuple[Path, dict]]:
    """prune(base, method, sparsity, **options) -> (a new folder, record), on six windows of 40 tokens."""
    folders = iter(range(99))

    def run(base: Path, method: str, sparsity: str = "0.5", **options) -> tuple[Path, dict]:
        folder = tmp_path / f"{method}-{next(folders)}"
        defaults = {"calib_data": text, "calib_samples": 6, "calib_length": 40}
        defaults |= {"dtype": torch.float32, "device": "cpu", "seed": 3}
        return folder, prune_into(base, folder, method, sparsity, **(defaults | options))

    return run
