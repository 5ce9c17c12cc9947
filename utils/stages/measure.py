"""A model's activations and scores, from one loading of it, or from the cache."""

from dataclasses import asdict, dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

import models.cpu_attention
import utils.activations
import utils.evaluation.scoring
import utils.packing
from utils.common.cache import Kept, cached
from utils.evaluation.scoring import Evaluation, score_key
from utils.evaluation.task_loading import EvalPlan
from utils.packing import PromptWithContinuations
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run
from utils.stages.examples import answers


@dataclass(frozen=True)
class Measured:
    """activations: z of each group of prompts, probed ones first, in the cache; they are tensors of gigabytes.
    evaluation: the scores. answers: to the report's prompts.
    """

    activations: list[Kept]
    evaluation: Evaluation
    answers: list[dict]


def measure(
    run: Run, models: Models, samples: Samples, plan: EvalPlan, label: str, trees: list[PromptWithContinuations]
) -> Measured:
    """What the `dense` or the `pruned` model makes of the trees, of the plan's tasks and of the report's prompts."""
    with run.lazy(getattr(models, label)) as model:
        kept = [activations.later(run.cache, model, part, label=label) for part in by_branches(trees)]
        for each in kept:
            each.entry()
        return Measured(kept, scored(run, models, plan, model, label), answers(run, models, samples, model))


def by_branches(trees: list[PromptWithContinuations]) -> list[list[PromptWithContinuations]]:
    """The trees with branches for probing first, then the plain ones; a list may be missing, order is kept."""
    groups: dict[int, list[PromptWithContinuations]] = {}
    for tree in trees:
        groups.setdefault(len(tree.continuations), []).append(tree)
    return list(groups.values())


@cached("activations", code=(utils.activations, utils.packing, models.cpu_attention))
def activations(model: LazyModel, trees: list[PromptWithContinuations], *, label: str) -> dict[str, Tensor]:
    """z (branches, L, H, N, d) in the model's dtype, which holds it exactly.

    The device is no part of the key: directions found on another differ by rounding, and β is resumed for those that it
    began with.
    """
    found = utils.activations.last_token_activations(model(), trees, f"{label} activations")
    return {"z": found.to(model.dtype)}


def scored(run: Run, models: Models, plan: EvalPlan, model: LazyModel, label: str) -> Evaluation:
    """A model's scores, each task's from the cache if the same weights were scored on it the same way before."""
    given, parts = {"tokenizer": models.tokenizer, "label": label}, []
    for part in plan.parts():
        key = score_key(part, models.tokenizer_from)
        parts.append(Evaluation(**scores(run.cache, model, key, run.kind_of_device, part=part, **given)))
    return Evaluation.joined(parts)


@cached("scores")
def scores(
    model: LazyModel,
    asked: dict,
    device: str,
    *,
    part: EvalPlan,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
) -> dict:
    """The model's scores on one part of a plan, known by `asked`.

    Half precision rounds by what is computed together, so the device is part of what was measured.
    """
    return asdict(utils.evaluation.scoring.evaluate(model(), tokenizer, part, label))
