"""A tiny model and a folder of tasks' rows; nothing here may ask the network."""

import socket
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.builders import save_tiny_llama, write_files
from tests.evaluation.material import ROWS, SPLITS, WIKI
from tests.runs import write_samples
from utils.evaluation.tasks import WIKITEXT


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the network: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def data(tmp_path) -> Path:
    """A plain folder of three-row copies of all seven tasks, and a WikiText of three pages."""
    folder = tmp_path / "rows"
    for task, rows in ROWS.items():
        write_samples(folder / task / f"{SPLITS[task]}.jsonl", rows)
    write_files(folder, {f"{WIKITEXT}/test.txt": WIKI})
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(seed) -> folder of a tiny Llama, made once."""
    folder = tmp_path_factory.mktemp("evaluated")
    return cache(lambda seed: save_tiny_llama(folder / str(seed), seed))


@pytest.fixture
def load(saved):
    """load(seed) -> (a random Llama in fp32, its byte tokenizer)."""
    return lambda seed: tuple(kind.from_pretrained(saved(seed)) for kind in (AutoModelForCausalLM, AutoTokenizer))


@pytest.fixture
def tiny(load):
    return load(0)
