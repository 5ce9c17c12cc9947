"""The pruning methods behind one table: a new one is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig

from models.model_names import LLAMA
from pruning import magnitude, slimgpt, sparsegpt, wanda
from pruning.input_statistics import Hessian, InputNorms
from pruning.layers import SITES, PruningPass, Values
from pruning.pattern import Pattern
from utils.common.errors import UserError


@dataclass(frozen=True)
class Unstructured:
    """A method that sets single weights to zero, one linear layer at a time.

    prune: (weight (out, in) fp32, what `prepare` made of the statistic, pattern) -> the pruned weight.
    statistic: what must be known of the layer's input; None when nothing is, and no calibration set either.
    prepare: from the statistic's value to what `prune` takes, once for all linear layers that share an input.
    """

    prune: Callable[[torch.Tensor, object, Pattern], torch.Tensor]
    statistic: type[InputNorms | Hessian] | None = None
    prepare: Callable[[torch.Tensor], object] = lambda value: value

    def check(self, pattern: Pattern, config: LlamaConfig) -> None:
        """Raise UserError naming -sparsity unless M of N:M divides the input width of every linear layer."""
        widths = {
            "hidden_size": config.hidden_size,
            "num_attention_heads·head_dim": config.num_attention_heads * config.head_dim,
            "intermediate_size": config.intermediate_size,
        }
        for name, width in widths.items():
            if pattern.m and width % pattern.m:
                raise UserError(
                    f"-sparsity: {pattern} needs widths divisible by {pattern.m}, but the model's {name} is {width}; "
                    "give another N:M or a share"
                )

    def passes(self, pattern: Pattern, config: LlamaConfig) -> list[list[PruningPass]]:
        """Per decoder layer, one pass for all seven linear layers, as the papers do it."""
        one = PruningPass(tuple(SITES), self.statistic, lambda layer, values: self._prune_layer(layer, values, pattern))
        return [[one]] * config.num_hidden_layers

    def _prune_layer(self, layer: nn.Module, values: Values, pattern: Pattern) -> None:
        """Prune the seven linear layers in place."""
        for site, names in SITES.items():
            prepared = self.prepare(values[site]) if values else None
            for name in names:
                weight = layer.get_submodule(name).weight
                weight.copy_(self.prune(weight.float().clone(), prepared, pattern))


class SlimGPT:
    """Removes key-value heads and FFN channels; `slimgpt.plan` says how many of each in which layer."""

    statistic = Hessian

    def check(self, pattern: Pattern, config: LlamaConfig) -> None:
        """Raise UserError for a model that doesn't run as Llama, for N:M, or for more than the model can lose."""
        if config.model_type != LLAMA:
            raise UserError(
                f"-prune_method: slimgpt leaves a smaller Llama, and this is a {config.model_type} model; give wanda, "
                "sparsegpt or magnitude"
            )
        if pattern.m:
            raise UserError(f"-sparsity: slimgpt removes whole heads and channels, it has no {pattern}; give a share")
        slimgpt.plan(config, pattern.ratio)

    def passes(self, pattern: Pattern, config: LlamaConfig) -> list[list[PruningPass]]:
        """Per decoder layer, a pass for heads, then one for channels."""
        return [slimgpt.passes(removal, config.head_dim) for removal in slimgpt.plan(config, pattern.ratio)]


METHODS = {
    "magnitude": Unstructured(magnitude.prune),
    "wanda": Unstructured(wanda.prune, InputNorms),
    "sparsegpt": Unstructured(sparsegpt.prune, Hessian, sparsegpt.inverse_factor),
    "slimgpt": SlimGPT(),
}
