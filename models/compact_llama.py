"""A Llama whose layers keep different numbers of heads and FFN channels: what structured pruning leaves.

This file is copied into every such checkpoint, so it imports nothing but PyTorch and transformers.
"""

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


class CompactLlamaConfig(LlamaConfig):
    """A Llama's configuration with the sizes of every layer.

    kept_kv_heads: per layer, which key-value heads of the dense model are left, in order; the query heads that
        share one stay or go with it. intermediate_sizes: per layer, how many FFN channels are left.
    All other fields are the dense model's, `num_attention_heads` and `intermediate_size` included.
    """

    model_type = "compact_llama"
    kept_kv_heads: list[list[int]] | None = None
    intermediate_sizes: list[int] | None = None


class CompactLlamaForCausalLM(LlamaForCausalLM):
    """The stock model with smaller linear layers: attention reads its number of heads off their outputs."""

    config: CompactLlamaConfig

    def __init__(self, config: CompactLlamaConfig) -> None:
        super().__init__(config)
        shared = config.num_attention_heads // config.num_key_value_heads
        sizes = zip(self.model.layers, config.kept_kv_heads, config.intermediate_sizes, strict=True)
        for layer, kv_heads, channels in sizes:
            attention, mlp = layer.self_attn, layer.mlp
            keys, queries = len(kv_heads) * config.head_dim, len(kv_heads) * config.head_dim * shared
            attention.q_proj = _resized(attention.q_proj, outputs=queries)
            attention.k_proj = _resized(attention.k_proj, outputs=keys)
            attention.v_proj = _resized(attention.v_proj, outputs=keys)
            attention.o_proj = _resized(attention.o_proj, inputs=queries)
            mlp.gate_proj = _resized(mlp.gate_proj, outputs=channels)
            mlp.up_proj = _resized(mlp.up_proj, outputs=channels)
            mlp.down_proj = _resized(mlp.down_proj, inputs=channels)


def _resized(linear: nn.Linear, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    sizes, biased, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight
    return nn.Linear(inputs or sizes[0], outputs or sizes[1], biased, device=weight.device, dtype=weight.dtype)


# Saving writes the auto_map and a copy of this file; the registration lets Auto classes load it without that copy.
CompactLlamaConfig.register_for_auto_class()
CompactLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
AutoConfig.register("compact_llama", CompactLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(CompactLlamaConfig, CompactLlamaForCausalLM, exist_ok=True)
