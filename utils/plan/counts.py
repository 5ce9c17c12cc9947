"""What a method learns, counted before it reads a weight."""

from math import prod

import torch
from transformers import LlamaConfig

from models.contract import linear_shapes
from models.methods import Options, parts_of


def numbers(method: str, options: Options, config: LlamaConfig, heads: int) -> tuple[int, int]:
    """(learned, trained): how many numbers a restoration keeps and trains, as far as its options tell."""
    per_layer = config.num_attention_heads
    chosen = {"heads": torch.tensor([[each // per_layer, each % per_layer] for each in range(heads)])}
    learned = trained = 0
    for _, part in parts_of(method, options):
        try:
            size = sum(map(prod, part.shapes(chosen, config).values()))
        except KeyError:
            continue
        learned += size
        if part.needs.training:
            trained += 2 * heads * config.head_dim if part.needs.heads else size
    return learned, trained


def changed_weights(method: str, options: Options, config: LlamaConfig) -> int:
    """How many weights the matrices have that a restoration may change."""
    names = frozenset().union(*(part.promise(config).changed for _, part in parts_of(method, options)))
    return sum(
        prod(shape)
        for linear, shape in linear_shapes(config).items()
        for layer in range(config.num_hidden_layers)
        if f"model.layers.{layer}.{linear}.weight" in names
    )
