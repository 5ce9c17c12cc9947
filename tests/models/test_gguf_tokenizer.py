"""A tokenizer in a GGUF file makes the tokens that it made before, or is refused."""

from pathlib import Path

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from models.gguf_tokenizer import merge_scores, vocabulary_of
from models.gguf_writing import write_gguf
from tests.models.bpe import TEXTS, TOKENIZERS, bytes_bpe, pieces_bpe, with_bpe, with_metaspace
from utils.common.errors import UserError

CONFIG = LlamaConfig(vocab_size=300)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "out" / "it.gguf"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_way_of_splitting_texts_is_recognised(name):
    assert vocabulary_of(TOKENIZERS[name](), CONFIG).pre == name


def test_each_way_splits_a_text_as_no_other_does():
    assert len({str(make()(TEXTS[0]).input_ids) for make in TOKENIZERS.values()}) == len(TOKENIZERS)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "smollm"])  # transformers doesn't follow it
def test_transformers_own_reader_makes_the_same_tokens(make_tiny_llama, file, name):
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
    write_gguf(with_bpe(make_tiny_llama(), tokenizer), file)
    assert value_of(file, "tokenizer.ggml.pre") == name
    there = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # Nor does it keep words whole that no merges make, or put a space before a text of SentencePiece's that has one.
    texts = {"llama-bpe": TEXTS[1:], "default": TEXTS[:3]}.get(name, TEXTS)
    for text in texts:
        assert there(text).input_ids == tokenizer(text).input_ids, text
    chat = [{"role": "user", "content": "Stop"}]
    assert there.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def value_of(file: Path, key: str):
    field = GGUFReader(file).get_field(key)
    return None if field is None else field.contents()


def test_the_metadata_says_what_the_tokenizer_does(make_tiny_llama, file):
    write_gguf(with_bpe(make_tiny_llama()), file)
    keys = ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token", "padding_token_id")
    assert [value_of(file, f"tokenizer.ggml.{key}") for key in keys] == [0, 1, False, False, None]
    tokens, types = value_of(file, "tokenizer.ggml.tokens"), value_of(file, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 300 and len(set(tokens)) == 300
    assert types[0] == types[2] == TokenType.CONTROL and types[tokens.index("<think>")] == TokenType.USER_DEFINED
    assert types[-1] == TokenType.UNUSED and types[60] == TokenType.NORMAL
    write_gguf(with_bpe(make_tiny_llama(), pieces_bpe()), file)
    assert [value_of(file, f"tokenizer.ggml.{key}") for key in keys] == [1, 2, True, False, None]
    types = value_of(file, "tokenizer.ggml.token_type")
    assert types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    scores = value_of(file, "tokenizer.ggml.scores")
    assert scores[259] > scores[260] > scores[261] and value_of(file, "tokenizer.ggml.add_space_prefix") is True


def test_chat_templates_of_several_names_are_all_kept(make_tiny_llama, file):
    tokenizer = bytes_bpe()
    tokenizer.chat_template = {"default": "one", "tool_use": "two"}
    write_gguf(with_bpe(make_tiny_llama(), tokenizer), file)
    keys = ("chat_template", "chat_template.tool_use")
    assert [value_of(file, f"tokenizer.{key}") for key in keys] == ["one", "two"]


UNKNOWN = [pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(False)]


def test_an_unknown_way_is_refused_and_taken_with_its_name(make_tiny_llama, file):
    folder = with_bpe(make_tiny_llama(), bytes_bpe(*UNKNOWN))
    with pytest.raises(UserError, match=r"MODEL: the tokenizer in .* none of gpt-2, smollm, .*-pre"):
        write_gguf(folder, file)
    write_gguf(folder, file, pre="starcoder")
    assert value_of(file, "tokenizer.ggml.pre") == "starcoder"


@pytest.mark.parametrize(("scheme", "prefix"), [("first", True), ("always", True), ("never", False)])
def test_spaces_before_a_text_are_told(scheme, prefix):
    found = vocabulary_of(with_metaspace(scheme, False), CONFIG)
    assert found.space_prefix is prefix and found.model == "llama"
    assert vocabulary_of(with_metaspace(scheme, True, ["▁a", "he"]), CONFIG).space_prefix is prefix


def test_tokenizers_that_llama_cpp_would_not_follow_are_named():
    pieces = ["ab", "bc", "abc"]
    unlisted = pieces_bpe(pieces, [("a", "b"), ("b", "c"), ("a", "bc")])
    twice = pieces_bpe(pieces, [("a", "b"), ("a", "bc"), ("b", "c"), ("ab", "c")])
    normalized = bytes_bpe()
    normalized.backend_tokenizer.normalizer = normalizers.NFC()
    stripped = pieces_bpe()
    stripped.backend_tokenizer.normalizer = normalizers.Strip()
    ended = pieces_bpe()
    ended.backend_tokenizer.post_processor = processors.TemplateProcessing("<unk> $A", special_tokens=[("<unk>", 0)])
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), eos_token="a")
    endless = bytes_bpe()
    endless.eos_token = None
    for tokenizer, said in (
        (unlisted, "never joins 'ab' and 'c'"),
        (twice, "makes the token 'abc' at different times"),
        (normalized, "splits texts in a way"),
        (stripped, "turns spaces into"),
        (with_metaspace("first", True), "turns spaces into"),  # its token of two spaces
        (ended, "puts other tokens around a text"),
        (words, "is WordLevel"),
    ):
        with pytest.raises(ValueError, match=said) as found:
            vocabulary_of(tokenizer, CONFIG)
        assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match="has no end token"):
        vocabulary_of(endless, LlamaConfig(vocab_size=300, eos_token_id=None))
    with pytest.raises(ValueError, match="which has no -pre"):
        vocabulary_of(pieces_bpe(), CONFIG, "gpt-2")


def test_scores_join_in_the_order_of_the_merges():
    tokens, kinds = ["a", "b", "c", "bc", "ab"], [TokenType.NORMAL] * 5
    assert merge_scores(tokens, kinds, [("b", "c"), ("a", "b")]) == [-2, -2, -2, 0, -1]
