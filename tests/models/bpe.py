"""Tokenizers of both kinds that llama.cpp knows, of 300 tokens at most, in a tiny Llama's folder."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the river once, DON'T don't  12345 stop!!\n\n  12 it's",
    "Once upon a time there were 1234567 rivers — naïve 4th 你好",
    "a",
    " <|im_start|>the\n <think>river",
]
WORDS = "the river the river don't don't DON'T DON'T 12345 12345 stop!! stop!!\n\n  the time time " * 3
"""Trained on this, tokens of many digits and of both cases' apostrophes show how a text was split."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's, as its tokenizer.json has it."""


def bytes_bpe(*splits, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 291 tokens, some special, one added but no special one, that splits texts by `splits`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=289,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<s>", "</s>", "<|im_start|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    inner = json.loads(tokenizer.to_str())
    inner["model"]["vocab"]["Ġonce"] = len(inner["model"]["vocab"])  # a word that no merges make
    tokenizer = Tokenizer.from_str(json.dumps({**inner, "model": {**inner["model"], "ignore_merges": ignore_merges}}))
    tokenizer.add_tokens(["<think>"])
    if splits:
        tokenizer.pre_tokenizer = splits[0] if len(splits) == 1 else pre_tokenizers.Sequence(list(splits))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def split_by(pattern: str, **options) -> PreTrainedTokenizerFast:
    """`bytes_bpe` with texts split by a pattern."""
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return bytes_bpe(words, pre_tokenizers.ByteLevel(False, use_regex=False), **options)


def pieces_bpe(pieces: list[str] | None = None, merges: list[tuple[str, str]] | None = None) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE with a token for each byte, as older Llamas have it; merges of all that makes a piece."""
    pieces = pieces or ["▁t", "he", "▁the", "re", "▁a", "in", "▁r", "er", "ver", "▁ri", "▁river", "on", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokens += sorted(set("".join(pieces)) - set(tokens))
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if merges is None:
        cuts = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))]
        merges = [pair for pair in cuts if set(pair) <= set(vocabulary)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_metaspace(scheme: str, split: bool, pieces: list[str] | None = None) -> PreTrainedTokenizerFast:
    """`pieces_bpe` as transformers builds a Llama's tokenizer today."""
    tokenizer = pieces_bpe(pieces)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split)
    return tokenizer


TOKENIZERS = {
    "gpt-2": bytes_bpe,
    "smollm": lambda: bytes_bpe(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)),
    "llama-bpe": lambda: split_by(PATTERN, ignore_merges=True),
    "smaug-bpe": lambda: split_by(PATTERN),
    "qwen2": lambda: split_by(PATTERN.replace("{1,3}", "")),
    "default": pieces_bpe,
}
"""By the name that llama.cpp has for how a text is split; "default" is SentencePiece's."""


def with_bpe(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """The folder, with this tokenizer in place of its own."""
    (tokenizer or bytes_bpe()).save_pretrained(folder)
    return folder
