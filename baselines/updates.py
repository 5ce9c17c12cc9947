"""What all methods have in common that train updates of weights: which weights, and where the numbers are."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import LINEARS
from models.contract import KEPT, Given, Needs, Promise, State, linear_shapes
from models.modeling_llama import restored_linear, terms_of, whole
from utils.common.names import layer_numbers

Parts = dict[str, Tensor]
"""The tensors of one matrix's update, by the names that they have in its module."""


class WeightUpdates:
    """An update for each chosen linear layer: of the targets named (as `q_proj,v_proj`; None for all seven), in the
    layers named (as `0-3,7`; None for all).

    The state: `NAME.PART` (n, …) fp32, a row for each of the n chosen layers, with NAME as `self_attn.q_proj`.
    """

    needs = Needs(training=True, updates=True, weights=True)
    covers: frozenset[str] = frozenset()
    zeros = KEPT

    kind: type[nn.Module]
    """The update's module, of models.updates."""
    rest: ClassVar[dict[str, float]]
    """By part, the value at which training starts and nothing is restored; parts without one are drawn."""

    def __init__(self, lora_targets: str | None = None, lora_layers: str | None = None):
        self.linears = [
            name for name in LINEARS if lora_targets is None or name.split(".")[1] in lora_targets.split(",")
        ]
        self.chosen = None if lora_layers is None else layer_numbers(lora_layers)

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """The module of one matrix."""
        raise NotImplementedError

    def part_shapes(self, linear: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """The shapes of one matrix's tensors."""
        raise NotImplementedError

    def layers(self, config: LlamaConfig) -> list[int]:
        """The chosen layers, ascending; ValueError if the model has not so many."""
        layers = list(range(config.num_hidden_layers))
        if self.chosen is None:
            return layers
        if not set(self.chosen) <= set(layers):
            raise ValueError(f"it changes layer {self.chosen[-1]} of a model that has {len(layers)}")
        return self.chosen

    def parts_at(self, state: State, linear: str, layer: int) -> Parts:
        """The tensors of one matrix."""
        row = layer if self.chosen is None else self.chosen.index(layer)
        prefix = f"{linear}."
        return {name.removeprefix(prefix): t[row] for name, t in state.items() if name.startswith(prefix)}

    def start(self, given: Given) -> State:
        """The pruned model: parts at rest, and A drawn uniformly as a linear layer of its width is."""
        generator = torch.Generator().manual_seed(given.seed)
        state = {}
        for name, shape in self.shapes({}, given.config).items():
            value, bound = self.rest.get(name.rpartition(".")[2]), shape[-1] ** -0.5
            tensor = torch.empty(shape)
            state[name] = tensor.uniform_(-bound, bound, generator=generator) if value is None else tensor.fill_(value)
        return state

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """Parts at rest."""
        values = {name: self.rest.get(name.rpartition(".")[2]) for name in state}
        return {name: t if values[name] is None else torch.full_like(t, values[name]) for name, t in state.items()}

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """An update on each chosen linear layer."""
        for name in self.linears:
            for layer in self.layers(model.config):
                restored_linear(model, layer, name).update(self.update(name, self.parts_at(state, name, layer)))

    def updates_of(self, model: LlamaForCausalLM, linear: str) -> list[tuple[int, nn.Module]]:
        """(layer, update) of each chosen layer, in order."""
        return sorted(terms_of(model, linear, self.kind).items())

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """What is trained as it stands now."""
        found = {}
        for key in state:
            linear, _, part = key.rpartition(".")
            found[key] = torch.stack([whole(getattr(update, part)) for _, update in self.updates_of(model, linear)])
        return found

    def promise(self, config: LlamaConfig) -> Promise:
        """The chosen weights."""
        return Promise(changed=frozenset(self.touched({}, config)), zeros=self.zeros)

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(n, …) of each part of each linear layer."""
        count, widths = len(self.layers(config)), linear_shapes(config)
        return {
            f"{name}.{part}": (count, *shape)
            for name in widths
            if name in self.linears
            for part, shape in self.part_shapes(name, *widths[name]).items()
        }

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """The chosen weights."""
        return [f"model.layers.{layer}.{name}.weight" for layer in self.layers(config) for name in self.linears]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The weight with what its update adds to it."""
        linear, layer, _ = place_of(name)
        return value + self.update(linear, self.parts_at(state, linear, layer)).folded(value)


class LowRankUpdates(WeightUpdates):
    """Those with A and B for each matrix: `NAME.down` (n, r, in), drawn, and `NAME.up` (n, out, r), zero at first."""

    rest: ClassVar = {"up": 0.0}
    in_words = "updates of rank {rank} of {count} matrices"

    def __init__(self, lora_rank: int, lora_targets: str | None = None, lora_layers: str | None = None):
        super().__init__(lora_targets, lora_layers)
        self.rank = lora_rank

    def part_shapes(self, linear: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """A and B."""
        return {"down": (self.rank, inputs), "up": (outputs, self.rank)}

    def describe(self, state: State) -> str:
        """ "updates of rank 8 of 210 matrices"."""
        count = sum(len(tensor) for name, tensor in state.items() if name.endswith(".up"))
        return self.in_words.format(rank=self.rank, count=count)


def place_of(name: str) -> tuple[str, int, str]:
    """(`self_attn.q_proj`, layer, `weight` or `bias`) of a tensor's name in a checkpoint."""
    _, _, layer, linear = name.split(".", 3)
    linear, _, kind = linear.rpartition(".")
    return linear, int(layer), kind
