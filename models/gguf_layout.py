"""A Llama as llama.cpp lays it out: names of its tensors, the rows of q and k, its rope, what the metadata says.

Names come from the gguf package's own table. Layout and keys are those that llama.cpp reads for the architecture
"llama" (src/models/llama.cpp, src/llama-model.cpp): one that it would not read is refused here, not written.
"""

import math
import re
from dataclasses import dataclass, field

import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
)
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from utils.common.names import GGUF_DTYPES

ARCHITECTURE = MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA]

TYPES = {name: GGMLQuantizationType[name.upper()] for name in GGUF_DTYPES}
"""By name. q8_0: 32 weights of a row are whole numbers up to 127 times one scale, so 0 stays 0."""

FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
"""What a file is called by the type that most of it has."""

STORED = {
    torch.float64: GGMLQuantizationType.F32,  # llama.cpp multiplies nothing wider
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
"""The type of a matrix in a file that is asked for none."""

BLOCK = 32
"""Weights of a row that share a scale in q8_0."""

ROPE_FREQS = "rope_freqs.weight"
"""What llama.cpp divides each frequency of the rope by, (head_dim / 2): how it reads llama3's scaling."""

_LARGEST = 2**32 - 1
"""Of the metadata's whole numbers."""

_ROTATED = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(?:weight|bias)")


@dataclass(frozen=True)
class Rope:
    """How positions are turned into angles. scaling: None for frequencies that are only divided by `factors`.

    attention: what cosine and sine are multiplied by, over what llama.cpp takes for its own of this scaling.
    factors: (head_dim / 2) fp32, or None.
    """

    theta: float
    scaling: RopeScalingType | None = None
    factor: float = 1.0
    original_length: int = 0
    attention: float = 1.0
    factors: Tensor | None = field(default=None, compare=False)


def gguf_name(name: str, layers: int) -> str:
    """The tensor's name in a GGUF file: model.layers.3.self_attn.o_proj.bias → blk.3.attn_output.bias."""
    found = get_tensor_name_map(MODEL_ARCH.LLAMA, layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(f"no Llama's tensor has the name {name}")
    return found


def type_of(shape: tuple[int, ...], dtype: torch.dtype, asked: str | None) -> GGMLQuantizationType:
    """How a tensor is stored: norms and biases in fp32, which llama.cpp adds in; a matrix as `asked`, or as it is."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return TYPES[asked] if asked else STORED[dtype]


def laid_out(name: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    """The tensor in llama.cpp's order of rows; only those of q and k, and of their biases, change places."""
    rotated = _ROTATED.fullmatch(name)
    if rotated is None:
        return tensor
    return interleaved(tensor, config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads)


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """(heads · d, …) → the same, in each head the rows 0, d/2, 1, d/2 + 1, …

    transformers rotates row i of a head with row i + d/2, llama.cpp's Llama with its neighbour.
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def unfit(config: LlamaConfig) -> str | None:
    """What of the configuration llama.cpp's Llama cannot compute, its name first; None if there is nothing."""
    if config.hidden_act != "silu":
        return f"hidden_act is {config.hidden_act}, and llama.cpp's Llama computes silu only"
    if config.head_dim % 2:
        return f"head_dim is {config.head_dim}, and llama.cpp rotates pairs of neighbours"
    if config.max_position_embeddings > _LARGEST:
        return f"max_position_embeddings is {config.max_position_embeddings}, more than a GGUF file can say"
    return _unfit_rope(config.rope_parameters)


def uneven(config: LlamaConfig) -> str | None:
    """Which rows of the model no blocks of q8_0 fill, in words; None if they fill all."""
    rows = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads · head_dim": config.num_attention_heads * config.head_dim,
    }
    return next((f"{name} is {width}, no multiple of {BLOCK}" for name, width in rows.items() if width % BLOCK), None)


def _unfit_rope(rope: dict) -> str | None:
    kind = rope["rope_type"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor is {rope['partial_rotary_factor']}, and llama.cpp's Llama rotates whole heads"
    if kind not in ("default", "linear", "llama3", "yarn"):
        return f"rope_type is {kind}, and llama.cpp's Llama knows default, linear, llama3 and yarn"
    if kind == "yarn":
        # llama.cpp reads no key for them in this architecture.
        for name, only in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
            if rope.get(name) not in (None, only):
                return f"{name} of its yarn rope is {rope[name]}, and llama.cpp's Llama always takes {only}"
    return None


def rope_of(config: LlamaConfig) -> Rope:
    """The rope of a configuration that `unfit` has nothing against."""
    rope = config.rope_parameters
    kind, theta = rope["rope_type"], float(rope["rope_theta"])
    if kind == "default":
        return Rope(theta)
    scaled, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    if kind == "llama3":
        plain, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        return Rope(theta, factors=plain / scaled)
    factor = float(rope["factor"])
    if kind == "linear":
        return Rope(theta, RopeScalingType.LINEAR, factor)
    own = 1.0 + 0.1 * math.log(factor)
    return Rope(theta, RopeScalingType.YARN, factor, rope["original_max_position_embeddings"], attention / own)


def describe(writer: GGUFWriter, config: LlamaConfig, rope: Rope, name: str, file_type: LlamaFileType) -> None:
    """Tell the writer what the model is: all metadata but the tokenizer's."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.scaling is not None:
        writer.add_rope_scaling_type(rope.scaling)
        writer.add_rope_scaling_factor(rope.factor)
    if rope.original_length:
        writer.add_rope_scaling_orig_ctx_len(rope.original_length)
    if not math.isclose(rope.attention, 1.0, rel_tol=1e-6):
        writer.add_rope_scaling_attn_factors(rope.attention)
