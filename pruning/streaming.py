"""One decoder layer at a time: gather what its linear layers are fed, prune it, pass the set on through it.

The hidden states of the calibration set are kept once and overwritten layer by layer; only one layer's weights
and statistics are on the device, so that a model prunes in the memory of one layer plus the set.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaForCausalLM

from models.checkpoint import LINEARS
from pruning.statistics import Hessian, InputNorms
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

Values = Mapping[str, torch.Tensor]
"""What was gathered, by site."""


@dataclass(frozen=True)
class Stage:
    """One pass of the calibration set over one decoder layer, and the pruning that follows it.

    sites: whose inputs are gathered; none means no pass.
    statistic: what is gathered of them.
    prune: changes the layer in place, and returns the relative error of each linear layer where it knows it.
    """

    sites: tuple[str, ...]
    statistic: type[InputNorms | Hessian]
    prune: Callable[[nn.Module, Values], dict[str, float]]


class _Enough(Exception):
    """The last input asked for was seen: the rest of the layer need not be computed."""


@torch.no_grad()
def stream(
    model: LlamaForCausalLM,
    tokens: torch.Tensor,
    stages: list[list[Stage]],
    device: torch.device,
) -> list[dict]:
    """Prune the model in place, layer by layer, each with the inputs that the pruned layers before it give.

    tokens: (S, T) int64, the calibration set, no padding. stages: per layer, in order.
    Returns per layer {"error", "linear_errors", "seconds", "algebra_seconds" (the part spent on the
    weights, the rest is forward passes)}; error is ‖f(X) - f̂(X)‖² / ‖f(X) - X‖² on a part of
    the set: of what the layer adds to the residual stream, the share that is now wrong.
    Raises UserError naming the layer if its weights or inputs are not finite.
    """
    hidden, kwargs = first_inputs(model, tokens, device)
    batches = hidden.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    sample = hidden[: max(1, min(len(hidden) // 16, BATCH_TOKENS // tokens.shape[1]))]
    record = []
    layers = model.model.layers
    with progress(total=len(layers), desc="pruning", unit="layer") as bar:
        for index, layer in enumerate(layers):
            start, home = time.perf_counter(), next(layer.parameters()).device
            layer.to(device)
            before, dense = sample.clone(), layer(sample, **kwargs)
            if not dense.isfinite().all():
                raise _not_finite(f"the output of layer {index}")
            linear_errors, algebra = {}, 0.0
            for stage in stages[index]:
                values = _gather(layer, index, stage, batches, kwargs) if stage.sites else {}
                began = time.perf_counter()
                try:
                    linear_errors |= stage.prune(layer, values)
                except torch.linalg.LinAlgError as failure:
                    raise UserError(
                        f"-calib_data: the Hessian of layer {index} is singular ({failure}); "
                        "raise -calib_samples, or prune with wanda"
                    ) from failure
                algebra += time.perf_counter() - began
            # Nobody reads what the last layer gives, except for the error on the sample.
            for batch in batches if index < len(layers) - 1 else (sample,):
                batch.copy_(layer(batch, **kwargs))
            added, wrong = (dense - before).float().norm().item(), (sample - dense).float().norm().item()
            error = (wrong / max(added, 1e-30)) ** 2
            layer.to(home)
            record.append(
                {
                    "error": error,
                    "linear_errors": linear_errors,
                    "seconds": time.perf_counter() - start,
                    "algebra_seconds": algebra,
                }
            )
            bar.set_postfix(loss=f"{error:.4f}")
            bar.update()
    return record


def check_cast(model: LlamaForCausalLM) -> None:
    """Raise UserError naming the layer if one of its weights is not finite."""
    for index, layer in enumerate(model.model.layers):
        for name in LINEARS:
            if not layer.get_submodule(name).weight.isfinite().all():
                raise UserError(
                    f"-base_model_name: the weights of layer {index} ({name}) are not finite; "
                    "the checkpoint is damaged, or -dtype cannot hold it"
                )


@torch.no_grad()
def first_inputs(model: LlamaForCausalLM, tokens: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, dict]:
    """The first layer's input (S, T, D) on the device, and the keyword arguments that every layer takes.

    The arguments are those of a single sample: their batch axis is 1, which broadcasts.
    """
    seen = {}

    def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["hidden"] = args[0]
        seen["kwargs"] = kwargs
        raise _Enough

    first = model.model.layers[0]
    at = next(model.model.embed_tokens.parameters()).device
    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    hidden = None
    try:
        for index, ids in enumerate(tokens):
            with suppress(_Enough):
                model.model(ids[None].to(at), use_cache=False)
            if hidden is None:
                hidden = torch.empty(*tokens.shape, seen["hidden"].shape[-1], dtype=seen["hidden"].dtype, device=device)
            hidden[index] = seen["hidden"][0]
    finally:
        handle.remove()
    return hidden, _to(seen["kwargs"], device)


def _gather(layer: nn.Module, index: int, stage: Stage, batches: tuple[torch.Tensor, ...], kwargs: dict) -> Values:
    """Run the set through the layer up to the last site, and return the statistic of each site."""
    sites = [site for site in SITES if site in stage.sites]
    statistics = {}
    for site in sites:
        linear = layer.get_submodule(site)
        statistics[site] = stage.statistic(linear.in_features, linear.weight.device)

    def watch(site: str) -> Callable:
        def hook(_: nn.Module, args: tuple) -> None:
            statistics[site].add(args[0].flatten(0, -2))
            if site == sites[-1]:
                raise _Enough

        return hook

    with ExitStack() as hooks:
        for site in sites:
            hooks.callback(layer.get_submodule(site).register_forward_pre_hook(watch(site)).remove)
        for batch in batches:
            with suppress(_Enough):
                layer(batch, **kwargs)
    values = {site: statistic.value() for site, statistic in statistics.items()}
    for site, value in values.items():
        if not value.isfinite().all():
            raise _not_finite(f"the input of layer {index} ({site})")
    return values


def _not_finite(what: str) -> UserError:
    return UserError(
        f"-base_model_name: {what} is not finite on the calibration set; "
        "the model overflows in this -dtype (try bfloat16 or float32), or its weights are damaged"
    )


def _to(value: object, device: torch.device) -> object:
    """Every tensor inside nested tuples, lists and dictionaries, on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_to(item, device) for item in value)
    return value
