"""Lost components are what Eqs. 3-4 say, for all heads at once; probes rank the heads that tell right from wrong."""

import pytest
import torch

from benchmarks.run import head_by_head
from utils.components import lost_components, random_basis
from utils.probing import ProbeScores, order_randomly, probe_heads, rank_by_score, rank_heads

LAYERS, HEADS, SAMPLES, WIDTH = 3, 5, 120, 7
EVERYTHING = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("samples", [40, 4])
@pytest.mark.parametrize("count", [1, 3, WIDTH])
def test_component_and_basis_are_those_of_a_direct_svd(samples, count):
    gap = torch.randn(LAYERS, HEADS, samples, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5
    found = lost_components(gap, count)
    u, sigma, v = torch.linalg.svd(gap.double(), full_matrices=False)
    mean = (u * sigma.unsqueeze(2)).mean(2)[..., None, :count] @ v[..., :count, :]
    assert torch.allclose(found.component.double(), mean.squeeze(2), atol=1e-5)
    overlap = (found.basis.double()[..., : v.shape[2], :] @ v.mT).abs()
    assert torch.allclose(overlap, torch.eye(v.shape[2]).double().expand_as(overlap), atol=1e-3)
    # Fewer samples than directions: V is full all the same.
    assert torch.allclose(found.basis @ found.basis.mT, torch.eye(WIDTH).expand_as(found.basis), atol=1e-5)
    assert (found.explained.diff(dim=-1) <= 1e-6).all()
    assert torch.allclose(found.explained.sum(-1), torch.ones(LAYERS, HEADS), atol=1e-5)
    if count == WIDTH:
        assert torch.allclose(found.component, gap.mean(2), atol=1e-5)
    gap[1, 3] = 0
    nothing_lost = lost_components(gap, count)
    assert not nothing_lost.component[1, 3].any() and not nothing_lost.explained[1, 3].any()


def test_random_basis_is_orthonormal_and_seeded():
    like = torch.empty(LAYERS, HEADS, WIDTH, WIDTH)
    basis = random_basis(like, 3)
    assert torch.allclose(basis @ basis.mT, torch.eye(WIDTH).expand_as(basis), atol=1e-5)
    assert torch.equal(basis, random_basis(like, 3)) and not torch.equal(basis, random_basis(like, 4))


def features(planted: tuple[int, int], strength: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise everywhere; in one head right answers are shifted one way and wrong ones the other."""
    generator = torch.Generator().manual_seed(0)
    shared, right, wrong = (torch.randn(LAYERS, HEADS, SAMPLES, WIDTH, generator=generator) for _ in range(3))
    right[planted] += strength
    wrong[planted] -= strength
    return shared, right, wrong


@pytest.mark.parametrize("planted", [(0, 4), (2, 0)])
def test_the_planted_head_is_ranked_first(planted):
    scores = probe_heads(*features(planted), seed=42)
    assert rank_heads(scores, torch.ones(LAYERS, HEADS, dtype=torch.bool))[0] == planted
    assert scores.accuracy.shape == (LAYERS, HEADS) and scores.accuracy[planted] > 0.95
    assert scores.accuracy.flatten().median() < 0.7


def test_batched_probes_equal_one_torch_module_a_head():
    shared, right, wrong = features((1, 2), strength=0.4)
    scores = probe_heads(shared, right, wrong, seed=7)
    _, plain = head_by_head(shared, shared, right, wrong, 1, seed=7)  # no gap, so no component
    assert torch.allclose(scores.loss, plain.loss, atol=1e-4)
    assert (scores.accuracy - plain.accuracy).abs().max() < 1.5 / (0.3 * 2 * SAMPLES)


def test_ties_go_to_the_lower_loss_scores_to_the_largest_and_random_order_to_the_seed():
    accuracy = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.5]])
    scores = ProbeScores(accuracy, torch.tensor([[0.3, 0.1, 0.7], [0.2, 0.6, 0.5]]))
    assert rank_heads(scores, EVERYTHING) == [(0, 2), (0, 1), (1, 0), (0, 0), (1, 2), (1, 1)]
    norms = torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 3.0]])
    assert rank_by_score(norms, EVERYTHING) == [(1, 0), (0, 1), (1, 2), (0, 2), (0, 0), (1, 1)]
    assert order_randomly(EVERYTHING, 1) == order_randomly(EVERYTHING, 1) != order_randomly(EVERYTHING, 2)


def test_heads_that_cannot_be_restored_are_left_out():
    usable = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    usable[1, 2] = usable[0, 4] = False
    scores = torch.rand(LAYERS, HEADS)
    ranked = rank_heads(ProbeScores(scores, scores), usable), rank_by_score(scores, usable), order_randomly(usable, 0)
    for heads in ranked:
        assert len(heads) == len(set(heads)) == LAYERS * HEADS - 2 and not {(1, 2), (0, 4)} & set(heads)
