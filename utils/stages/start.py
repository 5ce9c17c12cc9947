"""Where training starts: what each part of a method is given, and closed forms, which are kept by content."""

from collections.abc import Callable

from torch import Tensor

import baselines
import models
import pruning
import pruning.calibration
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.restoration import Restoration, Terms, packed, unpacked
from utils.common.cache import cached
from utils.common.flags import Arguments
from utils.common.methods import Options, Part, parts_of
from utils.stages.context import Models, Run
from utils.stages.prune import calibration_key
from utils.stages.rank import Ranked


def starting(run: Run, models: Models, ranked: Ranked | None) -> Restoration:
    """The restoration before training; with -num_epoch 0 without what would be trained."""
    args, calibrates = run.args, run.needs.calibration
    inputs = MethodInputs(
        config=models.config,
        seed=args.training_seed,
        read=models.pruned.read,
        heads=ranked.heads if ranked else None,
        basis=ranked.basis if ranked else None,
        teacher=models.dense.read if run.needs.teacher else None,
        tokens=calibration_tokens(run, models) if calibrates else None,
        # On the CPU, since one layer at a time is computed; a method may change the model that it is given.
        dense=(lambda: run.load(models.dense, "cpu")) if calibrates else None,
        pruned=(lambda: run.load(models.pruned, "cpu")) if calibrates else None,
        device=run.device,
    )

    def kept(part: Part, make: Callable[[], Terms]) -> Terms:
        if not part.needs.calibration:
            return make()
        parts = parts_of(args.method, Options.of(args))
        # It is given what the closed forms before it restored, so they count too.
        these = [*(each for each in parts[: parts.index(part)] if not each.needs.training), part]
        # A closed form draws nothing: it is the same for all seeds; reconstruct draws its batches' order.
        seed = args.training_seed if any(each.name == "reconstruct" for each in these) else None
        return unpacked(
            closed_form(
                run.cache,
                models.dense,
                models.pruned,
                [
                    [e.spec.made_by, sorted(e.sites), {flag: getattr(args, flag) for flag in e.spec.takes}]
                    for e in these
                ],
                seed,
                [*calibration_key(args), models.tokenizer_sha256],
                [args.dtype, run.kind_of_device],
                make=lambda: packed(make()),
            )
        )

    start = Restoration.start(args.method, Options.of(args), inputs, kept)
    return start if args.num_epoch else start.untrained()


@cached("starts", code=(baselines, models, pruning), libraries=("torch", "transformers"))
def closed_form(
    dense: Checkpoint,
    pruned: Checkpoint,
    parts: list,
    seed: int | None,
    calibration: list,
    how: list,
    *,
    make: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """What a part that reads the calibration set starts from. parts: the closed forms until then, by their settings."""
    return make()


def calibration_tokens(run: Run, models: Models) -> Tensor:
    """The windows that -calib_data names: (S, T) int64."""
    args = run.args
    return pruning.calibration.load(
        args.calib_data, args.calib_samples, args.calib_length, models.tokenizer, args.calibration_seed
    )[0]


def settings_of(part: Part, args: Arguments) -> list:
    """What a part is in a key: its function, where it adds constants, and the flags that it heeds."""
    return [part.spec.made_by, part.sites, {flag: getattr(args, flag) for flag in part.spec.takes}]
