"""What a method learns, counted before it reads a weight."""

from math import prod

from transformers import LlamaConfig

from models.contract import linear_shapes
from utils.common.methods import SITES, Options, Part, parts_of
from utils.common.names import layer_numbers


def numbers(method: str, options: Options, config: LlamaConfig, heads: int) -> tuple[int, int]:
    """(learned, trained): how many numbers a restoration keeps and trains."""
    learned = trained = 0
    for part in parts_of(method, options):
        size = sum(_count(what, part, options, config, heads) for what in part.spec.numbers.split())
        learned += size + heads * (config.head_dim**2 + 1) * part.needs.heads  # V, and which heads
        trained += size * part.needs.training
    return learned, trained


def changed_weights(method: str, options: Options, config: LlamaConfig) -> int:
    """How many weights the matrices have that a restoration may change."""
    parts = [part for part in parts_of(method, options) if {"A", "W"} & set(part.spec.numbers.split())]
    changed = {place: prod(shape) for part in parts for place, shape in _matrices(part, options, config).items()}
    return sum(changed.values())


def _matrices(part: Part, options: Options, config: LlamaConfig) -> dict[tuple[int, str], tuple[int, int]]:
    """Shapes (out, in) of the matrices that it changes, by layer and name."""
    chosen = options if "lora_targets" in part.spec.takes else Options()
    layers = layer_numbers(chosen.lora_layers) if chosen.lora_layers else range(config.num_hidden_layers)
    targets = chosen.lora_targets and chosen.lora_targets.split(",")
    shapes = {name: s for name, s in linear_shapes(config).items() if not targets or name.split(".")[1] in targets}
    return {(layer, name): shape for layer in layers for name, shape in shapes.items()}


def _count(what: str, part: Part, options: Options, config: LlamaConfig, heads: int) -> int:
    """Numbers of one kind, as MethodSpec.numbers names them."""
    if what in ("β", "b"):
        return heads * config.head_dim
    if what == "norms":
        return (2 * config.num_hidden_layers + 1) * config.hidden_size
    if what == "biases":
        shapes = linear_shapes(config)
        return config.num_hidden_layers * sum(shapes[SITES[site]][0] for site in part.sites)
    shapes = _matrices(part, options, config).values()
    of_one = {"A": lambda o, i: options.lora_rank * i, "B": lambda o, i: options.lora_rank * o, "m": lambda o, i: o}
    return sum(prod(shape) if what == "W" else of_one[what](*shape) for shape in shapes)
