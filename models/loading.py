"""Resolve a model's name to a local Hugging Face folder; check and load its configuration, tokenizer and weights."""

import functools
import gc
import json
import shutil
import sys
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from accelerate.utils import get_max_memory, patch_environment
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

import models.compact_llama  # noqa: F401 - makes its class known to transformers
from models.checkpoint import Checkpoint, check_weights
from models.families import FAMILIES, SUPPORTED, as_llama
from models.gguf_reading import unpack_gguf
from models.model_names import COMPACT, check_name, hub_name
from utils.common.cache import Cache
from utils.common.errors import UserError, explain, shortened
from utils.common.files import digest, read_json, sha256
from utils.common.names import DTYPE_NAMES

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.*", "merges.txt", "special_tokens_map.json")
_TOKENIZER_FILES += ("added_tokens.json", "chat_template.*", "additional_chat_templates/*")
"""Besides tokenizer_config.json, the files that decide what a tokenizer makes of a text."""

_TOKENIZER_CONFIG = "tokenizer_config.json"

_NO_TOKENIZATION = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "is_local", "local_files_only")
"""Keys of tokenizer_config.json that record where it was read from; tokenization doesn't depend on them."""

_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
_SIZES += ("hidden_size", "intermediate_size", "vocab_size")
"""Keys of config.json that determine a model's shapes."""

_COMPUTED_BY = ("rope_parameters", "rms_norm_eps", "hidden_act")
"""Other keys of config.json that the outputs depend on. Pruning changes none of them."""

_DEQUANTIZED = {
    "bitsandbytes": "save what model.dequantize() of transformers makes of it, or give the checkpoint it was made from",
    "compressed-tensors": "save what transformers makes of it under CompressedTensorsConfig(run_compressed=False), or "
    "give the checkpoint it was made from",
}

_SHARE_FOR_WEIGHTS = 0.8
"""Share of a device's free memory that weights may take. Activations, gradients and logits need the rest."""


def quiet_libraries() -> None:
    """Libraries' own bars and notes would bury the run's; errors still show."""
    import datasets  # here alone, since it takes a second

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # What the Trainer's ddp_broadcast_buffers becomes
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)


def resolve(name: str, flag: str, cache_dir: Path) -> Path:
    """The local folder behind `name`: a hub id is downloaded, a GGUF file unpacked once into the cache, in fp32."""
    path = check_name(name, flag)
    if path is None:
        return _download(hub_name(name), flag)
    return path if path.is_dir() else unpack_gguf(Cache(cache_dir), sha256(path), file=path, flag=flag)


def load_config(folder: Path, flag: str) -> LlamaConfig:
    """The configuration in `folder`; UserError if it is of no family that is known, or no model can be made of it."""
    path = folder / "config.json"
    settings = read_settings(path, flag)
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{flag}: {path} names no model_type, so it is not a model's; give a Hugging Face model folder")
    if kind not in FAMILIES:
        raise UserError(f"{flag}: {folder} is a '{shortened(kind)}' model; RestoreLCC restores {SUPPORTED}")
    if kind == COMPACT and flag == "-base_model_name":
        raise UserError(f"{flag}: the model is already pruned (slimgpt's compact form); give the dense model")
    if quantized := settings.get("quantization_config") or settings.get("compression_config"):
        named = quantized.get("quant_method") if isinstance(quantized, dict) else None
        method = shortened(str(named or "a method it doesn't name"))
        raise UserError(
            f"{flag}: {folder} is quantized by {method}, and RestoreLCC reads plain weights; "
            + _DEQUANTIZED.get(method, "give the checkpoint it was made from")
        )
    if (generation := folder / "generation_config.json").is_file():
        read_settings(generation, flag)  # else transformers would fail at it only after it has loaded the weights
        with explain(f"{flag}: {generation}", "copy it again"):
            GenerationConfig.from_pretrained(folder)
    with explain(f"{flag}: {path}", "copy the model again"):  # whatever a damaged value makes transformers raise
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "head_dim", None) is None:  # which not every family's class sets
            config.head_dim = config.hidden_size // config.num_attention_heads
        _check_settings(config)
    with explain(f"{flag}: {path} is not supported", "give another model", ValueError):
        config = as_llama(config)
    # Always set: config.json may name an attention whose code is downloaded. SDPA can't soft-cap scores (Gemma 2).
    config._attn_implementation = "eager" if config.model_type == "gemma2" else "sdpa"
    return config


def written_settings(folder: Path, flag: str) -> dict:
    """The config.json to write with a checkpoint made from `folder`: its own, or Llama's if it runs as Llama."""
    settings = read_json(folder / "config.json")
    if FAMILIES[settings["model_type"]].as_llama is None:
        return settings
    return json.loads(load_config(folder, flag).to_json_string(use_diff=False))


def read_settings(path: Path, flag: str) -> dict:
    """The JSON object in a file; UserError naming the flag if there is none."""
    with explain(f"{flag}: cannot read {path}", "copy it again", (OSError, ValueError)):
        if isinstance(settings := read_json(path), dict):
            return settings
        raise ValueError("it is not a JSON object")


