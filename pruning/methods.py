"""The unstructured methods: one line each. SlimGPT, which removes whole heads and channels, is in slimgpt.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pruning import magnitude, sparsegpt, wanda
from pruning.pattern import Pattern
from pruning.statistics import Hessian, InputNorms
from pruning.streaming import LINEARS, SITES, Stage, Values


@dataclass(frozen=True)
class Method:
    """How one linear layer is pruned.

    prune: (weight (out, in) fp32, what `prepare` made of the statistic, pattern) -> the pruned weight.
    statistic: what must be known of the layer's input; None when nothing is, and no calibration set either.
    prepare: from the statistic's value to what `prune` takes, once for all linear layers that share an input.
    """

    prune: Callable[[torch.Tensor, object, Pattern], torch.Tensor]
    statistic: type[InputNorms | Hessian] | None = None
    prepare: Callable[[torch.Tensor], object] = lambda value: value

    def prune_layer(self, layer: nn.Module, values: Values, pattern: Pattern) -> dict[str, float]:
        """Prune the seven linear layers in place; the relative errors of those whose Hessian is known."""
        errors = {}
        for site, names in SITES.items():
            value = values.get(site)
            prepared = None if value is None else self.prepare(value)
            for name in names:
                linear = layer.get_submodule(name)
                dense = linear.weight.float()
                pruned = self.prune(dense.clone(), prepared, pattern).to(linear.weight.dtype)
                if self.statistic is Hessian:
                    errors[name] = relative_error(dense, pruned.float(), value)
                linear.weight.copy_(pruned)
        return errors

    def stages(self, pattern: Pattern) -> list[Stage]:
        """One pass for all seven linear layers, as the papers do it."""
        return [Stage(tuple(SITES), self.statistic, lambda layer, values: self.prune_layer(layer, values, pattern))]


METHODS = {
    "magnitude": Method(magnitude.prune),
    "wanda": Method(wanda.prune, InputNorms),
    "sparsegpt": Method(sparsegpt.prune, Hessian, sparsegpt.inverse_factor),
}


def relative_error(dense: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    """‖WX - ŴX‖² / ‖WX‖² from XᵀX. dense, pruned: (out, in); hessian: (in, in), all fp32."""
    change = dense - pruned
    wrong, whole = (((matrix @ hessian) * matrix).sum().item() for matrix in (change, dense))
    return wrong / max(whole, 1e-30)


def share_of_zeros(layer: nn.Module) -> float:
    """Share of zeros among the weights of a decoder layer's seven linear layers."""
    weights = [layer.get_submodule(name).weight for name in LINEARS]
    return sum((weight == 0).sum().item() for weight in weights) / sum(weight.numel() for weight in weights)
