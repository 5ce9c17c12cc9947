"""Statistics of a linear layer's input, accumulated batch by batch in fp32.

add: accumulates a batch (tokens, width) of any float dtype. value: the statistic of all tokens that were added.
"""

import torch
from torch import Tensor

_CHUNK = 1024
"""Tokens converted to fp32 at a time: small enough to stay in cache."""

_BLOCK = 256
"""Rows of X Xᵀ computed at a time, only from the diagonal on: half of the multiplications, for a wide input."""


class InputNorms:
    """The L2 norm of every input feature: (width,) fp32."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._squares = torch.zeros(width, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        for chunk in inputs.split(_CHUNK):
            self._squares += chunk.float().square().sum(0)

    def value(self) -> Tensor:
        return self._squares.sqrt()


class InputMeans:
    """The mean of every input feature, (width,) fp64 on the CPU: batches are summed in fp32, their sums in fp64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum, self._tokens = torch.zeros(width, dtype=torch.float64), 0

    def add(self, inputs: Tensor) -> None:
        self._sum += inputs.sum(0, dtype=torch.float32).cpu().double()
        self._tokens += len(inputs)

    def value(self) -> Tensor:
        return self._sum / self._tokens


class Hessian:
    """X Xᵀ, (width, width) fp32, X (width, tokens): the Hessian, up to a factor, of ‖WX - ŴX‖² for every row of W."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        for first in range(0, inputs.shape[1], _BLOCK):
            rows = slice(first, first + _BLOCK)
            self._sum[rows, first:].addmm_(inputs[:, rows].T, inputs[:, first:])

    def value(self) -> Tensor:
        self._sum.triu_()
        return self._sum.add_(self._sum.triu(1).T)


def relative_error(dense: Tensor, pruned: Tensor, hessian: Tensor) -> float:
    """‖WX - ŴX‖² / ‖WX‖² from X Xᵀ. dense, pruned: (out, in); hessian: (in, in), all fp32."""
    wrong, whole = (((matrix @ hessian) * matrix).sum().item() for matrix in (dense - pruned, dense))
    return wrong / max(whole, 1e-30)
