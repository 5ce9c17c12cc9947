"""A checkpoint written for llama.cpp: every number in its place, every key as its reader takes it, or one line."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.checkpoint import Checkpoint, count_zeros
from models.compact import compact_checkpoint
from models.gguf_layout import TYPES, interleaved, rope_of, unfit
from models.gguf_writing import packed, unpacked, write_gguf
from models.loading import load_model, resolve
from models.to_gguf import main
from tests.common.test_disk import no_file_above
from tests.models.bpe import with_bpe
from utils.common.errors import UserError
from utils.common.temporary import stamp

BIASED = {"attention_bias": True, "mlp_bias": True}
WIDE = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 32}
"""Rows in whole blocks of q8_0; head_dim · heads is 192."""

LAYOUT = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "out" / "it.gguf"


def tensors_of(file: Path) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
    return {tensor.name: (tensor.tensor_type, tensor.data) for tensor in GGUFReader(file).tensors}


def value_of(file: Path, key: str):
    field = GGUFReader(file).get_field(key)
    return None if field is None else field.contents()


def undone(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows 0, d/2, 1, d/2 + 1, … of each head in their own places again."""
    size = len(tensor) // heads
    order = [
        head * size + half * size // 2 + row for head in range(heads) for row in range(size // 2) for half in (0, 1)
    ]
    back = torch.empty_like(tensor)
    back[torch.tensor(order)] = tensor
    return back


def expected_names(folder: Path) -> dict[str, str]:
    """GGUF's name → the checkpoint's, as llama.cpp's loader asks for them."""
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    names = {}
    for name in Checkpoint(folder).headers:
        module, kind = name.rsplit(".", 1)
        parts = module.split(".", 3)
        there = ends[module] if module in ends else f"blk.{parts[2]}.{LAYOUT[parts[3]]}"
        names[f"{there}.{kind}"] = name
    return names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"attention_bias": True}, BIASED], ids=["plain", "attention", "all"])
def test_every_tensor_has_the_checkpoints_bits_once_its_rows_are_back_in_place(make_tiny_llama, file, dtype, shape):
    folder = with_bpe(make_tiny_llama(dtype=dtype, zeros=0.5, **shape))
    written, found, names = write_gguf(folder, file), tensors_of(file), expected_names(folder)
    assert set(found) == set(names) and written.tensors == len(names)
    assert ("blk.2.attn_output.bias" in found) == bool(shape) and ("blk.0.ffn_up.bias" in found) == (shape == BIASED)
    checkpoint = Checkpoint(folder)
    stored = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    for there, name in names.items():
        kind, data = found[there]
        expected = checkpoint.read(name)
        assert kind.name == ("F32" if expected.dim() == 1 else stored[dtype])
        plain = torch.float32 if expected.dim() == 1 else dtype
        tensor = torch.from_numpy(data.copy()).view(torch.uint8).view(plain).reshape(expected.shape)
        heads = {"attn_q": 6, "attn_k": 2}.get(there.split(".")[-2])
        tensor = undone(tensor, heads) if heads else tensor
        assert torch.equal(tensor, expected.to(plain)), there
        assert not heads or not torch.equal(
            tensor, torch.from_numpy(data.copy()).view(torch.uint8).view(plain).view_as(tensor)
        )


@pytest.mark.parametrize("heads", [1, 3])
def test_rows_are_interleaved_head_by_head(heads):
    assert interleaved(torch.arange(4), 1).tolist() == [0, 2, 1, 3]
    rows = torch.randn(heads * 10, 7)
    assert torch.equal(undone(interleaved(rows, heads), heads), rows)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_own_reader_gives_the_same_logits(make_tiny_llama, file, tied):
    folder = with_bpe(make_tiny_llama(tie_word_embeddings=tied))
    write_gguf(folder, file)
    assert ("output.weight" in tensors_of(file)) != tied
    options = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "dtype": torch.float32}
    there, ids = AutoModelForCausalLM.from_pretrained(**options), torch.tensor([[5, 9, 77, 30, 8]])
    assert torch.equal(there(ids).logits, load_model(folder, torch.float32, "cpu", "it")(ids).logits)


