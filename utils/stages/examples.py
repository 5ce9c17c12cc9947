"""Greedy answers of each model to a few held-out prompts, for the report: made while the model is in memory anyway."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

import models.cpu_attention as models_cpu_attention
import utils.examples
from utils.common.cache import cached
from utils.common.files import write_json
from utils.examples import MOST_TOKENS, ends_of, greedy, response_nats
from utils.prompts import Encoded
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run

ASKED = 5
"""Validation prompts whose answers the report shows."""


def asked(run: Run, samples: Samples) -> list[Encoded]:
    """The validation samples that models are asked: the first few."""
    return samples.valid[:ASKED]


def answers(run: Run, models: Models, samples: Samples, model: LazyModel) -> list[dict]:
    """A model's answer to each prompt, and its loss on the sample's own: {"text", "tokens", "ended", "loss"}."""
    held_out = asked(run, samples)
    if not held_out:
        return []
    how = run.kind_of_device, models.tokenizer_sha256
    return greedy_answers(run.cache, model, held_out, *how, tokenizer=models.tokenizer)["answers"]


@cached("examples", code=(utils.examples, models_cpu_attention), libraries=("torch", "transformers", "tokenizers"))
def greedy_answers(
    model: LazyModel,
    samples: list[Encoded],
    device: str,
    tokenizer_sha256: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
) -> dict:
    """Greedy answers to the samples' prompts; loss: on their own responses, nats a token."""
    found = []
    for sample in samples:
        made, ended = greedy(model(), sample.ids[: max(1, sample.prompt_length)], MOST_TOKENS, ends_of(model()))
        loss, _ = response_nats(model(), sample)
        text = tokenizer.decode(made, skip_special_tokens=True)
        found.append({"text": text, "tokens": len(made), "ended": ended, "loss": loss})
    return {"answers": found}


def write_examples(path: Path, run: Run, models: Models, samples: Samples, found: dict[str, list[dict]]) -> None:
    """Write the prompts, their samples' own answers, and what each model (by name) answered; nothing if none was asked.

    {"most_tokens", "prompts": [{"prompt", "response", "answers": model → {"text", "tokens", "ended", "loss"}}]}.
    """
    prompts = []
    for row, sample in enumerate(asked(run, samples)):
        first = max(1, sample.prompt_length)
        texts = [
            models.tokenizer.decode(ids, skip_special_tokens=True) for ids in (sample.ids[:first], sample.ids[first:])
        ]
        prompts.append(
            {"prompt": texts[0], "response": texts[1], "answers": {name: found[name][row] for name in found}}
        )
    if prompts:
        write_json(path, {"most_tokens": MOST_TOKENS, "prompts": prompts})
