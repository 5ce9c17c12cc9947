"""EoRA's update is the best of its rank on what the restored model's layers are fed, and no layer sees a later one."""

from functools import partial

import pytest
import torch

from baselines.eora import low_rank
from models.checkpoint import LINEARS, Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.restoration import Restoration
from utils.common.methods import Options, parts_of

OUT, IN = 13, 21


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(tokens: int = 400, seed: int = 1) -> torch.Tensor:
    """E[x xᵀ] of inputs with features of very different sizes, mixed; singular for fewer tokens than IN."""
    inputs = draw(tokens, IN, seed=seed) * torch.logspace(-1, 1, IN, dtype=torch.float64) @ draw(IN, IN, seed=9)
    return inputs.T @ inputs / tokens


def error(lost: torch.Tensor, update: torch.Tensor, second: torch.Tensor) -> float:
    """E‖(lost - update) x‖²."""
    return float(torch.einsum("oi,ij,oj->", lost - update, second, lost - update))


def discarded(lost: torch.Tensor, second: torch.Tensor, rank: int) -> float:
    """Σ of the squares of what singular values of lost · S^½ a rank leaves out, S^½ the symmetric root."""
    values, vectors = torch.linalg.eigh(second)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    return float(torch.linalg.svdvals(lost @ root)[rank:].square().sum())


@pytest.mark.parametrize(("out", "tokens"), [(OUT, 400), (34, 400), (OUT, 8), (34, 8)])
@pytest.mark.parametrize("rank", [1, 3, 7, 13])
def test_the_error_is_what_the_rank_leaves_out(rank, out, tokens):
    lost, second = draw(out, IN), moment(tokens)
    down, up = low_rank(lost, second, rank)
    assert down.shape == (rank, IN) and up.shape == (out, rank)
    whole = error(lost, torch.zeros_like(lost), second)
    assert error(lost, up @ down, second) == pytest.approx(discarded(lost, second, rank), rel=1e-6, abs=1e-8 * whole)
    assert error(lost, up @ down, second) < whole


def test_it_is_the_formula():
    """B = U_r Σ_r^½ and A = Σ_r^½ V_rᵀ Λ^-½ Qᵀ, by an SVD; each pair of rows and columns up to its sign."""
    lost, second = draw(OUT, IN), moment()
    values, q = torch.linalg.eigh(second)
    u, sigma, v = torch.linalg.svd(lost @ q @ torch.diag(values.sqrt()), full_matrices=False)
    up = u[:, :4] * sigma[:4].sqrt()
    down = sigma[:4, None].sqrt() * v[:4] @ torch.diag(values.rsqrt()) @ q.T
    found_down, found_up = low_rank(lost, second, 4)
    signs = (found_up * up).sum(0).sign()
    assert torch.allclose(found_up, up * signs, atol=1e-8)
    assert torch.allclose(found_down, down * signs[:, None], atol=1e-8)


@pytest.mark.parametrize("out", [OUT, 34])
@pytest.mark.parametrize("rank", [IN, 50])
def test_full_rank_gives_the_dense_weights_back(rank, out):
    lost = draw(out, IN)
    down, up = low_rank(lost, moment(), rank)
    assert down.shape == (rank, IN) and up.shape == (out, rank)
    assert torch.allclose(up @ down, lost, atol=1e-9)
    least = min(out, IN)
    assert not down[least:].any() and not up[:, least:].any()


def test_without_data_on_most_directions_it_is_exact_on_those_and_harms_none():
    lost, second = draw(OUT, IN), moment(tokens=8)
    down, up = low_rank(lost, second, 50)
    _, vectors = torch.linalg.eigh(second)
    seen = vectors[:, -8:]
    assert torch.linalg.matrix_rank(second, rtol=1e-9, hermitian=True) == 8 and not up[:, 8:].any()
    assert torch.allclose(up @ down @ seen, lost @ seen, atol=1e-6)
    inputs = draw(IN, 500, seed=5)
    before, after = (lost @ inputs).norm(dim=0), ((lost - up @ down) @ inputs).norm(dim=0)
    assert (after <= before).all() and float(after.mean()) < 0.8 * float(before.mean())


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


