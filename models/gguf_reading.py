"""A GGUF file as a plain Hugging Face folder: weights in fp32, and a tokenizer that splits texts as the file says."""

import contextlib
import io
import sys
from pathlib import Path

import torch
from gguf import MODEL_ARCH, GGUFReader, Keys, RopeScalingType, get_tensor_name_map
from tokenizers import normalizers
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
"""Pre-tokenizers for byte-level BPE, by the file's `tokenizer.ggml.pre`: for names that transformers gives GPT-2's
pre-tokenizer. For names that it knows (llama-bpe, qwen2, …) it sets the right one itself."""

LLAMA_3S = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
"""Values of `tokenizer.ggml.pre` that imply `ignore_merges`: a word that is a token is never split. They also imply
that texts begin with BOS, unless the file says otherwise; older files say nothing."""

_TOKENIZER = Keys.Tokenizer.MODEL, Keys.Tokenizer.PRE, Keys.Tokenizer.ADD_PREFIX

_ROPE = "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear"  # the last in files of 2023


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the file; a warning on stderr if nobody knows how it splits texts."""
    tokenizer, fields = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), GGUFReader(file).fields
    kind, name, prefix = (fields[key].contents() if key in fields else None for key in _TOKENIZER)
    inner = tokenizer.backend_tokenizer
    if kind != "gpt2":
        # SentencePiece has no pre-tokenizer. transformers would take a text's own first space for the added prefix.
        added = [] if prefix is False else [normalizers.Prepend("▁")]
        inner.normalizer = normalizers.Sequence([*added, normalizers.Replace(" ", "▁")])
        inner.pre_tokenizer = None
        return tokenizer
    if name in SPLITS:
        inner.pre_tokenizer = SPLITS[name]
    elif isinstance(inner.pre_tokenizer, ByteLevel):
        print(
            f"warning: {file.name} has {Keys.Tokenizer.PRE} {name!r}, an unknown pre-tokenizer; GPT-2's is used, so "
            "token ids may differ from the model's own: give the checkpoint that the file was made from",
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


def check_tensors(file: Path, flag: str, config: LlamaConfig) -> None:
    """UserError unless the file holds just the tensors of the configuration's model, and no scaled rope.

    transformers would initialize missing tensors at random, and ignore the rest.
    """
    with explain(f"{flag}: cannot build a model from {file.name}", "copy it again"), torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config).state_dict()
    reader, table = GGUFReader(file), get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    known = {table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    held = [tensor.name for tensor in reader.tensors]
    if missing := sorted(known - {*held, "output.weight"}):  # optional: the head may be tied to the embedding
        raise UserError(
            f"{flag}: {file.name} lacks {len(missing)} of {len(known)} tensors, such as {missing[0]}; give the whole "
            "model in one file (llama-gguf-split --merge joins several)"
        )
    rope = {key: field.contents() for key in _ROPE if (field := reader.get_field(key)) is not None}
    plain = rope.get(_ROPE[0]) == RopeScalingType.NONE.value
    left = [name for name in held if name not in known]
    if left := left + [key for key, value in rope.items() if value not in (0, 1) and not plain]:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(
            f"{flag}: {file.name} holds {left[0]}{more}, which transformers leaves out of a GGUF file; give the "
            "checkpoint that it was made from"
        )


@cached("unpacked", code=(sys.modules[__name__], models.portable), libraries=("transformers", "tokenizers", "gguf"))
def unpack_gguf(folder: Path, content: str, *, file: Path, flag: str) -> None:
    """Convert the GGUF file to a Hugging Face folder in the cache. content: its SHA-256, which is the cache key."""
    print(f"unpacking {file.name} once")
    config, tokenizer = read_gguf(file, flag)
    check_tensors(file, flag, config)
    hidden = contextlib.redirect_stderr(io.StringIO())  # the library's bar, which is tqdm's own
    with explain(f"{flag}: cannot unpack {file.name}", "copy it again"), hidden:
        # A quantized file unpacks to more precision than bf16 holds; fp32 keeps all of it.
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    with hidden:
        packed.save_pretrained(folder)
    make_portable(folder)
    save_tokenizer(tokenizer, folder)