def test_the_metadata_says_what_the_configuration_says(make_tiny_llama, file):
    write_gguf(
        with_bpe(make_tiny_llama(rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 70_000.0})),
        file,
    )
    said = {
        "general.architecture": "llama",
        "general.name": "it",
        "general.file_type": 0,
        "llama.vocab_size": 300,
        "llama.context_length": 256,
        "llama.embedding_length": 24,
        "llama.feed_forward_length": 56,
        "llama.block_count": 3,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 70_000.0,
        "llama.rope.scaling.type": None,
    }
    assert {key: value_of(file, key) for key in said} == said
    assert value_of(file, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-3)


# The rope

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 64}


def test_llama3s_scaling_is_what_each_frequency_is_divided_by(make_tiny_llama, file):
    write_gguf(with_bpe(make_tiny_llama(rope_parameters=LLAMA3, head_dim=16)), file)
    config = LlamaConfig(head_dim=16, max_position_embeddings=256, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    kind, factors = tensors_of(file)["rope_freqs.weight"]
    assert kind == GGMLQuantizationType.F32
    torch.testing.assert_close(plain / torch.from_numpy(factors.copy()), scaled)
    assert factors.min() == 1 and factors.max() == 8 and 1 < factors[2] < 8
    assert value_of(file, "llama.rope.scaling.type") is None


def test_a_linear_scaling_is_a_key(make_tiny_llama, file):
    write_gguf(
        with_bpe(make_tiny_llama(rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0})), file
    )
    assert value_of(file, "llama.rope.scaling.type") == "linear"
    assert value_of(file, "llama.rope.scaling.factor") == 3.0 and "rope_freqs.weight" not in tensors_of(file)


