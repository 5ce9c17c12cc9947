"""A checkpoint's folder as one GGUF file, tensor by tensor."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quant_shape_to_byte_shape, quantize
from torch import Tensor
from transformers import LlamaConfig

from models.checkpoint import Checkpoint, check_weights, pruned_layer, same_bits
from models.gguf_layout import (
    ARCHITECTURE,
    FILE_TYPES,
    ROPE_FREQS,
    Rope,
    describe,
    gguf_name,
    laid_out,
    rope_of,
    type_of,
    uneven,
    unfit,
)
from models.gguf_tokenizer import Vocabulary, vocabulary_of
from models.loading import check_vocabulary, has_tokenizer, load_config, load_tokenizer
from utils.common.disk import Need, check_room, told
from utils.common.errors import UserError
from utils.common.files import whole_file
from utils.common.progress import progress
from utils.common.raw import raw_bytes

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

_METADATA = 64
"""Bytes that a token of the vocabulary and its merge take at most, about: for the question whether there is room."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. source: its name in the checkpoint, or ROPE_FREQS."""

    name: str
    source: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """Its shape, with a row's bytes in place of its numbers."""
        return quant_shape_to_byte_shape(self.shape, self.type)

    @property
    def size(self) -> int:
        """In bytes."""
        return int(np.prod(self.byte_shape, dtype=np.int64))


@dataclass
class Written:
    """What a file holds. zeros: of pruned weights, that are zero in the checkpoint and in it; rounded: of those that
    are not zero in the checkpoint, but too small for the type."""

    tensors: int
    zeros: int = 0
    rounded: int = 0
    size: int = 0


def write_gguf(folder: Path, file: Path, asked: str | None = None, pre: str | None = None) -> Written:
    """Write the plain Llama in `folder`, with its tokenizer, to `file`, whole; an earlier file there is replaced.

    asked: a name of TYPES for the matrices; None leaves each as it is. pre: see `vocabulary_of`.
    Raises UserError for a checkpoint or a tokenizer that is broken, or that llama.cpp would not compute as it is.
    """
    config = load_config(folder, "MODEL")
    if reason := unfit(config):
        raise UserError(f"MODEL: {folder}/config.json: {reason}; use the model with transformers")
    if asked == "q8_0" and (reason := uneven(config)):
        raise UserError(f"-dtype: {folder}/config.json: {reason}, as rows must be in q8_0; give f16, bf16 or f32")
    checkpoint = Checkpoint(folder, "MODEL")
    check_weights(checkpoint, config)
    vocabulary, rope = _vocabulary(folder, config, pre), rope_of(config)
    entries = _entries(checkpoint, config, rope, asked)
    needs = [Need("FILE", file.parent, sum(entry.size for entry in entries) + _METADATA * config.vocab_size)]
    check_room(needs)
    with told(needs), whole_file(file) as partial:
        written = _write(partial, file.stem, checkpoint, config, rope, vocabulary, entries)
        written.size = partial.stat().st_size
    return written


def _vocabulary(folder: Path, config: LlamaConfig, pre: str | None) -> Vocabulary:
    if not has_tokenizer(folder):
        raise UserError(f"MODEL: {folder} has no tokenizer, which a GGUF file holds too; copy its files there")
    tokenizer = load_tokenizer(folder, "MODEL")
    check_vocabulary(tokenizer, config, "MODEL")
    try:
        return vocabulary_of(tokenizer, config, pre)
    except ValueError as error:
        raise UserError(f"MODEL: the tokenizer in {folder} {error}") from error


def _entries(checkpoint: Checkpoint, config: LlamaConfig, rope: Rope, asked: str | None) -> list[Entry]:
    """All tensors of the file: the checkpoint's, without a head that is the embedding once more."""
    found = []
    if rope.factors is not None:
        found.append(Entry(ROPE_FREQS, ROPE_FREQS, GGMLQuantizationType.F32, tuple(rope.factors.shape)))
    for name in checkpoint.kept():
        if name == _HEAD and config.tie_word_embeddings and same_bits(*map(checkpoint.read, (_HEAD, _EMBEDDING))):
            continue
        header = checkpoint.headers[name]
        kind = type_of(header.shape, header.dtype, asked)
        found.append(Entry(gguf_name(name, config.num_hidden_layers), name, kind, header.shape))
    return found


def _write(
    path: Path,
    name: str,
    checkpoint: Checkpoint,
    config: LlamaConfig,
    rope: Rope,
    vocabulary: Vocabulary,
    entries: list[Entry],
) -> Written:
    """Header and metadata first, which need no data, then one tensor after the other."""
    bytes_of = Counter()
    for entry in entries:
        bytes_of[entry.type] += entry.size
    writer, written = GGUFWriter(path, ARCHITECTURE), Written(len(entries))
    describe(writer, config, rope, name, FILE_TYPES[bytes_of.most_common(1)[0][0]])
    vocabulary.describe(writer)
    for entry in entries:
        # Told as bytes, in which form there are types that numpy has no name for.
        writer.add_tensor_info(entry.name, entry.byte_shape, np.dtype(np.uint8), entry.size, entry.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        writer.write_padding(file, file.tell())
        with progress(total=sum(entry.size for entry in entries), desc="writing", unit="B", unit_scale=True) as bar:
            for entry in entries:
                tensor = rope.factors if entry.source == ROPE_FREQS else checkpoint.read(entry.source)
                tensor = laid_out(entry.source, tensor, config)
                stored = packed(tensor, entry.type)
                _count(written, entry, tensor, unpacked(stored, entry.type), checkpoint.folder)
                # Not the writer's own method: what numpy makes of a full disk names no reason.
                file.write(stored)
                writer.write_padding(file, entry.size)
                bar.update(entry.size)
    finally:
        writer.close()
    return written


def packed(tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor as the file holds it: uint8, rows of bytes."""
    if kind == GGMLQuantizationType.Q8_0:
        return quantize(tensor.float().numpy(), kind)
    plain = {GGMLQuantizationType.F16: torch.float16, GGMLQuantizationType.BF16: torch.bfloat16}
    return raw_bytes(tensor.to(plain.get(kind, torch.float32))).numpy().reshape(*tensor.shape[:-1], -1)


def unpacked(stored: np.ndarray, kind: GGMLQuantizationType) -> Tensor:
    """The numbers (fp32) that these bytes stand for."""
    with np.errstate(invalid="ignore"):  # 0 times a scale that became infinite; it is told of
        return torch.from_numpy(dequantize(stored, kind))


def _count(written: Written, entry: Entry, tensor: Tensor, stored: Tensor, folder: Path) -> None:
    """Add a pruned weight's zeros. UserError for numbers that are none, or too large for the type."""
    if not bool(stored.isfinite().all()):
        if not bool(tensor.isfinite().all()):
            raise UserError(
                f"MODEL: {entry.source} in {folder} holds NaN or infinity; the checkpoint is damaged, or was saved in "
                "a dtype that cannot hold it"
            )
        largest = float(tensor.abs().max())
        raise UserError(
            f"-dtype: {entry.source} in {folder} holds {largest:.4g}, beyond what {entry.type.name.lower()} can; "
            "give f32 or bf16"
        )
    if pruned_layer(entry.source) is not None:
        before, after = tensor == 0, stored == 0
        written.zeros += int((before & after).sum())
        written.rounded += int((after & ~before).sum())
