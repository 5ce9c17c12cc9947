"""A checkpoint on disk, read tensor by tensor: what it holds, how many zeros, and what identifies it."""

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from utils.common.files import digest_files

PRUNED_WEIGHT = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.\w+_proj\.weight")
"""The seven linear weights of a decoder layer: what pruning methods prune."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights in `folder`: safetensors if there are any, else PyTorch's .bin."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of a model's weights and configuration: what caches are keyed by.

    Files are read once a process, and again only if their size or time of change is another.
    """
    files = [*weight_files(folder), folder / "config.json"]
    return _digest_unchanged(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest_unchanged(files: tuple[tuple[Path, int, int], ...]) -> str:
    return digest_files([file for file, _, _ in files])


def tensor_readers(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """A function for each tensor of a checkpoint that reads it: only what is asked for is in memory (safetensors)."""
    readers: dict[str, Callable[[], Tensor]] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            tensors = safe_open(file, framework="pt")
            readers |= {name: partial(tensors.get_tensor, name) for name in tensors.keys()}  # noqa: SIM118
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            readers |= {name: partial(loaded.get, name) for name in loaded}
    return readers


def count_zeros(folder: Path) -> tuple[list[int], list[int]]:
    """(zeros, weights) of the prunable linear layers of each decoder layer."""
    zeros: dict[int, int] = {}
    weights: dict[int, int] = {}
    for name, read in tensor_readers(folder).items():
        if match := PRUNED_WEIGHT.fullmatch(name):
            tensor, layer = read(), int(match[1])
            zeros[layer] = zeros.get(layer, 0) + int((tensor == 0).sum())
            weights[layer] = weights.get(layer, 0) + tensor.numel()
    layers = sorted(weights)
    return [zeros[layer] for layer in layers], [weights[layer] for layer in layers]


def restorable_heads(folder: Path, layers: int, heads: int) -> Tensor:
    """(L, H) bool: heads with any non-zero column in o_proj; what is added to the others reaches nothing."""
    readers = tensor_readers(folder)
    rows = []
    for layer in range(layers):
        weight = readers[f"model.layers.{layer}.self_attn.o_proj.weight"]()
        rows.append((weight != 0).any(0).unflatten(0, (heads, -1)).any(1))
    return torch.stack(rows)
