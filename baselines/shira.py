"""SHiRA on linear layers: a few of the weights that are not zero are trained, chosen at random.

Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024; as many in a matrix as LoRA of rank r has numbers there, as
in PEFT. Its mask is drawn among the non-zeros.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.updates import Parts, WeightUpdates
from models.contract import Given, State, linear_shapes
from models.modeling_llama import whole
from models.updates import Entries


class SHiRA(WeightUpdates):
    """Values for chosen entries of each chosen linear layer.

    The state: `NAME.LAYER.indices` (n,) int64 into the flattened weight, ascending, and `NAME.LAYER.values` (n,) fp32,
    zero at first; n is r·(in + out), or the number of non-zeros where that is smaller.
    """

    kind = Entries

    def __init__(self, lora_rank: int, lora_targets: str | None = None, lora_layers: str | None = None):
        super().__init__(lora_targets, lora_layers)
        self.rank = lora_rank

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """The same for all matrices."""
        return Entries(**parts)

    def parts_at(self, state: State, linear: str, layer: int) -> Parts:
        """The tensors of one matrix."""
        return {part: state[f"{linear}.{layer}.{part}"] for part in ("indices", "values")}

    def start(self, given: Given) -> State:
        """Entries drawn without replacement, and zeros."""
        generator, state = torch.Generator().manual_seed(given.seed), {}
        for name, shape in linear_shapes(given.config).items():
            for layer in self.layers(given.config) if name in self.linears else ():
                left = given.read(f"model.layers.{layer}.{name}.weight").flatten().nonzero()[:, 0]
                drawn = torch.randperm(len(left), generator=generator)[: self.rank * sum(shape)]
                indices = left[drawn].sort().values
                state[f"{name}.{layer}.indices"] = indices
                state[f"{name}.{layer}.values"] = torch.zeros(len(indices))
        return state

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """Zeros."""
        return {name: torch.zeros_like(t) if name.endswith("values") else t for name, t in state.items()}

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The values as they stand now."""
        found = dict(state)
        for name in self.linears:
            for layer, update in self.updates_of(model, name):
                found[f"{name}.{layer}.values"] = whole(update.values)
        return found

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(n,) of both; ValueError if the indices are no distinct ones of that weight, or more than were asked for."""
        shapes = {}
        for name, (outputs, inputs) in linear_shapes(config).items():
            for layer in self.layers(config) if name in self.linears else ():
                indices = state[f"{name}.{layer}.indices"]
                if indices.dtype != torch.int64 or len(indices) > self.rank * (outputs + inputs):
                    raise ValueError(f"{name}.{layer}.indices are no {self.rank * (outputs + inputs)} places at most")
                if len(indices) and not (
                    indices[0] >= 0 and indices[-1] < outputs * inputs and bool((indices.diff() > 0).all())
                ):
                    raise ValueError(f"{name}.{layer}.indices are no ascending places in {outputs} × {inputs} weights")
                shapes |= dict.fromkeys((f"{name}.{layer}.indices", f"{name}.{layer}.values"), (len(indices),))
        return shapes

    def describe(self, state: State) -> str:
        """ "967,680 entries of 210 matrices"."""
        values = [tensor for name, tensor in state.items() if name.endswith("values")]
        return f"{sum(map(len, values)):,} entries of {len(values)} matrices"