def _check_settings(config: LlamaConfig) -> None:
    """Raise ValueError for values that pass transformers' type checks, but fail when the model runs, or silently."""
    rope, heads, shared = config.rope_parameters or {}, config.num_attention_heads, config.num_key_value_heads
    ranges = {name: (getattr(config, name), 1, 10**9) for name in (*_SIZES, "max_position_embeddings")}
    ranges["attention_factor"] = rope.get("attention_factor") or 1, 1e-18, 1e18
    ranges |= {name: (rope.get(name, 1), 1e-18, 1e18) for name in ("rope_theta", "factor")}
    ranges |= {name: (getattr(config, name), 0, 1) for name in ("rms_norm_eps", "attention_dropout")}
    for name, (value, least, most) in ranges.items():
        if not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{name} is {shortened(repr(value))}, not a number from {least} to {most}")
    if heads % shared:
        raise ValueError(f"{heads} num_attention_heads cannot share {shared} num_key_value_heads")
    if (kind := rope.get("rope_type", "default")) not in ("default", *ROPE_INIT_FUNCTIONS):
        raise ValueError(f"the rope has the type {shortened(repr(kind))}, which transformers doesn't know")
    for kept in getattr(config, "kept_kv_heads", None) or ():  # of a compact checkpoint
        if sorted({*kept} & {*range(shared)}) != kept:
            raise ValueError(f"kept_kv_heads has {shortened(repr(kept))}, not rising numbers below {shared}")
    if config.output_attentions or not config.return_dict:
        raise ValueError("output_attentions is on, or return_dict off, and neither can be computed with here")


def check_model(folder: Path, flag: str) -> tuple[Checkpoint, LlamaConfig, PreTrainedTokenizerBase]:
    """The model in `folder`, with its configuration and tokenizer; UserError for whatever is wrong with its files."""
    config, checkpoint = load_config(folder, flag), Checkpoint(folder, flag)
    check_weights(checkpoint, config)
    tokenizer = load_tokenizer(folder, flag)
    check_vocabulary(tokenizer, config, flag)
    return checkpoint, config, tokenizer