@pytest.mark.parametrize(("given", "times"), [({}, None), ({"attention_factor": 1.5}, 1.5 / (1 + 0.1 * log(4)))])
def test_yarn_is_keys_and_its_factor_is_told_over_llama_cpps_own(make_tiny_llama, file, given, times):
    write_gguf(with_bpe(make_tiny_llama(rope_parameters={**YARN, **given})), file)
    keys = ("type", "factor", "original_context_length")
    assert [value_of(file, f"llama.rope.scaling.{key}") for key in keys] == ["yarn", 4.0, 64]
    assert value_of(file, "llama.rope.scaling.attn_factor") == (pytest.approx(times) if times else None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}}, "rope_type is dynamic"),
        ({"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast of its yarn rope is 16"),
        ({"rope_parameters": {**YARN, "truncate": False}}, "truncate of its yarn rope is False"),
        ({"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"max_position_embeddings": 2**32}, "max_position_embeddings is 4294967296"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_named(overrides, said):
    reason = unfit(LlamaConfig(head_dim=8, **overrides))
    assert reason.startswith(said) and "\n" not in reason


def test_a_rope_that_llama_cpp_knows_is_fit():
    for rope in (LLAMA3, YARN, {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}):
        config = LlamaConfig(head_dim=8, max_position_embeddings=256, rope_parameters=rope)
        assert unfit(config) is None and rope_of(config).theta == rope["rope_theta"]


# Types


@pytest.mark.parametrize("asked", list(TYPES))
def test_every_zero_stays_zero_in_every_type(make_tiny_llama, file, asked):
    folder = with_bpe(make_tiny_llama(zeros=0.5, **WIDE))
    written = write_gguf(folder, file, asked)
    zeros, weights = map(sum, count_zeros(folder))
    assert written.zeros == zeros and zeros > 0.4 * weights
    after, seen = 0, set()
    for name, (kind, data) in tensors_of(file).items():
        data = data.copy()
        if data.ndim < 2:
            assert kind == GGMLQuantizationType.F32
            continue
        seen.add(kind.name.lower())
        numbers = torch.from_numpy(dequantize(data, kind))
        expected = Checkpoint(folder).read(expected_names(folder)[name]).float()
        heads = {"attn_q": 6, "attn_k": 2}.get(name.split(".")[-2])
        numbers = undone(numbers, heads) if heads else numbers
        assert bool((numbers[expected == 0] == 0).all())
        torch.testing.assert_close(numbers, expected, rtol=2**-8, atol=0.004)
        after += int((numbers == 0).sum()) if name.startswith("blk.") else 0
    assert seen == {asked} and after == written.zeros + written.rounded
    assert (written.rounded > 0) == (asked == "q8_0")


def test_dtypes_of_a_mixed_checkpoint_stay_and_float64_becomes_f32(make_tiny_llama, file):
    folder = with_bpe(make_tiny_llama())
    tensors = load_file(folder / "model.safetensors")
    given = {"gate": torch.float64, "up": torch.bfloat16, "down": torch.float16}
    for part, dtype in given.items():
        name = f"model.layers.1.mlp.{part}_proj.weight"
        tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_gguf(folder, file)
    kinds = [tensors_of(file)[f"blk.1.ffn_{part}.weight"][0].name for part in given]
    assert kinds == ["F32", "BF16", "F16"]


def test_a_head_that_is_the_embedding_once_more_is_left_out_and_another_is_not(make_tiny_llama, file):
    folder = with_bpe(make_tiny_llama(tie_word_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    for head, kept in ((tensors["model.embed_tokens.weight"].clone(), False), (torch.randn(300, 24), True)):
        save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
        write_gguf(folder, file)
        assert ("output.weight" in tensors_of(file)) == kept
    ids = torch.tensor([[5, 9, 77]])
    head = load_model(folder, torch.float32, "cpu", "it").lm_head.weight  # transformers unties them too
    assert torch.equal(head, torch.from_numpy(tensors_of(file)["output.weight"][1].copy())) and ids.numel()


def test_bytes_and_numbers_of_a_type_are_each_others():
    rows = torch.randn(3, 64)
    for kind in (TYPES["f32"], TYPES["f16"], TYPES["bf16"]):
        once = unpacked(packed(rows, kind), kind)
        assert torch.equal(unpacked(packed(once, kind), kind), once)
    assert torch.equal(unpacked(packed(rows, TYPES["f32"]), TYPES["f32"]), rows)


# The command


def answer(*words: object) -> str:
    """The command's one line of error."""
    with pytest.raises(UserError) as found:
        main([str(word) for word in words])
    assert "\n" not in str(found.value)
    return str(found.value)


def test_the_command_says_where_the_file_is_and_what_to_run(make_tiny_llama, file, capsys):
    main(
        [
            str(with_bpe(make_tiny_llama(zeros=0.5, **WIDE))),
            str(file),
            "-dtype",
            "q8_0",
            "-cache_dir",
            str(file.parent / "cache"),
        ]
    )
    said = capsys.readouterr().out.splitlines()
    assert "tensors, " in said[0] and "zeros kept; " in said[0] and "zero in q8_0 too" in said[0]
    assert said[1].startswith(f"GGUF file: {file} (") and f"llama-cli -m {file} -p 'Name" in said[1] and len(said) == 2
    assert {path.name for path in file.parent.iterdir()} == {"it.gguf", "cache"}


def test_a_file_is_replaced_only_if_that_is_said(make_tiny_llama, file, tmp_path):
    file.parent.mkdir()
    file.write_bytes(b"mine")
    folder = with_bpe(make_tiny_llama())
    assert answer(folder, file) == f"FILE: {file} exists; name another file, or give -overwrite to replace it"
    assert file.read_bytes() == b"mine"
    main([str(folder), str(file), "-overwrite", "-cache_dir", str(tmp_path / "cache")])
    assert len(tensors_of(file)) == 30


def test_what_a_killed_process_was_writing_is_removed(make_tiny_llama, file, tmp_path):
    file.parent.mkdir()
    left = file.with_name(
        f".it.gguf.partial-{stamp().rpartition('-')[0]}-{2**22 + 1}.gguf"
    )  # no process has this number
    left.touch()
    main([str(with_bpe(make_tiny_llama())), str(file), "-cache_dir", str(tmp_path / "cache")])
    assert list(file.parent.iterdir()) == [file]


def test_wrong_names_are_one_line(make_tiny_llama, file, tmp_path):
    folder = with_bpe(make_tiny_llama())
    assert answer(folder, tmp_path / "it.bin").endswith(
        "must end in .gguf, by which llama.cpp and this project know such a file"
    )
    (tmp_path / "is.gguf").mkdir()
    assert "is a folder" in answer(folder, tmp_path / "is.gguf", "-overwrite")
    assert answer(folder, folder / "it.gguf").startswith(f"FILE: {folder}/it.gguf lies in what MODEL names")
    write_gguf(folder, file)
    assert answer(file, file, "-overwrite").startswith(f"FILE: {file} is what MODEL names")
    assert answer(tmp_path / "no" / "where" / "it", file.with_stem("other")).startswith("MODEL: ")
    assert answer(folder, file.with_stem("other"), "-dtype", "q4_0").startswith("-dtype")


def compact_folder(folder: Path) -> Path:
    compact_checkpoint(folder, folder.parent / "compact")
    return folder.parent / "compact"


def changed(folder: Path, **settings) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def with_tensor(folder: Path, value: float) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def torn(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return folder


def without_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    return folder


SPOILT = {
    "compact": (compact_folder, (), "MODEL: ", "SlimGPT's smaller shapes"),
    "another kind": (lambda folder: changed(folder, model_type="gpt2"), (), "MODEL: ", "is a 'gpt2' model"),
    "quantised": (lambda folder: changed(folder, quantization_config={"quant_method": "q"}), (), "MODEL: ", "zed by q"),
    "torn": (torn, (), "MODEL: ", "cannot read"),
    "another shape": (lambda folder: changed(folder, intermediate_size=64), (), "MODEL: ", "has the shape"),
    "activation": (lambda folder: changed(folder, hidden_act="gelu"), (), "MODEL: ", "hidden_act is gelu"),
    "no blocks": (lambda folder: folder, ("-dtype", "q8_0"), "-dtype: ", "hidden_size is 24, no multiple of 32"),
    "not finite": (lambda folder: with_tensor(folder, float("nan")), (), "MODEL: ", "holds NaN or infinity"),
    "too large": (lambda folder: with_tensor(folder, 1e5), ("-dtype", "f16"), "-dtype: ", "holds 1e+05, beyond"),
    "no tokenizer": (without_tokenizer, (), "MODEL: ", "has no tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_cannot_be_written_is_one_line_and_leaves_no_file(make_tiny_llama, file, case):
    spoil, words, flag, said = SPOILT[case]
    found = answer(spoil(with_bpe(make_tiny_llama())), file, "-cache_dir", file.parent / "cache", *words)
    assert found.startswith(flag) and said in found
    assert [path.name for path in file.parent.glob("*") if path.name != "cache"] == []


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_file(make_tiny_llama, file):
    folder = with_bpe(make_tiny_llama(vocab_size=3000))
    with no_file_above(200_000), pytest.raises(UserError, match=r"FILE: .* cannot be written"):
        write_gguf(folder, file)
    assert list(file.parent.iterdir()) == []


def test_a_gguf_file_is_written_again_and_one_that_would_lose_biases_is_not_read(
    make_tiny_llama, file, tmp_path, capsys
):
    folder = with_bpe(make_tiny_llama(zeros=0.5))
    write_gguf(folder, file)
    again = tmp_path / "again.gguf"
    main([str(file), str(again), "-cache_dir", str(tmp_path / "cache")])
    first, second = tensors_of(file), tensors_of(again)
    assert all(np.array_equal(first[name][1], second[name][1]) for name in first) and set(first) == set(second)
    for lost, overrides in (
        ("bias and ", BIASED),
        ("rope_freqs.weight, ", {"rope_parameters": LLAMA3}),
        ("llama.rope.scaling.type, ", {"rope_parameters": YARN}),
    ):
        write_gguf(with_bpe(make_tiny_llama(**overrides)), file)
        with pytest.raises(UserError, match=f"-b: it.gguf holds .*{lost}.*which transformers leaves out"):
            resolve(str(file), "-b", tmp_path / "cache")
