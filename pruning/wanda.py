"""Wanda (Sun et al., ICLR 2024): weights ranked by |w| times the L2 norm of their input feature."""

import torch

from pruning.pattern import Pattern


def prune(weight: torch.Tensor, norms: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The matrix with its lowest |w_ij|·‖x_j‖₂ set to zero; the comparison group is a row, or M consecutive weights.

    weight: (out, in). norms: (in,), the L2 norm of each input feature over all calibration tokens.
    Returns the same shape and dtype, with round(in·ratio) zeros in every row, or N:M.
    """
    return weight.masked_fill(pattern.mask(weight.abs() * norms), 0)
