"""Conversion between a model with zeroed heads and channels and the smaller one that computes the same, both ways."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.dynamic_module_utils import custom_object_save

import models.compact_llama
from models.checkpoint import Checkpoint, write_checkpoint
from models.compact_llama import CompactLlamaConfig, CompactLlamaForCausalLM
from models.loading import copy_tokenizer, load_config, tokenizer_digest
from models.model_names import RECORD
from models.portable import make_portable
from utils.common.cache import Cache, cached
from utils.common.files import sha256

Left = dict[str, tuple[int, Tensor]]
"""For each tensor that gets smaller, by name: the axis, and the indices of the dense model that are left along it."""


def write_compact(folder: Path, output: Path) -> None:
    """Write the checkpoint in `folder` to the folder `output`, without the heads and channels that nothing reads.

    A KV head and its query heads are removed if all their o_proj columns are zero, a channel if its down_proj column
    is. Every layer keeps at least one KV head and one channel. Tensors keep their stored dtype.
    """
    stored, config = Checkpoint(folder), load_config(folder, "-pruned_model_path")
    kv_heads, channels = what_is_left(stored.read, config)
    left = left_of(config, kv_heads, channels)
    output.mkdir(exist_ok=True)
    sizes = {"kept_kv_heads": kv_heads, "intermediate_sizes": [len(kept) for kept in channels]}
    small = CompactLlamaConfig(**_settings(config), **sizes, architectures=[CompactLlamaForCausalLM.__name__])
    with torch.device("meta"):
        model = CompactLlamaForCausalLM(small)
    # As save_pretrained does: copy the file that defines the class, and name it in the config's auto_map.
    custom_object_save(model, output, config=model.config)
    _write(stored, model, output, lambda name, tensor: chosen(tensor, left.get(name)))
    make_portable(output)


def in_dense_shapes(folder: Path, cache_dir: Path) -> tuple[Path, bool]:
    """(folder in the dense model's shapes, whether the given checkpoint is in SlimGPT's compact form).

    Removed heads and channels come back as zeros, so that a head has the same index as in the dense model.
    """
    if not isinstance(load_config(folder, "-pruned_model_path"), CompactLlamaConfig):
        return folder, False
    beside = [tokenizer_digest(folder), *map(sha256, folder.glob(RECORD))]
    return _expanded(Cache(cache_dir), Checkpoint(folder), beside), True


@cached("expanded", code=(models,))
def _expanded(folder: Path, small: Checkpoint, beside: list[str]) -> None:
    """Write `small` in the dense model's shapes. Heads get their own positions back. Which channels were removed is not
    recorded, and makes no difference: those that are left come first. beside: digests of copied files, for the cache.
    """
    config = load_config(small.folder, small.flag)
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**_settings(config)))
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    left = left_of(config, config.kept_kv_heads, [list(range(size)) for size in config.intermediate_sizes])

    def widened(name: str, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(shapes[name]).index_copy(*left[name], tensor) if name in left else tensor

    _write(small, plain, folder, widened)


def what_is_left(read: Callable[[str], Tensor], config: LlamaConfig) -> tuple[list[list[int]], list[list[int]]]:
    """(KV heads, channels) to keep, by layer: indices with a non-zero column of o_proj or down_proj; [0] if none."""
    kv_heads, channels = [], []
    for layer in range(config.num_hidden_layers):
        attention = read(f"model.layers.{layer}.self_attn.o_proj.weight")
        by_kv_head = attention.unflatten(1, (config.num_key_value_heads, -1))
        kv_heads.append(_kept(by_kv_head.ne(0).any(0).any(-1)))
        channels.append(_kept(read(f"model.layers.{layer}.mlp.down_proj.weight").ne(0).any(0)))
    return kv_heads, channels


def left_of(config: LlamaConfig, kv_heads: list[list[int]], channels: list[list[int]]) -> Left:
    """The indices to keep of each tensor, if each layer keeps these KV heads and channels."""
    shared, left = config.num_attention_heads // config.num_key_value_heads, {}
    for index, (heads, kept) in enumerate(zip(kv_heads, channels, strict=True)):
        sizes = (config.head_dim, config.head_dim * shared)
        keys, queries = (torch.arange(config.num_key_value_heads * n).view(-1, n)[heads].flatten() for n in sizes)
        kept = torch.tensor(kept)
        rows = {"self_attn.q": queries, "self_attn.k": keys, "self_attn.v": keys, "mlp.gate": kept, "mlp.up": kept}
        for name, indices in rows.items():
            for part in ("weight", "bias"):
                left[f"model.layers.{index}.{name}_proj.{part}"] = 0, indices
        left[f"model.layers.{index}.self_attn.o_proj.weight"] = 1, queries
        left[f"model.layers.{index}.mlp.down_proj.weight"] = 1, kept
    return left


def chosen(tensor: Tensor, left: tuple[int, Tensor] | None) -> Tensor:
    """The part of a tensor that `left` (axis, indices) selects; all of it if `left` is None."""
    return tensor if left is None else tensor.index_select(*left)


def _write(stored: Checkpoint, model: LlamaForCausalLM, output: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Write the tensors, each changed to its shape in `model`, to the same files; then config, record and tokenizer."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layout = {name: replace(header, shape=shapes[name]) for name, header in stored.kept().items()}
    write_checkpoint(output, layout, lambda name: change(name, stored.read(name)))
    model.config.save_pretrained(output)
    for name in filter(lambda name: (stored.folder / name).is_file(), ("generation_config.json", RECORD)):
        shutil.copy(stored.folder / name, output)
    copy_tokenizer(stored.folder, output)


def _settings(config: LlamaConfig) -> dict:
    """What both kinds of configuration have in common."""
    own = ("model_type", "architectures", "auto_map", "kept_kv_heads", "intermediate_sizes")
    return {name: value for name, value in config.to_dict().items() if name not in own}


def _kept(alive: Tensor) -> list[int]:
    return alive.nonzero().flatten().tolist() or [0]
