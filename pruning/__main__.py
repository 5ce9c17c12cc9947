"""Prune a Llama: python -m pruning -base_model_name embedded -prune_method wanda -sparsity 0.5 -output_dir pruned."""

import shlex
from dataclasses import fields

from data.sources import check_calib_data
from models.model_names import check_found
from utils.common.commands import Parser, folder_path, name_or_path, run, seed_number
from utils.common.files import check_writable
from utils.common.flags import Arguments
from utils.common.names import C4, DTYPE_NAMES, bundled_or
from utils.common.run_folder import RunFolder, check_apart


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m pruning", description=__doc__)
    flags.flag("base_model_name", type=name_or_path, required=True, help="short name, hub id, folder, GGUF or embedded")
    flags.flag("output_dir", required=True, type=folder_path, help="folder to write the pruned model to")
    for known in fields(Arguments):
        if known.name in ("prune_method", "sparsity", "calib_data", "calib_samples", "calib_length"):
            flags.flag(known.name, default=known.default, **{**known.metadata, "group": None})
    flags.flag("mode", default="masked", choices=("masked", "compact"), help="slimgpt: keep the shapes, or shrink them")
    flags.flag("dtype", default=Arguments.dtype, choices=DTYPE_NAMES, help="the model's, one of %(choices)s")
    flags.flag("device", default=Arguments.device, help="where layers are pruned: cpu, cuda, cuda:1, … or auto")
    flags.flag("seed", default=Arguments.seed, type=seed_number, help="of the calibration windows")
    flags.flag("cache_dir", default=Arguments.cache_dir, type=folder_path, help="where GGUF models are unpacked")
    flags.flag("overwrite", default=False, help="rename what is in -output_dir to DIR.1 when the pruned model is whole")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parser().parse_args(argv)
    args.calib_data = args.calib_data or bundled_or(C4, args.base_model_name)
    check_apart(args, ("base_model_name", "calib_data", "cache_dir"))
    arguments = {name: str(value) for name, value in vars(args).items() if name not in ("output_dir", "overwrite")}
    with RunFolder(args.output_dir, arguments, args.overwrite) as folder:
        # Before torch is imported, so that a wrong path is answered at once.
        check_found(args.base_model_name, "-base_model_name")
        check_calib_data(args.calib_data)
        check_writable(args.cache_dir, "-cache_dir")
        from models.loading import DTYPES, quiet_libraries, resolve
        from pruning.prune_model import prune_into

        quiet_libraries()
        base = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
        names = ("calib_data", "calib_samples", "calib_length", "device", "seed", "mode")
        how = {name: getattr(args, name) for name in names}
        how |= {"dtype": DTYPES[args.dtype], "base_name": args.base_model_name}
        record = prune_into(base, folder.partial, args.prune_method, args.sparsity, **how)
        folder.finish()
    print(
        f"{args.output_dir}: {record['sparsity_reached']:.2%} {'removed' if args.mode == 'compact' else 'zeros'}, "
        f"{record['seconds']['prune']:.0f} s, "
        f"peak memory {record['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    flags = ["-base_model_name", args.base_model_name, "-pruned_model_path", str(args.output_dir)]
    print(f"next: {shlex.join(['python', 'RestoreLCC_train.py', *flags])}")


if __name__ == "__main__":
    run(main, lighter="-calib_samples or -calib_length")
