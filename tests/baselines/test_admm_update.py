"""ADMM solves masked least squares on the restored model's inputs, and no zero is lost."""

from itertools import product

import pytest
import torch
from torch import Tensor

from baselines.admm_update import admm
from models.restoration import Restoration
from tests.baselines.test_closed_forms import TOKENS, inputs_seen
from tests.builders import inputs_of
from utils.common.methods import SITES, Options

OUT, IN = 7, 13


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """W0 (out, in), a mask of half of it, and correlated inputs (90, in) of very different sizes; fp64."""
    generator = torch.Generator().manual_seed(5)
    mixed = torch.randn(90, IN, generator=generator) @ torch.randn(IN, IN, generator=generator) + 1
    inputs = mixed.double() * torch.logspace(-2, 2, IN, dtype=torch.float64)
    weight = torch.randn(OUT, IN, generator=generator).double() / torch.logspace(-2, 2, IN, dtype=torch.float64)
    return weight, torch.rand(OUT, IN, generator=generator) < 0.5, inputs


def error(weight: Tensor, inputs: Tensor, wanted: Tensor) -> float:
    return float((inputs @ weight.T - wanted).square().sum())


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_many_steps_reach_the_exact_solution_inside_the_mask(damping):
    weight, mask, inputs = problem()
    found = admm(weight, mask, inputs.T @ inputs, 3000, damping=damping)
    assert found.dtype == torch.float64 and bool((found[~mask] == 0).all())
    # Damping is a few inputs more, one for each column.
    rows = torch.cat([inputs, damping**0.5 * torch.diag(inputs.norm(dim=0))])
    wanted = rows @ weight.T
    exact = torch.zeros_like(weight)
    for row, support in enumerate(mask):
        exact[row, support] = torch.linalg.lstsq(rows[:, support], wanted[:, row]).solution
    best, start = error(exact, rows, wanted), error(weight * mask, rows, wanted)
    assert 0 < best < 0.8 * start
    assert error(found, rows, wanted) < 1.01 * best


def test_steps_are_those_of_the_source():
    weight, mask, inputs = problem()
    hessian = torch.corrcoef(inputs.T)  # unit diagonal already
    damped = hessian + 0.1 * torch.eye(IN).double()
    free, dual = weight, torch.zeros_like(weight)
    for _ in range(3):
        inside = (free + dual) * mask
        dual = dual + free - inside
        free = (weight @ damped + 2.0 * (inside - dual)) @ torch.linalg.inv(damped + 2.0 * torch.eye(IN).double())
    assert torch.allclose(admm(weight, mask, hessian, 3, rho=2.0), (free + dual) * mask)
    assert torch.equal(admm(weight, mask, hessian), admm(weight, mask, hessian, 20, 1.0, 0.1))


def test_an_input_that_is_never_fed_leaves_its_weights_and_the_others_whatever_the_inputs_scales():
    weight, mask, inputs = problem()
    scale = torch.logspace(3, -2, IN, dtype=torch.float64)
    scaled = admm(weight / scale, mask, (inputs * scale).T @ (inputs * scale))
    assert torch.allclose(scaled * scale, admm(weight, mask, inputs.T @ inputs), rtol=1e-6)
    dead = torch.tensor([2, 9])
    alive = torch.ones(IN, dtype=torch.bool).index_fill(0, dead, False)
    inputs[:, dead] = 0
    found = admm(weight, mask, inputs.T @ inputs, damping=0.0)
    small = inputs[:, alive]
    assert torch.allclose(found[:, alive], admm(weight[:, alive], mask[:, alive], small.T @ small, damping=0.0))
    for each in (found, admm(weight, mask, inputs.T @ inputs)):
        assert torch.allclose(each[:, dead], (weight * mask)[:, dead])


def stream(model, layer: int) -> Tensor:
    """The residual stream (tokens, D) before a decoder layer, fp64."""
    found = (model(window[None], output_hidden_states=True).hidden_states[layer][0] for window in TOKENS)
    return torch.cat([each.detach().double() for each in found])


@pytest.mark.parametrize("method", ["admm_update", "admm_residual"])
def test_each_layer_is_fitted_to_what_the_restored_ones_before_it_feed_it(make_tiny_llama, monkeypatch, method):
    monkeypatch.setattr("pruning.layers.BATCH_TOKENS", 50)  # two windows at a time
    folders = make_tiny_llama(attention_bias=True), make_tiny_llama(seed=3, zeros=0.5, attention_bias=True)
    start = inputs_of(*folders, TOKENS)
    start.config.residual_multiplier = 0.5  # as a Granite has it: what is written counts half
    returned = 0.25 / 0.5 if method == "admm_residual" else 0
    restoration = Restoration.start(method, Options(), start)
    for layer, site in product(range(3), SITES.values()):
        name = f"model.layers.{layer}.{site}"
        before = {full: some for full, some in restoration.terms.items() if int(full.split(".")[2]) < layer}
        restored = Restoration("", before).attach(start.pruned())
        seen, lost = inputs_seen(restored, TOKENS), stream(start.dense(), layer) - stream(restored, layer)
        weight, pruned = (read(f"{name}.weight").double() for read in (start.teacher, start.read))
        inputs = seen[name]
        more = returned * lost.T @ inputs if site in (SITES["attention"], SITES["ffn"]) else 0.0
        best = admm(weight, pruned != 0, inputs.T @ inputs, more=more)
        found = restoration.merged(f"{name}.weight", start.read)
        assert torch.allclose(found, best, atol=2e-3 * float(best.abs().max())), name
        wanted = inputs @ weight.T
        errors = [error(value, inputs, wanted) / float(wanted.square().sum()) for value in (pruned, found)]
        assert restoration.terms[f"{name}.weight"][0].errors.tolist() == pytest.approx(errors, rel=1e-3)
        assert errors[1] < errors[0] or method == "admm_residual"
        assert bool((found[pruned == 0] == 0).all()) and float((found != pruned)[pruned != 0].float().mean()) > 0.9
    assert not any(parameter.requires_grad for some in restoration.terms.values() for parameter in some[0].parameters())
    if method == "admm_residual":  # a layer that norms what it adds to the stream
        monkeypatch.setattr(type(start.pruned().model.layers[0]), "post_feedforward_layernorm", None, raising=False)
        plain, other = (Restoration.start(each, Options(), start).tensors() for each in ("admm_update", method))
        torch.testing.assert_close(other, plain, rtol=0, atol=0)
