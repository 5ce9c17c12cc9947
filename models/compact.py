"""Between a model whose heads and channels were zeroed and the smaller one that computes the same, both ways."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.dynamic_module_utils import custom_object_save

import models.compact_llama
from models.checkpoint import Checkpoint, Header, safetensors_name, write_checkpoint
from models.compact_llama import CompactLlamaConfig, CompactLlamaForCausalLM
from models.loading import copy_tokenizer, load_config
from models.model_names import RECORD
from models.portable import make_portable
from utils.common.cache import Cache, cached
from utils.common.files import whole_folder, write_json


@torch.no_grad()
def compact(model: LlamaForCausalLM) -> CompactLlamaForCausalLM:
    """The model without the heads and channels that nothing reads: their o_proj or down_proj columns are all zero.

    Works on any Llama, also one that was restored and has o_proj biases; a head with only some zeros stays.
    Every layer keeps a KV head and a channel. The model given is left as it is.
    """
    config = model.config
    state = dict(model.state_dict())
    small, left = _compact_config(state.__getitem__, config)
    for name, (axis, kept) in left.items():
        if name in state:
            state[name] = state[name].index_select(axis, kept.to(state[name].device))
    with torch.device("meta"):
        result = CompactLlamaForCausalLM(small)
    result.load_state_dict(state, assign=True)
    result.tie_weights()
    # What no checkpoint holds.
    result.model.rotary_emb, result.generation_config = model.model.rotary_emb, model.generation_config
    return result.requires_grad_(False).eval()


def write_compact(folder: Path, output: Path) -> None:
    """`compact` of the checkpoint in `folder` into the folder `output`: each tensor in its stored dtype."""
    stored, config = Checkpoint(folder), load_config(folder, "-pruned_model_path")
    small, left = _compact_config(stored.read, config)
    with torch.device("meta"):
        model = CompactLlamaForCausalLM(small)
    _write(stored, model, output, lambda name, tensor: chosen(tensor, left.get(name)))
    # As save_pretrained leaves them: the class's own code, and where its configuration finds it.
    custom_object_save(model, output, config=small)
    small.save_pretrained(output)
    make_portable(output)


def expand_checkpoint(folder: Path, output_dir: Path) -> None:
    """The checkpoint in the dense model's shapes, with zeros where heads and channels are gone, whole to `output_dir`.

    Heads stand where they stood in the dense model. Which channels were removed is not recorded, and makes no
    difference: those that are left come first.
    """
    stored, config = Checkpoint(folder), load_config(folder, "-pruned_model_path")
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**_settings(config)))
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    left = left_of(config, config.kept_kv_heads, [list(range(size)) for size in config.intermediate_sizes])

    def widened(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in left:
            return tensor
        axis, indices = left[name]
        return tensor.new_zeros(shapes[name]).index_copy(axis, indices, tensor)

    with whole_folder(output_dir) as partial:
        _write(stored, plain, partial, widened)


def in_dense_shapes(folder: Path, cache_dir: Path) -> tuple[Path, bool]:
    """The checkpoint in the dense model's shapes, and whether it came in smaller ones (SlimGPT, compact).

    Zeros stand where heads and channels are gone, so that a head is the same in both models.
    """
    if not isinstance(load_config(folder, "-pruned_model_path"), CompactLlamaConfig):
        return folder, False
    return _expanded(Cache(cache_dir), Checkpoint(folder)), True


@cached("expanded", code=(sys.modules[__name__], models.compact_llama))
def _expanded(folder: Path, small: Checkpoint) -> None:
    expand_checkpoint(small.folder, folder)


def _compact_config(
    read: Callable[[str], torch.Tensor], config: LlamaConfig
) -> tuple[CompactLlamaConfig, dict[str, tuple[int, torch.Tensor]]]:
    """The configuration of the smaller model, and what is left of each tensor; see `left_of`."""
    kv_heads, channels = what_is_left(read, config)
    sizes = {"kept_kv_heads": kv_heads, "intermediate_sizes": [len(kept) for kept in channels]}
    small = CompactLlamaConfig(**_settings(config), **sizes)
    small.architectures = [CompactLlamaForCausalLM.__name__]
    return small, left_of(config, kv_heads, channels)


def what_is_left(read: Callable[[str], torch.Tensor], config: LlamaConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Per layer, the KV heads and the channels that o_proj and down_proj read: those with a column that is not zero."""
    kv_heads, channels = [], []
    for layer in range(config.num_hidden_layers):
        attention = read(f"model.layers.{layer}.self_attn.o_proj.weight")
        by_kv_head = attention.unflatten(1, (config.num_key_value_heads, -1))
        kv_heads.append(_kept(by_kv_head.ne(0).any(0).any(-1)))
        channels.append(_kept(read(f"model.layers.{layer}.mlp.down_proj.weight").ne(0).any(0)))
    return kv_heads, channels


def left_of(
    config: LlamaConfig, kv_heads: list[list[int]], channels: list[list[int]]
) -> dict[str, tuple[int, torch.Tensor]]:
    """By name, the axis and the indices in the dense model that are left of whatever has another shape."""
    shared, left = config.num_attention_heads // config.num_key_value_heads, {}
    for index, (heads, kept) in enumerate(zip(kv_heads, channels, strict=True)):
        keys, queries = (torch.tensor(_columns(heads, config.head_dim * count)) for count in (1, shared))
        kept = torch.tensor(kept)
        rows = {"self_attn.q": queries, "self_attn.k": keys, "self_attn.v": keys, "mlp.gate": kept, "mlp.up": kept}
        for name, indices in rows.items():
            for part in ("weight", "bias"):
                left[f"model.layers.{index}.{name}_proj.{part}"] = 0, indices
        left[f"model.layers.{index}.self_attn.o_proj.weight"] = 1, queries
        left[f"model.layers.{index}.mlp.down_proj.weight"] = 1, kept
    return left


def chosen(tensor: torch.Tensor, left: tuple[int, torch.Tensor] | None) -> torch.Tensor:
    """What is left of a tensor: all of it where `left` is None."""
    return tensor if left is None else tensor.index_select(*left)


def _write(
    stored: Checkpoint, model: LlamaForCausalLM, output: Path, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """The checkpoint's tensors, each changed to the shape it has in `model`, in the same files, and what is beside."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shards: dict[str, list[tuple[str, Header]]] = {}
    for name in stored.kept():
        header, file = stored.headers[name], safetensors_name(stored.headers[name].file)
        shards.setdefault(file, []).append((name, Header(file, header.dtype, shapes[name])))
    write_checkpoint(output, shards, lambda name: change(name, stored.read(name)))
    model.config.save_pretrained(output)
    if (stored.folder / "generation_config.json").is_file():
        shutil.copy(stored.folder / "generation_config.json", output)
    if (stored.folder / RECORD).is_file():
        record = json.loads((stored.folder / RECORD).read_text(encoding="utf-8"))
        record.pop("files", None)  # those of the other folder
        write_json(output / RECORD, record)
    copy_tokenizer(stored.folder, output)


def _settings(config: LlamaConfig) -> dict:
    """What both kinds of configuration have in common."""
    own = ("model_type", "architectures", "auto_map", "kept_kv_heads", "intermediate_sizes")
    return {name: value for name, value in config.to_dict().items() if name not in own}


def _kept(alive: torch.Tensor) -> list[int]:
    return alive.nonzero().flatten().tolist() or [0]


def _columns(units: list[int], size: int) -> list[int]:
    return [unit * size + offset for unit in units for offset in range(size)]
