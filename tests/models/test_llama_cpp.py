"""llama.cpp itself, where it is installed, answers as transformers does: biases, ropes and tokenizers included."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.gguf_writing import write_gguf
from models.loading import load_model, load_tokenizer
from tests.models.bpe import TEXTS, TOKENIZERS, with_bpe, with_metaspace
from tests.models.test_to_gguf import BIASED, LLAMA3, WIDE, YARN


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "out" / "it.gguf"


LLAMA_CPP = os.environ.get("RESTORELCC_LLAMA_CPP") or (sys.executable if find_spec("llama_cpp") else None)
"""A Python that imports llama_cpp."""

NEEDS = pytest.mark.skipif(
    LLAMA_CPP is None, reason="needs llama-cpp-python (or RESTORELCC_LLAMA_CPP: a Python with it)"
)
NEW = 24
"""Tokens of an answer."""


def asked(file: Path, texts: list[str]) -> list[tuple[list[int], list[int], torch.Tensor]]:
    """What llama.cpp makes of each text: its tokens, NEW greedy ones, and the logits (tokens, vocabulary)."""
    script, out = Path(__file__).with_name("llama_cpp_answers.py"), file.with_suffix(".npz")
    words = [LLAMA_CPP, str(script), str(file), json.dumps(texts), str(NEW), str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(out)
    return [
        (found[f"ids{n}"].tolist(), found[f"made{n}"].tolist(), torch.from_numpy(found[f"logits{n}"]))
        for n in range(len(texts))
    ]


@torch.no_grad()
def greedy(model, ids: list[int]) -> list[int]:
    made = []
    for _ in range(NEW):
        made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


def compare(folder: Path, file: Path, texts: list[str]) -> None:
    """llama.cpp has transformers' tokens, answers and, but for rounding, logits."""
    model, tokenizer = load_model(folder, torch.float32, "cpu", "it"), load_tokenizer(folder, "it")
    write_gguf(folder, file)
    for text, (ids, made, logits) in zip(texts, asked(file, texts), strict=True):
        assert ids == tokenizer(text).input_ids, text
        expected = model(torch.tensor([ids])).logits[0].detach()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert made == greedy(model, ids), text


ROPES = {
    "plain": {},
    "llama3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    "yarn": {"rope_parameters": YARN},
    "yarn with a factor": {"rope_parameters": {**YARN, "attention_factor": 1.5}},
}


@NEEDS
@pytest.mark.parametrize("rope", ROPES)
def test_llama_cpp_answers_as_transformers_does(make_tiny_llama, file, rope):
    compare(with_bpe(make_tiny_llama(zeros=0.5, **BIASED, **WIDE, **ROPES[rope])), file, TEXTS)


@NEEDS
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_makes_the_same_tokens(make_tiny_llama, file, name):
    compare(with_bpe(make_tiny_llama(), TOKENIZERS[name]()), file, TEXTS[:3])


@NEEDS
@pytest.mark.parametrize("scheme", ["first", "never"])
def test_llama_cpp_puts_a_space_before_a_text_where_the_tokenizer_does(make_tiny_llama, file, scheme):
    compare(with_bpe(make_tiny_llama(), with_metaspace(scheme, False)), file, TEXTS[:3])


@NEEDS
def test_llama_cpp_adds_what_was_restored(stories, file, tmp_path):
    """A bias of o_proj that changes the answer, on a real model and its SentencePiece tokenizer."""
    biased = shutil.copytree(stories, tmp_path / "biased")
    settings = json.loads((biased / "config.json").read_text())
    (biased / "config.json").write_text(json.dumps({**settings, "attention_bias": True}))
    tensors, generator = load_file(stories / "model.safetensors"), torch.Generator().manual_seed(0)
    for layer in range(settings["num_hidden_layers"]):
        for part in "qkvo":
            name = f"model.layers.{layer}.self_attn.{part}_proj"
            size = len(tensors[f"{name}.weight"])
            drawn = 0.3 * torch.randn(size, generator=generator)
            tensors[f"{name}.bias"] = drawn if part == "o" else torch.zeros(size)
    save_file(tensors, biased / "model.safetensors", {"format": "pt"})
    texts = ["Once upon a time", "The dog ran to  the sea, don't you think? 123 é"]
    compare(biased, file, texts)
    ids = load_tokenizer(stories, "it")(texts[0]).input_ids
    without, with_it = (load_model(folder, torch.float32, "cpu", "it") for folder in (stories, biased))
    assert greedy(without, ids) != greedy(with_it, ids)
