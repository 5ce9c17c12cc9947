"""Prune a Llama: python -m pruning -base_model_name embedded -prune_method wanda -sparsity 0.5 -output_dir pruned."""

from pathlib import Path

from models.loading import DTYPES, resolve
from pruning.checkpoint import prune
from pruning.methods import METHODS
from utils.common.commands import DEFAULT_CACHE, Parser, run
from utils.common.names import BUNDLED


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m pruning", description=__doc__)
    flags.flag("base_model_name", required=True, help="folder, hub id, GGUF file, short name or 'embedded'")
    flags.flag("output_dir", required=True, type=Path, help="folder to write the pruned model to")
    flags.flag("prune_method", default="wanda", help=f"one of {', '.join(METHODS)}")
    flags.flag("sparsity", default="0.5", help="share of zeros, 0 to 1, or N:M to keep N of every M weights")
    flags.flag("mode", default="masked", help="slimgpt: 'masked' keeps the shapes, 'compact' writes a smaller model")
    flags.flag("calib_data", default=BUNDLED, help="'bundled', 'c4' (hub), or a .jsonl, .json or .txt file")
    flags.flag("calib_samples", default=128, type=int, help="calibration windows")
    flags.flag("calib_length", default=2048, type=int, help="tokens in a window")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="the model's, one of %(choices)s")
    flags.flag("device", default="auto", help="where layers are pruned: cpu, cuda, cuda:1, … or auto")
    flags.flag("seed", default=42, type=int, help="of the calibration windows")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, help="where GGUF models are unpacked")
    flags.switch("overwrite", "replace a pruned model in -output_dir")
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
        mode=args.mode,
        base_name=args.base_model_name,
    )
    state = "removed" if args.mode == "compact" else "zeros"
    print(
        f"{args.output_dir}: {record['sparsity_reached']:.2%} {state}, {record['seconds']['prune']:.0f} s, "
        f"peak memory {record['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    run(main)
