"""Attention for a CPU is causal attention, in whatever blocks it is computed."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from models.cpu_attention import NAME, causal_attention, cpu_attention
from tests.builders import LOPSIDED


def inputs(rows: int, heads: int, key_heads: int, length: int, width: int, dtype=torch.float64) -> list[Tensor]:
    """Query, key and value laid out as a Llama's projections lay them out, and a gradient of the output."""
    generator, counts = torch.Generator().manual_seed(length), (heads, key_heads, key_heads, heads)
    found = [torch.randn(rows, length, count, width, generator=generator, dtype=torch.float64) for count in counts]
    *attended, gradient = (tensor.to(dtype) for tensor in found)
    return [*(tensor.transpose(1, 2).requires_grad_() for tensor in attended), gradient]


def torchs(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    options = {"attn_mask": mask, "is_causal": mask is None, "scale": scaling, "enable_gqa": True}
    return scaled_dot_product_attention(query, key, value, **options).transpose(1, 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("heads", "key_heads", "length", "block", "scores"),
    [(6, 2, 1, 128, 2**20), (5, 1, 11, 128, 2**20), (6, 2, 11, 4, 2**20), (3, 3, 4, 4, 1), (5, 1, 11, 4, 1)]
    + [(6, 2, 11, 3, 2 * 6 * 3 * 11), (3, 3, 11, 3, 2 * 6 * 3 * 11)],
)
def test_every_blocking_gives_attention_and_its_gradients(monkeypatch, heads, key_heads, length, block, scores, masked):
    monkeypatch.setattr("models.cpu_attention.BLOCK", block)
    monkeypatch.setattr("models.cpu_attention.SCORES", scores)
    monkeypatch.setattr("models.cpu_attention.FEWEST", 2)
    query, key, value, gradient = inputs(3, heads, key_heads, length, 7)
    mask = None
    if masked:  # less than all that came before, in each row something else, and its own key always
        kept = torch.rand(3, 1, length, length, generator=torch.Generator().manual_seed(3)) < 0.5
        seen = (kept | torch.eye(length, dtype=torch.bool)).tril()
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    found, expected = (attend(query, key, value, 0.3, mask) for attend in (causal_attention, torchs))
    assert torch.allclose(found, expected, rtol=1e-12)
    mine, theirs = (torch.autograd.grad(output, (query, key, value), gradient) for output in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)  # those of keys and values are added up in fp32


@pytest.mark.parametrize("block", [128, 1])
def test_bf16_is_close_to_exact(monkeypatch, block):
    monkeypatch.setattr("models.cpu_attention.BLOCK", block)
    *attended, gradient = inputs(2, 6, 2, 40, 16, torch.bfloat16)
    exact = torchs(*(tensor.double() for tensor in attended), 0.25)
    found = causal_attention(*attended, 0.25)
    assert (found - exact).norm() < 0.01 * exact.norm()
    gradients = torch.autograd.grad(found, attended, gradient)
    for mine, right in zip(gradients, torch.autograd.grad(exact, attended, gradient.double()), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - right).norm() < 0.01 * right.norm()


def test_a_mask_that_is_not_additive_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**LOPSIDED))
    with cpu_attention(model), pytest.raises(TypeError, match="must be additive"):
        model(torch.ones(1, 5, dtype=torch.long), attention_mask=torch.ones(1, 1, 5, 5, dtype=torch.bool).tril())


@pytest.mark.parametrize(
    ("changes", "device", "taken"),
    [({}, "cpu", NAME), ({"attn_implementation": "eager"}, "cpu", "eager"), ({"attention_dropout": 0.1}, "cpu", "sdpa")]
    + [({}, "meta", "sdpa")],
)
def test_only_a_model_on_the_cpu_of_no_other_choice_takes_it_until_the_end(changes, device, taken):
    model = LlamaForCausalLM(LlamaConfig(**LOPSIDED, **changes)).to(device)
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), cpu_attention(model):
        assert model.config._attn_implementation == model.model.layers[0].self_attn.config._attn_implementation == taken
        raise ZeroDivisionError
    assert model.config._attn_implementation == before != NAME
