"""Halves are the layer's own, each window sees what its stream says, and only weights inside the mask move."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.reconstruct import AttentionHalf, MlpHalf, Window, passed
from baselines.streams import walk
from models.checkpoint import LINEARS, Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.restoration import Restoration
from utils.common.errors import UserError
from utils.common.methods import Options

OPTIONS = partial(Options, reconstruct_lr=1e-3, reconstruct_epochs=3)


@pytest.fixture
def folders(make_tiny_llama) -> tuple[Path, Path]:
    """A dense and a pruned tiny Llama of the same weights, with biases."""
    return make_tiny_llama(attention_bias=True), make_tiny_llama(zeros=0.5, attention_bias=True)


@pytest.fixture(autouse=True)
def two_windows_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("baselines.streams.BATCH_TOKENS", 50)


TOKENS = torch.randint(0, 256, (9, 23), generator=torch.Generator().manual_seed(2))


def given(folders: tuple[Path, Path], seed: int = 0, dtype: torch.dtype = torch.float32) -> MethodInputs:
    dense, pruned = folders
    loads = [partial(load_model, folder, dtype, "cpu", "-p") for folder in folders]
    read, teacher = Checkpoint(pruned).read, Checkpoint(dense).read
    return MethodInputs(
        load_config(pruned, "-p"), seed, read, teacher=teacher, tokens=TOKENS, dense=loads[0], pruned=loads[1]
    )


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
    blocks = 0
    for block in walk(given(folders, dtype=dtype), "", dense=False):
        stream, layer = block.restored, block.restored.layer
        halfway = passed(AttentionHalf(layer), stream)
        whole = torch.cat([layer(batch, **stream.kwargs) for batch in stream.batches()])
        after = torch.cat([MlpHalf(layer)(batch) for batch in halfway.split(2)])
        assert torch.equal(after, whole) and not torch.equal(halfway, stream.hidden)
        blocks += 1
    assert blocks == 3


@pytest.mark.parametrize("stream", ["dense", "pruned", "sequential"])
def test_each_window_is_held_to_what_its_stream_says_and_gets_better(folders, stream):
    start = given(folders)
    restoration = Restoration.start("reconstruct", OPTIONS(stream=stream), start)
    dense, pruned, restored = start.dense(), start.pruned(), restoration.attach(start.pruned())
    true, own = states(dense), states(restored)
    fed = true if stream == "dense" else own
    asked = own if stream == "pruned" else true
    kwargs = {}
    hook = dense.model.layers[0].register_forward_pre_hook(lambda *seen: kwargs.update(seen[2]), with_kwargs=True)
    dense(TOKENS[:1], use_cache=False)
    hook.remove()
    for index in range(3):
        for row, half in enumerate((AttentionHalf, MlpHalf)):
            with torch.no_grad():
                target = half(dense.model.layers[index])(asked[index][row], **kwargs)
                found = [half(model.model.layers[index])(fed[index][row], **kwargs) for model in (pruned, restored)]
            errors = [float((output - target).square().mean()) for output in found]
            assert restoration.terms[f"model.layers.{index}.{half.linears[0]}.weight"][
                0
            ].errors.tolist() == pytest.approx(errors, rel=1e-4)
            assert 0 < errors[1] < errors[0]


def test_the_default_stream_is_the_restored_models(folders):
    found = [Restoration.start("reconstruct", OPTIONS(stream=s), given(folders)) for s in (None, "pruned")]
    one, two = (restoration.tensors() for restoration in found)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_only_weights_inside_the_mask_move(folders):
    start = given(folders)
    restoration = Restoration.start("reconstruct", OPTIONS(), start)
    model = restoration.attach(start.pruned())
    for index, layer in enumerate(model.model.layers):
        for name in LINEARS:
            linear, change = (
                layer.get_submodule(name),
                restoration.terms[f"model.layers.{index}.{name}.weight"][0].change,
            )
            zero = linear.weight == 0
            assert bool((change[zero] == 0).all()) and float((change[~zero] != 0).float().mean()) > 0.9
            outside = linear.trained("weight")[zero]
            assert len(outside) and bool((outside == 0).all()) and not bool(outside.signbit().any())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert restoration.describe().startswith("non-zero values of 21 weights, mean error ")


@pytest.mark.parametrize("half", [AttentionHalf, MlpHalf])
def test_gradients_are_those_of_the_weights_inside_the_mask(folders, half):
    block = next(walk(given(folders), "", dense=False))
    stream, layer = block.restored, block.restored.layer
    inputs, target = stream.batches()[1], torch.randn(2, 23, 24, generator=torch.Generator().manual_seed(3))
    window = Window(half(layer), [(inputs, target)], stream.kwargs)
    changes = {name: torch.zeros_like(weight).requires_grad_() for name, weight in window.frozen.items()}
    window.loss(changes, inputs, target).backward()
    layer.requires_grad_(True)
    (half(layer)(inputs, **stream.kwargs) - target).square().mean().backward()
    for name, change in changes.items():
        weight = layer.get_submodule(name).weight
        assert torch.allclose(change.grad, weight.grad * (weight != 0), rtol=1e-4, atol=1e-8)
        assert bool((change.grad[weight == 0] == 0).all()) and bool((weight.grad[weight == 0] != 0).any())


def test_a_model_that_is_not_pruned_stays_as_it_is(folders):
    restoration = Restoration.start("reconstruct", OPTIONS(), given((folders[0], folders[0])))
    assert all(bool((tensor == 0).all()) for tensor in restoration.tensors().values())


def test_a_window_is_never_left_worse_than_it_was(folders):
    restoration = Restoration.start("reconstruct", OPTIONS(reconstruct_lr=50.0), given(folders))
    for (term,) in restoration.terms.values():
        before, after = term.errors.tolist()
        assert 0 < before == after and bool((term.change == 0).all())


def test_the_seed_draws_the_order_of_the_batches(folders):
    first, same, other = (
        Restoration.start("reconstruct", OPTIONS(), given(folders, seed)).tensors() for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_outputs_that_are_not_finite_are_one_line(folders, monkeypatch):
    monkeypatch.setattr(Window, "error", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"^-dtype: layer 0 is not finite on the calibration set; try bfloat16"):
        Restoration.start("reconstruct", OPTIONS(), given(folders))
