"""SparseGPT (Frantar & Alistarh, ICML 2023): prune column by column, and update later columns to compensate."""

import torch

from pruning.pattern import Pattern, lowest

BLOCK = 128
"""Columns pruned between two updates of the rest of the matrix. Except with N:M, their mask is chosen at once."""

DAMPENING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""

_ATTEMPTS = 4
"""Each attempt at a Hessian that is not positive definite dampens ten times as much as the one before."""


def damped_inverse(hessian: torch.Tensor) -> torch.Tensor:
    """The inverse of the dampened Hessian. hessian: (n, n) fp32. Returns (n, n) fp64.

    A feature that is always zero (its diagonal is 0) is given the diagonal 1, which leaves it alone. Raises
    torch.linalg.LinAlgError if the matrix stays singular with DAMPENING·10³.
    """
    diagonal = hessian.diagonal().double()
    dead, mean = diagonal == 0, diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    for attempt in range(_ATTEMPTS):
        damped = hessian.to(torch.float64, copy=True)
        damped.diagonal().add_(DAMPENING * 10**attempt * mean)
        damped.diagonal()[dead] = 1
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed.item():
            return torch.cholesky_inverse(factor)
    raise torch.linalg.LinAlgError(f"not positive definite even with dampening {DAMPENING * 10 ** (_ATTEMPTS - 1):g}")


def inverse_factor(hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(U, dead): the upper Cholesky factor of the inverse Hessian, H⁻¹ = UᵀU, and the features always zero.

    hessian: (in, in) fp32. Returns fp32 (in, in), computed in fp64, and bool (in,). To remove w_j while the columns
    before j are frozen, subtract w_j / U_jj times row j of U from columns j and later.
    """
    factor = torch.linalg.cholesky(damped_inverse(hessian), upper=True)
    return factor.float(), hessian.diagonal() == 0


def prune(weight: torch.Tensor, factor: tuple[torch.Tensor, torch.Tensor], pattern: Pattern) -> torch.Tensor:
    """The matrix pruned by optimal brain surgery over the columns, remaining weights updated.

    weight: (out, in) fp32, overwritten. factor: what `inverse_factor` gives. The mask of a block of columns is
    chosen before the block is pruned, from w²/U_jj² over all its rows; with N:M, before every M columns.
    Returns (out, in) with round(out·in·ratio) zeros, or N:M.
    """
    upper, dead = factor
    weight[:, dead] = 0
    rows, columns = weight.shape
    group = pattern.m or 1
    width = max(BLOCK // group, 1) * group
    for start in range(0, columns, width):
        end = min(start + width, columns)
        block, square = weight[:, start:end], upper[start:end, start:end]
        scale = square.diagonal().square()
        errors = torch.zeros_like(block)
        mask = torch.zeros_like(block, dtype=torch.bool)
        if not pattern.m:
            count = round(rows * end * pattern.ratio) - round(rows * start * pattern.ratio)
            mask = lowest((block.square() / scale).flatten(), count).view_as(block)
        for column in range(end - start):
            if pattern.m and column % pattern.m == 0:
                next_m = slice(column, column + pattern.m)
                mask[:, next_m] = pattern.mask(block[:, next_m].square() / scale[next_m])
            errors[:, column] = block[:, column] * mask[:, column] / square[column, column]
            block[:, column:].addr_(errors[:, column], square[column, column:], alpha=-1)
            block[:, column].masked_fill_(mask[:, column], 0)
        weight[:, end:] -= errors @ upper[start:end, end:]
    return weight
