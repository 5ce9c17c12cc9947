"""Where training starts: what each part of a method is given, and closed forms, which are kept by content."""

from collections.abc import Callable

from torch import Tensor

import baselines
import models
import pruning
import pruning.calibration
from models.checkpoint import Checkpoint
from models.contract import Given, Method, State
from models.methods import Options, parts_of
from models.restoration import Restoration
from utils.common.cache import cached, identity
from utils.stages.context import Models, Run
from utils.stages.prune import calibration_key
from utils.stages.rank import Ranked


def starting(run: Run, models: Models, ranked: Ranked | None) -> Restoration:
    """The restoration before training; with -num_epoch 0 one of which what would be trained restores nothing."""
    args, read = run.args, models.pruned.read
    calibrates = run.needs.calibration
    given = Given(
        config=models.config,
        seed=args.training_seed,
        read=read,
        heads=ranked.heads if ranked else None,
        basis=ranked.basis if ranked else None,
        teacher=models.dense.read if run.needs.teacher else None,
        tokens=calibration_tokens(run, models) if calibrates else None,
        # On the CPU, since one layer at a time is computed; a method may change the model that it is given.
        dense=(lambda: run.load(models.dense, "cpu")) if calibrates else None,
        pruned=(lambda: run.load(models.pruned, "cpu")) if calibrates else None,
        device=run.device,
    )

    def kept(name: str, part: Method, make: Callable[[], State]) -> State:
        if not part.needs.calibration:
            return make()
        parts = parts_of(args.method, Options.of(args))
        place = [each for each, _ in parts].index(name)
        # It is given what the closed forms before it restored, so they count too.
        these = [*(part for part in parts[:place] if not part[1].needs.training), parts[place]]
        # A closed form draws nothing: it is the same for all seeds.
        seed = args.training_seed if any(part.needs.calibration_epochs for _, part in these) else None
        return closed_form(
            run.cache,
            models.dense,
            models.pruned,
            [[each, identity(vars(part))] for each, part in these],
            seed,
            [*calibration_key(args), models.tokenizer_sha256],
            [args.dtype, run.kind_of_device],
            make=make,
        )

    start = Restoration.start(args.method, Options.of(args), given, kept)
    return start if args.num_epoch else start.neutral(read)


@cached("starts", code=(baselines, models, pruning), libraries=("torch", "transformers"))
def closed_form(
    dense: Checkpoint,
    pruned: Checkpoint,
    parts: list,
    seed: int | None,
    calibration: list,
    how: list,
    *,
    make: Callable[[], State],
) -> State:
    """What a part that reads the calibration set starts from. parts: the closed forms until then, by their settings."""
    return make()


def calibration_tokens(run: Run, models: Models) -> Tensor:
    """The windows that -calib_data names: (S, T) int64."""
    args = run.args
    return pruning.calibration.load(
        args.calib_data, args.calib_samples, args.calib_length, models.tokenizer, args.calibration_seed
    )[0]
