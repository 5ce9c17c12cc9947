"""Wanda (Sun et al., ICLR 2024): weights ranked by |w| times the norm of what they are multiplied by."""

import torch

from pruning.pattern import Pattern, lowest, lowest_of_groups


def prune(weight: torch.Tensor, norms: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The matrix with its lowest |w_ij|·‖x_j‖₂ set to zero; the comparison group is a row, or M in a row.

    weight: (out, in). norms: (in,), the L2 norm of each input feature over all calibration tokens.
    Returns the same shape and dtype, with round(in·ratio) zeros in every row, or N:M.
    """
    scores = weight.abs() * norms
    if pattern.m:
        return weight.masked_fill(lowest_of_groups(scores, pattern), 0)
    return weight.masked_fill(lowest(scores, round(weight.shape[1] * pattern.ratio)), 0)
