"""A tokenizer as llama.cpp reads it from a GGUF file's metadata.

llama.cpp has two that Llamas use: byte-level BPE, whose way of splitting a text it knows by name (the table of names:
its src/llama-vocab.cpp), and SentencePiece's BPE, which joins whatever pair makes the token of the highest score.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from gguf import GGUFWriter, TokenType
from transformers import LlamaConfig, PreTrainedTokenizerBase

from utils.common.errors import shortened
from utils.common.files import parse_json

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""llama.cpp's names of the two."""

_WORDS = ("ByteLevel", False, True)
_BYTES = ("ByteLevel", False, False)
_DIGITS = ("Digits", True)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UP_TO_3_DIGITS = ("Split", _CONTRACTIONS + r"\p{N}{1,3}" + _REST, "Isolated", False)
_SINGLE_DIGITS = ("Split", _CONTRACTIONS + r"\p{N}" + _REST, "Isolated", False)

PRE_TOKENIZERS = {
    ((_WORDS,), False): "gpt-2",
    ((_DIGITS, _WORDS), False): "smollm",
    ((_UP_TO_3_DIGITS, _BYTES), True): "llama-bpe",
    ((_UP_TO_3_DIGITS, _BYTES), False): "smaug-bpe",
    ((_SINGLE_DIGITS, _BYTES), False): "qwen2",
}
"""Ways of splitting a text, each with whether a word that is a token stays whole whatever the merges say."""

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata says of a tokenizer.

    model: BYTE_LEVEL, with `merges` and `pre`, or SENTENCEPIECE, with `scores`. tokens, types: by id, one for each row
    of the embedding. ids: of bos, eos, … adds: whether bos and eos are put around a text. templates: of a chat, as
    transformers has them.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    ids: dict[str, int]
    adds: dict[str, bool]
    templates: str | dict[str, str] | None
    merges: list[str] | None = None
    scores: list[float] | None = None
    space_prefix: bool | None = None

    def describe(self, writer: GGUFWriter) -> None:
        """Tell the writer."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        for name, value in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(value)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if isinstance(self.templates, dict):
            writer.add_chat_template([{"name": name, "template": text} for name, text in self.templates.items()])
        elif self.templates:
            writer.add_chat_template(self.templates)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, config: LlamaConfig, pre: str | None = None) -> Vocabulary:
    """The tokenizer for llama.cpp, from what the tokenizers library itself works by.

    pre: llama.cpp's name for how texts are split, for a byte-level tokenizer that PRE_TOKENIZERS doesn't know.
    Raises ValueError, whose text goes on after "the tokenizer", for one that llama.cpp would not follow.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError("is none of the tokenizers library, which this reads")
    inner = parse_json(tokenizer.backend_tokenizer.to_str())
    model, parts = inner["model"], _parts(inner["pre_tokenizer"], "pretokenizers")
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError(f"is {model['type']} with its own marks, where llama.cpp's Llamas have BPE without any")
    tokens, types = _tokens(inner, config.vocab_size)
    common = {"ids": _special(tokenizer, config), "adds": _added(tokenizer), "templates": tokenizer.chat_template}
    merges = [tuple(merge) for merge in model["merges"]]
    if any(part["type"] == "ByteLevel" for part in parts):
        name = pre or pre_tokenizer(inner)
        if name is None:
            known = ", ".join(PRE_TOKENIZERS.values())
            raise ValueError(f"splits texts in a way that is none of {known}; name llama.cpp's with -pre")
        if not merges or any(" " in part for merge in merges for part in merge):
            raise ValueError("has no merges, or merges of spaces, which a GGUF file cannot hold")
        return Vocabulary(BYTE_LEVEL, name, tokens, types, merges=[" ".join(merge) for merge in merges], **common)
    if not model.get("byte_fallback"):
        raise ValueError("is neither byte-level BPE nor SentencePiece's with a token for each byte")
    if pre:
        raise ValueError("is SentencePiece's, which has no -pre; leave it out")
    types = _sentencepiece_types(tokens, types, model)
    scores = merge_scores(tokens, types, merges)
    prefix = _space_prefix(inner, parts, tokens)
    return Vocabulary(SENTENCEPIECE, "default", tokens, types, scores=scores, space_prefix=prefix, **common)


