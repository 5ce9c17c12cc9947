"""LoRA on all seven linear layers, and masked LoRA (PERP's), whose update is zero where the pruned weight is.

W + s·B A, or W + s·M ⊙ (B A) with the mask M read from the weight; s = alpha / r. Merged, LoRA fills the zeros: how
many are left is a finding. Masked LoRA keeps them all.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import LINEARS
from models.contract import KEPT, REPORTED, Given, Needs, Promise, State, linear_shapes
from models.modeling_llama import LowRank, folded_update, restored_linear, terms_of, whole


class LoRA:
    """An update of rank r for each linear layer. The state, for each of the seven: `NAME.down` (L, r, in) fp32, drawn
    uniformly as a linear layer of width `in` is, and `NAME.up` (L, out, r) fp32, zero at first."""

    needs = Needs(training=True)
    covers: frozenset[str] = frozenset()
    term: type[LowRank] = LowRank

    def __init__(self, lora_rank: int, lora_alpha: float, masked: bool = False):
        self.rank, self.scale, self.masked = lora_rank, lora_alpha / lora_rank, masked

    def start(self, given: Given) -> State:
        """The pruned model: B = 0."""
        generator = torch.Generator().manual_seed(given.seed)
        state = {}
        for name, shape in self.shapes({}, given.config).items():
            bound = shape[-1] ** -0.5
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            state[name] = drawn if name.endswith("down") else torch.zeros(shape)
        return state

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """B = 0."""
        return {name: torch.zeros_like(t) if name.endswith("up") else t for name, t in state.items()}

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """An update on each linear layer."""
        for name in LINEARS:
            for layer, pair in enumerate(zip(state[f"{name}.down"], state[f"{name}.up"], strict=True)):
                restored_linear(model, layer, name).update(self.term(*pair, self.scale, self.masked))

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """A and B as they stand now."""
        found = {}
        for name in LINEARS:
            updates = [update for _, update in sorted(terms_of(model, name, self.term).items())]
            for part in ("down", "up"):
                found[f"{name}.{part}"] = torch.stack([whole(getattr(update, part)) for update in updates])
        return found

    def promise(self, config: LlamaConfig) -> Promise:
        """All linear weights; zeros are kept inside the mask, and counted without one."""
        return Promise(changed=frozenset(self.touched({}, config)), zeros=KEPT if self.masked else REPORTED)

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(L, r, in) and (L, out, r) of each linear layer."""
        layers, shapes = config.num_hidden_layers, {}
        for name, (outputs, inputs) in linear_shapes(config).items():
            shapes |= {f"{name}.down": (layers, self.rank, inputs), f"{name}.up": (layers, outputs, self.rank)}
        return shapes

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """All linear weights."""
        return [f"model.layers.{layer}.{name}.weight" for layer in range(config.num_hidden_layers) for name in LINEARS]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """W + s·B A, inside the mask or everywhere."""
        _, _, layer, linear = name.removesuffix(".weight").split(".", 3)
        down, up = (state[f"{linear}.{part}"][int(layer)] for part in ("down", "up"))
        return value + folded_update(value, down, up, self.scale, self.masked)

    def describe(self, state: State) -> str:
        """ "updates of rank 8 of 210 matrices, inside the mask"."""
        count = sum(len(tensor) for name, tensor in state.items() if name.endswith("up"))
        return f"updates of rank {self.rank} of {count} matrices" + (", inside the mask" if self.masked else "")
