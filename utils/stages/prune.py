"""The pruned checkpoint: the given one, or one made from the dense model and kept in the cache by content."""

from dataclasses import replace
from pathlib import Path

import pruning.prune_model
from data.sources import bundled_text
from models.checkpoint import Checkpoint
from models.loading import load_config
from utils.common.cache import Kept, cached
from utils.common.files import digest, digest_files
from utils.common.flags import Arguments
from utils.common.names import BUNDLED
from utils.stages.context import Models, Run


def pruned_checkpoint(run: Run, models: Models) -> Models:
    """The same models with the pruned checkpoint among them."""
    if models.pruned:
        return models
    folder = pruning_of(run, models).entry()
    print(f"      {folder}")
    found = Checkpoint(folder)
    return replace(models, pruned=found, config=load_config(folder, found.flag))


def pruning_of(run: Run, models: Models) -> Kept:
    """The checkpoint that the flags of pruning ask for."""
    args = run.args
    how = args.prune_method, args.sparsity, calibration_key(args), args.dtype
    return pruned.later(run.cache, models.dense, models.tokenizer_sha256, *how, run=run)


@cached("pruned", code=(pruning,), libraries=("torch", "transformers"))
def pruned(
    folder: Path, dense: Checkpoint, tokenizer: str, method: str, pattern: str, texts: list, dtype: str, *, run: Run
) -> None:
    """Prune the dense model. texts: what `calibration_key` says of the run's flags."""
    args = run.args
    print(f"      {method} at {pattern}, {args.calib_samples} × {args.calib_length} tokens")
    calib = {name: getattr(args, name) for name in ("calib_data", "calib_samples", "calib_length")}
    where = {"dtype": run.dtype, "device": run.device, "seed": args.calibration_seed}
    pruning.prune_model.prune_into(
        dense.folder, folder, method, pattern, **calib, **where, base_name=args.base_model_name
    )


def calibration_key(args: Arguments) -> list:
    """What decides which calibration windows are drawn: the text by its content, or by a published set's name."""
    text: str = args.calib_data
    if text == BUNDLED:
        text = digest(bundled_text())
    elif Path(text).is_file():
        text = digest_files([Path(text)])
    return [text, args.calib_samples, args.calib_length, args.calibration_seed]
