"""Requests that share a context as one sequence: the context once, then each continuation, unseen by the others."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Packed:
    """The context's ids and, of each request that shares it, its index and the ids of its continuation."""

    context: list[int]
    members: list[tuple[int, list[int]]]

    @property
    def length(self) -> int:
        """Tokens of the sequence: the last one of a continuation is predicted, never read."""
        return len(self.context) + sum(len(ids) - 1 for _, ids in self.members)


def pack(requests: list[tuple[list[int], list[int]]], max_length: int, budget: int) -> tuple[list[Packed], int]:
    """Packed sequences over all requests (context ids, continuation ids), and how many were cut.

    A request too long for the model loses its left end, as in lm_eval; where even its continuation is too long, tokens
    that go unscored. Sharing stops where a sequence would exceed
    `budget` tokens, and where continuations outgrow the context: attention over what a token may not see costs too.
    """
    open_: dict[tuple[int, ...], Packed] = {}
    done, cut = [], 0
    for index, (context, continuation) in enumerate(requests):
        if len(context) + len(continuation) > max_length + 1:
            cut += 1
            whole = (context + continuation)[-(max_length + 1) :]
            scored = min(len(continuation), max_length)
            context, continuation = whole[:-scored], whole[-scored:]
        key = tuple(context)
        group = open_.get(key)
        fits = len(continuation) <= len(context)
        if group and fits and group.length + len(continuation) - 1 <= budget:
            group.members.append((index, continuation))
            continue
        group = Packed(list(context), [(index, continuation)])
        done.append(group)
        if fits:
            open_[key] = group
    return done, cut


def batches(packed: list[Packed], budget: int) -> Iterator[list[Packed]]:
    """Longest first, as many of one batch as `budget` tokens hold with padding; at least one."""
    ordered = sorted(packed, key=lambda group: -group.length)
    start = 0
    while start < len(ordered):
        count = max(1, budget // ordered[start].length)
        yield ordered[start : start + count]
        start += count


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    ids, positions: (B, T) int64. allowed: (B, T, T) bool, [b, q, k] where q may see k; None where plain causal
    attention is the same. rows, columns, targets: (P,) int64, where each predicted token's logits are and its id.
    owners: (P,) int64, the index of its request.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    allowed: torch.Tensor | None
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor


def batch_tensors(groups: list[Packed]) -> Batch:
    """One row a packed sequence, padded on the right."""
    shape = len(groups), max(group.length for group in groups)
    ids = torch.zeros(shape, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    segments = torch.full(shape, -1)
    wanted: list[tuple[int, int, int, int]] = []
    for row, group in enumerate(groups):
        start = len(group.context)
        ids[row, :start] = torch.tensor(group.context)
        positions[row, :start] = torch.arange(start)
        segments[row, :start] = 0
        column = start
        for segment, (owner, continuation) in enumerate(group.members, start=1):
            read = continuation[:-1]
            end = column + len(read)
            ids[row, column:end] = torch.tensor(read, dtype=torch.int64)
            positions[row, column:end] = torch.arange(start, start + len(read))
            segments[row, column:end] = segment
            places = [start - 1, *range(column, end)]
            wanted += [(row, place, target, owner) for place, target in zip(places, continuation, strict=True)]
            column = end
    allowed = None
    if any(len(group.members) > 1 for group in groups):
        query, key = segments.unsqueeze(2), segments.unsqueeze(1)
        causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
        allowed = causal & ((key == 0) | (key == query))
    return Batch(ids, positions, allowed, *torch.tensor(wanted).T)
