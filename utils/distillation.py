"""Distillation: the dense model's last hidden states at response tokens, from which its frozen head gives exact logits.

The states are taken after the dense model's own final norm, so they stay valid if the pruned model's norms are trained.
They take D numbers per token, where logits would take V.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.cpu_attention import cpu_attention
from utils.activations import CPU_TOKENS_A_BATCH, TOKENS_A_BATCH
from utils.common.progress import progress
from utils.packing import by_length
from utils.prompts import IGNORED, Encoded, collate

WEIGHT = 0.5
"""Weight of the KL in the mixed loss. Measured: 0.25 trades perplexity for loss, and KL alone is no better."""


@dataclass(frozen=True)
class Distillation:
    """The dense model as a teacher.

    weight: w of (1 - w)·CE + w·KL, in (0, 1]. head: the dense model's output head (V, D), on the training device; None
    if the pruned model's is equal. train, valid: the states (n_i, D) of each sample. text: windows of plain text, with
    empty prompts; each process reads one per step, with KL as its only loss. of_text: the states of each window.
    """

    weight: float
    head: Tensor | None = None
    train: Sequence[Tensor] = ()
    valid: Sequence[Tensor] = ()
    text: tuple[Encoded, ...] = ()
    of_text: Sequence[Tensor] = ()


@torch.no_grad()
def teacher_states(model: LlamaForCausalLM, samples: list[Encoded], description: str) -> Tensor:
    """The dense model's hidden states that predict response tokens: (Σ n_i, D) in its dtype, on the CPU, by sample."""
    device = model.device
    budget = CPU_TOKENS_A_BATCH if device.type == "cpu" else TOKENS_A_BATCH
    found = torch.empty(sum(map(predicted, samples)), model.config.hidden_size, dtype=model.dtype)
    places = by_sample(found, samples)
    tokens = sum(len(sample.ids) for sample in samples)
    with progress(total=tokens, desc=description, unit="tok", unit_scale=True) as bar:
        for rows in by_length([sample.ids for sample in samples], budget):
            batch = collate([samples[row] for row in rows], 0)
            with cpu_attention(model):
                states = model.model(batch["input_ids"].to(device), use_cache=False).last_hidden_state[:, :-1]
            predicting = batch["labels"][:, 1:] != IGNORED
            for row, own, chosen in zip(rows, states, predicting, strict=True):
                places[row].copy_(own[chosen.to(own.device)])  # a spread model's last device
            bar.update(sum(len(samples[row].ids) for row in rows))
    return found


def by_sample(states: Tensor, samples: list[Encoded]) -> list[Tensor]:
    """The states of each sample, (n_i, D): views."""
    return list(states.split([predicted(sample) for sample in samples]))


def predicted(sample: Encoded) -> int:
    """n_i: the number of response tokens with a token before them, from which they are predicted."""
    return len(sample.ids) - max(1, sample.prompt_length)
