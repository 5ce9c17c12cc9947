"""Magnitude pruning: the smallest weights of a layer's matrix go, whatever they are multiplied by."""

import torch

from pruning.pattern import Pattern, lowest, lowest_of_groups


def prune(weight: torch.Tensor, _: None, pattern: Pattern) -> torch.Tensor:
    """The matrix with its smallest |w| set to zero; the comparison group is the whole matrix, or M in a row.

    weight: (out, in). Returns the same shape and dtype, with round(out·in·ratio) zeros or N:M.
    """
    scores = weight.abs()
    if pattern.m:
        return weight.masked_fill(lowest_of_groups(scores, pattern), 0)
    mask = lowest(scores.flatten(), round(weight.numel() * pattern.ratio)).view_as(weight)
    return weight.masked_fill(mask, 0)
