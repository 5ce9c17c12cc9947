"""What methods share that give the weights inside the mask other values, layer by layer, before anything trains."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.updates import Parts, WeightUpdates
from models.contract import Given, Needs, State
from models.updates import FixedInMask


class FixedWeights(WeightUpdates):
    """New values for the weights that are not zero, of all seven linear layers; nothing is trained afterwards.

    stream: one of utils.common.names.STREAMS, None for `pruned`. The state, for each of the seven: `NAME.change`
    (L, out, in) fp32, what is added to the pruned weight; and `errors` (L, windows, 2) fp32, what was minimised, before
    and after, of each window of a decoder layer.
    """

    needs = Needs(calibration=True, teacher=True, weights=True)
    kind = FixedInMask
    rest: ClassVar = {"change": 0.0}
    windows: int

    def __init__(self, stream: str | None):
        super().__init__()
        self.stream = stream or "pruned"

    def unchanged(self, config: LlamaConfig) -> State:
        """No change of any weight."""
        return {name: torch.zeros(shape) for name, shape in self.shapes({}, config).items()}

    def start(self, given: Given) -> State:
        """The method itself."""
        raise NotImplementedError

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """The same for all matrices."""
        return self.kind(**parts)

    def part_shapes(self, linear: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """The change."""
        return {"change": (outputs, inputs)}

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The same: nothing is trained."""
        return state

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(L, out, in) of each linear layer, and (L, windows, 2)."""
        return {**super().shapes(state, config), "errors": (config.num_hidden_layers, self.windows, 2)}

    def describe(self, state: State) -> str:
        """What was done, in words."""
        raise NotImplementedError


@torch.no_grad()
def put(weight: Tensor, linear: nn.Linear) -> None:
    """Let the layer compute with this weight from now on, in its own dtype."""
    linear.weight.copy_(weight)
