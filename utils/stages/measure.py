"""A model's activations and scores, from one loading of it, or from the cache."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import LlamaForCausalLM

import models.cpu_attention
import utils.activations
import utils.evaluation.scoring
import utils.packing
from models.checkpoint import fingerprint
from utils.common.cache import code_version
from utils.common.files import digest
from utils.evaluation.scoring import Evaluation, score_key
from utils.evaluation.task_loading import EvalPlan
from utils.packing import PromptWithContinuations
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.examples import answers

FLAGS = {"dense": "-base_model_name", "pruned": "-pruned_model_path", "restored": "-output_dir"}
"""By what a model is called, the flag that it came by."""


@dataclass(frozen=True)
class Measured:
    """activations: cache keys of z, probed prompts first; they are tensors of gigabytes. evaluation: the scores.

    answers: to the report's prompts.
    """

    activations: list[dict]
    evaluation: Evaluation
    answers: list[dict]


def measure(
    run: Run, models: Models, samples: Samples, plan: EvalPlan, label: str, trees: list[PromptWithContinuations]
) -> Measured:
    """What the `dense` or the `pruned` model makes of the trees, of the plan's tasks and of the report's prompts."""
    folder = getattr(models, label)
    groups = by_branches(trees)
    keys = [activation_key(run, fingerprint(folder), part) for part in groups]
    with run.loaded(folder, FLAGS[label]) as model:
        for key, part in zip(keys, groups, strict=True):
            run.cache.tensors("activations", key, lambda part=part: {"z": activations(run, model(), part, label)})
        evaluation = scores(run, models, plan, fingerprint(folder), label, model)
        return Measured(keys, evaluation, answers(run, models, samples, fingerprint(folder), model))


def by_branches(trees: list[PromptWithContinuations]) -> list[list[PromptWithContinuations]]:
    """The trees with branches for probing first, then the plain ones; a list may be missing, order is kept."""
    groups: dict[int, list[PromptWithContinuations]] = {}
    for tree in trees:
        groups.setdefault(len(tree.continuations), []).append(tree)
    return list(groups.values())


def activation_key(run: Run, model: str, trees: list[PromptWithContinuations]) -> dict:
    """The token ids say all about data, template, length and negatives.

    The device is left out: directions found on another differ by rounding, and β is resumed for those it began with.
    """
    return {
        "model": model,
        "tokens": digest([[tree.prompt, tree.continuations] for tree in trees]),
        "dtype": run.args.dtype,
        "code": code_version(utils.activations, utils.packing, models.cpu_attention),
    }


def activations(run: Run, model: LlamaForCausalLM, trees: list[PromptWithContinuations], label: str) -> Tensor:
    """z (continuations, L, H, N, d) in the model's dtype, which holds it exactly."""
    return utils.activations.last_token_activations(model, trees, f"{label} activations").to(run.dtype)


def scores(
    run: Run, models: Models, plan: EvalPlan, model_sha256: str, label: str, model: Callable[[], LlamaForCausalLM]
) -> Evaluation:
    """A model's scores, each task's from the cache if the same weights were scored on it the same way before."""
    size, keys = run.args.eval_batch_size, score_keys(run, models, plan, model_sha256)
    parts = [
        run.cache.document(
            "scores",
            key,
            lambda part=part: utils.evaluation.scoring.evaluate(
                model(), models.tokenizer, part, batch_size=size, label=label
            ).to_json(),
        )
        for key, part in zip(keys, plan.parts(), strict=True)
    ]
    return Evaluation.joined([Evaluation.from_json(part) for part in parts])


def score_keys(run: Run, models: Models, plan: EvalPlan, model_sha256: str) -> list[dict]:
    """All that a model's scores on each task depend on.

    Half precision rounds by what is computed together, so batch size and device are part of what was measured.
    """
    args = run.args
    how = {"model": model_sha256, "dtype": args.dtype, "batch_size": args.eval_batch_size, "device": run.kind_of_device}
    return [{**how, **score_key(part, models.tokenizer_from)} for part in plan.parts()]
