"""Lost components: what pruning took from each attention head, Eqs. 3-4."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """The lost components of all heads.

    basis: (L, H, d, d) fp32, the full orthonormal V of each head, row i is v_i, by falling singular value.
    component: (L, H, d) fp32, c = Σ_{i≤K} α_i v_i, Eq. 4.
    explained: (L, H, d) fp32, the share of the gap's energy σ_i² / Σσ² that each direction carries.
    """

    basis: Tensor
    component: Tensor
    explained: Tensor


def lost_components(gap: Tensor, num_components: int) -> Components:
    """SVD of the uncentred activation gap of every head, Eqs. 3-4.

    gap: (L, H, N, d), Z_dense - Z_pruned at the last prompt token. num_components: K, the directions kept in c.

    ΔZ = U Σ Vᵀ gives the directions v_i; α_i is the mean over samples of σ_i u_i, which is the mean of ΔZ v_i. V and
    σ² are the eigenvectors and eigenvalues of ΔZᵀΔZ (d, d): in fp64 that is as exact as the SVD here, works for N < d
    and costs N·d² instead of an (N, d) decomposition. One layer's heads at a time, so that fp64 copies stay small.
    """
    basis, component, explained = [], [], []
    for layer in map(Tensor.double, gap):
        eigenvalues, eigenvectors = torch.linalg.eigh(layer.mT @ layer)
        directions = eigenvectors.flip(-1).mT
        energy = eigenvalues.flip(-1).clamp(min=0)
        alpha = torch.einsum("hd,hkd->hk", layer.mean(1), directions)
        alpha[:, num_components:] = 0
        basis.append(directions.float())
        component.append(torch.einsum("hk,hkd->hd", alpha, directions).float())
        explained.append((energy / energy.sum(-1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)).float())
    return Components(torch.stack(basis), torch.stack(component), torch.stack(explained))


def random_basis(basis: Tensor, seed: int) -> Tensor:
    """A control: random orthonormal bases (L, H, d, d) in place of the lost components' directions."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(basis.shape, generator=generator, dtype=torch.float64))
    # Signs of R's diagonal make the distribution uniform over the orthogonal group.
    return (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).float()
