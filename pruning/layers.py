"""A model's decoder layers one by one, each with its input on the calibration set: for pruners and closed forms.

The calibration set's hidden states are kept once and overwritten layer by layer. Only one layer's weights and
statistics are on the device, so that it needs memory for one layer and these hidden states.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from utils.common.errors import UserError
from utils.common.progress import progress

LINEARS_BY_INPUT = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The linear layers of a decoder layer that share an input, by the first of them, in the order they are computed."""

BATCH_TOKENS = 4096
"""Tokens of the calibration set in one forward pass of a layer."""


class _Enough(Exception):
    """Raised by a hook at the last input that was asked for, to skip the rest of the forward pass."""


@contextmanager
def seen_inputs(linears: Mapping, see: Callable[[object, Tensor], None]) -> Iterator[None]:
    """Context manager: the forward pass in it calls see(key, input) for each linear layer, and ends at the last one."""
    *_, last = linears

    def hook(key: object, _: nn.Module, args: tuple) -> None:
        see(key, args[0])
        if key == last:
            raise _Enough

    with ExitStack() as hooks, suppress(_Enough):
        for key, linear in linears.items():
            hooks.enter_context(linear.register_forward_pre_hook(partial(hook, key)))
        yield


@dataclass(frozen=True)
class LayerInputs:
    """Decoder layer `index`, the calibration set's hidden states (S, T, D) before it, and the layer's other arguments.

    hidden is in the model's dtype, kwargs are this layer's own. Both are None without a calibration set.
    """

    index: int
    layer: nn.Module
    hidden: Tensor | None = None
    kwargs: dict | None = None

    def batches(self) -> tuple[Tensor, ...]:
        """Views of the hidden states: batches of at most BATCH_TOKENS tokens, or of one longer window."""
        return self.hidden.split(max(1, BATCH_TOKENS // self.hidden.shape[1]))

    @torch.no_grad()
    def gather(self, names: Collection[str], statistic: type) -> dict[str, Tensor]:
        """The statistic (of pruning.input_statistics) of each of these linear layers' inputs, in one pass over the set.

        names: keys of LINEARS_BY_INPUT. The layer runs with its current weights, up to the last of these. Raises
        UserError naming the layer if a value is not finite.
        """
        names = [name for name in LINEARS_BY_INPUT if name in names]
        linears = {name: self.layer.get_submodule(name) for name in names}
        found = {name: statistic(linear.in_features, linear.weight.device) for name, linear in linears.items()}

        def add(name: str, fed: Tensor) -> None:
            found[name].add(fed.flatten(0, -2))

        for batch in self.batches():
            with seen_inputs(linears, add):
                self.layer(batch, **self.kwargs)
        return {name: finite(each.value(), f"the input of layer {self.index} ({name})") for name, each in found.items()}


def walk(model: PreTrainedModel, tokens: Tensor, device: torch.device, description: str) -> Iterator[LayerInputs]:
    """Yield all decoder layers in order. Each one's input comes from the layers before it, as the caller changed them.

    model: on the CPU. tokens: (S, T) int64, the calibration set, no padding. Only the current layer is on the device.
    description: of the progress bar; no bar if it is empty.
    """
    hidden, kwargs = layer_inputs(model, tokens, device)
    layers = model.model.layers
    for index, layer in enumerate(progress(layers, desc=description, unit="layer", disable=not description)):
        inputs = LayerInputs(index, layer.to(device), hidden, send_to_device(kwargs[index], device))
        yield inputs
        if index < len(layers) - 1:  # the last layer's output is not needed
            with torch.no_grad():
                for batch in inputs.batches():
                    batch.copy_(layer(batch, **inputs.kwargs))
        layer.to("cpu")


@torch.no_grad()
def layer_inputs(model: PreTrainedModel, tokens: Tensor, device: torch.device) -> tuple[Tensor, list[dict]]:
    """The first layer's input (S, T, D) on the device, and the keyword arguments of each layer.

    The arguments are those of a single sample: their batch axis is 1, which broadcasts. They are recorded for every
    layer, since masks and rotary embeddings may differ (sliding windows). No layer is run.
    """
    hidden = torch.empty(*tokens.shape, model.config.hidden_size, dtype=model.dtype, device=device)
    asked = _Asked()
    layers = model.model.layers
    model.model.layers = nn.ModuleList([asked] * len(layers))
    try:
        for row, ids in zip(hidden, tokens, strict=True):  # one by one: the host may have less memory than the device
            asked.seen.clear()
            model.model(ids[None], use_cache=False)
            row.copy_(asked.seen[0][0][0])
    finally:
        model.model.layers = layers
    return hidden, [kwargs for _, kwargs in asked.seen]


class _Asked(nn.Module):
    """Stands in for every decoder layer: records its arguments and returns its input."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[Tensor, dict]] = []

    def forward(self, given: Tensor, **kwargs) -> Tensor:
        self.seen.append((given, kwargs))
        return given


def finite(value: Tensor, what: str) -> Tensor:
    """The value, if all of it is finite; else UserError."""
    if not value.isfinite().all():
        raise UserError(
            f"-dtype: {what} is not finite; the model overflows in this -dtype (try bfloat16 or float32), or its "
            "weights are damaged"
        )
    return value
