"""A checkpoint on disk, tensor by tensor: what its files hold, how many zeros, and what identifies it."""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from models.families import FAMILIES, LINEARS
from utils.common.cache import hash_tensor, raw_bytes
from utils.common.errors import DAMAGED, UserError, explain, first_line
from utils.common.files import read_json, sha256, whole_file, write_json

_PRUNED_WEIGHT = re.compile(rf"model\.layers\.(\d+)\.(?:{'|'.join(map(re.escape, LINEARS))})\.weight")

DROPPED = re.compile(r"(.+\.)?rotary_emb\.inv_freq")
"""Buffers that older versions of transformers saved and current ones compute. They do not count as weights."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where transformers looks for weights, in its order."""

_SAFE_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Header:
    """File, dtype and shape of a tensor, known without reading it. dtype: torch's, or a str if unsupported."""

    file: str
    dtype: torch.dtype | str
    shape: tuple[int, ...]


@dataclass
class Survey:
    """The result of one pass over all tensors of a checkpoint.

    sha256: of names, dtypes, shapes and bytes of all tensors and of config.json. zeros, weights: by decoder layer, the
    number of zeros and of entries in its seven linear weights. not_finite: names of tensors with NaN or infinity.
    """

    sha256: str = ""
    zeros: dict[int, int] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)

    def counts(self) -> tuple[list[int], list[int]]:
        """(zeros, weights) of each layer, in order."""
        layers = sorted(self.weights)
        return [self.zeros[layer] for layer in layers], [self.weights[layer] for layer in layers]


