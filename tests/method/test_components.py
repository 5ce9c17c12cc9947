"""Lost components are what Eqs. 3-4 say, for all heads at once."""

import pytest
import torch

from utils.components import lost_components, random_basis

LAYERS, HEADS, SAMPLES, WIDTH = 3, 5, 40, 7


@pytest.mark.parametrize("samples", [SAMPLES, 4])
@pytest.mark.parametrize("count", [1, 3, WIDTH])
def test_component_and_basis_are_those_of_a_direct_svd(samples, count):
    gap = torch.randn(LAYERS, HEADS, samples, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5
    found = lost_components(gap, count)
    for layer, head in torch.cartesian_prod(torch.arange(LAYERS), torch.arange(HEADS)).tolist():
        u, sigma, v = torch.linalg.svd(gap[layer, head].double(), full_matrices=False)
        kept = min(count, len(sigma))
        expected = (sigma * u).mean(0)[:kept] @ v[:kept]
        assert torch.allclose(found.component[layer, head].double(), expected, atol=1e-5)
        overlap = (found.basis[layer, head].double()[: len(sigma)] @ v.mT).abs()
        assert torch.allclose(overlap, torch.eye(len(sigma), dtype=torch.float64), atol=1e-3)
    # Fewer samples than directions: V is full all the same.
    assert torch.allclose(found.basis @ found.basis.mT, torch.eye(WIDTH).expand_as(found.basis), atol=1e-5)
    assert (found.explained.diff(dim=-1) <= 1e-6).all()
    assert torch.allclose(found.explained.sum(-1), torch.ones(LAYERS, HEADS), atol=1e-5)
    if count == WIDTH:
        assert torch.allclose(found.component, gap.mean(2), atol=1e-5)


def test_a_head_without_a_gap_has_no_component():
    gap = torch.randn(LAYERS, HEADS, SAMPLES, WIDTH)
    gap[1, 3] = 0
    found = lost_components(gap, 3)
    assert not found.component[1, 3].any() and not found.explained[1, 3].any()


def test_random_basis_is_orthonormal_and_seeded():
    like = torch.empty(LAYERS, HEADS, WIDTH, WIDTH)
    basis = random_basis(like, 3)
    assert torch.allclose(basis @ basis.mT, torch.eye(WIDTH).expand_as(basis), atol=1e-5)
    assert torch.equal(basis, random_basis(like, 3)) and not torch.equal(basis, random_basis(like, 4))
