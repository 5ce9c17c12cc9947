"""Tiny lopsided Llamas and the real parts that tests use where they are present."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[2] / "shared"

LOPSIDED = {
    "vocab_size": 300,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
"""Layers ≠ heads ≠ KV heads and head_dim·heads (48) ≠ hidden (24), so that a wrong axis cannot pass."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: 256 of them, then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    vocabulary |= {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def save_tiny_llama(folder: Path, seed: int = 0, zeros: float = 0.0, dtype=torch.float32, **overrides) -> Path:
    """A random Llama folder with a byte tokenizer; `zeros` is the share of its linear weights set to zero."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**LOPSIDED, **overrides})).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            if parameter.dim() == 2 and "layers" in name:
                parameter.normal_(0, 0.15, generator=generator)
                parameter[torch.rand(parameter.shape, generator=generator) < zeros] = 0
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def masks_of(model: LlamaForCausalLM) -> list[torch.Tensor | None]:
    """A list that the mask of each layer's attention is added to from now on; None is plain causal attention."""
    seen = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _module, _inputs, named: seen.append(named["attention_mask"]), with_kwargs=True
        )
    return seen


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
