"""What a method needs to know of a linear layer's input, gathered batch by batch in fp32."""

import torch

_CHUNK = 1024
"""Tokens converted to fp32 at a time: small enough to stay in cache."""


class InputNorms:
    """The L2 norm of every input feature over all tokens seen."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._squares = torch.zeros(width, dtype=torch.float32, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Count a batch in. inputs: (tokens, width), any float dtype."""
        for chunk in inputs.split(_CHUNK):
            self._squares += chunk.float().square().sum(0)

    def value(self) -> torch.Tensor:
        """(width,) fp32."""
        return self._squares.sqrt()


class InputMeans:
    """The mean of every input feature over all tokens seen: batches are summed in fp32, their sums in fp64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum, self._tokens = torch.zeros(width, dtype=torch.float64), 0

    def add(self, inputs: torch.Tensor) -> None:
        """Count a batch in. inputs: (tokens, width), any float dtype."""
        self._sum += inputs.sum(0, dtype=torch.float32).cpu().double()
        self._tokens += len(inputs)

    def value(self) -> torch.Tensor:
        """(width,) fp64 on the CPU."""
        return self._sum / self._tokens


class Hessian:
    """XᵀX over all tokens seen: the Hessian, up to a factor, of ‖WX - ŴX‖² for every row of W."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Count a batch in. inputs: (tokens, width), any float dtype."""
        inputs = inputs.float()
        self._sum.addmm_(inputs.T, inputs)

    def value(self) -> torch.Tensor:
        """(width, width) fp32."""
        return self._sum


def relative_error(dense: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    """‖WX - ŴX‖² / ‖WX‖² from XᵀX. dense, pruned: (out, in); hessian: (in, in), all fp32."""
    change = dense - pruned
    wrong, whole = (((matrix @ hessian) * matrix).sum().item() for matrix in (change, dense))
    return wrong / max(whole, 1e-30)
