"""Before anything is computed: whether the disks have room for all that the run will write."""

from pathlib import Path

from models.checkpoint import Checkpoint, fingerprint
from utils.common.disk import Need
from utils.common.names import DISTILL
from utils.plan.command import lengths, workload
from utils.plan.disk import written
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.measure import activation_key
from utils.stages.negatives import prompt_trees
from utils.stages.prune import at_hand
from utils.stages.teacher import taught

MEASURED = ("activations", "components", "embeddings")
"""Folders of the cache that are full by the time the pruned model's activations are kept."""


def needs(run: Run, models: Models, samples: Samples, tasks: int) -> list[Need]:
    """What the run will write below -output_dir and -cache_dir, less what it finds there. tasks: how many."""
    args = run.args
    work = workload(args, models.config, run.dtype, *lengths(samples), dict.fromkeys(map(str, range(tasks))))
    planned = written(models.config, work, stored_bytes(models.pruned) if models.pruned else None)
    there = found(run, models, samples)
    left = [size for name, size in planned.cache.items() if name not in there]
    written_before = (
        sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()) if run.result.continues else 0
    )
    return [
        Need("-output_dir", args.output_dir, max(0, planned.output - written_before)),
        Need("-cache_dir", args.cache_dir, sum(left)),
    ]


def stored_bytes(folder: Path) -> int:
    """Of the checkpoint's weight files."""
    return sum(file.stat().st_size for file in Checkpoint(folder).files)


def found(run: Run, models: Models, samples: Samples) -> set[str]:
    """Folders of the cache that hold what this run will ask of them."""
    there = set()
    if (pruned := at_hand(run, models)) is None:
        return there
    there.add("pruned")
    trees = prompt_trees(run, samples)
    # Kept last of these: what belongs to the dense model, and to its answers, was there before.
    if trees and run.cache.holds("activations", activation_key(run, fingerprint(pruned), trees)):
        there.update(MEASURED)
    if run.args.loss == DISTILL and taught(run, models, samples):
        there.add("teacher")
    return there
