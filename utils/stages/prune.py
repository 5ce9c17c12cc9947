"""The pruned checkpoint: the given one, or one made from the dense model and kept in the cache by content."""

from dataclasses import replace
from pathlib import Path

import pruning
from data.loading import bundled_text
from models.checkpoint import fingerprint
from models.loading import load_config, tokenizer_digest
from utils.common.files import digest, digest_files
from utils.common.flags import Arguments
from utils.common.names import BUNDLED
from utils.common.record import versions
from utils.stages.context import Models, Run


def pruned_checkpoint(run: Run, models: Models) -> Models:
    """The same models with the pruned checkpoint among them."""
    if models.pruned:
        return models
    args = run.args

    def prune(folder: Path) -> None:
        print(f"      {args.prune_method} at {args.sparsity}, {args.calib_samples} × {args.calib_length} tokens")
        pruning.prune(
            models.dense,
            folder,
            args.prune_method,
            args.sparsity,
            calib_data=args.calib_data,
            calib_samples=args.calib_samples,
            calib_length=args.calib_length,
            dtype=run.dtype,
            device=run.device,
            seed=args.calibration_seed,
            base_name=args.base_model_name,
        )

    folder = run.cache.tree("pruned", key(run, models), prune, fingerprint)
    print(f"      {folder}")
    return replace(models, pruned=folder, config=load_config(folder, "-pruned_model_path"))


def at_hand(run: Run, models: Models) -> Path | None:
    """The given pruned checkpoint, or the one that is kept; None if it has yet to be made."""
    pruned = models.pruned or run.cache.path("pruned", key(run, models))
    return pruned if pruned.is_dir() else None


def key(run: Run, models: Models) -> dict:
    """All that a pruned checkpoint depends on."""
    args, known = run.args, versions()
    return {
        "dense": fingerprint(models.dense),
        "method": args.prune_method,
        "sparsity": args.sparsity,
        "calibration": calibration_key(args),
        "dtype": args.dtype,
        "tokenizer": tokenizer_digest(models.tokenizer_from),
        "libraries": {name: known[name] for name in ("torch", "transformers")},
        "code": digest_files(list(Path(pruning.__file__).parent.glob("*.py"))),
    }


def calibration_key(args: Arguments) -> list:
    """What decides which calibration windows are drawn."""
    return [calibration_digest(args.calib_data), args.calib_samples, args.calib_length, args.calibration_seed]


def calibration_digest(calib_data: str) -> str:
    """What identifies the calibration text: the content of a file, or the name of a published set."""
    if calib_data == BUNDLED:
        return digest(bundled_text())
    return digest_files([Path(calib_data)]) if Path(calib_data).is_file() else calib_data
