"""Halves are the layer's own, see the restored model's inputs, and only weights inside the mask move."""

from pathlib import Path

import pytest
import torch

from baselines.reconstruct import HalfLayer
from models.restoration import Restoration
from pruning.layers import walk
from tests.baselines.test_closed_forms import TOKENS
from tests.builders import inputs_of, mistake
from utils.common.methods import Options


@pytest.fixture
def folders(make_tiny_llama, monkeypatch) -> tuple[Path, Path]:
    """A dense and a pruned tiny Llama of the same weights, with biases; they are fed two windows at a time."""
    monkeypatch.setattr("pruning.layers.BATCH_TOKENS", 50)
    return make_tiny_llama(attention_bias=True), make_tiny_llama(zeros=0.5, attention_bias=True)


def reconstructed(folders, seed: int = 0) -> Restoration:
    return Restoration.start("reconstruct", Options(), inputs_of(*folders, TOKENS, seed=seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_halves_are_the_decoder_layer(folders, dtype):
    for each in walk(inputs_of(*folders, TOKENS, dtype).pruned(), TOKENS, torch.device("cpu"), ""):
        halfway = HalfLayer(each.layer, attention=True).passed(each)
        with torch.no_grad():
            whole = torch.cat([each.layer(batch, **each.kwargs) for batch in each.batches()])
        after = HalfLayer(each.layer, attention=False).passed(halfway).hidden
        assert torch.equal(after, whole) and not torch.equal(halfway.hidden, each.hidden)
    assert each.index == 2


def test_each_half_gets_closer_to_what_the_dense_half_makes_of_its_inputs_inside_the_mask(folders):
    start, restoration = inputs_of(*folders, TOKENS), reconstructed(folders)
    models = start.dense(), start.pruned(), restoration.attach(start.pruned())
    for fed in walk(models[2], TOKENS, torch.device("cpu"), ""):
        for attention, linear in ((True, "self_attn.o_proj"), (False, "mlp.up_proj")):
            target, *found = (HalfLayer(m.model.layers[fed.index], attention).passed(fed).hidden for m in models)
            errors = [float((hidden - target).square().mean()) for hidden in found]
            (term,) = restoration.terms[f"model.layers.{fed.index}.{linear}.weight"]
            assert term.errors.tolist() == pytest.approx(errors, rel=1e-4)
            assert 0 < errors[1] < errors[0]
            fed = HalfLayer(models[2].model.layers[fed.index], attention).passed(fed)
    for name, (term,) in restoration.terms.items():
        zero = start.read(name) == 0
        assert bool((term.change[zero] == 0).all()) and float((term.change[~zero] != 0).float().mean()) > 0.9
        assert not term.change.requires_grad
    assert restoration.describe().startswith("non-zero values of 21 weights, mean error ")
    assert Restoration("", dict([restoration.terms.popitem()])).describe().startswith("non-zero values of 1 weight, ")


def test_a_half_is_never_left_worse_and_one_that_is_not_pruned_stays_as_it_is(folders, monkeypatch):
    assert not any(tensor.any() for tensor in reconstructed((folders[0], folders[0])).tensors().values())
    monkeypatch.setattr("baselines.reconstruct.LR", 50.0)
    for (term,) in reconstructed(folders).terms.values():
        before, after = term.errors.tolist()
        assert 0 < before == after and not term.change.any()


def test_the_seed_draws_the_order_of_the_batches(folders):
    first, same, other = (reconstructed(folders, seed).tensors() for seed in (1, 1, 2))
    torch.testing.assert_close(same, first, rtol=0, atol=0)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_outputs_that_are_not_finite_are_one_line(folders, monkeypatch):
    monkeypatch.setattr(HalfLayer, "loss", lambda *_: torch.tensor(float("nan")))
    mistake(r"^-dtype: layer 0 is not finite on the calibration set; try bfloat16", reconstructed, folders)
