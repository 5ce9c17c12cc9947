"""Ways to break what a run reads: each function here returns one that spoils a folder, or bytes of a file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.builders import byte_tokenizer

Spoil = Callable[[Path], object]

DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 10_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"


def file(name: str, content: str | bytes) -> Spoil:
    """Write this file."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the weights."""
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    """Change the tensors, in place."""

    def spoil(folder: Path) -> None:
        loaded = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        change(loaded)
        save_file(loaded, folder / WEIGHTS)

    return spoil


def instead(name: str, content: str | bytes) -> Spoil:
    """This file in place of the weights."""
    return lambda folder: ((folder / WEIGHTS).unlink(), file(name, content)(folder))


def pickled(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    """What this makes of the tensors, as a .bin in place of the weights."""

    def spoil(folder: Path) -> None:
        torch.save(change(dict(load_file(folder / WEIGHTS))), folder / PICKLE)
        (folder / WEIGHTS).unlink()

    return spoil


def without(*names: str) -> Spoil:
    """Files removed."""
    return lambda folder: [(folder / name).unlink() for name in names]


def config(**changes: object) -> Spoil:
    """Other values in config.json."""
    return values("config.json", **changes)


def values(name: str, **changes: object) -> Spoil:
    """Other values in a JSON file."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))

    return spoil


def tokenizer_model(**changes: object) -> Spoil:
    """Other values in the model of tokenizer.json."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= changes
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return spoil


def more_tokens(special: bool) -> Spoil:
    """A tokenizer of a hundred tokens more than its model has embeddings for."""

    def spoil(folder: Path) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([f"<more{number}>" for number in range(100)], special_tokens=special)
        tokenizer.save_pretrained(folder)

    return spoil


def one_word(folder: Path) -> None:
    """A tokenizer of one word, which is none of most texts'."""
    tokenizer = Tokenizer(WordLevel({"word": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


def only_bos(folder: Path) -> None:
    """A tokenizer that makes a beginning of a text, and nothing of the text."""
    tokenizer = Tokenizer(BPE({"<s>": 0}, []))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<s>").save_pretrained(folder)


def twice(more: float) -> Spoil:
    """The weights in two shards, of which both hold the last norm; the second one with that much added."""

    def spoil(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        save_file(loaded, folder / "a.safetensors")
        save_file({"model.norm.weight": loaded["model.norm.weight"] + more}, folder / "b.safetensors")
        weight_map = dict.fromkeys(loaded, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        (folder / WEIGHTS).unlink()

    return spoil


def with_mark(name: str) -> Spoil:
    """A UTF-8 byte order mark before the file."""
    return lambda folder: (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())


def with_crlf(name: str) -> Spoil:
    """Lines that end as on Windows."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))


def gguf(tensors: int, entries: int, edition: int = 3, rest: bytes = bytes(200)) -> bytes:
    """The header of a GGUF file, and what follows."""
    return struct.pack("<4sIQQ", b"GGUF", edition, tensors, entries) + rest


class Evil:
    """Makes the file `ran` in the working folder when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))
