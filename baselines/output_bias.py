"""A free constant on what linear layers give: a bias of the whole projection.

What compensated heads can add lies in the span of their columns of W_O; this has no such bound, and no heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.mean_gap import mean_gaps
from models.contract import SITES, Given, Needs, Promise, State, bias_promise, linear_shapes
from models.modeling_llama import Constant, restored_linear, terms_of, whole


class OutputBias:
    """A bias on the linear layers of the named sites in every decoder layer.

    sites: of `models.contract.SITES`. bias_start: `zero`, or `closed_form`, where FLAP's bias would be by that stream
    (one of utils.common.names.STREAMS; None for FLAP's own, the dense one). The state, for each site: (L, out) fp32.
    """

    term: type[nn.Module] = Constant

    def __init__(self, sites: frozenset[str], bias_start: str = "zero", stream: str | None = None):
        self.covers = sites
        self.sites = [site for site in SITES if site in sites]
        # None where nothing is read, so that no start depends on it.
        self.stream = (stream or "dense") if bias_start == "closed_form" else None

    @property
    def needs(self) -> Needs:
        """Training; for a start in closed form the calibration set too, and the dense weights."""
        return Needs(training=True, calibration=self.stream is not None, teacher=self.stream is not None)

    def start(self, given: Given) -> State:
        """Zeros, or the closed form."""
        if self.stream:
            return mean_gaps(given, self.sites, self.stream)
        return {site: torch.zeros(shape) for site, shape in self.shapes({}, given.config).items()}

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """Zeros."""
        return {site: torch.zeros_like(tensor) for site, tensor in state.items()}

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """One constant a layer and site."""
        for site in self.sites:
            for layer, bias in enumerate(state[site]):
                restored_linear(model, layer, SITES[site]).add(self.term(bias))

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """The biases as they stand now."""
        found = {site: sorted(terms_of(model, SITES[site], self.term).items()) for site in self.sites}
        return {site: torch.stack([whole(term.bias) for _, term in terms]) for site, terms in found.items()}

    def promise(self, config: LlamaConfig) -> Promise:
        """The biases of these projections."""
        return bias_promise(config, frozenset(SITES[site] for site in self.sites))

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(L, out) for each site."""
        widths = linear_shapes(config)
        return {site: (config.num_hidden_layers, widths[SITES[site]][0]) for site in self.sites}

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
