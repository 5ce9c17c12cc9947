"""The pruning methods behind one table: a new one is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import LlamaConfig

from models.contract import linear_shapes
from models.model_names import LLAMA
from pruning import magnitude, slimgpt, sparsegpt, wanda
from pruning.input_statistics import Hessian, InputNorms
from pruning.layers import LINEARS_BY_INPUT, LayerInputs
from pruning.pattern import Pattern
from utils.common.errors import UserError

PruneLayer = Callable[[LayerInputs], None]
"""Prunes one decoder layer in place."""


@dataclass(frozen=True)
class Unstructured:
    """A method that sets single weights to zero, one linear layer at a time.

    prune: (weight (out, in) fp32, what `prepare` returned, pattern) -> the pruned weight.
    statistic: the class of the statistic of the layer's input; None for a method without a calibration set.
    prepare: converts the statistic's value for `prune`, once for all linear layers that share an input.
    """

    prune: Callable[[torch.Tensor, object, Pattern], torch.Tensor]
    statistic: type[InputNorms | Hessian] | None = None
    prepare: Callable[[torch.Tensor], object] = lambda value: value

    def by_layer(self, pattern: Pattern, config: LlamaConfig) -> list[PruneLayer]:
        """For each decoder layer, the function that prunes it: one pass for all seven linear layers, as in the papers.

        Raises UserError naming -sparsity unless M of N:M divides the input width of every linear layer.
        """
        for name, (_, width) in linear_shapes(config).items():
            if pattern.m and width % pattern.m:
                raise UserError(
                    f"-sparsity: {pattern} needs widths divisible by {pattern.m}, but {name} has {width} inputs; "
                    "give another N:M or a share"
                )
        return [partial(self._prune_layer, pattern)] * config.num_hidden_layers

    def _prune_layer(self, pattern: Pattern, inputs: LayerInputs) -> None:
        values = inputs.gather(LINEARS_BY_INPUT, self.statistic) if self.statistic else {}
        for first, names in LINEARS_BY_INPUT.items():
            prepared = self.prepare(values[first]) if values else None
            for name in names:
                weight = inputs.layer.get_submodule(name).weight
                weight.copy_(self.prune(weight.float().clone(), prepared, pattern))


class SlimGPT:
    """Removes key-value heads and FFN channels; `slimgpt.plan` says how many of each in which layer."""

    statistic = Hessian

    def by_layer(self, pattern: Pattern, config: LlamaConfig) -> list[PruneLayer]:
        """For each layer, the function that prunes it. Raises UserError for a model that doesn't run as Llama, and
        naming -sparsity for N:M or for more than can be removed.
        """
        if config.model_type != LLAMA:
            raise UserError(
                f"-prune_method: slimgpt leaves a smaller Llama, and this is a {config.model_type} model; give wanda, "
                "sparsegpt or magnitude"
            )
        if pattern.m:
            raise UserError(f"-sparsity: slimgpt removes whole heads and channels, it has no {pattern}; give a share")
        return [partial(slimgpt.prune_layer, *counts) for counts in slimgpt.plan(config, pattern.ratio)]


METHODS = {
    "magnitude": Unstructured(magnitude.prune),
    "wanda": Unstructured(wanda.prune, InputNorms),
    "sparsegpt": Unstructured(sparsegpt.prune, Hessian, sparsegpt.inverse_factor),
    "slimgpt": SlimGPT(),
}
