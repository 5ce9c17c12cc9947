"""Out of memory: which flags of the stage that it happened in take less."""

from collections.abc import Iterator
from contextlib import contextmanager

from utils.common.errors import OutOfRoom
from utils.common.flags import Arguments
from utils.common.memory import shortage
from utils.common.names import DISTILL
from utils.common.record import stage_name

RESUMABLE = ("train", "merge", "restored")
"""Stages of which an interrupted run is kept, which other flags don't continue."""


@contextmanager
def telling_memory(args: Arguments, key: str) -> Iterator[None]:
    """Within it, memory that runs out is a UserError that names the flags of the stage `key` to lower."""
    try:
        yield
    except OutOfRoom:
        raise
    except Exception as error:
        if (said := shortage(error)) is None:
            raise
        raise OutOfRoom(out_of_memory(args, key, said)) from error


def out_of_memory(args: Arguments, key: str, said: str) -> str:
    """The line: where it happened, what helps, and what a changed flag means for the interrupted run."""
    cures = lighter(args, key)
    before = next((f"{word}: " for word in " ".join(cures).split() if word.startswith("-")), "")
    cure = f"try {', or '.join(cures)}" if cures else "take a machine with more memory"
    again = "; to begin anew with other flags add -resume never" if cures and key in RESUMABLE else ""
    return f"{before}out of memory in '{stage_name(key)}' ({said}); {cure} (-plan here tells what fits){again}"


def lighter(args: Arguments, key: str) -> list[str]:
    """What makes the stage smaller, beside the flags' present values, what costs least first; empty if nothing does."""
    calibration = [_smaller(args, "calib_samples"), _smaller(args, "calib_length")]
    samples = [_smaller(args, "num_train_samples"), _smaller(args, "num_probe_samples")]
    longest = [_smaller(args, "max_length")]
    scoring = [f"-eval_batch_size 1 (now {args.eval_batch_size})"] if args.eval_batch_size != 1 else []
    scoring.append(_smaller(args, "ppl_window"))
    training = [_smaller(args, "batch_size", " with more -gradient_accumulation")] if args.batch_size > 1 else []
    training += longest
    training += [] if args.gradient_checkpointing else ["-gradient_checkpointing"]
    training += [_smaller(args, "teacher_cache_gb")] if args.loss == DISTILL else []
    return {
        "prune": [] if args.pruned_model_path else calibration,
        "negatives": samples,
        "dense": longest + scoring,
        "pruned": longest + scoring,
        "rank": training if args.head_selection == "lofit" else samples,
        "train": training,
        "merge": longest,
        "restored": scoring,
    }.get(key, [])


def _smaller(args: Arguments, name: str, more: str = "") -> str:
    return f"a smaller -{name}{more} (now {getattr(args, name):g})"
