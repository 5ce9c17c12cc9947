"""Between a model whose heads and channels were zeroed and the smaller one that computes the same, both ways."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.dynamic_module_utils import custom_object_save

import models.compact_llama
from models.checkpoint import Checkpoint, Header, safetensors_name, write_checkpoint
from models.compact_llama import CompactLlamaConfig, CompactLlamaForCausalLM
from models.loading import copy_tokenizer, load_config
from models.names import RECORD
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
    return _filled(CompactLlamaForCausalLM, small, state, model)


@torch.no_grad()
def expand(model: CompactLlamaForCausalLM) -> LlamaForCausalLM:
    """The model in the dense one's shapes, with zeros where heads and channels are gone: `compact`, backwards.

    Heads stand where they stood in the dense model. Which channels were removed is not recorded, and makes no
    difference: those that are left come first. The model given is left as it is.
    """
    config = model.config
    channels = [list(range(size)) for size in config.intermediate_sizes]
    plain = LlamaConfig(**_settings(config))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(plain).state_dict().items()}
    state = dict(model.state_dict())
    for name, axis, kept in _reshaped(config, config.kept_kv_heads, channels):
        if name in state:
            small = state[name]
            state[name] = small.new_zeros(shapes[name]).index_copy(axis, kept.to(small.device), small)
    return _filled(LlamaForCausalLM, plain, state, model)


def compact_checkpoint(folder: Path, output_dir: Path) -> None:
    """`compact` of the checkpoint in `folder`, file to file, whole to `output_dir`."""
    with whole_folder(output_dir) as partial:
        write_compact(folder, partial)


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


def expand_checkpoint(folder: Path, output_dir: Path) -> None:
    """`expand` of the checkpoint in `folder`, file to file, whole to `output_dir`."""
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
    """By name, the axis and the indices that are left of each tensor of which something is gone."""
    return {name: (axis, indices) for name, axis, indices in _reshaped(config, kv_heads, channels)}


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


def _reshaped(
    config: LlamaConfig, kv_heads: list[list[int]], channels: list[list[int]]
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(parameter, axis, indices in the dense model that are left) of whatever has another shape in the compact one."""
    shared = config.num_attention_heads // config.num_key_value_heads
    for index, (heads, kept) in enumerate(zip(kv_heads, channels, strict=True)):
        keys, queries = _columns(heads, config.head_dim), _columns(heads, config.head_dim * shared)
        attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        outputs = {
            f"{attention}.q_proj": queries,
            f"{attention}.k_proj": keys,
            f"{attention}.v_proj": keys,
            f"{mlp}.gate_proj": kept,
            f"{mlp}.up_proj": kept,
        }
        for name, left in outputs.items():
            yield f"{name}.weight", 0, torch.tensor(left)
            yield f"{name}.bias", 0, torch.tensor(left)
        yield f"{attention}.o_proj.weight", 1, torch.tensor(queries)
        yield f"{mlp}.down_proj.weight", 1, torch.tensor(kept)


def _settings(config: LlamaConfig) -> dict:
    """What both kinds of configuration have in common."""
    own = ("model_type", "architectures", "auto_map", "kept_kv_heads", "intermediate_sizes")
    return {name: value for name, value in config.to_dict().items() if name not in own}


def _filled(
    kind: type[LlamaForCausalLM], config: LlamaConfig, state: dict[str, torch.Tensor], source: LlamaForCausalLM
) -> LlamaForCausalLM:
    """A model of this kind with these weights; what no checkpoint holds comes from `source`."""
    with torch.device("meta"):
        result = kind(config)
    result.load_state_dict(state, assign=True)
    result.tie_weights()
    result.model.rotary_emb = source.model.rotary_emb
    result.generation_config = source.generation_config
    return result.requires_grad_(False).eval()


def _kept(alive: torch.Tensor) -> list[int]:
    return alive.nonzero().flatten().tolist() or [0]


def _columns(units: list[int], size: int) -> list[int]:
    return [unit * size + offset for unit in units for offset in range(size)]
