"""Magnitude pruning: the smallest weights of a layer's matrix go, whatever they are multiplied by."""

import torch

from pruning.pattern import Pattern


def prune(weight: torch.Tensor, _: None, pattern: Pattern) -> torch.Tensor:
    """The matrix with its smallest |w| set to zero; the comparison group is the whole matrix, or M in a row.

    weight: (out, in). Returns the same shape and dtype, with round(out·in·ratio) zeros or N:M.
    """
    return weight.masked_fill(pattern.mask(weight.abs().flatten()).view_as(weight), 0)
