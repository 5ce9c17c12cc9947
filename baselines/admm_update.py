"""Weights inside a fixed mask by least squares, with ADMM (Boža, "Fast and Effective Weight Update for Pruned LLMs").

Settings of fmfi-compbio/admm-pruning, lib/admm.py: 20 steps, rho 1, dampening 0.1. One factorisation an input, no
gradients.
"""

import torch
from torch import Tensor

from models.contract import MethodInputs
from models.terms import MaskedChange
from pruning.input_statistics import Hessian, relative_error
from pruning.layers import LINEARS_BY_INPUT, walk


def admm_update(inputs: MethodInputs) -> dict[str, MaskedChange]:
    """For each linear layer the weights inside the mask that minimise ‖(W - W0) X‖² + damping, W0 the dense weight.

    X: the layer's inputs in the restored model; a decoder layer is fed by the restored ones before it, and read once,
    before its own weights change. errors: relative ones.
    """
    terms = {}
    for each in walk(inputs.pruned(), inputs.tokens, torch.device(inputs.device), "ADMM"):
        for first, hessian in each.gather(LINEARS_BY_INPUT, Hessian).items():
            linears = LINEARS_BY_INPUT[first]
            names = [f"model.layers.{each.index}.{linear}.weight" for linear in linears]
            dense, pruned = (
                [read(name).to(hessian.device).float() for name in names] for read in (inputs.teacher, inputs.read)
            )
            # Rows are independent: layers that share an input are one problem, with one factorisation.
            found = admm(torch.cat(dense), torch.cat(pruned) != 0, hessian).split([len(rows) for rows in dense])
            for name, linear, wanted, old, new in zip(names, linears, dense, pruned, found, strict=True):
                errors = torch.tensor([relative_error(wanted, weight, hessian) for weight in (old, new)])
                terms[name] = MaskedChange((new - old).cpu(), errors=errors)
                each.layer.get_submodule(linear).weight.copy_(new)
    return terms


def admm(
    weight: Tensor, mask: Tensor, hessian: Tensor, iterations: int = 20, rho: float = 1.0, damping: float = 0.1
) -> Tensor:
    """The weights inside the mask that minimise ‖(W - W0) X‖² + ‖(W - W0) D‖², by steps of ADMM: (out, in).

    weight: W0 (out, in) fp32 or fp64. mask: (out, in) bool. hessian: X Xᵀ (in, in), columns of X the tokens' inputs.
    The inputs are scaled to unit norm; D is what `damping` (a share of their mean, added to the diagonal) is on that
    scale: it holds the weights to the dense ones. An input that is never fed leaves its weights as W0 has them.
    """
    norms = hessian.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1)
    scaled = hessian / norms / norms[:, None]
    start = weight * norms
    ridge = damping * scaled.diagonal().mean()
    wanted = weight @ hessian / norms + ridge * start
    damped = (scaled.cpu() if scaled.device.type == "mps" else scaled).double()  # which has no fp64
    damped.diagonal().add_(float(ridge) + rho)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).to(weight)
    free, dual = start, torch.zeros_like(start)
    for _ in range(iterations):
        inside = (free + dual) * mask
        dual = dual + free - inside
        free = (wanted + rho * (inside - dual)) @ inverse
    return free * mask / norms  # the next inside: the dual is zero there
