"""EoRA's update is the best of its rank on what the restored model's layers are fed, and no layer sees a later one."""

import pytest
import torch

from baselines.eora import low_rank
from models.checkpoint import LINEARS
from models.restoration import Restoration
from tests.baselines.test_closed_forms import TOKENS, inputs_seen
from tests.builders import inputs_of
from utils.common.methods import Options

OUT, IN = 13, 21


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(lost: torch.Tensor, update: torch.Tensor, second: torch.Tensor) -> float:
    """E‖(lost - update) x‖²."""
    return float(torch.einsum("oi,ij,oj->", lost - update, second, lost - update))


@pytest.mark.parametrize(
    ("out", "tokens", "rank"), [(OUT, 400, 1), (34, 400, 7), (OUT, 8, 3), (34, 8, 13), (OUT, 8, 50)]
)
def test_the_error_is_what_the_rank_leaves_out_and_no_input_is_harmed(out, tokens, rank):
    # Features of very different sizes, mixed; E[x xᵀ] is singular for fewer tokens than IN.
    inputs = draw(tokens, IN, seed=1) * torch.logspace(-1, 1, IN, dtype=torch.float64) @ draw(IN, IN, seed=9)
    lost, second = draw(out, IN), inputs.T @ inputs / tokens
    down, up = low_rank(lost, second, rank)
    assert down.shape == (rank, IN) and up.shape == (out, rank)
    assert not up[:, tokens:].any()  # directions without data
    values, vectors = torch.linalg.eigh(second)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    # Σ of the squares of what singular values of lost · S^½ a rank leaves out, S^½ the symmetric root.
    left_out = float(torch.linalg.svdvals(lost @ root)[rank:].square().sum())
    whole = error(lost, torch.zeros_like(lost), second)
    assert error(lost, up @ down, second) == pytest.approx(left_out, rel=1e-6, abs=1e-8 * whole)
    assert error(lost, up @ down, second) < whole
    inputs = draw(IN, 500, seed=5)
    assert (((lost - up @ down) @ inputs).norm(dim=0) <= (lost @ inputs).norm(dim=0)).all()


@pytest.mark.parametrize("out", [OUT, 34])
def test_small_singular_values_take_directions_that_stay_orthogonal(out):
    """Else B A is no projection of the lost output, and full rank doesn't give it back."""
    lost, steep = draw(out, IN), torch.logspace(0, -11, IN, dtype=torch.float64)
    turn = torch.linalg.qr(draw(IN, IN, seed=4))[0]
    down, up = low_rank(lost, turn * steep @ turn.T, IN)
    unit = up / up.norm(dim=0)
    kept = (up != 0).any(0)
    assert kept.sum() == min(out, IN)
    assert torch.allclose(unit.T[kept] @ unit[:, kept], torch.eye(int(kept.sum()), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(up @ down, lost, atol=1e-9)


def test_a_huge_feature_hides_no_small_one_and_nothing_lost_or_seen_gives_zeros():
    """Massive activations of a language model are huge: eigenvalues 1e-9 of the largest hold half of what is lost."""
    lost, second, nothing = draw(OUT, IN), torch.eye(IN, dtype=torch.float64), torch.zeros(OUT, IN, dtype=torch.float64)
    for empty in (low_rank(nothing, second, 3), low_rank(lost, 0 * second, 3)):
        assert [part.shape for part in empty] == [(3, IN), (OUT, 3)] and not any(part.any() for part in empty)
    second[0, 0] = 1e9
    lost[:, 0] *= 1e-5
    down, up = low_rank(lost, second, OUT)
    assert error(lost, up @ down, second) < 1e-9 * error(lost, nothing, second)


def test_each_block_is_restored_on_what_the_restored_blocks_before_it_feed_it(make_tiny_llama, monkeypatch):
    """A run of the whole model for each block, and the optimum from an SVD of lost outputs."""
    monkeypatch.setattr("pruning.layers.BATCH_TOKENS", 70)
    start, rank = inputs_of(make_tiny_llama(), make_tiny_llama(zeros=0.5), TOKENS), 3
    restoration, model = Restoration.start("eora", Options(lora_rank=rank), start), start.pruned()
    for index in range(3):
        inputs = inputs_seen(model, TOKENS)
        for name in (f"model.layers.{index}.{linear}" for linear in LINEARS):
            linear, (term,) = model.get_submodule(name), restoration.terms[f"{name}.weight"]
            outputs = inputs[name] @ (start.teacher(f"{name}.weight").double() - linear.weight.double()).T
            # The best update of a rank keeps the leading principal directions of the lost outputs.
            u = torch.linalg.svd(outputs.T, full_matrices=False)[0][:, :rank]
            update = term.up.double() @ term.down.double()
            best = float((outputs - outputs @ u @ u.T).square().sum())
            assert float((outputs - inputs[name] @ update.T).square().sum()) == pytest.approx(best, rel=1e-5), name
            assert best < outputs.square().sum()
            linear.weight.copy_(linear.weight.double() + update)
    assert restoration.zeros == "reported" and len(restoration.terms) == 3 * 7
    assert restoration.untrained().terms == restoration.terms
    assert restoration.describe() == "low-rank updates of 21 weights"
