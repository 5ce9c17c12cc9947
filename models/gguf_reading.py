"""A GGUF file as a plain Hugging Face folder: weights in fp32, and a tokenizer that splits texts as the file says."""

import contextlib
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader, Keys, RopeScalingType, get_tensor_name_map
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

import models.portable
from models.portable import make_portable, save_tokenizer
from utils.common.cache import cached
from utils.common.errors import UserError, explain

_WORDS = ByteLevel(add_prefix_space=False)
_SINGLE_DIGITS = Sequence([Digits(individual_digits=True), _WORDS])

SPLITS = {"gpt-2": _WORDS, "smollm": _SINGLE_DIGITS, "refact": _SINGLE_DIGITS, "starcoder": _SINGLE_DIGITS}
"""What splits a text before byte-level BPE, by the file's `tokenizer.ggml.pre`: the names that transformers leaves to
GPT-2's own way. Those that it knows (llama-bpe, qwen2, …) it sets itself."""

LLAMA_3S = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
"""Names under which a word that is a token stays whole, whatever the merges say (`ignore_merges`), and under which a
text begins with BOS, unless the file says otherwise, as older ones do not."""


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the file; a warning on stderr if nobody knows how it splits texts."""
    tokenizer, fields = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), GGUFReader(file).fields
    if Keys.Tokenizer.MODEL not in fields or fields[Keys.Tokenizer.MODEL].contents() != "gpt2":
        return tokenizer  # SentencePiece's: nothing is split before
    name = fields[Keys.Tokenizer.PRE].contents() if Keys.Tokenizer.PRE in fields else None
    inner = tokenizer.backend_tokenizer
    if name in SPLITS:
        inner.pre_tokenizer = SPLITS[name]
    elif isinstance(inner.pre_tokenizer, ByteLevel):
        print(
            f"warning: {file.name} has {Keys.Tokenizer.PRE} {name!r}, a way of splitting texts that is not known here; "
            "they are split as GPT-2's are, so token ids may not be the model's own: give the checkpoint that it was "
            "made from",
            file=sys.stderr,
        )
    inner.model.ignore_merges = name in LLAMA_3S
    if name in LLAMA_3S and Keys.Tokenizer.ADD_BOS not in fields:
        tokenizer.add_bos_token = True
    return tokenizer


def read_gguf(file: Path, flag: str) -> tuple[LlamaConfig, PreTrainedTokenizerBase]:
    """The configuration and the tokenizer in the file; UserError if it is damaged, or no Llama's."""
    with explain(f"{flag}: cannot read {file.name}", "copy it again"):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer = gguf_tokenizer(file) if config.model_type == "llama" else None
    if tokenizer is None:
        raise UserError(f"{flag}: {file.name} is a '{config.model_type}' model; give a Llama's GGUF file, or a folder")
    return config, tokenizer


def left_out(file: Path, names: Iterable[str], layers: int) -> list[str]:
    """What a Llama's GGUF file holds beyond the tensors `names`, as transformers has them: biases, a scaled rope."""
    reader, table = GGUFReader(file), get_tensor_name_map(MODEL_ARCH.LLAMA, layers)
    known = {table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    scaling = reader.get_field(Keys.Rope.SCALING_TYPE.format(arch=MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA]))
    found = [tensor.name for tensor in reader.tensors if tensor.name not in known]
    return found + ([scaling.name] if scaling is not None and scaling.contents() != RopeScalingType.NONE.value else [])


@cached("unpacked", code=(sys.modules[__name__], models.portable), libraries=("transformers", "tokenizers", "gguf"))
def unpack_gguf(folder: Path, content: str, *, file: Path, flag: str) -> None:
    """The GGUF file, known by its digest `content`, as a Hugging Face folder in the cache."""
    print(f"unpacking {file.name} once")
    _, tokenizer = read_gguf(file, flag)
    hidden = contextlib.redirect_stderr(io.StringIO())  # the library's bar, which is tqdm's own
    with explain(f"{flag}: cannot unpack {file.name}", "copy it again"), hidden:
        # A quantized file unpacks to more precision than bf16 holds; fp32 keeps all of it.
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    if left := left_out(file, packed.state_dict(), packed.config.num_hidden_layers):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(
            f"{flag}: {file.name} holds {left[0]}{more}, which transformers leaves out of a GGUF file; give the "
            "checkpoint that it was made from"
        )
    with hidden:
        packed.save_pretrained(folder)
    make_portable(folder)
    save_tokenizer(tokenizer, folder)