def load_tokenizer(folder: Path, flag: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, padding on the right; no token is ever added to the vocabulary."""
    with explain(f"{flag}: {folder} has no usable tokenizer", "copy it again"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        ids = tokenizer("One text.").input_ids
        if len(set(ids) - set(tokenizer.all_special_ids)) < 2:
            raise ValueError("it makes no two different tokens of a text")
        if tokenizer.pad_token_id is None:
            raise ValueError(f"it has no padding, end or unknown token: name one in {_TOKENIZER_CONFIG}")
    if ids[-1] == tokenizer.eos_token_id:  # where a prompt's activations would be read
        raise UserError(
            f"{flag}: the tokenizer in {folder} ends every text with {tokenizer.eos_token}, and a prompt must end with "
            "its own last token; set add_eos_token to false, or take it out of tokenizer.json's post_processor"
        )
    tokenizer.padding_side = "right"
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: LlamaConfig, flag: str) -> None:
    """Raise UserError if the tokenizer may give ids that the model has no embedding for.

    Special tokens that were added, except PAD, BOS, EOS and UNK, may have such ids, as in some chat models.
    """
    written = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    written -= {tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    ids = {token: place for token, place in tokenizer.get_vocab().items() if token not in written}
    token = max(ids, key=ids.__getitem__)
    if ids[token] >= config.vocab_size:
        raise UserError(
            f"{flag}: its tokenizer has the token {shortened(repr(token))} with id {ids[token]}, beyond the model's "
            f"vocab_size {config.vocab_size}; give the tokenizer that belongs to the model"
        )


def load_model(folder: Path, dtype: torch.dtype | str, device: str, flag: str) -> LlamaForCausalLM:
    """The model in `folder`, frozen, in evaluation mode.

    dtype: a torch dtype, or "auto" for the one it was saved in. device: a torch device, or "auto" to spread it over
    GPUs, then memory, then a temporary folder on disk (accelerate's device_map); such a model can't be trained.
    """
    # Pass the config: an attention implementation named in config.json would win over an argument.
    options = {"device_map": device, "config": load_config(folder, flag)}
    if device == "auto":
        release_unused()
        options["offload_folder"] = _offload_folder().name
        options["max_memory"] = {place: int(_SHARE_FOR_WEIGHTS * size) for place, size in get_max_memory().items()}
    kinds = OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError
    # transformers detects FSDP by this variable, and would then load a spread model without accelerate's hooks.
    known = patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false") if device == "auto" else nullcontext()
    with explain(f"{flag}: cannot load {folder}", "copy the model again", kinds), known:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    # The first Llamas' config.json says -1 for no padding token, which torch's Embedding would take for its last row.
    if (model.config.pad_token_id or 0) < 0:
        model.config.pad_token_id = None
    return model.requires_grad_(False).eval()


def usable_device(name: str) -> str:
    """The torch device behind -device, "auto" for a GPU if there is one; UserError if it is not there."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    with explain(f"-device: {name} cannot be used", "give cpu or auto"):
        one = torch.ones(1, device=name)
        float(one)  # fails on a device without values, such as meta
        place = one.device
    if place.type == "cuda":
        torch.cuda.set_device(place)  # libraries take the current one where none is named
    return str(place)


def placement(folder: Path, dtype: torch.dtype, device: str) -> str:
    """`device` if the model in `folder` fits into its free memory with room to work in, else "auto"."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(folder, "-base_model_name"), dtype=dtype)
    needed = model.get_memory_footprint(return_buffers=False)
    return device if needed <= _SHARE_FOR_WEIGHTS * _free_memory(device) else "auto"


def release_unused() -> None:
    """Collect what is gone, such as a model; give back the GPU memory that torch keeps of it: it counts as taken."""
    gc.collect()
    torch.cuda.empty_cache()


def _free_memory(device: str) -> int:
    """Free bytes on the device, after `release_unused`."""
    release_unused()
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


@functools.cache
def _offload_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder for offloaded weights. It is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="restorelcc-offload-", ignore_cleanup_errors=True)


def head_shape(config: LlamaConfig) -> tuple[int, int, int]:
    """(L, H, d): layers, query heads, head dimension."""
    return config.num_hidden_layers, config.num_attention_heads, config.head_dim


def longest_context(config: LlamaConfig) -> int:
    """The longest context in tokens: max_position_embeddings, times the factor of linear or dynamic RoPE scaling."""
    rope = config.rope_parameters or {}
    longer = rope.get("factor", 1) if rope.get("rope_type") in ("linear", "dynamic") else 1
    return int(config.max_position_embeddings * longer)


def check_pair(dense: Path, pruned: Path, pruned_flag: str) -> None:
    """Raise UserError unless both models have the same shapes and tokenizer; warn if RoPE, norm or activation differ.

    A pruned folder without a tokenizer of its own is taken to use the dense model's.
    """
    configs = load_config(dense, "-base_model_name"), load_config(pruned, pruned_flag)
    sizes = [(name, *(getattr(config, name) for config in configs)) for name in _SIZES]
    wrong = [f"{name} is {theirs}, but the base model's is {ours}" for name, ours, theirs in sizes if ours != theirs]
    if has_tokenizer(pruned) and not wrong:
        probe = "Two tokenizers agree: 3.14, naïve, [INST] don't </s>\n\n2023\n\tif x:"
        tokenizers = load_tokenizer(dense, "-base_model_name"), load_tokenizer(pruned, pruned_flag)
        ours, theirs = ((tokenizer.get_vocab(), tokenizer(probe).input_ids) for tokenizer in tokenizers)
        wrong += ["its tokenizer differs from the base model's"] if ours != theirs else []
    if wrong:
        raise UserError(f"{pruned_flag}: {wrong[0]}; it must be -base_model_name's model, pruned, with no token added")
    ours, theirs = (config.to_dict() for config in configs)
    if odd := ", ".join(name for name in _COMPUTED_BY if ours.get(name) != theirs.get(name)):
        print(f"      warning: {pruned_flag}: its config.json has other {odd} than -base_model_name's", file=sys.stderr)


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` carries a tokenizer of its own."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def tokenizer_files(folder: Path) -> list[Path]:
    """All files of the tokenizer in `folder`, in order."""
    return sorted(
        file for pattern in (*_TOKENIZER_FILES, _TOKENIZER_CONFIG) for file in folder.glob(pattern) if file.is_file()
    )


def copy_tokenizer(folder: Path, output: Path) -> None:
    """Copy the tokenizer's files in `folder`, as they are, to the folder `output`."""
    for file in tokenizer_files(folder):
        (output / file.relative_to(folder)).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, output / file.relative_to(folder))


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 (hex) of the tokenizer in `folder`, by content; where it was once saved from does not count."""
    config = folder / _TOKENIZER_CONFIG
    files = [file for file in tokenizer_files(folder) if file != config]
    settings = read_settings(config, "tokenizer") if config.is_file() else {}
    kept = {name: value for name, value in settings.items() if name not in _NO_TOKENIZATION}
    return digest([[str(file.relative_to(folder)), sha256(file)] for file in files], kept)


def _download(hub_id: str, flag: str) -> Path:
    common = ["*.json", "*.model", "*.txt", "*.jinja"]
    cure = "check the name and your access, or give a local folder"
    with explain(f"{flag}: cannot get '{hub_id}' from the model hub", cure):
        # Some repositories hold a second copy of the weights in another format.
        wanted = {"allow_patterns": [*common, "*.safetensors"], "ignore_patterns": ["consolidated*", "original/*"]}
        folder = Path(snapshot_download(hub_id, **wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*common, "pytorch_model*.bin"]))
    return folder
