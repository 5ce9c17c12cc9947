"""Lost components are what Eqs. 3-4 say, for all heads at once."""

import pytest
import torch

from utils.components import lost_components, random_basis

LAYERS, HEADS, SAMPLES, WIDTH = 3, 5, 40, 7


def direct(gap: torch.Tensor, count: int) -> torch.Tensor:
    """Eqs. 3-4 for one head by a direct SVD: c = Σ_{i≤K} mean(σ_i u_i) v_i."""
    u, sigma, v = torch.linalg.svd(gap.double(), full_matrices=False)
    return sum((sigma[i] * u[:, i]).mean() * v[i] for i in range(min(count, len(sigma))))


@pytest.mark.parametrize("samples", [SAMPLES, 4])
@pytest.mark.parametrize("count", [1, 3, WIDTH])
def test_component_equals_a_direct_svd(samples, count):
    gap = torch.randn(LAYERS, HEADS, samples, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5
    found = lost_components(gap, count)
    for layer in range(LAYERS):
        for head in range(HEADS):
            expected = direct(gap[layer, head], count)
            assert torch.allclose(found.component[layer, head].double(), expected, atol=1e-5)


def test_basis_is_orthonormal_full_and_ordered():
    gap = torch.randn(LAYERS, HEADS, 4, WIDTH)  # fewer samples than directions: V is full all the same
    found = lost_components(gap, 2)
    identity = torch.eye(WIDTH).expand(LAYERS, HEADS, WIDTH, WIDTH)
    assert torch.allclose(found.basis @ found.basis.mT, identity, atol=1e-5)
    assert (found.explained.diff(dim=-1) <= 1e-6).all()
    assert torch.allclose(found.explained.sum(-1), torch.ones(LAYERS, HEADS), atol=1e-5)


def test_rows_of_the_basis_are_the_right_singular_vectors():
    gap = torch.randn(LAYERS, HEADS, SAMPLES, WIDTH)
    found = lost_components(gap, 1)
    _, _, v = torch.linalg.svd(gap[2, 4].double(), full_matrices=False)
    overlap = (found.basis[2, 4].double() @ v.mT).abs()
    assert torch.allclose(overlap, torch.eye(WIDTH, dtype=torch.float64), atol=1e-4)


def test_all_components_together_are_the_mean_gap():
    gap = torch.randn(LAYERS, HEADS, SAMPLES, WIDTH) + 1
    assert torch.allclose(lost_components(gap, WIDTH).component, gap.mean(2), atol=1e-5)


def test_a_head_without_a_gap_has_no_component():
    gap = torch.randn(LAYERS, HEADS, SAMPLES, WIDTH)
    gap[1, 3] = 0
    found = lost_components(gap, 3)
    assert not found.component[1, 3].any()
    assert not found.explained[1, 3].any()


def test_random_basis_is_orthonormal_and_seeded():
    like = torch.empty(LAYERS, HEADS, WIDTH, WIDTH)
    basis = random_basis(like, 3)
    assert torch.allclose(basis @ basis.mT, torch.eye(WIDTH).expand_as(basis), atol=1e-5)
    assert torch.equal(basis, random_basis(like, 3))
    assert not torch.equal(basis, random_basis(like, 4))
