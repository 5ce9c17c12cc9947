"""Halves are the layer's own, windows see the restored model's inputs, and only weights inside the mask move."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.reconstruct import AttentionHalf, MlpHalf, Window, passed
from models.checkpoint import Checkpoint
from models.restoration import Restoration
from pruning.layers import LayerInputs, walk
from tests.builders import inputs_of
from utils.common.errors import UserError
from utils.common.methods import Options

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 256, (9, 23), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folders(make_tiny_llama) -> tuple[Path, Path]:
    """A dense and a pruned tiny Llama of the same weights, with biases."""
    return make_tiny_llama(attention_bias=True), make_tiny_llama(zeros=0.5, attention_bias=True)


@pytest.fixture(autouse=True)
def two_windows_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("pruning.layers.BATCH_TOKENS", 50)


def blocks(folders, dtype: torch.dtype = torch.float32) -> list[LayerInputs]:
    return walk(inputs_of(*folders, TOKENS, dtype).pruned(), TOKENS, CPU, "")


def reconstructed(folders, seed: int = 0) -> Restoration:
    return Restoration.start("reconstruct", Options(), inputs_of(*folders, TOKENS, seed=seed))


def states(model) -> list[tuple[Tensor, Tensor]]:
    """For each layer the hidden states (S, T, D) before it, and between its halves, one window at a time."""
    seen: list[tuple[list, list]] = [([], []) for _ in model.model.layers]
    hooks = []
    for layer, (before, between) in zip(model.model.layers, seen, strict=True):
        for norm, kept in ((layer.input_layernorm, before), (layer.post_attention_layernorm, between)):
            hooks.append(norm.register_forward_pre_hook(lambda _, x, kept=kept: kept.append(x[0])))
    with torch.no_grad():
        for window in TOKENS:
            model(window[None])
    for hook in hooks:
        hook.remove()
    return [(torch.cat(before), torch.cat(between)) for before, between in seen]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_halves_are_the_decoder_layer(folders, dtype):
    for block in blocks(folders, dtype):
        halfway = passed(AttentionHalf(block.layer), block)
        with torch.no_grad():
            whole = torch.cat([block.layer(batch, **block.kwargs) for batch in block.batches()])
            after = torch.cat([MlpHalf(block.layer)(batch) for batch in halfway.split(2)])
        assert torch.equal(after, whole) and not torch.equal(halfway, block.hidden)
    assert block.index == 2


def test_each_window_is_held_to_what_the_dense_half_makes_of_its_inputs_and_gets_better(folders):
    start, restoration = inputs_of(*folders, TOKENS), reconstructed(folders)
    dense, pruned, restored = start.dense(), start.pruned(), restoration.attach(start.pruned())
    fed, kwargs = states(restored), {}
    hook = dense.model.layers[0].register_forward_pre_hook(lambda *seen: kwargs.update(seen[2]), with_kwargs=True)
    dense(TOKENS[:1], use_cache=False)
    hook.remove()
    for index in range(3):
        for hidden, half in zip(fed[index], (AttentionHalf, MlpHalf), strict=True):
            with torch.no_grad():
                target, *found = (half(m.model.layers[index])(hidden, **kwargs) for m in (dense, pruned, restored))
            errors = [float((output - target).square().mean()) for output in found]
            (term,) = restoration.terms[f"model.layers.{index}.{half.linears[0]}.weight"]
            assert term.errors.tolist() == pytest.approx(errors, rel=1e-4)
            assert 0 < errors[1] < errors[0]


def test_only_weights_inside_the_mask_move(folders):
    restoration = reconstructed(folders)
    for name, (term,) in restoration.terms.items():
        zero = Checkpoint(folders[1]).read(name) == 0
        assert bool((term.change[zero] == 0).all()) and float((term.change[~zero] != 0).float().mean()) > 0.9
        assert not term.change.requires_grad
    assert restoration.describe().startswith("non-zero values of 21 weights, mean error ")


@pytest.mark.parametrize("half", [AttentionHalf, MlpHalf])
def test_gradients_are_those_of_the_weights_inside_the_mask(folders, half):
    block = next(blocks(folders))
    layer = block.layer
    inputs, target = block.batches()[1], torch.randn(2, 23, 24, generator=torch.Generator().manual_seed(3))
    window = Window(half(layer), [(inputs, target)], block.kwargs)
    changes = {name: torch.zeros_like(weight).requires_grad_() for name, weight in window.frozen.items()}
    window.loss(changes, inputs, target).backward()
    layer.requires_grad_(True)
    (half(layer)(inputs, **block.kwargs) - target).square().mean().backward()
    for name, change in changes.items():
        weight = layer.get_submodule(name).weight
        assert torch.allclose(change.grad, weight.grad * (weight != 0), rtol=1e-4, atol=1e-8)
        assert bool((change.grad[weight == 0] == 0).all()) and bool((weight.grad[weight == 0] != 0).any())


def test_a_model_that_is_not_pruned_stays_as_it_is(folders):
    restoration = reconstructed((folders[0], folders[0]))
    assert all(bool((tensor == 0).all()) for tensor in restoration.tensors().values())


def test_a_window_is_never_left_worse_than_it_was(folders, monkeypatch):
    monkeypatch.setattr("baselines.reconstruct.LR", 50.0)
    for (term,) in reconstructed(folders).terms.values():
        before, after = term.errors.tolist()
        assert 0 < before == after and bool((term.change == 0).all())


def test_the_seed_draws_the_order_of_the_batches(folders):
    first, same, other = (reconstructed(folders, seed).tensors() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_outputs_that_are_not_finite_are_one_line(folders, monkeypatch):
    monkeypatch.setattr(Window, "error", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"^-dtype: layer 0 is not finite on the calibration set; try bfloat16"):
        reconstructed(folders)
