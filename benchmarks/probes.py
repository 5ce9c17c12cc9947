"""Speed of lost components and probes: all heads of a layer at once against one head after the other.

Both run on the CPU, where the activations are kept, whatever the model's device is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.timing import Disagreement, say, speedup, spread, turn_by_turn
from utils.components import lost_components
from utils.probing import EPOCHS, LEARNING_RATE, TRAIN_SHARE, ProbeScores, probe_heads, rank_heads

SAMPLES = 300
COMPONENTS = 10
LOSS_TOLERANCE = 1e-3
"""How far a probe's loss may differ: 200 steps of Adam carry fp32 rounding along."""


@dataclass(frozen=True)
class Activations:
    """z of the dense and pruned model at q, of the dense one at q + r⁺ and q + r⁻; each (L, H, N, d) fp32."""

    dense: Tensor
    pruned: Tensor
    right: Tensor
    wrong: Tensor


def synthetic(layers: int, heads: int, samples: int, width: int, seed: int) -> Activations:
    """Activations with a gap of few strong directions, and heads that tell right from wrong from not at all to well."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dense, right, wrong = (normal(layers, heads, samples, width) for _ in range(3))
    rank = min(4, width)
    gap = (1 + normal(layers, heads, samples, rank)) @ normal(layers, heads, rank, width) / width**0.5
    gap += 0.1 * normal(layers, heads, samples, width)
    strength = torch.rand(layers, heads, 1, 1, generator=generator)
    direction = strength * nn.functional.normalize(normal(layers, heads, 1, width), dim=-1)
    return Activations(dense, dense - gap, dense + right + direction, dense + wrong - direction)


def all_at_once(z: Activations, seed: int) -> tuple[Tensor, ProbeScores]:
    """This project's: c (L, H, d) and the probes' scores."""
    component = lost_components(z.dense - z.pruned, COMPONENTS).component
    return component, probe_heads(z.pruned + component.unsqueeze(2), z.right, z.wrong, seed)


def head_by_head(z: Activations, seed: int) -> tuple[Tensor, ProbeScores]:
    """The same mathematics in plain PyTorch: an SVD, a Linear and an Adam a head; starts and split are the same."""
    layers, heads, samples, width = z.dense.shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator)
    train, held_out = order[: int(TRAIN_SHARE * samples)], order[int(TRAIN_SHARE * samples) :]
    bound = (2 * width) ** -0.5
    weights, biases = (torch.empty(heads, n).uniform_(-bound, bound, generator=generator) for n in (2 * width, 1))
    component = torch.empty(layers, heads, width)
    accuracy, losses = torch.empty(layers, heads), torch.empty(layers, heads)
    for layer in range(layers):
        for head in range(heads):
            u, s, v = torch.linalg.svd(z.dense[layer, head] - z.pruned[layer, head], full_matrices=False)
            alpha = (u * s).mean(0)[:COMPONENTS]
            component[layer, head] = alpha @ v[:COMPONENTS]
            shared = z.pruned[layer, head] + component[layer, head]
            right = torch.cat([shared, z.right[layer, head]], dim=1)
            wrong = torch.cat([shared, z.wrong[layer, head]], dim=1)
            probe = nn.Linear(2 * width, 1)
            with torch.no_grad():
                probe.weight.copy_(weights[head])
                probe.bias.copy_(biases[head])
            optimizer = torch.optim.Adam(probe.parameters(), lr=LEARNING_RATE)
            inputs, labels = torch.cat([right[train], wrong[train]]), _labels(len(train))
            for _ in range(EPOCHS):
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(probe(inputs).squeeze(1), labels).backward()
                optimizer.step()
            inputs, labels = torch.cat([right[held_out], wrong[held_out]]), _labels(len(held_out))
            with torch.no_grad():
                logits = probe(inputs).squeeze(1)
                losses[layer, head] = nn.functional.binary_cross_entropy_with_logits(logits, labels)
                accuracy[layer, head] = ((logits > 0) == labels.bool()).float().mean()
    return component, ProbeScores(accuracy, losses)


def _labels(rows: int) -> Tensor:
    return torch.cat([torch.ones(rows), torch.zeros(rows)])


def check_same_ranking(found: ProbeScores, expected: ProbeScores, samples: int) -> None:
    """Raise Disagreement unless both rank the heads alike.

    Scores may differ by one held-out feature that lies on the boundary and by fp32 rounding of the loss; heads that
    change places must be as close as that.
    """
    features = 2 * (samples - int(TRAIN_SHARE * samples))
    one = 1.5 / features
    apart = float((found.accuracy - expected.accuracy).abs().max()), float((found.loss - expected.loss).abs().max())
    if not (apart[0] <= one and apart[1] <= LOSS_TOLERANCE):
        raise Disagreement(f"probes: accuracies differ by up to {apart[0]:.3g}, losses by {apart[1]:.3g}")
    everything = torch.ones_like(found.accuracy, dtype=torch.bool)
    ours, theirs = rank_heads(found, everything), rank_heads(expected, everything)
    for mine, other in zip(ours, theirs, strict=True):
        if mine == other:
            continue
        closer = abs(float(expected.accuracy[mine] - expected.accuracy[other]))
        if closer > one or (closer == 0 and abs(float(expected.loss[mine] - expected.loss[other])) > LOSS_TOLERANCE):
            raise Disagreement(f"probes: head {mine} stands where the loop ranks {other}")


def probes_speed(shape: tuple[int, int, int], repeats: int, seed: int, samples: int = SAMPLES) -> dict[str, dict]:
    """Row `probes_vs_loop`: components and probes of all heads of a model of `shape` (L, H, d).

    Raises Disagreement unless both give the same components and the same ranking.
    """
    layers, heads, width = shape
    z = synthetic(layers, heads, samples, width, seed)
    all_at_once(Activations(*(t[:1] for t in (z.dense, z.pruned, z.right, z.wrong))), seed)
    turns = turn_by_turn({"ours": lambda _: all_at_once(z, seed), "loop": lambda _: head_by_head(z, seed)}, repeats)
    (component, scores), (expected, plain) = (turns[name][0].found for name in ("ours", "loop"))
    if not torch.allclose(component, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        raise Disagreement("lost components of the two ways differ")
    check_same_ranking(scores, plain, samples)
    seconds = {name: spread([turn.seconds for turn in found]) for name, found in turns.items()}
    say(
        f"probes: {layers * heads} heads × {samples} samples in {seconds['ours']['median']:.2f} s, "
        f"loop {seconds['loop']['median']:.2f} s; same ranking"
    )
    return {
        "probes_vs_loop": spread(
            speedup(turns["loop"], turns["ours"]), goal=4.0, heads=layers * heads, samples=samples, seconds=seconds
        )
    }
