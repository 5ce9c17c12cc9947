"""Fold a restoration into a plain Hugging Face checkpoint, file to file.

python -m models.merge -pruned_model_path PRUNED -restoration OUT/restoration -output_dir MERGED
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch

from models.checkpoint import Checkpoint, Header, write_checkpoint
from models.compact import in_dense_shapes, write_compact
from models.layout import merged_layout, switched_on
from models.loading import (
    DTYPES,
    check_name,
    copy_tokenizer,
    has_tokenizer,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
    usable_device,
)
from models.proof import Proof, Reference, prove, prove_compact
from models.restoration import Restoration, check_belongs, load_restoration
from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, name_or_path, run
from utils.common.errors import UserError
from utils.common.files import whole_folder, write_json
from utils.common.result import Result, check_apart

PROOF = "proof.json"
"""What a later merge leaves beside the checkpoint: the proof, and which files it wrote."""

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


def main(argv: list[str] | None = None) -> None:
    """The command line of a later merge."""
    parser = Parser(
        prog="python -m models.merge",
        description="Fold a saved restoration into the pruned checkpoint it was trained on, and prove the result.",
    )
    parser.flag(
        "pruned_model_path",
        type=name_or_path,
        required=True,
        metavar="MODEL",
        help="that checkpoint: folder, hub id, GGUF file",
    )
    parser.flag("restoration", type=folder_path, required=True, metavar="DIR", help="OUT/restoration of a run")
    parser.flag("output_dir", type=folder_path, required=True, metavar="DIR", help="where the plain checkpoint goes")
    parser.flag(
        "tokenizer",
        type=name_or_path,
        metavar="MODEL",
        help="whose tokenizer, if there is none beside the pruned checkpoint",
    )
    parser.flag("dtype", choices=DTYPES, help="in which both models answer for the proof (default: the run's)")
    parser.flag("device", default="cpu", help="cpu, cuda, cuda:N, …")
    parser.switch("overwrite", "replace the merged checkpoint in -output_dir, and no other file")
    parser.flag(
        "cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="where a GGUF file is unpacked"
    )
    args = parser.parse_args(argv)
    device = usable_device(args.device)
    inputs = ("pruned_model_path", "restoration", "tokenizer", "cache_dir")
    check_apart(args.output_dir, {f"-{name}": getattr(args, name) for name in inputs})
    result = Result(args.output_dir, PROOF)
    check_name(args.pruned_model_path, "-pruned_model_path")
    result.check(args.overwrite)
    restoration, about = load_restoration(args.restoration)
    given = resolve(args.pruned_model_path, "-pruned_model_path", args.cache_dir)
    check_belongs(restoration, about, given, "-pruned_model_path")
    pruned, compact = in_dense_shapes(given, args.cache_dir)
    tokenizer_from = given
    if args.tokenizer:
        tokenizer_from = resolve(args.tokenizer, "-tokenizer", args.cache_dir)
    elif not has_tokenizer(given):
        raise UserError(f"-tokenizer: {given} has no tokenizer of its own; name the model to take it from")
    tokenizer = load_tokenizer(tokenizer_from, "-tokenizer")
    token_ids = [tokenizer(text).input_ids for text in PROBE_TEXTS]
    dtype = DTYPES[args.dtype or about.get("arguments", {}).get("dtype", "bfloat16")]
    model = restoration.attach(load_model(pruned, dtype, device, "-pruned_model_path"))
    reference = Reference.ask(model, restoration, Checkpoint(pruned), token_ids, device)
    del model
    args.cache_dir.mkdir(parents=True, exist_ok=True)
    with result.working(), tempfile.TemporaryDirectory(prefix=".merge-", dir=args.cache_dir) as place:
        # A compact checkpoint gets a compact result, by way of the dense shapes in which it was restored.
        merged = Path(place, "merged") if compact else result.folder
        proofs = [merge_and_prove(pruned, args.restoration, merged, tokenizer_from=tokenizer_from, reference=reference)]
        if compact:
            proofs.append(compact_and_prove(merged, result.folder, reference))
        found = {**proofs[0].record, **({"compact": proofs[1].record} if compact else {})}
        write_json(result.folder / PROOF, found)
        result.finish()
    print(
        f"{found['tensors_identical']} of {found['tensors_compared']} weights bit-identical, "
        f"{found['zeros_restored']:,} zeros kept, logits differ by {found['logits_relative_difference']:.1e}"
    )
    loading = f"pretrained={args.output_dir}" + (",trust_remote_code=True" if compact else "")
    print(f"merged checkpoint: {args.output_dir}; evaluate it with: lm_eval --model hf --model_args {loading}")


if __name__ == "__main__":
    run(main)