def test_a_huge_feature_hides_no_small_one():
    """As the massive activations of a language model do: eigenvalues 1e-9 of the largest hold half of what is lost."""
    lost, second = draw(OUT, IN), torch.eye(IN, dtype=torch.float64)
    second[0, 0] = 1e9
    lost[:, 0] *= 1e-5
    down, up = low_rank(lost, second, OUT)
    assert error(lost, up @ down, second) < 1e-9 * error(lost, torch.zeros_like(lost), second)


def test_nothing_lost_and_nothing_seen_give_zeros():
    nothing = torch.zeros(OUT, IN, dtype=torch.float64)
    for lost, second in ((nothing, moment()), (draw(OUT, IN), torch.zeros(IN, IN, dtype=torch.float64))):
        down, up = low_rank(lost, second, 3)
        assert down.shape == (3, IN) and up.shape == (OUT, 3)
        assert not down.any() and not up.any()


# On a model.


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (6, 31), generator=torch.Generator().manual_seed(2))


def started(dense, pruned, tokens, rank: int) -> Restoration:
    loads = [partial(load_model, folder, torch.float32, "cpu", "-b") for folder in (dense, pruned)]
    given = MethodInputs(
        load_config(pruned, "-p"), 0, Checkpoint(pruned).read, teacher=Checkpoint(dense).read, tokens=tokens,
        dense=loads[0], pruned=loads[1],
    )  # fmt: skip
    return Restoration.start("eora", Options(lora_rank=rank), given)


def test_each_block_is_restored_on_what_the_restored_blocks_before_it_feed_it(make_tiny_llama, tokens, monkeypatch):
    """A run of the whole model for each block, all inputs kept, and the optimum from an SVD of lost outputs."""
    monkeypatch.setattr("baselines.streams.BATCH_TOKENS", 70)
    dense, pruned, rank = make_tiny_llama(), make_tiny_llama(zeros=0.5), 3
    restoration = started(dense, pruned, tokens, rank)
    model, teacher = load_model(pruned, torch.float32, "cpu", "-p"), load_model(dense, torch.float32, "cpu", "-b")
    for index, block in enumerate(model.model.layers):
        inputs, hooks = {}, []
        for name in LINEARS:

            def keep(_, x, name=name, inputs=inputs):
                inputs[name] = x[0].flatten(0, 1).double()

            hooks.append(block.get_submodule(name).register_forward_pre_hook(keep))
        with torch.no_grad():
            model(tokens)
        for hook in hooks:
            hook.remove()
        for name in LINEARS:
            linear = block.get_submodule(name)
            lost = teacher.model.layers[index].get_submodule(name).weight.double() - linear.weight.double()
            x = inputs[name]
            outputs = x @ lost.T
            (term,) = restoration.terms[f"model.layers.{index}.{name}.weight"]
            # The best update of a rank keeps the leading principal directions of the lost outputs.
            u = torch.linalg.svd(outputs.T, full_matrices=False)[0][:, :rank]
            update = term.up.double() @ term.down.double()
            best = (outputs - outputs @ u @ u.T).square().sum()
            assert float((outputs - x @ update.T).square().sum()) == pytest.approx(float(best), rel=1e-5), (index, name)
            assert best < outputs.square().sum()
            linear.weight.copy_(linear.weight.double() + update)


def test_full_rank_restores_the_dense_model(make_tiny_llama, tokens):
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    restoration = started(dense, pruned, tokens, 60)
    model = restoration.attach(load_model(pruned, torch.float32, "cpu", "-p"))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        found = model(tokens).logits
        wanted, before = (load_model(f, torch.float32, "cpu", "-b")(tokens).logits for f in (dense, pruned))
    scale = float(wanted.abs().max())
    assert torch.allclose(found, wanted, atol=1e-3 * scale) and not torch.allclose(before, wanted, atol=0.1 * scale)


def test_it_is_untrained_and_its_zeros_are_reported(make_tiny_llama, tokens):
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    restoration = started(dense, pruned, tokens, 3)
    (part,) = parts_of("eora", Options(lora_rank=3))
    assert not part.needs.training and part.needs.calibration and part.needs.teacher
    assert restoration.zeros == "reported" and len(restoration.terms) == 3 * 7
    assert restoration.untrained().terms == restoration.terms
    assert restoration.describe() == "low-rank updates of 21 weights"