def pre_tokenizer(inner: dict) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer (its JSON) splits a text; None if it is none of those known."""
    if inner["normalizer"] is not None:
        return None
    shape = tuple(map(_essence, _parts(inner["pre_tokenizer"], "pretokenizers")))
    return PRE_TOKENIZERS.get((shape, inner["model"].get("ignore_merges", False)))


def merge_scores(tokens: list[str], types: list[TokenType], merges: list[tuple[str, str]]) -> list[float]:
    """By id, scores with which SentencePiece's BPE joins what `merges` join, in their order.

    Raises ValueError for merges that no scores stand for: SentencePiece joins any two tokens that make a third.
    """
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL}
    rank: dict[str, int] = {}
    last = None
    for left, right in merges:
        made = left + right
        if made != last and made in rank:
            raise ValueError(f"makes the token {shortened(repr(made))} at different times; scores cannot say so")
        rank.setdefault(made, len(rank))
        last = made
    listed = set(merges)
    for token in normal:
        for place in range(1, len(token)):
            pair = token[:place], token[place:]
            if normal.issuperset(pair) and pair not in listed:
                raise ValueError(
                    f"never joins {pair[0]!r} and {pair[1]!r}, which SentencePiece in llama.cpp would, as they make a "
                    "token; its merges come from elsewhere"
                )
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _parts(step: dict | None, name: str) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer, in order."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for each in step[name] for inner in _parts(each, name)]


def _essence(part: dict) -> tuple:
    """What of a pre-tokenizer's step decides where a text is split."""
    if part["type"] == "ByteLevel":
        return "ByteLevel", part["add_prefix_space"], part["use_regex"]
    if part["type"] == "Digits":
        return "Digits", part["individual_digits"]
    if part["type"] == "Split":
        return "Split", part["pattern"].get("Regex"), part["behavior"], part["invert"]
    return (part["type"],)


def _tokens(inner: dict, size: int) -> tuple[list[str], list[TokenType]]:
    """Tokens and their types by id, one for each row of the embedding; rows without a token get an unused one."""
    by_id = {place: (token, TokenType.NORMAL) for token, place in inner["model"]["vocab"].items()}
    for added in inner["added_tokens"]:
        by_id[added["id"]] = added["content"], TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    taken = {token for token, _ in by_id.values()}
    free = (name for name in _unused() if name not in taken)
    rows = [by_id[place] if place in by_id else (next(free), TokenType.UNUSED) for place in range(size)]
    tokens, types = zip(*rows, strict=True)
    if len(set(tokens)) < size or "" in taken:
        raise ValueError("has a token twice, or an empty one")
    return list(tokens), list(types)


def _unused() -> Iterator[str]:
    number = 0
    while True:
        yield f"[PAD{number}]"
        number += 1


def _sentencepiece_types(tokens: list[str], types: list[TokenType], model: dict) -> list[TokenType]:
    """With the types that only SentencePiece's tokens have: of bytes, and of what is unknown."""
    kinds = [TokenType.BYTE if _BYTE.fullmatch(token) else kind for token, kind in zip(tokens, types, strict=True)]
    if kinds.count(TokenType.BYTE) < 256:
        raise ValueError("lacks tokens for some bytes, <0x00> to <0xFF>, which llama.cpp needs")
    if model.get("unk_token") in tokens:
        kinds[tokens.index(model["unk_token"])] = TokenType.UNKNOWN
    return kinds


def _space_prefix(inner: dict, parts: list[dict], tokens: list[str]) -> bool:
    """Whether a text gets a space before it. ValueError for spaces that are handled as llama.cpp does not."""
    steps = _parts(inner["normalizer"], "normalizers")
    if not parts and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return len(steps) == 2
    if not steps and len(parts) == 1 and parts[0]["type"] == "Metaspace" and parts[0]["replacement"] == _SPACE:
        (words,) = parts
        # Where words are split first, no token may reach from one into the next.
        if not words["split"] or not any(_SPACE in token[1:] for token in tokens):
            return words["prepend_scheme"] != "never"
    raise ValueError(f"turns spaces into {_SPACE} in a way that llama.cpp's SentencePiece doesn't")


def _special(tokenizer: PreTrainedTokenizerBase, config: LlamaConfig) -> dict[str, int]:
    """Ids of special tokens: the tokenizer's, or the configuration's."""
    ids = {}
    for name, own in (("bos", config.bos_token_id), ("eos", config.eos_token_id), ("unk", None), ("pad", None)):
        found = getattr(tokenizer, f"{name}_token_id")
        found = own if found is None else found
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int) and 0 <= found < config.vocab_size:
            ids[name] = found
    if "eos" not in ids:
        raise ValueError("has no end token, and llama.cpp would take another for it; name eos_token for it")
    # llama.cpp takes some token of its own for one that is not named.
    ids.setdefault("bos", ids["eos"])
    # A tokenizer without a padding token was given its end token for that when it was loaded.
    if ids.get("pad") == ids["eos"]:
        del ids["pad"]
    return ids


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether begin and end tokens are put around a text: as it does it, whatever its files say."""
    plain, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    for bos, eos in product((False, True), repeat=2):
        if whole == [tokenizer.bos_token_id] * bos + plain + [tokenizer.eos_token_id] * eos:
            return {"bos": bos, "eos": eos}
    raise ValueError("puts other tokens around a text than its begin and end tokens, which llama.cpp would not")
