"""Between a model whose heads and channels were zeroed and the smaller one that computes the same, both ways."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.compact_llama import CompactLlamaConfig, CompactLlamaForCausalLM
from models.loading import has_tokenizer, load_model, load_tokenizer
from utils.common.files import whole_folder, write_json

RECORD = "pruning.json"
"""The file in a pruned model's folder that says how it was made."""


@torch.no_grad()
def compact(model: LlamaForCausalLM) -> CompactLlamaForCausalLM:
    """The model without the heads and channels that nothing reads: their o_proj or down_proj columns are all zero.

    Works on any Llama, also one that was restored and has o_proj biases; a head with only some zeros stays.
    Every layer keeps a KV head and a channel. The model given is left as it is.
    """
    config = model.config
    kv_heads, channels = [], []
    for layer in model.model.layers:
        by_kv_head = layer.self_attn.o_proj.weight.unflatten(1, (config.num_key_value_heads, -1))
        kv_heads.append(_kept(by_kv_head.ne(0).any(0).any(-1)))
        channels.append(_kept(layer.mlp.down_proj.weight.ne(0).any(0)))
    sizes = {"kept_kv_heads": kv_heads, "intermediate_sizes": [len(kept) for kept in channels]}
    state = dict(model.state_dict())
    for name, axis, kept in _reshaped(config, kv_heads, channels):
        if name in state:
            state[name] = state[name].index_select(axis, kept.to(state[name].device))
    return _filled(CompactLlamaForCausalLM, CompactLlamaConfig(**_settings(config), **sizes), state, model)


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
    """`compact` of the model in `folder`, whole to `output_dir`, with its tokenizer and its pruning record."""
    _convert(folder, output_dir, compact)


def expand_checkpoint(folder: Path, output_dir: Path) -> None:
    """`expand` of the model in `folder`, whole to `output_dir`, with its tokenizer and its pruning record."""
    _convert(folder, output_dir, expand)


def _convert(folder: Path, output_dir: Path, conversion: Callable[[LlamaForCausalLM], LlamaForCausalLM]) -> None:
    with whole_folder(output_dir) as partial:
        conversion(load_model(folder, "auto", "cpu", "-pruned_model_path")).save_pretrained(partial)
        if has_tokenizer(folder):
            load_tokenizer(folder, "-pruned_model_path").save_pretrained(partial)
        if (folder / RECORD).is_file():
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            record.pop("files", None)  # those of the other folder
            write_json(partial / RECORD, record)


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
