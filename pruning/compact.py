"""From a model whose heads and channels were zeroed to a smaller one that computes the same."""

import torch
from transformers import LlamaForCausalLM

from models.compact_llama import CompactLlamaConfig, CompactLlamaForCausalLM


@torch.no_grad()
def compact(model: LlamaForCausalLM) -> CompactLlamaForCausalLM:
    """The model without the heads and channels that nothing reads: their o_proj or down_proj columns are all zero.

    Works on any Llama, also one that was restored and has o_proj biases; a head with only some zeros stays.
    Every layer keeps a KV head and a channel. The model given is left as it is.
    """
    config = model.config
    kept_kv_heads, kept_channels = [], []
    for layer in model.model.layers:
        by_kv_head = layer.self_attn.o_proj.weight.unflatten(1, (config.num_key_value_heads, -1))
        kept_kv_heads.append(_kept(by_kv_head.ne(0).any(0).any(-1)))
        kept_channels.append(_kept(layer.mlp.down_proj.weight.ne(0).any(0)))
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    smaller = CompactLlamaConfig(
        **settings, kept_kv_heads=kept_kv_heads, intermediate_sizes=[len(kept) for kept in kept_channels]
    )
    with torch.device("meta"):
        result = CompactLlamaForCausalLM(smaller)
    state = model.state_dict()
    shared = config.num_attention_heads // config.num_key_value_heads
    for index, (kv_heads, channels) in enumerate(zip(kept_kv_heads, kept_channels, strict=True)):
        keys = _columns(kv_heads, config.head_dim)
        queries = _columns(kv_heads, config.head_dim * shared)
        layer = f"model.layers.{index}."
        for name, kept in (("q", queries), ("k", keys), ("v", keys), ("o", queries)):
            _select(state, f"{layer}self_attn.{name}_proj", kept, axis=1 if name == "o" else 0)
        for name in ("gate", "up", "down"):
            _select(state, f"{layer}mlp.{name}_proj", channels, axis=1 if name == "down" else 0)
    result.load_state_dict(state, assign=True)
    result.tie_weights()
    result.model.rotary_emb = model.model.rotary_emb  # buffers that no checkpoint holds
    result.generation_config = model.generation_config
    return result.requires_grad_(False).eval()


def _kept(alive: torch.Tensor) -> list[int]:
    return alive.nonzero().flatten().tolist() or [0]


def _columns(units: list[int], size: int) -> list[int]:
    return [unit * size + offset for unit in units for offset in range(size)]


def _select(state: dict[str, torch.Tensor], linear: str, kept: list[int], axis: int) -> None:
    """Keep these outputs (axis 0) or inputs (axis 1) of a linear layer; a bias goes with the outputs."""
    weight, bias = f"{linear}.weight", f"{linear}.bias"
    state[weight] = state[weight].index_select(axis, torch.tensor(kept, device=state[weight].device))
    if axis == 0 and bias in state:
        state[bias] = state[bias][kept]
