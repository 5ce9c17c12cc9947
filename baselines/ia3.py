"""IA3: what k_proj and v_proj give, and what down_proj is fed, times a learned number for each feature.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022;
the places are PEFT's for Llama. Merged, rows or columns of the weight are scaled, and biases of k and v with them.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.updates import Parts, WeightUpdates, place_of
from models.contract import Given, Needs, Promise, State
from models.modeling_llama import restored_linear
from models.updates import ScaledBias, Scaling

OUTPUTS = ("self_attn.k_proj", "self_attn.v_proj")


class IA3(WeightUpdates):
    """Scales of rows of k_proj and v_proj, and of columns of down_proj.

    The state, fp32: `NAME.scale`, (L, out) of k and v and (L, in) of down_proj, one at first; and `NAME.bias` (L, out),
    the checkpoint's own biases of k and v where it has them, as they are. Constants that others add to k and v are
    not scaled.
    """

    needs = Needs(training=True, updates=True)
    kind = Scaling
    rest: ClassVar = {"scale": 1.0}

    def __init__(self):
        super().__init__("k_proj,v_proj,down_proj")

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """Rows of k and v, columns of down_proj."""
        return Scaling(parts["scale"], linear in OUTPUTS)

    def part_shapes(self, linear: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """A number for each feature."""
        return {"scale": (outputs,) if linear in OUTPUTS else (inputs,)}

    def start(self, given: Given) -> State:
        """Ones."""
        state, layers = super().start(given), self.layers(given.config)
        for name in OUTPUTS if given.config.attention_bias else ():
            rows = [given.read(f"model.layers.{layer}.{name}.bias").float() for layer in layers]
            state[f"{name}.bias"] = torch.stack(rows)
        return state

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """A scaling on each weight, and what it does to its bias."""
        super().attach(model, state)
        for name in OUTPUTS if f"{OUTPUTS[0]}.bias" in state else ():
            for layer, scaling in self.updates_of(model, name):
                term = ScaledBias(scaling.scale, state[f"{name}.bias"][layer])
                restored_linear(model, layer, name).add(term)

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The scales as they stand now."""
        trained = {name: tensor for name, tensor in state.items() if name.endswith("scale")}
        return {**state, **super().read(model, trained)}

    def promise(self, config: LlamaConfig) -> Promise:
        """These weights, and the biases there are on k and v."""
        return Promise(changed=frozenset(self.touched({}, config)))

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(L, out) of k and v, and (L, in) of down_proj."""
        shapes = super().shapes(state, config)
        biases = OUTPUTS if config.attention_bias and state else ()
        return shapes | {f"{name}.bias": shapes[f"{name}.scale"] for name in biases}

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """All of them."""
        layers = self.layers(config) if config.attention_bias else ()
        return super().touched(state, config) + [f"model.layers.{n}.{name}.bias" for n in layers for name in OUTPUTS]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The scaled weight; of a bias (l - 1) b is added."""
        linear, layer, kind = place_of(name)
        if kind == "weight":
            return super().merged(state, name, value, read)
        parts = self.parts_at(state, linear, layer)
        return value + ScaledBias(nn.Parameter(parts["scale"]), parts["bias"]).folded(value)

    def describe(self, state: State) -> str:
        """ "scales of the features of 90 matrices"."""
        count = sum(len(tensor) for name, tensor in state.items() if name.endswith("scale"))
        return f"scales of the features of {count} matrices"
