"""The calibration set on its way through the dense and the restored model, one decoder layer at a time."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.contract import MethodInputs
from pruning.streaming import BATCH_TOKENS, first_inputs
from utils.common.errors import UserError
from utils.common.methods import SITES
from utils.common.progress import progress

GROUPS = (("q", "k", "v"), ("attention",), ("gate", "up"), ("ffn",))
"""Sites that are fed the same, in the order in which they are computed."""


@dataclass
class Stream:
    """One model's way: its decoder layer, and the hidden states (S, T, D) before it, in the model's dtype.

    kwargs: what every decoder layer takes besides.
    """

    layer: nn.Module
    hidden: Tensor
    kwargs: dict

    def feed(self, watch: dict[str, Callable[[Tensor], None]]) -> None:
        """Run the set through the layer as it is now, up to the last watched site.

        watch: by name in SITES, what is called with each batch's inputs (tokens, in) of that linear layer.
        """
        order = [site for site in SITES if site in watch]

        def hook(site: str) -> Callable:
            def seen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                watch[site](inputs[0].flatten(0, -2))
                if site == order[-1]:
                    raise _Enough

            return seen

        with ExitStack() as hooks, torch.no_grad():
            for site in order:
                linear = self.layer.get_submodule(SITES[site])
                hooks.callback(linear.register_forward_pre_hook(hook(site)).remove)
            for batch in self.batches():
                with suppress(_Enough):
                    self.layer(batch, **self.kwargs)

    def mean_inputs(self, sites: Collection[str]) -> dict[str, Tensor]:
        """E[x] over all tokens of what the linear layers at these sites are fed: (in,) fp64 on the CPU, in one pass."""
        groups = [[site for site in group if site in sites] for group in GROUPS]
        sums = {group[0]: [] for group in groups if group}

        def adds(found: list[Tensor]) -> Callable[[Tensor], None]:
            return lambda x: found.append(x.sum(0, dtype=torch.float32).cpu().double())

        self.feed({site: adds(found) for site, found in sums.items()})
        means = {site: finite(sum(found) / self.tokens, f"the input of {SITES[site]}") for site, found in sums.items()}
        return {site: means[group[0]] for group in groups for site in group}

    @property
    def tokens(self) -> int:
        """S·T."""
        return self.hidden.shape[0] * self.hidden.shape[1]

    def batches(self) -> tuple[Tensor, ...]:
        """Views of the hidden states, as many windows each as one forward pass of a layer takes."""
        return self.hidden.split(max(1, BATCH_TOKENS // self.hidden.shape[1]))

    @torch.no_grad()
    def advance(self) -> None:
        """The hidden states after the layer as it is now, in place."""
        for batch in self.batches():
            batch.copy_(self.layer(batch, **self.kwargs))


@dataclass
class Block:
    """Decoder layer `index` in both models; a stream that was not asked for is None."""

    index: int
    dense: Stream | None
    restored: Stream | None


class _Enough(Exception):
    """The last watched linear layer was reached: the rest of the decoder layer need not be computed."""


def walk(inputs: MethodInputs, description: str, *, dense: bool = True, restored: bool = True) -> Iterator[Block]:
    """All decoder layers in order, each with the set before it.

    What the caller changes in a block's restored layer, the blocks after it are fed by: the models are its own copies.
    Only the block's layers are on `inputs.device`, beside the set.
    """
    models = [inputs.dense() if dense else None, inputs.pruned() if restored else None]
    streams = [model and _begin(model, inputs) for model in models]
    layers = inputs.config.num_hidden_layers
    for index in progress(range(layers), desc=description, unit="layer"):
        running = [(stream, model.model.layers[index]) for model, stream in zip(models, streams, strict=True) if model]
        homes = [next(layer.parameters()).device for _, layer in running]
        for stream, layer in running:
            stream.layer = layer.to(inputs.device)
        yield Block(index, *streams)
        for (stream, layer), home in zip(running, homes, strict=True):
            if index < layers - 1:
                stream.advance()
            layer.to(home)


def finite(value: Tensor, what: str) -> Tensor:
    """The value, if all of it is finite; else UserError."""
    if not value.isfinite().all():
        raise UserError(
            f"-dtype: {what} is not finite on the calibration set, the model overflows in this -dtype; "
            "try bfloat16 or float32"
        )
    return value


@torch.no_grad()
def put(weight: Tensor, linear: nn.Linear) -> None:
    """Let the layer compute with this weight from now on, in its own dtype."""
    linear.weight.copy_(weight)


def _begin(model: LlamaForCausalLM, inputs: MethodInputs) -> Stream:
    hidden, kwargs = first_inputs(model, inputs.tokens, torch.device(inputs.device))
    return Stream(model.model.layers[0], hidden, kwargs)
