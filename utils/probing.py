"""Contrastive probing: which heads tell the right answer from a similar wrong one, as in the paper."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.common.progress import progress

LEARNING_RATE = 0.01
EPOCHS = 200
TRAIN_SHARE = 0.7


def probe_heads(restored: Tensor, right: Tensor, wrong: Tensor, seed: int, shown: bool = False) -> dict[str, Tensor]:
    """Train one logistic probe per head; returns each one's `accuracy` and `loss` on held-out samples, (L, H) fp32.

    restored: z_pruned(q) + c; right: z_dense(q + r⁺); wrong: z_dense(q + r⁻); each (L, H, N, d).

    A probe is a linear layer and a sigmoid, with [restored ; right] as positive and [restored ; wrong] as negative
    input. It is trained on cross-entropy by Adam at 0.01 for 200 full-batch epochs, on 70 % of the samples. Both inputs
    of a sample are on the same side of this split. The probes of a layer are trained as one batch of tensors, and stay
    independent: Adam updates each element by itself.
    """
    _, heads, samples, width = restored.shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator)
    train, held_out = order[: int(TRAIN_SHARE * samples)], order[int(TRAIN_SHARE * samples) :]
    bound = (2 * width) ** -0.5  # as torch.nn.Linear starts
    start = [torch.empty(heads, n).uniform_(-bound, bound, generator=generator) for n in (2 * width, 1)]
    accuracy, loss = [], []
    layers = zip(restored, right, wrong, strict=True)
    for layer in progress(layers, total=len(restored), desc="probing heads", unit="layer", disable=not shown):
        weight, bias = _train(*(x[:, train].float().contiguous() for x in layer), *start)
        logits = _logits(*(x[:, held_out].float().contiguous() for x in layer), weight, bias)
        labels = _labels(logits.shape[1], logits.device)
        accuracy.append(((logits > 0) == labels).float().mean(-1))
        loss.append(_losses(logits))
    return {"accuracy": torch.stack(accuracy), "loss": torch.stack(loss)}


def rank_heads(scores: Tensor, usable: Tensor, losses: Tensor | None = None) -> list[tuple[int, int]]:
    """Pairs (layer, head), best first: by falling score (L, H), ties by the lower loss, if given, then by position.

    usable: (L, H) bool; heads that nothing can restore (all their o_proj columns are zero) are left out.
    """
    ties = torch.zeros_like(scores) if losses is None else losses
    order = np.lexsort((ties.flatten(), -scores.flatten()))  # the last key counts first
    return [pair for place in order if usable[pair := divmod(int(place), usable.shape[1])]]


def order_randomly(usable: Tensor, seed: int) -> list[tuple[int, int]]:
    """A control: pairs (layer, head) in random order."""
    return rank_heads(torch.rand(usable.shape, generator=torch.Generator().manual_seed(seed)), usable)


def _labels(count: int, device: torch.device) -> Tensor:
    """Positive features come first: (2n,) bool."""
    return torch.arange(count, device=device) < count // 2


def _logits(shared: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(H, n, d) features and (H, 2d) weights -> logits (H, 2n); the shared half is multiplied once."""
    on_shared, on_own = weight.unsqueeze(1).chunk(2, dim=2)
    common = on_shared @ shared.mT
    return torch.cat([common + on_own @ own.mT for own in (positive, negative)], dim=2).squeeze(1) + bias


def _train(shared: Tensor, positive: Tensor, negative: Tensor, *start: Tensor) -> tuple[Tensor, Tensor]:
    """(weight, bias) after full-batch Adam from `start`. The sum of all heads' losses gives each its own gradient."""
    weight, bias = (each.clone().requires_grad_() for each in start)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        _losses(_logits(shared, positive, negative, weight, bias)).sum().backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def _losses(logits: Tensor) -> Tensor:
    """(H, 2n) logits -> the mean cross-entropy of each head."""
    labels = _labels(logits.shape[1], logits.device).float().expand_as(logits)
    return binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
