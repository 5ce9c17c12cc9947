"""Log-probabilities of given tokens from hidden states, without all logits in memory at once."""

import torch
from transformers import PreTrainedModel

from models.families import final_logits

CHUNK = 256
"""Positions whose logits exist at a time: they stay in the cache of a CPU, and cost a GPU few launches."""


def token_scores(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) float64 log-probability (nats) of each target, and (P,) bool whether it is the likeliest; on the CPU.

    hidden: (P, D), the last hidden states that predict. targets: (P,) int64. The softmax is taken in fp32.
    """
    scores, likeliest = [], []
    for part, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = final_logits(model.config, model.get_output_embeddings()(part)).float()
        wanted = wanted.to(logits.device)
        chosen = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
        scores.append((chosen - logits.logsumexp(1)).cpu().double())  # not every device has fp64
        likeliest.append((logits.argmax(1) == wanted).cpu())
    return torch.cat(scores), torch.cat(likeliest)
