"""Fixtures that all rooms share; what they are built of is in tests/builders.py."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.builders import save_tiny_llama

# A shell that starts tests in the background has them ignore Ctrl-C, and whatever they start; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def make_tiny_llama(tmp_path_factory) -> Callable[..., Path]:
    """make_tiny_llama(seed=0, zeros=0.0, dtype=fp32, **config overrides) -> folder."""

    def make(**options) -> Path:
        return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", **options)

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real data, not part of the project)")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared) -> Path:
    """stories260K, a real Llama of 260,032 parameters."""
    return shared / "models" / "stories260K"
