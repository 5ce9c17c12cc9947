"""A checkpoint's JSON files with the keys of transformers 4, which version 5 reads too.

Version 4 silently ignores keys that it doesn't know: with `rope_parameters` it would compute the default RoPE.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from utils.common.files import read_json, write_json


def portable(settings: dict) -> dict:
    """The content of config.json, with rope_theta and rope_scaling instead of rope_parameters, if it has that key."""
    if "rope_parameters" not in settings:
        return settings
    settings = dict(settings)
    newer = settings.pop("rope_parameters") or {}
    if "sliding_attention" in newer:  # one rope for each type of layers, of which version 4 knows the local one's theta
        settings.setdefault("rope_local_base_freq", newer["sliding_attention"]["rope_theta"])
        newer = newer["full_attention"]
    rope = dict(settings.get("rope_scaling") or newer)  # version 5 prefers the older key
    kind = rope.get("rope_type", rope.get("type", "default"))
    settings |= {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    length = "original_max_position_embeddings"
    if kind == "longrope" and length in rope:  # version 4 asks for it beside the rope
        settings[length] = rope[length]
    settings["rope_scaling"] = None if kind == "default" else rope
    return settings


def make_portable(folder: Path) -> None:
    """Rewrite the config.json that transformers has just saved to `folder`."""
    path = folder / "config.json"
    write_json(path, portable(read_json(path)))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer under the class that, in both versions, reads tokenizer.json as it is."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})
