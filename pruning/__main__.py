"""Prune a Llama: python -m pruning -base_model_name embedded -prune_method wanda -sparsity 0.5 -output_dir pruned."""

import argparse
from pathlib import Path

from models.loading import DTYPES, resolve
from pruning.checkpoint import prune
from pruning.methods import METHODS
from utils.commands import DEFAULT_CACHE, run


def parser() -> argparse.ArgumentParser:
    """Every flag, with one dash or two."""
    flags = argparse.ArgumentParser("python -m pruning", description=__doc__, allow_abbrev=False)

    def add(name: str, text: str, **options: object) -> None:
        flags.add_argument(f"-{name}", f"--{name}", help=text, **options)

    add("base_model_name", "the dense model: folder, hub id, GGUF file, short name or 'embedded'", required=True)
    add("output_dir", "folder to write the pruned model to", required=True, type=Path)
    add("prune_method", f"one of {', '.join(METHODS)} (default wanda)", default="wanda")
    add("sparsity", "share of zeros, 0 to 1, or N:M to keep N of every M weights (default 0.5)", default="0.5")
    add("calib_data", "'bundled', 'c4', or a .jsonl, .json or .txt file (default bundled)", default="bundled")
    add("calib_samples", "calibration windows (default 128)", default=128, type=int)
    add("calib_length", "tokens in a window (default 2048)", default=2048, type=int)
    add("dtype", f"the model's, one of {', '.join(DTYPES)} (default bfloat16)", default="bfloat16", choices=DTYPES)
    add("device", "where layers are pruned: cpu, cuda, cuda:1, … or auto (default auto)", default="auto")
    add("seed", "of the calibration windows (default 42)", default=42, type=int)
    add("cache_dir", f"where GGUF models are unpacked (default {DEFAULT_CACHE})", default=DEFAULT_CACHE, type=Path)
    add("overwrite", "replace a pruned model in -output_dir", action="store_true")
    return flags


def main() -> None:
    """Run the command line."""
    args = parser().parse_args()
    base = resolve(args.base_model_name, "-base_model_name", args.cache_dir.expanduser())
    record = prune(
        base,
        args.output_dir,
        args.prune_method,
        args.sparsity,
        calib_data=args.calib_data,
        calib_samples=args.calib_samples,
        calib_length=args.calib_length,
        dtype=DTYPES[args.dtype],
        device=args.device,
        seed=args.seed,
        overwrite=args.overwrite,
        base_name=args.base_model_name,
    )
    print(
        f"{args.output_dir}: {record['sparsity_reached']:.2%} zeros, {record['seconds']['prune']:.0f} s, "
        f"peak memory {record['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    run(main)