class Checkpoint:
    """The checkpoint in `folder`. Headers are read at once, a tensor's values when `read` is called.

    flag: the command-line flag that named it, for messages. Raises UserError if there are no readable weights.
    """

    def __init__(self, folder: Path, flag: str = "-pruned_model_path"):
        self.folder, self.flag = folder, flag
        self.files = weight_files(folder, flag)
        self._readers: dict[str, Callable[[str], Tensor]] = {}
        self.headers: dict[str, Header] = {}
        for file in self.files:
            self.headers |= self._open(file)  # of a tensor in two files the last one counts, as in transformers

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all tensors and of config.json. Restorations and records identify the checkpoint by it."""
        return self.survey().sha256

    def key(self) -> list[str]:
        """Its part of a cache key: the fingerprint, and the SHA-256 of generation_config.json if there is one."""
        return [self.fingerprint, *map(sha256, self.folder.glob("generation_config.json"))]

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, as it is stored; safetensors are mapped, not copied."""
        return self._readers[self.headers[name].file](name)

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def kept(self) -> dict[str, Header]:
        """All headers but those of DROPPED buffers, in order. Files are named as .safetensors copies of them."""
        files = {file.name: f"{file.stem.removeprefix('pytorch_')}.safetensors" for file in self.files}
        return {
            name: replace(header, file=files[header.file])
            for name, header in self.headers.items()
            if not DROPPED.fullmatch(name)
        }

    def survey(self, visit: Callable[[str, Tensor], None] | None = None) -> Survey:
        """Read all tensors, one in memory at a time, and call `visit` with each name and tensor.

        Without `visit`, the result of an earlier pass of this process is reused if the files are unchanged.
        """
        # By inode, so that a folder that gets its final name is not read again.
        beside = (self.folder / name for name in (*WEIGHTS, "config.json") if name.endswith(".json"))
        stats = [(file.name, file.stat()) for file in (*self.files, *filter(Path.is_file, beside))]
        state = tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats)
        if visit is None and state in _SURVEYS:
            return _SURVEYS[state]
        found, whole = Survey(), hashlib.sha256()
        for name in sorted(self.headers):
            tensor = self.read(name)
            hash_tensor(whole, name, tensor)
            if tensor.dtype in _SAFE_DTYPES.values() and not bool(tensor.isfinite().all()):
                found.not_finite.append(name)
            if (layer := pruned_layer(name)) is not None:
                found.zeros[layer] = found.zeros.get(layer, 0) + int((tensor == 0).sum())
                found.weights[layer] = found.weights.get(layer, 0) + tensor.numel()
            if visit is not None:
                visit(name, tensor)
        if (config := self.folder / "config.json").is_file():
            whole.update(config.read_bytes())
        for file in self.files:
            self._open(file)  # maps the file again, which frees the pages that were read
        found.sha256 = whole.hexdigest()
        _SURVEYS[state] = found
        return found

    def _open(self, file: Path) -> dict[str, Header]:
        """Register the reader of `file` and return the headers of its tensors."""
        if file.suffix != ".safetensors":
            tensors = _load_pickle(file, self.flag)
            self._readers[file.name] = lambda name: tensors[name].clone()  # a copy, since tied tensors share memory
            return {name: Header(file.name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with explain(f"{self.flag}: cannot read {file}", "copy it again", (SafetensorError, OSError)):
            opened = safe_open(file, framework="pt")
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        self._readers[file.name] = opened.get_tensor
        dtypes = {name: _SAFE_DTYPES.get(part.get_dtype(), part.get_dtype()) for name, part in slices.items()}
        return {name: Header(file.name, dtypes[name], tuple(part.get_shape())) for name, part in slices.items()}


_SURVEYS: dict[tuple, Survey] = {}


def weight_files(folder: Path, flag: str = "-pruned_model_path") -> list[Path]:
    """The files that hold the weights in `folder`, as transformers chooses them.

    Raises UserError if there are none, or an index can't be read, or names a file that is missing or outside.
    """
    for name in WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".json"):
            return [path]
        try:
            index = read_json(path)
            shards = sorted(set(index["weight_map"].values()))
            {**index["metadata"]}  # transformers reads it
            outside = [shard for shard in shards if Path(shard).name != shard]
        except DAMAGED as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else first_line(error)
            raise UserError(f"{flag}: {path} is not an index of weights ({reason}); copy it again") from error
        if outside:
            raise UserError(f"{flag}: {path} names '{outside[0]}', which is not in the folder itself; refused")
        if missing := [shard for shard in shards if not os.path.isfile(folder / shard)]:
            raise UserError(f"{flag}: {folder} lacks {missing[0]}, which {name} names; copy it again")
        return [folder / shard for shard in shards]
    raise UserError(f"{flag}: {folder} holds no weights ({WEIGHTS[0]}, {WEIGHTS[2]}, or an index and its shards)")


def pruned_layer(name: str) -> int | None:
    """The decoder layer that `name` is a linear weight of; None for all other tensors."""
    match = _PRUNED_WEIGHT.fullmatch(name)
    return int(match[1]) if match else None


def check_weights(checkpoint: Checkpoint, config: LlamaConfig) -> None:
    """Raise UserError unless the files hold exactly the tensors of the configuration's model, all of them finite.

    transformers would initialize a missing weight at random and ignore an unexpected one. A tied lm_head.weight may be
    missing; if it is there, it must equal the embedding.
    """
    flag, folder = checkpoint.flag, checkpoint.folder
    with explain(f"{flag}: cannot build a model from {folder}/config.json", "copy it again"), torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    kept, optional = checkpoint.kept(), {"lm_head.weight"} if config.tie_word_embeddings else set()
    if FAMILIES[read_json(folder / "config.json")["model_type"]].as_llama is not None:
        # Llama's attention_bias means a bias on all four projections. One that the family lacks on o_proj is zero.
        optional |= {name for name in expected if name.endswith("o_proj.bias")}
    if missing := [name for name in expected if name not in checkpoint and name not in optional]:
        raise UserError(
            f"{flag}: {folder} lacks {_named(missing)}, which its config.json requires (transformers would initialize "
            "it randomly); copy the checkpoint again, or fix its config.json"
        )
    if unexpected := [name for name in kept if name not in expected]:
        raise UserError(
            f"{flag}: {folder} holds {_named(unexpected)} that a model of its config.json doesn't have; "
            "give a plain checkpoint"
        )
    for name, header in kept.items():
        if header.dtype not in _SAFE_DTYPES.values():
            raise UserError(
                f"{flag}: {name} in {folder} is {header.dtype}; RestoreLCC reads float16, bfloat16, float32 and "
                "float64, so dequantize the checkpoint first"
            )
        if header.shape != tuple(expected[name].shape):
            raise UserError(
                f"{flag}: {name} in {folder} has the shape {header.shape}, its config.json says "
                f"{tuple(expected[name].shape)}"
            )
    if wrong := checkpoint.survey().not_finite:
        raise UserError(
            f"{flag}: {_named(wrong)} in {folder} hold NaN or infinity; the checkpoint is damaged, or was saved in a "
            "dtype that cannot hold it"
        )
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head in optional and head in kept and not torch.equal(checkpoint.read(head), checkpoint.read(embedding)):
        raise UserError(
            f"{flag}: {folder} holds an {head} of its own, which its config.json ties to the embedding; set "
            "tie_word_embeddings to false there"
        )


def restorable_heads(pruned: Checkpoint, layers: int, heads: int) -> Tensor:
    """(L, H) bool: whether a head has a non-zero column in o_proj. What is added to other heads has no effect."""
    weights = (pruned.read(f"model.layers.{layer}.self_attn.o_proj.weight") for layer in range(layers))
    return torch.stack([(weight != 0).any(0).unflatten(0, (heads, -1)).any(1) for weight in weights])


def write_checkpoint(output: Path, layout: dict[str, Header], read: Callable[[str], Tensor]) -> None:
    """Write each tensor to the safetensors file that its header names, in `output`. One file at a time is in memory.

    read: returns a tensor by name. An index is written too, unless model.safetensors is the only file.
    """
    for file in dict.fromkeys(header.file for header in layout.values()):
        with whole_file(output / file) as partial:
            tensors = {name: read(name).contiguous() for name, header in layout.items() if header.file == file}
            for name, tensor in tensors.items():
                if (tensor.dtype, tuple(tensor.shape)) != (layout[name].dtype, layout[name].shape):
                    raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {layout[name]}")
            save_file(tensors, partial, metadata={"format": "pt"})
    weight_map = {name: layout[name].file for name in sorted(layout)}
    if {*weight_map.values()} != {WEIGHTS[0]}:
        size = sum(torch.Size(header.shape).numel() * header.dtype.itemsize for header in layout.values())
        write_json(output / WEIGHTS[1], {"metadata": {"total_size": size}, "weight_map": weight_map})


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(raw_bytes(left), raw_bytes(right))


def _load_pickle(file: Path, flag: str) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # its text may advise weights_only=False, which can run code
        said = f"{flag}: cannot read {file} as a PyTorch file of plain tensors; give a safetensors checkpoint"
        raise UserError(said) from error
    tensors = loaded if isinstance(loaded, dict) else {"": None}
    plain = all(isinstance(each, Tensor) and each.layout == torch.strided for each in tensors.values())
    if not plain or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{flag}: {file} does not hold plain tensors by name; give a Hugging Face checkpoint")
    return loaded


def _named(names: list[str]) -> str:
    """ "a", "a, b", or "a, b, c and 5 more"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
