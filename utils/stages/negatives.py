"""What each model reads: prompts, and for the probes their right and most similar wrong answers."""

import torch
from torch import Tensor

import utils.negatives
from utils.common.cache import cached
from utils.negatives import encoder_identity, locate_encoder, most_similar_choice, most_similar_other
from utils.packing import PromptWithContinuations
from utils.prompts import answered, common_prefix
from utils.samples import Samples
from utils.stages.context import Models, Run


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
    right = samples.responses[:count]
    found = embedded(run, [*right, *(text for wrong in choices for text in wrong)])
    return most_similar_choice(found[:count], torch.split(found[count:], [len(w) for w in choices]), choices)


def embedded(run: Run, texts: list[str]) -> Tensor:
    """Sentence embeddings (N, E) of the texts."""
    encoder = locate_encoder()
    found = embeddings(
        run.cache, encoder_identity(encoder), texts, run.kind_of_device, encoder=encoder, place=run.device
    )
    return found["embeddings"]


@cached("embeddings", code=(utils.negatives,))
def embeddings(encoder_sha256: str, texts: list[str], device: str, *, encoder: str, place: str) -> dict[str, Tensor]:
    """The texts' embeddings by the encoder, run at `place`, a device of the kind `device`."""
    return {"embeddings": utils.negatives.sentence_embeddings(texts, encoder, place)}
