"""Run each model, loaded once: the inputs that it reads, and its activations, scores and a few answers."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import models
import utils.evaluation
from models.checkpoint import Checkpoint
from models.loading import longest_context, tokenizer_digest
from pruning import layers
from utils import activations, examples, losses, negatives, packing, prompts
from utils.common.cache import Kept, cached
from utils.evaluation.scoring import PACKAGES, Evaluation, evaluate
from utils.evaluation.task_loading import EvalPlan
from utils.packing import PromptWithContinuations
from utils.prompts import Encoded, answered, common_prefix
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run

ASKED = 5
"""Validation prompts whose answers the report shows."""


def prompt_trees(run: Run, samples: Samples) -> list[PromptWithContinuations]:
    """The pruned model's inputs: each training prompt alone; none if no activations are needed."""
    return [PromptWithContinuations(ids, [[]]) for ids in samples.prompt_ids] if run.reads_activations else []


def probe_trees(run: Run, models: Models, samples: Samples) -> list[PromptWithContinuations]:
    """The dense model's inputs: the first -num_probe_samples as q, q + r⁺, q + r⁻ with one prefix, the rest as q."""
    plain = prompt_trees(run, samples)
    if run.args.head_selection != "contrastive" or not plain:
        return plain
    wrong = wrong_answers(run, samples)
    longest = min(run.args.max_length, longest_context(models.config))
    wrong_ids = answered(models.tokenizer, [text.prompt for text in samples.texts[: len(wrong)]], wrong, longest)
    trees = []
    for question, right, other in zip(samples.prompt_ids, samples.train, wrong_ids, strict=False):
        shared = common_prefix([question, right.ids, other])
        trees.append(PromptWithContinuations(question[:shared], [ids[shared:] for ids in (question, right.ids, other)]))
    return trees + plain[len(trees) :]


def wrong_answers(run: Run, samples: Samples) -> list[str]:
    """r⁻ of the samples for the probes: the most similar other answer, or the task's own wrong one."""
    right, asked = [text.response for text in samples.texts], samples.texts[: run.args.num_probe_samples]
    count = len(asked)
    if asked[0].negatives is None:
        nearest = negatives.most_similar_other(embedded(run, right), right)
        return [right[row] for row in nearest[:count]]
    choices = [list(text.negatives) for text in asked]
    if all(len(wrong) == 1 for wrong in choices):
        return [wrong[0] for wrong in choices]
    found = embedded(run, [*right[:count], *(text for wrong in choices for text in wrong)])
    return negatives.most_similar_choice(found[:count], torch.split(found[count:], [len(w) for w in choices]), choices)


def embedded(run: Run, texts: list[str]) -> Tensor:
    """Sentence embeddings (N, E) of the texts."""
    encoder = Checkpoint(negatives.locate_encoder(), "-head_selection")
    how = tokenizer_digest(encoder.folder), texts, run.kind_of_device
    return embeddings(run.cache, encoder, *how, place=run.device)["embeddings"]


@cached("embeddings", code=(negatives,))
def embeddings(encoder: Checkpoint, tokenizer: str, texts: list[str], device: str, *, place: str) -> dict[str, Tensor]:
    """The encoder's embeddings of the texts. place: the device it runs on; device: its kind, in the key."""
    return {"embeddings": negatives.sentence_embeddings(texts, encoder.folder, place)}


@dataclass(frozen=True)
class Measured:
    """Results of one model. activations: z of each group of prompts, those for probes first; cached, not loaded, since
    they take gigabytes. evaluation: the scores. answers: to the report's prompts.
    """

    activations: list[Kept]
    evaluation: Evaluation
    answers: list[dict]


def measure(
    model: LazyModel, models: Models, samples: Samples, plan: EvalPlan, trees: list[PromptWithContinuations]
) -> Measured:
    """A model's activations on the trees, scores on the plan's tasks, and answers to prompts; then it is released.

    Each task's scores come from the cache if the same weights were scored in the same way.
    """
    cache, device, tokenizer = model.run.cache, model.run.kind_of_device, models.tokenizer
    groups: dict[int, list[PromptWithContinuations]] = {}  # with branches for probing first, then the plain ones
    for tree in trees:
        groups.setdefault(len(tree.continuations), []).append(tree)
    kept = [last_activations.later(cache, model, part) for part in groups.values()]
    for each in kept:
        each.entry()
    how, shown = (device, models.tokenizer_sha256), {"tokenizer": tokenizer}
    found = Evaluation.joined([Evaluation(**scores(cache, model, part, *how, **shown)) for part in plan.parts()])
    for name, told in found.provenance.get("tasks", {}).items():  # a cached entry may name another run's source
        told["source"] = next(each.records[name]["source"] for each in plan.planned if name in each.records)
    asked = samples.valid[:ASKED]
    answers = answers_to(cache, model, asked, *how, **shown)["answers"]
    model.loaded = None
    return Measured(kept, found, answers)


@cached("activations", code=(activations, packing, models, layers))
def last_activations(model: LazyModel, trees: list[PromptWithContinuations]) -> dict[str, Tensor]:
    """z (branches, L, H, N, d) in the model's dtype, which holds it exactly.

    The device is not part of the key. V found on another device would differ by rounding, and a resumed training needs
    the V that its β began with.
    """
    found = activations.last_token_activations(model(), trees, f"{model.label} activations")
    return {"z": found.to(model.run.dtype)}


@cached("scores", code=(utils.evaluation, packing, models), libraries=PACKAGES)
def scores(
    model: LazyModel, part: EvalPlan, device: str, tokenizer_sha256: str, *, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """The model's scores on one part of a plan. device: in the key, as rounding in half precision depends on it."""
    return asdict(evaluate(model(), tokenizer, part, model.label))


@cached("examples", code=(examples, losses, models, packing, prompts))
def answers_to(
    model: LazyModel, asked: list[Encoded], device: str, tokenizer_sha256: str, *, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Greedy answers to the samples' prompts. loss: of the samples' own responses, in nats per token."""
    found, rows = [], losses.validate(model(), asked).valid_rows if asked else []
    for sample, (nats, count) in zip(asked, rows, strict=True):
        made, ended = examples.greedy(
            model(), sample.ids[: max(1, sample.prompt_length)], examples.MOST_TOKENS, examples.ends_of(model())
        )
        text = tokenizer.decode(made, skip_special_tokens=True)
        found.append({"text": text, "tokens": len(made), "ended": ended, "loss": nats / count})
    return {"answers": found}


def examples_record(models: Models, samples: Samples, answers: dict[str, list[dict]]) -> dict:
    """The prompts, their samples' own answers, and what each model (by name) answered.

    {"most_tokens", "prompts": [{"prompt", "response", "answers": model → {"text", "tokens", "ended", "loss"}}]}.
    """
    prompts = []
    for row, sample in enumerate(samples.valid[:ASKED]):
        first = max(1, sample.prompt_length)
        texts = models.tokenizer.batch_decode([sample.ids[:first], sample.ids[first:]], skip_special_tokens=True)
        of_all = {name: each[row] for name, each in answers.items()}
        prompts.append({"prompt": texts[0], "response": texts[1], "answers": of_all})
    return {"most_tokens": examples.MOST_TOKENS, "prompts": prompts}
