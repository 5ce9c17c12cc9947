"""What methods share that give the weights inside the mask other values, layer by layer, before anything trains."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import LINEARS
from models.contract import Given, Needs, Promise, State, linear_shapes
from models.modeling_llama import FixedChange, folded_change, restored_linear
from utils.common.errors import UserError


class FixedWeights:
    """New values for the weights that are not zero, of all seven linear layers; nothing is trained afterwards.

    stream: one of utils.common.names.STREAMS, None for `pruned`. The state, for each of the seven: `NAME.change`
    (L, out, in) fp32, what is added to the pruned weight; and `errors` (L, windows, 2) fp32, what was minimised, before
    and after, of each window of a decoder layer.
    """

    needs = Needs(calibration=True, teacher=True)
    covers: frozenset[str] = frozenset()
    windows: int

    def __init__(self, stream: str | None):
        self.stream = stream or "pruned"

    def unchanged(self, config: LlamaConfig) -> State:
        """No change of any weight."""
        return {name: torch.zeros(shape) for name, shape in self.shapes({}, config).items()}

    def start(self, given: Given) -> State:
        """The method itself."""
        raise NotImplementedError

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """No change of any weight."""
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """A fixed update on each linear layer."""
        for name in LINEARS:
            for layer, change in enumerate(state[f"{name}.change"]):
                restored_linear(model, layer, name).update(FixedChange(change))

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The same: nothing is trained."""
        return state

    def promise(self, config: LlamaConfig) -> Promise:
        """All linear weights, and no zero of them."""
        return Promise(changed=frozenset(self.touched({}, config)))

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(L, out, in) of each linear layer, and (L, windows, 2)."""
        layers = config.num_hidden_layers
        shapes = {f"{name}.change": (layers, *shape) for name, shape in linear_shapes(config).items()}
        return {**shapes, "errors": (layers, self.windows, 2)}

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """All linear weights."""
        return [f"model.layers.{layer}.{name}.weight" for layer in range(config.num_hidden_layers) for name in LINEARS]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The weight and its change, inside the mask."""
        _, _, layer, linear = name.removesuffix(".weight").split(".", 3)
        return value + folded_change(value, state[f"{linear}.change"][int(layer)])

    def describe(self, state: State) -> str:
        """What was done, in words."""
        raise NotImplementedError


@torch.no_grad()
def put(weight: Tensor, linear: nn.Linear) -> None:
    """Let the layer compute with this weight from now on, in its own dtype; UserError if it is kept elsewhere."""
    if linear.weight.device.type == "meta":
        raise UserError(
            "-device: the model does not fit into it, and this method changes weights there; use a larger one, or cpu"
        )
    linear.weight.copy_(weight)
