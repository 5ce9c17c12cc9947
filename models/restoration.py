"""The `restoration/` folder: β, b, V and the head list, attached again or merged later."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from models.checkpoint import fingerprint
from models.modeling_llama import Restoration, attach
from utils.common.errors import UserError
from utils.common.files import whole_folder, write_json

FORMAT = 1


def save_restoration(folder: Path, restoration: Restoration, about: dict) -> None:
    """Write restoration.safetensors and restoration.json.

    about: everything a reader needs to know (JSON-serialisable); `pruned_sha256`, the fingerprint of the pruned
    checkpoint it was trained on, is checked when it is loaded again.
    """
    tensors = {"heads": torch.tensor(restoration.heads), "basis": restoration.basis}
    for name in ("magnitudes", "component"):
        if getattr(restoration, name) is not None:
            tensors[name] = getattr(restoration, name)
    with whole_folder(folder) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            partial / "restoration.safetensors",
        )
        write_json(partial / "restoration.json", {"format": FORMAT, **about, "heads": restoration.heads})


def load_restoration(folder: Path, flag: str = "-restoration") -> tuple[Restoration, dict]:
    """The restoration in `folder` and what its json says about it."""
    try:
        about = json.loads((folder / "restoration.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "restoration.safetensors")
        heads = [(layer, head) for layer, head in tensors["heads"].tolist()]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{flag}: {folder} is no restoration folder ({error}); give OUT/restoration of a run"
        ) from error
    if about.get("format") != FORMAT:
        raise UserError(f"{flag}: {folder} has format {about.get('format')}, this version reads {FORMAT}")
    return Restoration(heads, tensors["basis"], tensors.get("magnitudes"), tensors.get("component")), about


def check_belongs(about: dict, pruned: Path, flag: str) -> None:
    """Raise UserError unless `pruned` is the very checkpoint that the restoration was trained on."""
    if about["pruned_sha256"] != fingerprint(pruned):
        raise UserError(
            f"{flag}: {pruned} is not the pruned checkpoint this restoration was trained on "
            f"({about.get('pruned_model', 'unknown')}, sha256 {about['pruned_sha256'][:12]}…); give that one"
        )


def attach_restoration(model: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """Attach a saved restoration to the loaded pruned model, in place, frozen."""
    restoration, _ = load_restoration(folder)
    return attach(model, restoration).requires_grad_(False)
