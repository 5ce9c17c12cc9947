"""Fixtures that all packages share; what they are built of is in tests/builders.py."""

import ctypes
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from threading import RLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from tqdm import tqdm

from tests.builders import rewrite, save_tiny_llama
from tests.runs import ROOT, flags, run, write_samples

# A shell that starts tests in the background has them ignore Ctrl-C, and whatever they start; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Not tqdm's own, a semaphore that forks share: one that is killed would leave it locked for all.
tqdm.set_lock(RLock())


def _end_with_parent() -> None:
    """A fork holds the pipe by which xdist sees its worker's end; Linux can end it with the thread that forked it."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


os.register_at_fork(after_in_child=_end_with_parent)


@pytest.fixture
def make_tiny_llama(tmp_path_factory) -> Callable[..., Path]:
    """make_tiny_llama(seed=0, zeros=0.0, dtype=fp32, **config overrides) -> folder."""
    return lambda **options: save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", **options)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Inputs of tiny runs, to be read only, and their cache: a dense and a pruned tiny Llama, samples, two texts."""
    root = tmp_path_factory.mktemp("world")

    def halve(tensors: dict) -> None:
        for linear in (tensor for name, tensor in tensors.items() if "_proj" in name):
            linear[linear.abs() < linear.abs().median()] = 0

    dense, no_tokenizer = save_tiny_llama(root / "dense"), shutil.ignore_patterns("tokenizer*")
    rewrite(shutil.copytree(dense, root / "pruned", ignore=no_tokenizer), halve)
    rows = [
        {"instruction": f"Count to {n}.", "input": "" if n % 2 else f"from {n // 2}", "output": f"{n} is {n * n % 97}"}
        for n in range(40)
    ]
    write_samples(root / "samples.jsonl", rows)
    (root / "text.txt").write_text(" ".join(f"Sentence {n} of a text." for n in range(60)))
    (scored := root / "tasks" / "wikitext2").mkdir(parents=True)
    (scored / "test.txt").write_text(" \n = Title = \n \n" + " Some words to score . \n" * 20)
    return root


@pytest.fixture(scope="session")
def finished(world) -> Path:
    """The output folder of a whole tiny run, made once, with what it printed in `world`/stdout.txt. To be read only."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        run(patch, flags(world, world / "out"))
    (world / "stdout.txt").write_text(printed.getvalue())
    return world / "out"


@pytest.fixture(scope="session")
def stories() -> Path:
    """stories260K, a real Llama of 260,032 parameters, in the folder of real data beside the checkout."""
    if not (shared := ROOT.parent / "shared").is_dir():
        pytest.skip("needs ../shared (real data, not part of the project)")
    return shared / "models" / "stories260K"
