"""What a merged checkpoint holds: every tensor of the pruned one, those that a restoration adds, and zero biases."""

from collections.abc import Iterable
from dataclasses import replace

from transformers import LlamaConfig

from models.checkpoint import ATTENTION, MLP, Checkpoint, Header, safetensors_name

BIAS_SWITCHES = {"attention_bias": ATTENTION, "mlp_bias": MLP}
"""Llama's switches for biases: each stands for all of these linear layers, in every decoder layer."""


def merged_layout(stored: Checkpoint, config: LlamaConfig, touched: Iterable[str]) -> dict[str, Header]:
    """Every tensor of the merged checkpoint with its dtype, shape and file: the stored ones, touched, and zero biases.

    A new bias has the dtype of its weight and stands in its weight's file.
    """
    layout = {
        name: replace(stored.headers[name], file=safetensors_name(stored.headers[name].file)) for name in stored.kept()
    }
    for name in [*touched, *zero_biases(stored, config, touched)]:
        if name not in layout:
            weight = layout[f"{name.removesuffix('bias')}weight"]
            layout[name] = replace(weight, shape=weight.shape[:1])
    return layout


def zero_biases(stored: Checkpoint, config: LlamaConfig, touched: Iterable[str]) -> list[str]:
    """Biases that must be there as zeros, because a touched one of the same kind is new."""
    new = {name for name in touched if name not in stored}
    everywhere = [
        f"model.layers.{layer}.{linear}.bias"
        for switch in switched_on(new)
        for layer in range(config.num_hidden_layers)
        for linear in BIAS_SWITCHES[switch]
    ]
    return [name for name in everywhere if name not in new and name not in stored]


def switched_on(touched: Iterable[str]) -> list[str]:
    """Llama's switches that must be on for these tensors to be read."""
    linears = {name.removesuffix(".bias").split(".", 3)[-1] for name in touched if name.endswith(".bias")}
    return [switch for switch, kinds in BIAS_SWITCHES.items() if linears & set(kinds)]
