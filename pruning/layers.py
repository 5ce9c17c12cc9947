"""A model's decoder layers one by one, each with the calibration set before it: for pruners and for closed forms.

The hidden states of the calibration set are kept once and overwritten layer by layer; only one layer's weights
and statistics are on the device, so that all runs in the memory of one layer plus the set.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from unittest.mock import patch

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from utils.common.errors import UserError
from utils.common.progress import progress

SITES = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The distinct inputs within a decoder layer, in the order they are computed, and the linear layers they feed."""

BATCH_TOKENS = 4096
"""Tokens of the calibration set in one forward pass of a layer."""


Values = Mapping[str, Tensor]
"""What was gathered, by site."""


@dataclass(frozen=True)
class PruningPass:
    """What a pruning method does to one decoder layer: a pass of the calibration set, and the pruning that follows it.

    sites: whose inputs are gathered. statistic: what is gathered of them; None where pruning needs nothing. prune:
    changes the layer in place.
    """

    sites: tuple[str, ...]
    statistic: type | None
    prune: Callable[[nn.Module, Values], None]


class _Enough(Exception):
    """The last input asked for was seen: the rest of the layer need not be computed."""


@dataclass(frozen=True)
class LayerInputs:
    """Decoder layer `index`, and the hidden states (S, T, D) of the calibration set before it, in the model's dtype.

    kwargs: what this decoder layer takes besides.
    """

    index: int
    layer: nn.Module
    hidden: Tensor
    kwargs: dict

    def batches(self) -> tuple[Tensor, ...]:
        """Views of the hidden states, as many windows each as one forward pass of a layer takes."""
        return self.hidden.split(max(1, BATCH_TOKENS // self.hidden.shape[1]))

    @torch.no_grad()
    def gather(self, sites: Collection[str], statistic: type) -> dict[str, Tensor]:
        """A statistic (see pruning.input_statistics) of what each of these SITES is fed, in one pass of the set.

        The layer runs as it is now, up to the last site. Raises UserError naming the layer if a value is not finite.
        """
        sites = [site for site in SITES if site in sites]
        linears = {site: self.layer.get_submodule(site) for site in sites}
        found = {site: statistic(linear.in_features, linear.weight.device) for site, linear in linears.items()}

        def watch(site: str) -> Callable:
            def hook(_: nn.Module, args: tuple) -> None:
                found[site].add(args[0].flatten(0, -2))
                if site == sites[-1]:
                    raise _Enough

            return hook

        with ExitStack() as hooks:
            for site, linear in linears.items():
                hooks.callback(linear.register_forward_pre_hook(watch(site)).remove)
            for batch in self.batches():
                with suppress(_Enough):
                    self.layer(batch, **self.kwargs)
        return {site: finite(each.value(), f"the input of layer {self.index} ({site})") for site, each in found.items()}

    @torch.no_grad()
    def advance(self) -> None:
        """Overwrite the hidden states with those after the layer as it is now."""
        for batch in self.batches():
            batch.copy_(self.layer(batch, **self.kwargs))


def walk(model: PreTrainedModel, tokens: Tensor, device: torch.device, description: str) -> Iterator[LayerInputs]:
    """All decoder layers in order. What the caller changes in a layer, the layers after it are fed by.

    tokens: (S, T) int64, the calibration set, no padding. Only the layer whose turn it is, is on the device.
    """
    hidden, kwargs = layer_inputs(model, tokens, device)
    layers = model.model.layers
    for index, layer in enumerate(progress(layers, desc=description, unit="layer")):
        home = next(layer.parameters()).device
        inputs = LayerInputs(index, layer.to(device), hidden, kwargs[index])
        yield inputs
        if index < len(layers) - 1:  # nobody reads what the last one gives
            inputs.advance()
        layer.to(home)


@torch.no_grad()
def layer_inputs(model: PreTrainedModel, tokens: Tensor, device: torch.device) -> tuple[Tensor, list[dict]]:
    """The first layer's input (S, T, D) on the device, and the keyword arguments that each layer takes.

    The arguments are those of a single sample: their batch axis is 1, which broadcasts. Masks and rotary positions
    differ where layers do (sliding windows), so every layer is asked; none of them is run.
    """
    hidden = torch.empty(*tokens.shape, model.config.hidden_size, dtype=model.dtype, device=device)
    at, layers = model.model.embed_tokens.weight.device, model.model.layers
    seen: list[tuple[Tensor, dict]] = []

    def passing(given: Tensor, **kwargs) -> Tensor:
        seen.append((given, kwargs))
        if len(seen) == len(layers):
            raise _Enough
        return given

    with ExitStack() as patched:
        for layer in layers:
            patched.enter_context(patch.object(layer, "forward", passing))
        for row, ids in zip(hidden, tokens, strict=True):
            seen.clear()
            with suppress(_Enough):
                model.model(ids[None].to(at), use_cache=False)
            row.copy_(seen[0][0][0])
    return hidden, [send_to_device(kwargs, device) for _, kwargs in seen]


def finite(value: Tensor, what: str) -> Tensor:
    """The value, if all of it is finite; else UserError."""
    if not value.isfinite().all():
        raise UserError(
            f"-dtype: {what} is not finite; the model overflows in this -dtype (try bfloat16 or float32), or its "
            "weights are damaged"
        )
    return value


@torch.no_grad()
def put(weight: Tensor, linear: nn.Linear) -> None:
    """Let the layer compute with this weight from now on, in its own dtype."""
    linear.weight.copy_(weight)
