"""Head activations at the last token: forward passes only, and nothing kept but what is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.cpu_attention import cpu_attention
from models.loading import head_shape, input_device
from utils.common.progress import progress

CPU_TOKENS_A_BATCH = 512
"""On a CPU, where more of them are no faster, and rows of a larger batch differ more in length."""

TOKENS_A_BATCH = 4096
"""Padded tokens in one forward pass. A tree mask holds tokens² booleans a row, so rows stay bounded too."""


@dataclass(frozen=True)
class Tree:
    """One prompt and what may follow it: token ids of a common trunk, and branches that each continue it.

    z is read at the last token of the trunk followed by each branch; an empty branch reads the trunk's own end.
    """

    trunk: list[int]
    branches: list[list[int]]

    def __len__(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


@dataclass(frozen=True)
class _Batch:
    rows: list[int]
    ids: Tensor
    positions: Tensor | None
    reads: Tensor
    mask: Tensor | None


def last_token_activations(model: LlamaForCausalLM, trees: list[Tree], description: str) -> Tensor:
    """z[l, h], the input of o_proj by head, at the last token of every branch: (branches, L, H, N, d) fp32 on the CPU.

    All trees have the same number of branches. The branches of a tree share one pass over its trunk: each attends to
    the trunk and to itself, at the positions it would have alone, so z is what separate passes give. Rows are batched
    by length; layers after the last o_proj's input are not run.
    """
    layers, heads, width = head_shape(model.config)
    count = len(trees[0].branches)
    found = torch.empty(count, layers, heads, len(trees), width)
    device = input_device(model)
    with (
        torch.no_grad(),
        cpu_attention(model),
        progress(total=sum(map(len, trees)), desc=description, unit="tok", unit_scale=True) as bar,
    ):
        for batch in _batches(trees, CPU_TOKENS_A_BATCH if device.type == "cpu" else TOKENS_A_BATCH):
            with _captured_inputs(model, batch.reads) as captured:
                _run_to_last_o_proj(model, batch, device)
            for layer, z in enumerate(captured):
                # (B, branches, H·d) -> (branches, H, B, d)
                found[:, layer, :, batch.rows] = z.unflatten(-1, (heads, width)).permute(1, 2, 0, 3)
            bar.update(sum(len(trees[row]) for row in batch.rows))
    return found


class _Reached(Exception):
    """Raised once the last layer's input is in hand: what follows it is not needed."""


@contextmanager
def _captured_inputs(model: LlamaForCausalLM, reads: Tensor) -> Iterator[list[Tensor]]:
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    captured: list[Tensor] = []

    def capture(_, inputs):
        z = inputs[0]
        rows = torch.arange(len(z), device=z.device).unsqueeze(1)
        captured.append(z[rows, reads.to(z.device)].float().cpu())
        if len(captured) == len(projections):
            raise _Reached

    handles = [projection.register_forward_pre_hook(capture) for projection in projections]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _run_to_last_o_proj(model: LlamaForCausalLM, batch: _Batch, device: torch.device) -> None:
    mask = None if batch.mask is None else batch.mask.to(device)
    if mask is not None and device.type == "cpu":
        # Attention on a CPU adds it, once a layer.
        mask = torch.zeros(mask.shape, dtype=model.dtype).masked_fill_(~mask, -torch.inf)
    try:
        model.model(
            input_ids=batch.ids.to(device),
            attention_mask=mask,
            position_ids=None if batch.positions is None else batch.positions.to(device),
            use_cache=False,
        )
    except _Reached:
        return


def _batches(trees: list[Tree], budget: int) -> Iterator[_Batch]:
    """Batches of `budget` padded tokens, longest rows first, so that memory runs out at once or not at all."""
    order = sorted(range(len(trees)), key=lambda row: -len(trees[row]))
    while order:
        size = max(1, budget // len(trees[order[0]]))
        yield _pack(trees, order[:size])
        order = order[size:]


def _pack(trees: list[Tree], rows: list[int]) -> _Batch:
    """Right-padded rows. With one branch plain causal attention is right: padding comes after all that is read.

    It then goes without a mask and without positions: where these don't count up, as in padding, transformers sees
    several sequences in a row, and makes a mask, with which attention is no longer a fused causal one.
    """
    longest = max(len(trees[row]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    # 0: the trunk; n: branch n; -1: padding, which sees itself only.
    segment = torch.full((len(rows), longest), -1)
    reads = []
    for index, row in enumerate(rows):
        trunk, branches = trees[row].trunk, trees[row].branches
        begin, ends = len(trunk), []
        for number, branch in enumerate(branches, start=1):
            ends.append(begin + len(branch) - 1 if branch else len(trunk) - 1)
            segment[index, begin : begin + len(branch)] = number
            positions[index, begin : begin + len(branch)] = torch.arange(len(branch)) + len(trunk)
            begin += len(branch)
        segment[index, : len(trunk)] = 0
        positions[index, : len(trunk)] = torch.arange(len(trunk))
        ids[index, :begin] = torch.tensor([*trunk, *(token for branch in branches for token in branch)])
        reads.append(ends)
    if len(trees[rows[0]].branches) == 1:
        return _Batch(rows, ids, None, torch.tensor(reads), None)
    query, key = segment.unsqueeze(2), segment.unsqueeze(1)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    visible = causal & ((key == query) | (key == 0)) & ((query >= 0) | torch.eye(longest, dtype=torch.bool))
    return _Batch(rows, ids, positions, torch.tensor(reads), visible.unsqueeze(1))
