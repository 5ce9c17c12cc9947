"""Fold a saved restoration into the pruned checkpoint it was trained on, and prove the result.

python -m models.merge -pruned_model_path PRUNED -restoration OUT/restoration -output_dir MERGED
"""

from models.names import check_found
from utils.common.commands import DEFAULT_CACHE, Parser, check_cache, folder_path, name_or_path, run
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.names import DTYPE_NAMES
from utils.common.run_folder import RunFolder, check_apart

PROOF = "proof.json"
"""What a later merge leaves beside the checkpoint."""


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
    parser.flag("dtype", choices=DTYPE_NAMES, help="in which both models answer for the proof (default: the run's)")
    parser.flag("device", default="cpu", help="cpu, cuda, cuda:N, …")
    parser.switch("overwrite", "rename what is in -output_dir to DIR.1 when the merged checkpoint is whole")
    parser.flag(
        "cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="where a GGUF file is unpacked"
    )
    args = parser.parse_args(argv)
    # Before torch is imported, so that a wrong path is answered at once.
    inputs = ("pruned_model_path", "restoration", "tokenizer", "cache_dir")
    check_apart(args.output_dir, {f"-{name}": getattr(args, name) for name in inputs})
    arguments = {name: str(value) for name, value in vars(args).items() if name not in ("output_dir", "overwrite")}
    with RunFolder(args.output_dir, arguments, args.overwrite) as folder:
        if not folder.whole:
            check_found(args.pruned_model_path, "-pruned_model_path")
            if args.tokenizer:
                check_found(args.tokenizer, "-tokenizer")
            if not args.restoration.is_dir():
                raise UserError(f"-restoration: {args.restoration} is not a folder; give OUT/restoration of a run")
            check_cache(args.cache_dir)
            from models.merging import merge_saved

            merge_saved(
                args.pruned_model_path,
                args.restoration,
                args.tokenizer,
                args.dtype,
                args.device,
                folder.partial,
                args.cache_dir,
            )
        folder.finish()
    found = read_json(args.output_dir / PROOF)
    print(
        f"{found['tensors_identical']} of {found['tensors_compared']} weights bit-identical, "
        f"{found['zeros_restored']:,} zeros kept, logits differ by {found['logits_relative_difference']:.1e}"
    )
    loading = f"pretrained={args.output_dir}" + (",trust_remote_code=True" if "compact" in found else "")
    print(f"merged checkpoint: {args.output_dir}; evaluate it with: lm_eval --model hf --model_args {loading}")


def __getattr__(name: str) -> object:
    # What the command is made of, when it is asked for: importing it takes seconds.
    if name in ("merge", "merge_and_prove", "compact_and_prove"):
        from models import merging

        return getattr(merging, name)
    raise AttributeError(f"module 'models.merge' has no attribute '{name}'")


if __name__ == "__main__":
    run(main)
