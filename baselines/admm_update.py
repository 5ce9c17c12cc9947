"""Weights inside a fixed mask by least squares, with ADMM (Boža, "Fast and Effective Weight Update for Pruned LLMs").

Settings of fmfi-compbio/admm-pruning, lib/admm.py: 20 steps, rho 1, dampening 0.1. One factorisation per input, no
gradients. `admm_residual` is this project's own: o_proj and down_proj also restore a share of what the residual stream
has lost before their decoder layer.
"""

from functools import partial
from itertools import repeat

import torch
from torch import Tensor

from models.contract import MethodInputs
from models.terms import MaskedChange, inside_mask
from pruning.input_statistics import Hessian, relative_error
from pruning.layers import LINEARS_BY_INPUT, LayerInputs, walk

RETURNED = 0.25  # the share of `admm_residual`; measured on Wanda 50 %, by validation loss: half is no better


class ResidualMoments(Hessian):
    """[X Xᵀ; share · (R - R̂) Xᵀ], (in + D, in) fp32: R and R̂ (D, tokens) are the dense and the restored residual stream
    before a decoder layer, columns of X the tokens' inputs of a linear layer in the restored model.
    """

    def __init__(self, dense: LayerInputs, restored: LayerInputs, share: float, width: int, device: torch.device):
        super().__init__(width, device)
        self._streams, self._share = zip(dense.batches(), restored.batches(), strict=True), share
        self._given_back = torch.zeros(dense.hidden.shape[-1], width, device=device)

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        super().add(inputs)
        dense, restored = (stream.flatten(0, -2).float() for stream in next(self._streams))
        self._given_back.addmm_((dense - restored).T, inputs, alpha=self._share)

    def value(self) -> Tensor:
        return torch.cat([super().value(), self._given_back])


def admm_update(inputs: MethodInputs, returned: float = 0.0) -> dict[str, MaskedChange]:
    """For each linear layer, W inside the mask that minimises ‖W X - (W0 X + G)‖² + damping, W0 the dense weight.

    X: the layer's inputs, with all decoder layers before it restored. One pass gathers them for a whole decoder layer,
    before its own weights change. G: zero, except for o_proj and down_proj: returned · (R - R̂) of ResidualMoments,
    unless a norm follows them (OLMo-2, Gemma). errors: relative squared errors of W X from W0 X, before and after.
    """
    terms, place = {}, torch.device(inputs.device)
    dense_layers = walk(inputs.dense(), inputs.tokens, place, "") if returned else repeat(None)
    for each, dense_layer in zip(walk(inputs.pruned(), inputs.tokens, place, "ADMM"), dense_layers, strict=False):
        statistic = Hessian
        if returned and not hasattr(each.layer, "post_feedforward_layernorm"):
            share = returned / getattr(inputs.config, "residual_multiplier", 1.0)  # Granite scales what it adds
            statistic = partial(ResidualMoments, dense_layer, each, share)
        for first, moments in each.gather(LINEARS_BY_INPUT, statistic).items():
            hessian, given_back = moments.tensor_split([moments.shape[1]])
            linears = LINEARS_BY_INPUT[first]
            names = [f"model.layers.{each.index}.{linear}.weight" for linear in linears]
            dense, pruned = (
                [read(name).to(hessian.device).float() for name in names] for read in (inputs.teacher, inputs.read)
            )
            # Rows are independent: layers that share an input are one problem, with one factorisation.
            more = given_back if len(given_back) and first.endswith(("o_proj", "down_proj")) else 0.0
            found = admm(torch.cat(dense), torch.cat(pruned), hessian, more=more).split([len(rows) for rows in dense])
            for name, linear, wanted, old, new in zip(names, linears, dense, pruned, found, strict=True):
                errors = torch.tensor([relative_error(wanted, weight, hessian) for weight in (old, new)])
                terms[name] = MaskedChange((new - old).cpu(), errors=errors)
                each.layer.get_submodule(linear).weight.copy_(new)
    return terms


admm_residual = partial(admm_update, returned=RETURNED)


def admm(
    weight: Tensor, mask: Tensor, hessian: Tensor, iterations=20, rho=1.0, damping=0.1, more: Tensor | float = 0.0
) -> Tensor:
    """The weights inside the mask that minimise ‖W X - (W0 X + G)‖² + ‖(W - W0) D‖², by steps of ADMM: (out, in).

    weight: W0 (out, in) fp32 or fp64. mask: (out, in), zero outside. hessian: X Xᵀ (in, in), columns of X the
    tokens' inputs. more: G Xᵀ (out, in). The inputs are scaled to unit norm. On that scale, `damping` times the mean of
    the diagonal is added to the diagonal: this is D, which keeps the weights close to W0. The weights of an input that
    is always zero stay those of W0.
    """
    norms = hessian.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1)
    scaled = hessian / norms / norms[:, None]
    start, mask = weight * norms, mask.to(weight)
    ridge = damping * scaled.diagonal().mean()
    wanted = (weight @ hessian + more) / norms + ridge * start
    damped = (scaled.cpu() if scaled.device.type == "mps" else scaled).double()  # which has no fp64
    damped.diagonal().add_(float(ridge) + rho)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).to(weight)
    free, dual = start, torch.zeros_like(start)
    for _ in range(iterations):
        inside = inside_mask(free + dual, mask)
        dual = dual + free - inside
        free = (wanted + rho * (inside - dual)) @ inverse
    return inside_mask(free, mask) / norms  # the next `inside`: the dual is zero in the mask
