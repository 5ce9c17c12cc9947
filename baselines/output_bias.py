"""A free constant on what attention, the MLP or both give to the residual stream: a bias of the whole projection.

What compensated heads can add lies in the span of their columns of W_O; this has no such bound, and no heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.contract import SITES, Given, Needs, Promise, State, bias_promise
from models.modeling_llama import Constant, restored_linear, terms_of, whole


class OutputBias:
    """A bias (D,) on every decoder layer's last linear layer of the named sites, starting at zero.

    sites: of `models.contract.SITES`. The state: `attention`, `ffn` (L, D) fp32.
    """

    needs = Needs(training=True)

    def __init__(self, sites: frozenset[str]):
        self.covers = sites
        self.sites = sorted(sites)

    def start(self, given: Given) -> State:
        """Zeros."""
        shape = given.config.num_hidden_layers, given.config.hidden_size
        return {site: torch.zeros(shape) for site in self.sites}

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """Zeros."""
        return {site: torch.zeros_like(tensor) for site, tensor in state.items()}

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """One constant a layer and site."""
        for site in self.sites:
            for layer, bias in enumerate(state[site]):
                restored_linear(model, layer, SITES[site]).add(Constant(bias))

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The biases as they stand now."""
        found = {site: sorted(terms_of(model, SITES[site], Constant).items()) for site in self.sites}
        return {site: torch.stack([whole(term.bias) for _, term in terms]) for site, terms in found.items()}

    def promise(self, config: LlamaConfig) -> Promise:
        """The biases of these projections."""
        return bias_promise(config, frozenset(SITES[site] for site in self.sites))

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(L, D) for each site."""
        return dict.fromkeys(self.sites, (config.num_hidden_layers, config.hidden_size))

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """All of them."""
        layers = range(config.num_hidden_layers)
        return [f"model.layers.{layer}.{SITES[site]}.bias" for site in self.sites for layer in layers]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The bias there is, plus the learned one."""
        site = next(site for site in self.sites if SITES[site] in name)
        added = state[site][int(name.split(".")[2])].double()
        return added if value is None else value + added

    def describe(self, state: State) -> str:
        """ "biases of 60 projections"."""
        return f"biases of {sum(len(tensor) for tensor in state.values())} projections"
