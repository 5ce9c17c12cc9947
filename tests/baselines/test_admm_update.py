"""ADMM solves masked least squares, on the inputs that its stream names, and no zero is lost."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.admm_update import admm, relative_error
from models.checkpoint import LINEARS, Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.restoration import Restoration
from tests.baselines.test_flap_bias import seen
from utils.common.errors import UserError
from utils.common.methods import SITES, Options

OUT, IN, TOKENS = 7, 13, 90


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """W0 (out, in), a mask of half of it, and correlated inputs (tokens, in) of very different sizes; fp64."""
    generator = torch.Generator().manual_seed(5)
    mixed = torch.randn(TOKENS, IN, generator=generator) @ torch.randn(IN, IN, generator=generator) + 1
    inputs = mixed.double() * torch.logspace(-2, 2, IN, dtype=torch.float64)
    weight = torch.randn(OUT, IN, generator=generator).double() / torch.logspace(-2, 2, IN, dtype=torch.float64)
    return weight, torch.rand(OUT, IN, generator=generator) < 0.5, inputs


def exact(mask: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """The best weights inside the mask, one row's support at a time: inputs (n, in), wanted (n, out)."""
    best = torch.zeros(mask.shape, dtype=torch.float64)
    for row, support in enumerate(mask):
        best[row, support] = torch.linalg.lstsq(inputs[:, support], wanted[:, row]).solution
    return best


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
    best, start = error(exact(mask, rows, wanted), rows, wanted), error(weight * mask, rows, wanted)
    assert 0 < best < 0.8 * start
    assert error(found, rows, wanted) < 1.01 * best


def test_the_usual_steps_lower_the_error():
    weight, mask, inputs = problem()
    found, wanted = admm(weight, mask, inputs.T @ inputs), inputs @ weight.T
    assert bool((found[~mask] == 0).all())
    assert error(found, inputs, wanted) < 0.8 * error(weight * mask, inputs, wanted)


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


def test_what_other_inputs_gave_can_be_wanted():
    weight, mask, inputs = problem()
    others = inputs + 0.3 * inputs.roll(1, 0)
    found = admm(weight, mask, inputs.T @ inputs, 3000, damping=0.0, cross=others.T @ inputs)
    wanted = others @ weight.T
    best = error(exact(mask, inputs, wanted), inputs, wanted)
    assert 0 < error(found, inputs, wanted) < 1.01 * best
    assert error(admm(weight, mask, inputs.T @ inputs, 3000, damping=0.0), inputs, wanted) > 1.02 * best


def test_nothing_moves_where_nothing_is_pruned():
    weight, mask, inputs = problem()
    assert torch.allclose(admm(weight, torch.ones_like(mask), inputs.T @ inputs), weight, rtol=1e-9)


def test_an_input_that_is_never_fed_leaves_its_weights_and_the_others():
    weight, mask, inputs = problem()
    dead = torch.tensor([2, 9])
    alive = torch.ones(IN, dtype=torch.bool).index_fill(0, dead, False)
    inputs[:, dead] = 0
    found = admm(weight, mask, inputs.T @ inputs, damping=0.0)
    assert torch.allclose(found[:, dead], (weight * mask)[:, dead])
    small = inputs[:, alive]
    assert torch.allclose(found[:, alive], admm(weight[:, alive], mask[:, alive], small.T @ small, damping=0.0))
    assert torch.allclose(admm(weight, mask, inputs.T @ inputs)[:, dead], (weight * mask)[:, dead])


def test_the_scale_of_an_input_makes_no_difference():
    weight, mask, inputs = problem()
    scale = torch.logspace(3, -2, IN, dtype=torch.float64)
    scaled = admm(weight / scale, mask, (inputs * scale).T @ (inputs * scale))
    assert torch.allclose(scaled * scale, admm(weight, mask, inputs.T @ inputs), rtol=1e-6)


def test_relative_errors_are_those_of_the_outputs():
    weight, mask, inputs = problem()
    others, wrong = inputs.roll(1, 0), weight * mask
    sums = (inputs.T @ inputs, others.T @ inputs, others.T @ others)
    wanted = others @ weight.T
    expected = error(wrong, inputs, wanted) / float(wanted.square().sum())
    assert relative_error(wrong, weight, *sums) == pytest.approx(expected)


