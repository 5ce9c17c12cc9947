"""Sparsity patterns: what share of the weights becomes zero, and where the zeros may be."""

import re
from dataclasses import dataclass

import torch

from utils.common.errors import UserError, shortened

_FORMS = "give a share above 0 and below 1 (0.5), or N:M to keep N of every M consecutive weights (2:4, 4:8)"


@dataclass(frozen=True)
class Pattern:
    """Unstructured at a ratio, or N:M.

    ratio: the share of weights that become zero.
    n, m: keep N of every M consecutive weights of a row, (M - N) of them are zero; both None when unstructured.
    """

    ratio: float
    n: int | None = None
    m: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """The pattern behind "0.5" or "2:4"; UserError naming -sparsity for anything else."""
        if match := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text.strip()):
            n, m = int(match[1]), int(match[2])
            if not 0 < n < m:
                raise UserError(f"-sparsity: '{text}' needs 0 < N < M; {_FORMS}")
            return cls(1 - n / m, n, m)
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0 < ratio < 1:
            raise UserError(f"-sparsity: '{shortened(text)}' is neither a share (0 to 1) nor an N:M pattern; {_FORMS}")
        return cls(ratio)

    def mask(self, scores: torch.Tensor) -> torch.Tensor:
        """Mask of zeros: the lowest M - N of every M consecutive scores, or the lowest `ratio` of the last axis.

        scores: (..., n), n a multiple of M. Returns bool (..., n).
        """
        if self.m:
            return lowest(scores.unflatten(-1, (-1, self.m)), self.m - self.n).flatten(-2)
        return lowest(scores, round(scores.shape[-1] * self.ratio))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.ratio:g}"


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the `count` lowest scores along the last axis, exactly that many whatever the ties.

    scores: (..., n), any real dtype. Returns bool (..., n).
    """
    chosen = torch.topk(scores, count, dim=-1, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
