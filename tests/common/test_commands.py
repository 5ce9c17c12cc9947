"""What every command does before it begins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASKED = "run(lambda: print(__import__('torch').backends.cuda.matmul.allow_tf32))"


@pytest.mark.parametrize("before", ["", "import torch; "])
def test_products_of_fp32_are_never_those_of_tf32(before):
    done = subprocess.run(
        [sys.executable, "-c", f"{before}from utils.common.commands import run; {ASKED}"],
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "False\n", done.stderr
