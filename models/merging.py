"""Fold a restoration into a plain Hugging Face checkpoint, file to file, and prove the result."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch

from models.checkpoint import Checkpoint, Header, write_checkpoint
from models.compact import in_dense_shapes, write_compact
from models.layout import merged_layout, switched_on
from models.loading import (
    DTYPES,
    check_vocabulary,
    copy_tokenizer,
    has_tokenizer,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
    usable_device,
)
from models.merge import PROOF
from models.proof import Proof, Reference, prove, prove_compact
from models.restoration import Restoration, check_belongs, load_restoration
from utils.common.errors import UserError
from utils.common.files import whole_folder, workspace, write_json
from utils.common.names import DTYPE_NAMES

PROBE_TEXTS = (
    "### Instruction:\nName three things that float on water.\n\n### Response: Wood, ice and",
    "The harvest was poor that year, and so the village",
    "def mean(values):\n    return sum(values) /",
)
"""What the attached and the merged model are asked when no samples are at hand."""


def merge(pruned: Path, restoration: Restoration, output: Path, tokenizer_from: Path) -> None:
    """Write the pruned checkpoint with what the restoration says to the folder `output`.

    Tensors are copied one at a time, each in its stored dtype and in the file it was in; only those that the
    restoration gives values to are replaced or added. Llama has biases on all projections of a kind or on none, so the
    others get explicit zeros. Buffers that transformers drops are left out.
    """
    stored, config = Checkpoint(pruned), load_config(pruned, "-pruned_model_path")
    touched = set(restoration.touched(config))
    layout = merged_layout(stored, config, touched)
    shards: dict[str, list[tuple[str, Header]]] = {}
    for name, header in layout.items():
        shards.setdefault(header.file, []).append((name, header))

    def read(name: str) -> torch.Tensor:
        if name in touched:
            return restoration.merged(name, config, stored).to(layout[name].dtype)
        if name in stored:
            return stored.read(name)
        return torch.zeros(layout[name].shape, dtype=layout[name].dtype)

    output.mkdir(parents=True, exist_ok=True)
    write_checkpoint(output, shards, read)
    settings = json.loads((pruned / "config.json").read_text(encoding="utf-8"))
    write_json(output / "config.json", {**settings, **dict.fromkeys(switched_on(touched), True)})
    if (pruned / "generation_config.json").is_file():
        shutil.copy(pruned / "generation_config.json", output)
    copy_tokenizer(tokenizer_from, output)


def merge_and_prove(pruned: Path, saved: Path, output: Path, *, tokenizer_from: Path, reference: Reference) -> Proof:
    """Merge the restoration in the folder `saved` into a folder that takes the name `output` only if the proof holds.

    reference: what the attached model answered. Raises RuntimeError, and leaves nothing behind, if any promise is
    broken.
    """
    restoration, _ = load_restoration(saved)
    with whole_folder(output) as partial:
        merge(pruned, restoration, partial, tokenizer_from)
        proof = prove(pruned, partial, restoration, reference)
        proof.check(f"what was trained is in {saved}")
        if "disk" in (getattr(proof.model, "hf_device_map", None) or {}).values():
            proof.model = None  # it would look for its weights under the name that is given up now
    return proof


def compact_and_prove(merged: Path, output: Path, reference: Reference) -> Proof:
    """The merged checkpoint without the heads and channels that nothing reads, to `output` only if its proof holds."""
    with whole_folder(output) as partial:
        write_compact(merged, partial)
        proof = prove_compact(merged, partial, reference)
        proof.check(f"the same in the dense model's shapes is in {merged}")
    return proof


def merge_saved(
    pruned_name: str,
    saved: Path,
    tokenizer_name: str | None,
    dtype_name: str | None,
    device_name: str,
    output: Path,
    cache_dir: Path,
) -> dict:
    """Merge and prove what `saved` holds, to the folder `output`, as `python -m models.merge` is told; the record."""
    device = usable_device(device_name)
    restoration, about = load_restoration(saved)
    given = resolve(pruned_name, "-pruned_model_path", cache_dir)
    check_belongs(restoration, about, given, "-pruned_model_path")
    pruned, compact = in_dense_shapes(given, cache_dir)
    tokenizer_from = given
    if tokenizer_name:
        tokenizer_from = resolve(tokenizer_name, "-tokenizer", cache_dir)
    elif not has_tokenizer(given):
        raise UserError(f"-tokenizer: {given} has no tokenizer of its own; name the model to take it from")
    tokenizer = load_tokenizer(tokenizer_from, "-tokenizer")
    check_vocabulary(tokenizer, load_config(pruned, "-pruned_model_path"), "-tokenizer")
    token_ids = [tokenizer(text).input_ids for text in PROBE_TEXTS]
    dtype = DTYPES[dtype_name or dtype_of_run(about)]
    model = restoration.attach(load_model(pruned, dtype, device, "-pruned_model_path"))
    reference = Reference.ask(model, restoration, Checkpoint(pruned), token_ids, device)
    del model
    # A compact checkpoint gets a compact result, by way of the dense shapes in which it was restored.
    with workspace("merge") if compact else nullcontext(output) as place:
        proofs = [merge_and_prove(pruned, saved, place / "merged", tokenizer_from=tokenizer_from, reference=reference)]
        if compact:
            proofs.append(compact_and_prove(place / "merged", output / "merged", reference))
    for file in (output / "merged").iterdir():
        file.rename(output / file.name)
    (output / "merged").rmdir()
    found = {**proofs[0].record, **({"compact": proofs[1].record} if compact else {})}
    write_json(output / PROOF, found)
    return found


def dtype_of_run(about: dict) -> str:
    """The name of the dtype in which the run computed that a restoration's json tells of."""
    arguments = about.get("arguments")
    name = arguments.get("dtype") if isinstance(arguments, dict) else None
    return name if name in DTYPE_NAMES else DTYPE_NAMES[0]
