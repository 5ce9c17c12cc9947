"""Where training starts: what each part of a method is given, and closed forms, which are kept by content."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

import baselines
import pruning.calibration
import pruning.statistics
import pruning.streaming
from models import modeling_llama, restoration, terms
from models.checkpoint import Checkpoint, fingerprint
from models.contract import MethodInputs
from models.loading import load_model, tokenizer_digest
from models.restoration import Restoration, Terms, packed, unpacked
from utils.common.cache import code_version
from utils.common.files import digest_files
from utils.common.flags import Arguments
from utils.common.methods import Options, Part, parts_of
from utils.common.record import versions
from utils.stages.context import Models, Run
from utils.stages.prune import calibration_key
from utils.stages.rank import Ranked


def starting(run: Run, models: Models, ranked: Ranked | None) -> Restoration:
    """The restoration before training; with -num_epoch 0 without what would be trained."""
    args, calibrates = run.args, run.needs.calibration
    inputs = MethodInputs(
        config=models.config,
        seed=args.training_seed,
        read=Checkpoint(models.pruned).read,
        heads=ranked.heads if ranked else None,
        basis=ranked.basis if ranked else None,
        teacher=Checkpoint(models.dense, "-base_model_name").read if run.needs.teacher else None,
        tokens=calibration_tokens(run, models) if calibrates else None,
        dense=anew(run, models.dense, "-base_model_name") if calibrates else None,
        pruned=anew(run, models.pruned, "-pruned_model_path") if calibrates else None,
        device=run.device,
    )

    def kept(part: Part, make: Callable[[], Terms]) -> Terms:
        if not part.needs.calibration:
            return make()
        return unpacked(run.cache.tensors("starts", start_key(run, models, part), lambda: packed(make())))

    start = Restoration.start(args.method, Options.of(args), inputs, kept)
    return start if args.num_epoch else start.untrained()


def calibration_tokens(run: Run, models: Models) -> Tensor:
    """The windows that -calib_data names: (S, T) int64."""
    args = run.args
    return pruning.calibration.load(
        args.calib_data, args.calib_samples, args.calib_length, models.tokenizer, args.calibration_seed
    )[0]


def anew(run: Run, folder: Path, flag: str) -> Callable:
    """Loads that model for a method, which may change it; on the CPU, since one layer at a time is computed."""
    return lambda: load_model(folder, run.dtype, "cpu", flag)


def start_key(run: Run, models: Models, part: Part) -> dict:
    """All that a part's start depends on which reads the calibration set.

    It is given what the closed forms before it restored, so they count too.
    """
    args, known = run.args, versions()
    parts = parts_of(args.method, Options.of(args))
    these = [*(each for each in parts[: parts.index(part)] if not each.needs.training), part]
    return {
        "dense": fingerprint(models.dense),
        "pruned": fingerprint(models.pruned),
        "parts": [[each.spec.made_by, sorted(each.sites), settings(each, args)] for each in these],
        # A closed form draws nothing: it is the same for all seeds.
        "seed": args.training_seed if any(each.needs.calibration_epochs for each in these) else None,
        "calibration": calibration_key(args),
        "tokenizer": tokenizer_digest(models.tokenizer_from),
        "dtype": args.dtype,
        "device": run.kind_of_device,
        "libraries": {library: known[library] for library in ("torch", "transformers")},
        "code": [
            digest_files(list(Path(baselines.__file__).parent.glob("*.py"))),
            code_version(
                modeling_llama, terms, restoration, pruning.statistics, pruning.streaming, pruning.calibration
            ),
        ],
    }


def settings(part: Part, args: Arguments) -> dict:
    """The flags that a part heeds."""
    return {flag: getattr(args, flag) for flag in part.spec.takes}
