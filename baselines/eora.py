"""EoRA: the best low-rank update for what pruning took from a layer's output, in closed form.

Liu et al., "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation", 2024.
With S = E[x xᵀ] = Q Λ Qᵀ and the SVD (W - Ŵ) Q Λ^½ = U Σ Vᵀ: B = U_r Σ_r^½, A = Σ_r^½ V_rᵀ Λ^-½ Qᵀ. B A minimises
E‖(W - Ŵ) x - B A x‖² over all matrices of rank r (Eckart and Young). Merged, it fills the zeros.
"""

import torch
from torch import Tensor

from models.contract import MethodInputs
from models.terms import LowRank
from pruning.input_statistics import Hessian
from pruning.layers import LINEARS_BY_INPUT, walk


def eora(inputs: MethodInputs) -> dict[str, LowRank]:
    """An update of rank r for each linear layer; nothing is trained.

    Decoder layers are restored in order. x: a layer's input, with all decoder layers before it restored.
    """
    terms, tokens = {}, inputs.tokens.numel()
    for each in walk(inputs.pruned(), inputs.tokens, torch.device(inputs.device), "EoRA"):
        for first, moment in each.gather(LINEARS_BY_INPUT, Hessian).items():
            moment = (moment.cpu() if moment.device.type == "mps" else moment).double() / tokens  # which has no fp64
            for name in LINEARS_BY_INPUT[first]:
                full = f"model.layers.{each.index}.{name}.weight"
                pruned = inputs.read(full).double()
                lost = (inputs.teacher(full).double() - pruned).to(moment.device)
                down, up = (part.float().cpu() for part in low_rank(lost, moment, inputs.options.lora_rank))
                terms[full] = LowRank(down=down, up=up, scale=torch.tensor(1.0))
                each.layer.get_submodule(name).weight.copy_(pruned + up.double() @ down.double())
    return terms


def low_rank(lost: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """EoRA's A (r, in) and B (out, r), fp64: B A is closest to the lost weights on inputs with this second moment.

    lost: W - Ŵ, (out, in) fp64. moment: E[x xᵀ], (in, in) fp64, singular or not. Since Vᵀ = Σ^-1 Uᵀ (W - Ŵ) Q Λ^½, A is
    Σ_r^-½ U_rᵀ (W - Ŵ). This never divides by an eigenvalue of S, so that small ones need no cut-off. B A projects the
    lost output onto U_r, so that no input, of whatever direction, loses more than before. If the lost outputs span
    fewer than r directions, the other rows of A and columns of B are zero.

    U and Σ of (W - Ŵ) S^½ come from its smaller Gram matrix, in a fraction of an SVD's time. Computed in fp64, they
    are more precise than fp32 can hold.
    """
    tall = lost.shape[0] > lost.shape[1]
    if tall:
        eigenvalues, q = torch.linalg.eigh(moment)
        rooted = lost @ q * eigenvalues.clamp_min(0).sqrt()
        gram = rooted.T @ rooted
    else:
        gram = lost @ moment @ lost.T
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0)[:rank], vectors.flip(1)[:, :rank]
    present = squares > squares[0].clamp_min(0) * max(lost.shape) * torch.finfo(lost.dtype).eps  # not rounding errors
    u = vectors[:, present]
    if tall:  # small singular values leave columns that are hardly orthogonal; QR makes them so, and keeps their spans
        u = torch.linalg.qr(rooted @ u).Q
    root = squares[present].sqrt().sqrt()
    down, up = lost.new_zeros(rank, lost.shape[1]), lost.new_zeros(lost.shape[0], rank)
    down[: len(root)] = (u / root).T @ lost
    up[:, : len(root)] = u * root
    return down, up
