"""Greedy answers of each model to a few held-out prompts, for the report: made while the model is in memory anyway."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from transformers import LlamaForCausalLM

import models.cpu_attention as models_cpu_attention
import utils.examples
from models.loading import tokenizer_digest
from utils.common.cache import code_version
from utils.common.files import write_json
from utils.examples import MOST_TOKENS, ends_of, greedy, response_nats
from utils.prompts import Encoded
from utils.samples import Samples
from utils.stages.context import Models, Run

PACKAGES = ("torch", "transformers", "tokenizers")


def asked(run: Run, samples: Samples) -> list[Encoded]:
    """The validation samples that models are asked: the first -report_prompts."""
    return samples.valid[: run.args.report_prompts]


def answers(
    run: Run, models: Models, samples: Samples, model_sha256: str, model: Callable[[], LlamaForCausalLM]
) -> list[dict]:
    """A model's answer to each prompt, and its loss on the sample's own: {"text", "tokens", "ended", "loss"}.

    loss: nats a token. From the cache if the same weights were asked the same before.
    """
    held_out = asked(run, samples)
    if not held_out:
        return []
    key = {
        "model": model_sha256,
        "samples": [[sample.ids, sample.prompt_length] for sample in held_out],
        "most_tokens": MOST_TOKENS,
        "dtype": run.args.dtype,
        "device": run.kind_of_device,
        "tokenizer": tokenizer_digest(models.tokenizer_from),
        "versions": {package: version(package) for package in PACKAGES},
        "code": code_version(utils.examples, models_cpu_attention),
    }
    made = run.cache.document(
        "examples", key, lambda: {"answers": [answer(models, model(), each) for each in held_out]}
    )
    return made["answers"]


def answer(models: Models, model: LlamaForCausalLM, sample: Encoded) -> dict:
    """One answer, as `answers` gives it."""
    made, ended = greedy(model, sample.ids[: max(1, sample.prompt_length)], MOST_TOKENS, ends_of(model))
    loss, _ = response_nats(model, sample)
    text = models.tokenizer.decode(made, skip_special_tokens=True)
    return {"text": text, "tokens": len(made), "ended": ended, "loss": loss}


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
