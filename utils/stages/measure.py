"""What each model reads, and what it makes of it: activations, scores and a few answers, from one loading of it."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import models.cpu_attention
import utils.activations
import utils.evaluation
import utils.evaluation.scoring
import utils.examples
import utils.negatives
import utils.packing
from models.checkpoint import Checkpoint
from models.merge import Proof
from utils.common.cache import Kept, cached
from utils.evaluation.scoring import PACKAGES, Evaluation
from utils.evaluation.task_loading import EvalPlan
from utils.examples import MOST_TOKENS, ends_of, greedy, response_nats
from utils.negatives import encoder_identity, locate_encoder, most_similar_choice, most_similar_other
from utils.packing import PromptWithContinuations
from utils.prompts import Encoded, answered, common_prefix
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run

ASKED = 5
"""Validation prompts whose answers the report shows."""


def prompt_trees(run: Run, samples: Samples) -> list[PromptWithContinuations]:
    """Each training prompt alone: what the pruned model reads; nothing where no activations are needed."""
    return [PromptWithContinuations(ids, [[]]) for ids in samples.prompt_ids] if run.reads_activations else []


def probe_trees(run: Run, models: Models, samples: Samples) -> list[PromptWithContinuations]:
    """What the dense model reads: the first -num_probe_samples as q, q + r⁺, q + r⁻ over one prompt, the rest as q."""
    plain = prompt_trees(run, samples)
    if run.args.head_selection != "contrastive" or not plain:
        return plain
    wrong = wrong_answers(run, samples)
    wrong_ids = answered(models.tokenizer, samples.prompts[: len(wrong)], wrong, run.args.max_length)
    trees = []
    for question, right, other in zip(samples.prompt_ids, samples.train, wrong_ids, strict=False):
        shared = common_prefix([question, right.ids, other])
        trees.append(PromptWithContinuations(question[:shared], [ids[shared:] for ids in (question, right.ids, other)]))
    return trees + plain[len(trees) :]


def wrong_answers(run: Run, samples: Samples) -> list[str]:
    """r⁻ of the samples that train the probes: the most similar other answer, or the task's own wrong one."""
    count = min(run.args.num_probe_samples, len(samples.prompts))
    if samples.wrong_choices is None:
        nearest = most_similar_other(embedded(run, samples.responses), samples.responses)
        return [samples.responses[row] for row in nearest[:count]]
    choices = samples.wrong_choices[:count]
    if all(len(wrong) == 1 for wrong in choices):
        return [wrong[0] for wrong in choices]
    found = embedded(run, [*samples.responses[:count], *(text for wrong in choices for text in wrong)])
    return most_similar_choice(found[:count], torch.split(found[count:], [len(w) for w in choices]), choices)


def embedded(run: Run, texts: list[str]) -> Tensor:
    """Sentence embeddings (N, E) of the texts."""
    encoder = locate_encoder()
    where = {"encoder": encoder, "place": run.device}
    return embeddings(run.cache, encoder_identity(encoder), texts, run.kind_of_device, **where)["embeddings"]


@cached("embeddings", code=(utils.negatives,))
def embeddings(encoder_sha256: str, texts: list[str], device: str, *, encoder: str, place: str) -> dict[str, Tensor]:
    """The texts' embeddings by the encoder, run at `place`, a device of the kind `device`."""
    return {"embeddings": utils.negatives.sentence_embeddings(texts, encoder, place)}


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
    groups: dict[int, list[PromptWithContinuations]] = {}  # with branches for probing first, then the plain ones
    for tree in trees:
        groups.setdefault(len(tree.continuations), []).append(tree)
    with run.lazy(getattr(models, label)) as model:
        kept = [activations.later(run.cache, model, part, label=label) for part in groups.values()]
        for each in kept:
            each.entry()
        return scored(run, models, samples, plan, model, label, kept)


def scored(
    run: Run, models: Models, samples: Samples, plan: EvalPlan, model: LazyModel, label: str, kept: list[Kept]
) -> Measured:
    """A model's scores, each task's from the cache if the same weights were scored alike, and its answers."""
    how, shown = (run.kind_of_device, models.tokenizer_sha256), {"tokenizer": models.tokenizer, "label": label}
    parts = [scores(run.cache, model, part, *how, **shown) for part in plan.parts()]
    asked = samples.valid[:ASKED]
    answers = answers_to(run.cache, model, asked, *how, tokenizer=models.tokenizer)["answers"] if asked else []
    return Measured(kept, Evaluation.joined([Evaluation(**part) for part in parts]), answers)


def score_merged(run: Run, models: Models, samples: Samples, plan: EvalPlan, proof: Proof) -> Measured:
    """The scores and answers of the merged model, which the proof has loaded; it is gone afterwards."""
    checkpoint = Checkpoint(run.folder / "model", "-output_dir")
    proved, proof.model = proof.model, None
    with LazyModel(checkpoint, run.dtype, lambda: proved or run.load(checkpoint)) as model:
        return scored(run, models, samples, plan, model, "restored", [])


@cached("activations", code=(utils.activations, utils.packing, models.cpu_attention))
def activations(model: LazyModel, trees: list[PromptWithContinuations], *, label: str) -> dict[str, Tensor]:
    """z (branches, L, H, N, d) in the model's dtype, which holds it exactly.

    The device is no part of the key: directions found on another differ by rounding, and β is resumed for those that it
    began with.
    """
    found = utils.activations.last_token_activations(model(), trees, f"{label} activations")
    return {"z": found.to(model.dtype)}


@cached("scores", code=(utils.evaluation, utils.packing), libraries=PACKAGES)
def scores(
    model: LazyModel,
    part: EvalPlan,
    device: str,
    tokenizer_sha256: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
) -> dict:
    """The model's scores on one part of a plan. Half precision rounds by what a device computes."""
    return asdict(utils.evaluation.scoring.evaluate(model(), tokenizer, part, label))


@cached("examples", code=(utils.examples, models.cpu_attention), libraries=("torch", "transformers", "tokenizers"))
def answers_to(
    model: LazyModel, asked: list[Encoded], device: str, tokenizer_sha256: str, *, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Greedy answers to the samples' prompts; loss: on their own responses, nats a token."""
    found = []
    for sample in asked:
        made, ended = greedy(model(), sample.ids[: max(1, sample.prompt_length)], MOST_TOKENS, ends_of(model()))
        loss, _ = response_nats(model(), sample)
        text = tokenizer.decode(made, skip_special_tokens=True)
        found.append({"text": text, "tokens": len(made), "ended": ended, "loss": loss})
    return {"answers": found}


def examples_record(models: Models, samples: Samples, found: dict[str, list[dict]]) -> dict:
    """The prompts, their samples' own answers, and what each model (by name) answered.

    {"most_tokens", "prompts": [{"prompt", "response", "answers": model → {"text", "tokens", "ended", "loss"}}]}.
    """
    prompts = []
    for row, sample in enumerate(samples.valid[:ASKED]):
        first = max(1, sample.prompt_length)
        prompt, response = (
            models.tokenizer.decode(ids, skip_special_tokens=True) for ids in (sample.ids[:first], sample.ids[first:])
        )
        answers = {name: each[row] for name, each in found.items()}
        prompts.append({"prompt": prompt, "response": response, "answers": answers})
    return {"most_tokens": MOST_TOKENS, "prompts": prompts}
