"""Pack a prompt and its continuations into one row: the prompt is read once, no continuation attends to another."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel


@dataclass(frozen=True)
class PromptWithContinuations:
    """Token ids of a prompt and of its continuations. An empty continuation selects the prompt's own last token."""

    prompt: list[int]
    continuations: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.continuations))


@dataclass(frozen=True)
class PackedBatch:
    """Rows padded on the right.

    ids: (B, T) int64. positions: (B, T) int64, as if each continuation alone followed the prompt. visible: (B, T, T)
    bool; [b, q, k] says whether query q attends to key k. positions and visible are None if no prompt has several
    continuations: plain causal attention gives the same then, since padding is on the right, and it uses a fused kernel
    only without a mask and with positions that count up. columns: by row and continuation, the columns of the prompt's
    last token and of the continuation's own tokens.
    """

    ids: Tensor
    positions: Tensor | None
    visible: Tensor | None
    columns: list[list[list[int]]]

    def inputs(self, model: PreTrainedModel, device: torch.device) -> dict[str, Tensor | dict[str, Tensor]]:
        """The model's keyword arguments. A mask is additive, (B, 1, T, T); all attentions but flash kernels take it.

        A model with sliding-window layers gets one mask per layer type; the sliding one hides keys beyond the window.
        """
        if self.visible is None:
            return {"input_ids": self.ids.to(device)}

        def added(visible: Tensor) -> Tensor:
            mask = torch.zeros(visible.shape, dtype=model.dtype, device=device)
            return mask.masked_fill_(~visible.to(device), -torch.inf).unsqueeze(1)

        config, masks = model.config, added(self.visible)
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            back = self.positions.unsqueeze(2) - self.positions.unsqueeze(1)
            masks = {"full_attention": masks, "sliding_attention": added(self.visible & (back < config.sliding_window))}
        return {"input_ids": self.ids.to(device), "position_ids": self.positions.to(device), "attention_mask": masks}


def by_length(rows: Sequence[Sized], budget: int) -> list[list[int]]:
    """Group rows, by index, into batches of at most `budget` tokens with padding, or of one row.

    Longest first, so that memory runs out at once or not at all.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    batches = []
    while order:
        size = max(1, budget // len(rows[order[0]]))
        batches.append(order[:size])
        order = order[size:]
    return batches


def pack(rows: Sequence[PromptWithContinuations]) -> PackedBatch:
    """Pack each prompt and its continuations into a row, with the positions that each continuation would have alone."""
    ids, positions, segments, columns = [], [], [], []
    for row in rows:
        start, sizes = len(row.prompt), list(map(len, row.continuations))
        ids.append(torch.tensor([*row.prompt, *chain(*row.continuations)]))
        positions.append(torch.cat([torch.arange(start), *(start + torch.arange(size) for size in sizes)]))
        segments.append(torch.arange(1 + len(sizes)).repeat_interleave(torch.tensor([start, *sizes])))
        columns.append([[start - 1, *range(*ends)] for ends in pairwise(accumulate(sizes, initial=start))])
    ids = pad_sequence(ids, batch_first=True)
    if all(len(row.continuations) <= 1 for row in rows):
        return PackedBatch(ids, None, None, columns)
    # 0: the prompt; n: continuation n; -1: padding.
    segments = pad_sequence(segments, batch_first=True, padding_value=-1)
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    visible = ((key == 0) | (key == query)).tril()
    return PackedBatch(ids, pad_sequence(positions, batch_first=True), visible, columns)
