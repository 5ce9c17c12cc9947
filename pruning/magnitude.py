"""Magnitude pruning: the smallest |w| of a linear layer's weight become zero, whatever the layer's input."""

import torch

from pruning.pattern import Pattern


def prune(weight: torch.Tensor, _: None, pattern: Pattern) -> torch.Tensor:
    """The matrix with its smallest |w| set to zero; the comparison group is the whole matrix, or M consecutive weights.

    weight: (out, in). Returns the same shape and dtype, with round(out·in·ratio) zeros or N:M.
    """
    return weight.masked_fill(pattern.mask(weight.abs().flatten()).view_as(weight), 0)
