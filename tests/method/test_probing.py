"""Probes find the heads that tell right from wrong, and rank them by (layer, head)."""

import torch
from torch import nn

from utils.probing import EPOCHS, LEARNING_RATE, ProbeScores, order_randomly, probe_heads, rank_by_score, rank_heads

LAYERS, HEADS, SAMPLES, WIDTH = 3, 5, 120, 4


def features(planted: tuple[int, int], strength: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise everywhere; in one head right answers are shifted one way and wrong ones the other."""
    generator = torch.Generator().manual_seed(0)
    shared, right, wrong = (torch.randn(LAYERS, HEADS, SAMPLES, WIDTH, generator=generator) for _ in range(3))
    right[planted] += strength
    wrong[planted] -= strength
    return shared, right, wrong


def test_the_planted_head_is_ranked_first():
    for planted in [(0, 4), (2, 0), (1, 3)]:
        scores = probe_heads(*features(planted), seed=42)
        everything = torch.ones(LAYERS, HEADS, dtype=torch.bool)
        assert rank_heads(scores, everything)[0] == planted
        assert scores.accuracy.shape == (LAYERS, HEADS)
        assert scores.accuracy[planted] > 0.95
        assert scores.accuracy.flatten().median() < 0.7


def test_batched_probes_equal_one_torch_module_a_head():
    shared, right, wrong = features((1, 2), strength=0.4)
    scores = probe_heads(shared, right, wrong, seed=7)

    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(SAMPLES, generator=generator)
    train, held_out = order[: int(0.7 * SAMPLES)], order[int(0.7 * SAMPLES) :]
    bound = (2 * WIDTH) ** -0.5
    weights, biases = (torch.empty(HEADS, n).uniform_(-bound, bound, generator=generator) for n in (2 * WIDTH, 1))
    for layer, head in [(0, 0), (1, 2), (2, 4)]:
        probe = nn.Linear(2 * WIDTH, 1)
        with torch.no_grad():
            probe.weight.copy_(weights[head])
            probe.bias.copy_(biases[head])
        optimizer = torch.optim.Adam(probe.parameters(), lr=LEARNING_RATE)

        def batch(rows, layer=layer, head=head):
            positive = torch.cat([shared[layer, head, rows], right[layer, head, rows]], dim=1)
            negative = torch.cat([shared[layer, head, rows], wrong[layer, head, rows]], dim=1)
            labels = torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))])
            return torch.cat([positive, negative]), labels

        inputs, labels = batch(train)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy(torch.sigmoid(probe(inputs).squeeze(1)), labels).backward()
            optimizer.step()
        inputs, labels = batch(held_out)
        with torch.no_grad():
            probability = torch.sigmoid(probe(inputs).squeeze(1))
        loss = nn.functional.binary_cross_entropy(probability, labels)
        assert abs(float(scores.loss[layer, head] - loss)) < 1e-4
        accuracy = ((probability > 0.5).float() == labels).float().mean()
        assert abs(float(scores.accuracy[layer, head] - accuracy)) < 1.5 / len(labels)


def test_ties_go_to_the_lower_loss():
    scores = ProbeScores(torch.full((2, 3), 0.5), torch.tensor([[0.3, 0.1, 0.4], [0.2, 0.6, 0.5]]))
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert rank_heads(scores, everything) == [(0, 1), (1, 0), (0, 0), (0, 2), (1, 2), (1, 1)]


def test_heads_that_cannot_be_restored_are_left_out():
    usable = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    usable[1, 2] = usable[0, 4] = False
    scores = torch.rand(LAYERS, HEADS)
    for ranked in (
        rank_heads(ProbeScores(scores, scores), usable),
        rank_by_score(scores, usable),
        order_randomly(usable, 0),
    ):
        assert len(ranked) == len(set(ranked)) == LAYERS * HEADS - 2
        assert not {(1, 2), (0, 4)} & set(ranked)


def test_rank_by_score_is_largest_first_and_random_order_is_seeded():
    usable = torch.ones(2, 3, dtype=torch.bool)
    scores = torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 3.0]])
    assert rank_by_score(scores, usable) == [(1, 0), (0, 1), (1, 2), (0, 2), (0, 0), (1, 1)]
    assert order_randomly(usable, 1) == order_randomly(usable, 1) != order_randomly(usable, 2)