@pytest.fixture
def folders(make_tiny_llama) -> tuple[Path, Path]:
    """A dense and a pruned tiny Llama with biases; what is left of the pruned one's weights is a little larger."""
    dense, pruned = make_tiny_llama(attention_bias=True), make_tiny_llama(zeros=0.5, attention_bias=True)
    model = load_model(pruned, torch.float32, "cpu", "-p")
    for layer in model.model.layers:
        for name in LINEARS:
            layer.get_submodule(name).weight.mul_(1.1)
    model.save_pretrained(pruned)
    return dense, pruned


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (9, 23), generator=torch.Generator().manual_seed(2))


def given(folders: tuple[Path, Path], tokens: Tensor) -> MethodInputs:
    dense, pruned = folders
    loads = [partial(load_model, folder, torch.float32, "cpu", "-p") for folder in folders]
    read, teacher = Checkpoint(pruned).read, Checkpoint(dense).read
    return MethodInputs(
        load_config(pruned, "-p"), 0, read, teacher=teacher, tokens=tokens, dense=loads[0], pruned=loads[1]
    )


@pytest.mark.parametrize("stream", ["dense", "pruned", "sequential"])
def test_each_layer_is_fitted_to_what_its_stream_feeds_it(folders, tokens, monkeypatch, stream):
    monkeypatch.setattr("baselines.streams.BATCH_TOKENS", 50)  # two windows at a time
    start = given(folders, tokens)
    restoration = Restoration.start("admm_update", Options(stream=stream), start)
    # A layer's inputs depend on the layers before it alone, so the finished model gives them as they were.
    models = start.dense(), restoration.attach(start.pruned())
    dense, restored = ({name: rows for name, (rows, _) in seen(model, tokens).items()} for model in models)
    restored = dense if stream == "dense" else restored
    wanted = restored if stream == "pruned" else dense
    for layer in range(3):
        for site in SITES.values():
            name = f"model.layers.{layer}.{site}"
            weight, pruned = (read(f"{name}.weight").double() for read in (start.teacher, start.read))
            inputs, others = restored[name], wanted[name]
            best = admm(weight, pruned != 0, inputs.T @ inputs, cross=others.T @ inputs)
            found = restoration.merged(f"{name}.weight", start.read)
            assert torch.allclose(found, best, atol=2e-3 * float(best.abs().max())), name
            whole = float((others @ weight.T).square().sum())
            errors = [error(value, inputs, others @ weight.T) / whole for value in (pruned, found)]
            assert restoration.terms[f"{name}.weight"][0].errors.tolist() == pytest.approx(errors, rel=1e-3)
            assert errors[1] < errors[0]


def test_the_default_stream_is_the_restored_models(folders, tokens):
    found = [Restoration.start("admm_update", Options(stream=s), given(folders, tokens)) for s in (None, "pruned")]
    one, two = (restoration.tensors() for restoration in found)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_only_weights_inside_the_mask_are_touched(folders, tokens):
    start = given(folders, tokens)
    restoration = Restoration.start("admm_update", Options(), start)
    for (term,) in restoration.terms.values():
        term.change.data.add_(0.01)  # outside the mask too
    model = restoration.attach(start.pruned())
    for layer in model.model.layers:
        for name in LINEARS:
            linear = layer.get_submodule(name)
            for weight in (linear.trained("weight"), linear.merged("weight")):
                outside = weight[linear.weight == 0]
                assert len(outside) and bool((outside == 0).all()) and not bool(outside.signbit().any())
                assert float((weight != linear.weight)[linear.weight != 0].float().mean()) > 0.9
            assert linear.rounding_error() <= 1
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert restoration.describe().startswith("non-zero values of 21 weights, mean error ")


def test_inputs_that_are_not_finite_are_one_line(folders, tokens, monkeypatch):
    infinite = torch.full((16, 16), float("inf"))
    monkeypatch.setattr("baselines.admm_update.products", lambda *_: (infinite,) * 3)
    with pytest.raises(UserError, match=r"^-dtype: the input of layer 0 \(self_attn.q_proj\) is not finite"):
        Restoration.start("admm_update", Options(), given(folders, tokens))


def test_a_second_closed_form_reads_what_the_first_restored(folders, tokens):
    alone, after = (
        Restoration.start("admm_update", Options(first=first), given(folders, tokens)).terms
        for first in (None, "flap_bias")
    )
    first, second = (
        [terms[f"model.layers.{n}.self_attn.q_proj.weight"][0].change for terms in (alone, after)] for n in (0, 1)
    )
    assert torch.equal(*first) and not torch.allclose(*second, rtol=1e-3)
