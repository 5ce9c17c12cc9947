"""The scales of all RMSNorms, trained: 1-d weights, so that each weight of a matrix keeps its bits."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.contract import Given, Needs, Promise, State
from models.modeling_llama import restored_norm, whole


class NormScales:
    """Both norms of every decoder layer and the last one, from the values they have.

    The state: `scales` (2·L + 1, D) fp32, in the order of the forward pass.
    """

    needs = Needs(training=True)
    covers: frozenset[str] = frozenset()

    def start(self, given: Given) -> State:
        """The pruned checkpoint's own scales."""
        return _stored(given.config.num_hidden_layers, given.read)

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """The pruned checkpoint's own scales."""
        return _stored(len(state["scales"]) // 2, read)

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """A trained scale in each norm."""
        for name, scale in zip(_norms(model.config.num_hidden_layers), state["scales"], strict=True):
            restored_norm(model, name, scale)

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The scales as they stand now."""
        names = _norms(model.config.num_hidden_layers)
        return {"scales": torch.stack([whole(model.get_submodule(name).scale) for name in names])}

    def promise(self, config: LlamaConfig) -> Promise:
        """The norms' weights."""
        return Promise(changed=frozenset(f"{name}.weight" for name in _norms(config.num_hidden_layers)))

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(2·L + 1, D)."""
        return {"scales": (len(_norms(config.num_hidden_layers)), config.hidden_size)}

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """All of them."""
        return [f"{name}.weight" for name in _norms(config.num_hidden_layers)]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The learned scale in place of the old one."""
        place = _norms(len(state["scales"]) // 2).index(name.removesuffix(".weight"))
        return state["scales"][place].double()

    def describe(self, state: State) -> str:
        """ "scales of 61 norms"."""
        return f"scales of {len(state['scales'])} norms"


def _norms(layers: int) -> list[str]:
    kinds = ("input_layernorm", "post_attention_layernorm")
    return [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in kinds] + ["model.norm"]


def _stored(layers: int, read: Callable[[str], Tensor]) -> State:
    return {"scales": torch.stack([read(f"{name}.weight").float() for name in _norms(layers)])}
