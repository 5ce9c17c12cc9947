"""Weights inside a fixed mask by least squares, with ADMM (Boža, "Fast and Effective Weight Update for Pruned LLMs").

Settings of fmfi-compbio/admm-pruning, lib/admm.py: 20 steps, rho 1, dampening 0.1. One factorisation an input, no
gradients.
"""

from dataclasses import replace

import torch
from torch import Tensor

from baselines.streams import GROUPS, Stream, finite, put, walk
from models.contract import MethodInputs
from models.terms import MaskedChange
from utils.common.methods import SITES

ITERATIONS = 20
RHO = 1.0
DAMPING = 0.1
"""Added to the diagonal, as a share of its mean: it holds the weights to the dense ones."""


def admm_update(inputs: MethodInputs) -> dict[str, MaskedChange]:
    """For each linear layer the weights inside the mask that minimise ‖W X - W0 X0‖² + damping, W0 the dense weight.

    Layers in order, and within a layer in the order of the forward pass. stream: X and X0 are the layer's inputs in the
    dense model; in the restored one, earlier layers updated (pruned); or X is the restored model's and X0 the dense
    one's (sequential). errors: relative ones.
    """
    stream, terms = inputs.options.stream or "pruned", {}
    for block in walk(inputs, "ADMM", dense=stream != "pruned", restored=stream != "dense"):
        streams = [each for each in (block.dense, block.restored) if each]
        for group in GROUPS:
            sums = products(streams, group[0])
            for name in (SITES[site] for site in group):
                full = f"model.layers.{block.index}.{name}.weight"
                for total in sums:
                    finite(total, f"the input of layer {block.index} ({name})")
                dense, pruned = (read(full).to(sums[0].device).float() for read in (inputs.teacher, inputs.read))
                new = admm(dense, pruned != 0, sums[0], cross=sums[1])
                errors = torch.tensor([relative_error(weight, dense, *sums) for weight in (pruned, new)])
                terms[full] = MaskedChange((new - pruned).cpu(), errors=errors)
                if block.restored:
                    put(new, block.restored.layer.get_submodule(name))
    return terms


def admm(
    weight: Tensor,
    mask: Tensor,
    hessian: Tensor,
    iterations: int = ITERATIONS,
    rho: float = RHO,
    damping: float = DAMPING,
    cross: Tensor | None = None,
) -> Tensor:
    """The weights inside the mask that minimise ‖W X - W0 X0‖² + ‖(W - W0) D‖², by steps of ADMM: (out, in).

    weight: W0 (out, in) fp32 or fp64. mask: (out, in) bool. hessian: X Xᵀ (in, in), columns of X the tokens' inputs.
    cross: X0 Xᵀ, None if X0 is X. The inputs are scaled to unit norm; D is what `damping` (a share of their mean) is on
    that scale. An input that is never fed leaves its weights as W0 has them.
    """
    norms = hessian.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1)
    scaled = hessian / norms / norms[:, None]
    start = weight * norms
    ridge = damping * scaled.diagonal().mean()
    wanted = (start @ scaled if cross is None else weight @ cross / norms) + ridge * start
    damped = scaled.double()
    damped.diagonal().add_(float(ridge) + rho)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).to(weight.dtype)
    free, dual = start, torch.zeros_like(start)
    for _ in range(iterations):
        inside = (free + dual) * mask
        dual = dual + free - inside
        free = (wanted + rho * (inside - dual)) @ inverse
    return free * mask / norms  # the next inside: the dual is zero there


@torch.no_grad()
def products(streams: list[Stream], site: str) -> tuple[Tensor, Tensor, Tensor]:
    """X Xᵀ, X0 Xᵀ and X0 X0ᵀ of a linear layer's inputs, (in, in) fp32: X in the last stream, X0 in the first."""
    sums: list[Tensor] = []
    for batches in zip(*(stream.batches() for stream in streams), strict=True):
        seen: list[Tensor] = []
        for stream, batch in zip(streams, batches, strict=True):
            replace(stream, hidden=batch).feed({site: lambda x, seen=seen: seen.append(x.float())})
        pairs = [(seen[-1], seen[-1]), (seen[0], seen[-1]), (seen[0], seen[0])][: 2 * len(streams) - 1]
        sums = sums or [left.new_zeros(left.shape[1], left.shape[1]) for left, _ in pairs]
        for total, (left, right) in zip(sums, pairs, strict=True):
            total.addmm_(left.T, right)
    return tuple(sums if len(streams) == 2 else sums * 3)


def relative_error(weight: Tensor, dense: Tensor, hessian: Tensor, cross: Tensor, own: Tensor) -> float:
    """‖W X - W0 X0‖² / ‖W0 X0‖², from the products of X and X0."""
    whole = ((dense @ own) * dense).sum()
    wrong = ((weight @ hessian) * weight).sum() - 2 * ((dense @ cross) * weight).sum() + whole
    return max(0.0, float(wrong / whole.clamp_min(torch.finfo(whole.dtype).tiny)))
