"""`-dry_run`: every input is checked and read as in a run, then what the cache holds and what is left is said."""

from dataclasses import dataclass, replace

from models.checkpoint import fingerprint
from utils.common.cache import Cache
from utils.common.names import DISTILL
from utils.common.record import STAGES
from utils.evaluation.task_loading import EvalPlan
from utils.plan.command import count_tasks, duration, lengths, workload
from utils.plan.machine import machine
from utils.plan.planner import plan as planned
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.measure import activation_key, by_branches, score_keys
from utils.stages.negatives import probe_trees, prompt_trees
from utils.stages.prune import at_hand
from utils.stages.rank import components_key
from utils.stages.teacher import taught

MADE, KEPT, NOTHING = "to be made", "kept", "nothing to do"


@dataclass(frozen=True)
class Step:
    """A stage, what it will do in words, and whether it computes anything."""

    key: str
    what: str
    computes: bool


class _Asked(Exception):
    """Something that the cache doesn't hold was asked for."""


class _Kept(Cache):
    """A cache that makes nothing."""

    def tensors(self, kind, key, make):
        found = self.found(kind, key)
        if found is None:
            raise _Asked(kind)
        return found


def print_dry_run(run: Run, models: Models, samples: Samples, plan: EvalPlan) -> None:
    """What each stage would do, and how long that takes here."""
    tasks, unknown = count_tasks(run.args)
    work = workload(run.args, models.config, run.dtype, *lengths(samples), tasks)
    here = machine("here", models.config, run.dtype, run.args.device)
    seconds = {stage.key: stage.seconds for stage in planned(models.config, work, here)}
    names = {stage.key: stage.name for stage in STAGES}
    left = 0.0
    for step in steps(run, models, samples, plan):
        takes = seconds.get(step.key, 0.0) if step.computes else 0.0
        left += takes
        print(f"{names[step.key]:<38}  {step.what}" + (f", at most {duration(takes)}" if takes else ""))
    if run.args.push_to_hub:
        print(f"{'upload':<38}  {run.args.output_dir / 'model'} to {run.args.push_to_hub}")
    print(f"nothing was run; it would take up to {duration(left)} on {here.name}")
    if unknown:
        print(f"not counted, since their size is not known here: {', '.join(unknown)}")


def steps(run: Run, models: Models, samples: Samples, plan: EvalPlan) -> list[Step]:
    """All stages after the first, in their order."""
    cache = _Kept(run.args.cache_dir)
    pruned = at_hand(run, models)
    found = [Step("prune", "given" if models.pruned else _state(pruned is not None), pruned is None)]
    answers = _trees(run, models, samples, cache)
    told = {True: KEPT, False: MADE, None: NOTHING}
    wants = run.reads_activations and run.args.head_selection == "contrastive"
    found.append(Step("negatives", told[answers is not None] if wants else NOTHING, wants and answers is None))
    keys = {}
    of_models = {"dense": (models.dense, answers), "pruned": (pruned, prompt_trees(run, samples))}
    for label, (folder, trees) in of_models.items():
        keys[label], step = _measured(run, models, plan, cache, label, folder, trees)
        found.append(step)
    found.append(_ranked(run, cache, keys))
    trains = run.needs.training and run.args.num_epoch > 0
    goes_on = run.result.continues and (run.folder / "checkpoints").is_dir()
    what = "goes on from the last checkpoint" if goes_on else f"{len(samples.train)} samples"
    if run.args.loss == DISTILL:
        what += f", the teacher's states {_state(taught(run, models, samples))}"
    what = what if trains else f"nothing is trained, {len(samples.valid)} samples validate"
    found.append(Step("train", what, trains or bool(samples.valid) or run.needs.calibration))
    return [*found, Step("merge", MADE, True), Step("restored", f"{_count(plan)} to be scored", bool(plan.parts()))]


def _trees(run: Run, models: Models, samples: Samples, cache: Cache) -> list | None:
    """What the dense model reads; None where that takes embeddings which are not kept."""
    try:
        return probe_trees(replace(run, cache=cache), models, samples)
    except _Asked:
        return None


def _measured(run, models, plan, cache, label, folder, trees) -> tuple[list[dict] | None, Step]:
    """The keys of a model's activations, None while they can't be known, and its stage."""
    if folder is None or trees is None:
        return None, Step(label, f"activations {MADE}, {_count(plan)} to be scored", True)
    sha256 = fingerprint(folder)
    keys = [activation_key(run, sha256, part) for part in by_branches(trees)]
    kept = [cache.holds("activations", key) for key in keys]
    scored = [cache.holds("scores", key, ".json") for key in score_keys(run, models, plan, sha256)]
    parts = [f"activations {_state(all(kept))}"] if kept else []
    if scored:
        parts.append(f"{sum(scored)} of {len(scored)} tasks' scores kept")
    return keys, Step(label, ", ".join(parts) or NOTHING, not all([*kept, *scored]))


def _ranked(run: Run, cache: Cache, keys: dict) -> Step:
    if not run.needs.heads:
        return Step("rank", NOTHING, False)
    if not run.reads_activations:
        return Step("rank", "LoFiT's first step", True)
    known = None not in (keys["dense"], keys["pruned"])
    kept = (
        known and cache.path("components", components_key(run, keys["dense"], keys["pruned"]), ".safetensors").is_file()
    )
    return Step("rank", _state(kept), not kept)


def _state(kept: bool) -> str:
    return KEPT if kept else MADE


def _count(plan: EvalPlan) -> str:
    count = len(plan.parts())
    return f"{count} task{'s' * (count != 1)}"
