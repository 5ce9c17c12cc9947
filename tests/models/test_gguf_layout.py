"""A GGUF file is read whole, or refused: of what transformers would leave out nothing goes in silence."""

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from transformers import LlamaConfig, LlamaForCausalLM

from models.loading import load_model, resolve
from tests.builders import LOPSIDED, byte_tokenizer
from utils.common.errors import UserError


def write_gguf(file, more=(), scaling=None) -> LlamaForCausalLM:
    """A tiny Llama as a GGUF file, with the tensors `more` of zeros."""
    config = LlamaConfig(**LOPSIDED | {"vocab_size": 259})
    torch.manual_seed(0)
    model, writer = LlamaForCausalLM(config), GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if scaling is not None:
        writer.add_rope_scaling_type(scaling)
    tokens = byte_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(tokens, key=tokens.get), "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    table = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours: rows 0, d/2, 1, d/2 + 1, … of a head
            tensor = tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(table.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    for name in more:
        writer.add_tensor(name, np.zeros(config.hidden_size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_becomes_the_same_model(tmp_path):
    model = write_gguf(tmp_path / "it.gguf")
    read = load_model(resolve(str(tmp_path / "it.gguf"), "-b", tmp_path / "cache"), torch.float32, "cpu", "-b")
    assert read.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("more", "scaling", "said"),
    [
        (["blk.1.attn_output.bias", "blk.0.ffn_up.bias"], None, "blk.1.attn_output.bias and 1 more, "),
        (["rope_freqs.weight"], None, "rope_freqs.weight, "),
        ([], RopeScalingType.YARN, "llama.rope.scaling.type, "),
    ],
)
def test_a_gguf_file_that_would_lose_biases_or_its_rope_is_not_read(tmp_path, more, scaling, said):
    write_gguf(tmp_path / "it.gguf", more, scaling)
    with pytest.raises(UserError, match=f"-b: it.gguf holds {said}which transformers leaves out"):
        resolve(str(tmp_path / "it.gguf"), "-b", tmp_path / "cache")
