"""Changes of a frozen weight that training learns: as a step computes them, in fp32, and as a merge does, in fp64."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """A low-rank update of a weight: scale · B A, within the weight's mask or everywhere; in fp32.

    down: A (r, in); up: B (out, r). masked: whether the update is zero where the weight is.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float, masked: bool):
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
        self.scale, self.masked = scale, masked

    def forward(self, weight: Tensor) -> Tensor:
        """What is added to the weight (out, in), fp32."""
        update = self.scale * (self.up @ self.down)
        return update * (weight != 0) if self.masked else update

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU: what a merge writes."""
        return folded_update(weight, self.down, self.up, self.scale, self.masked)

    def rounding(self, weight: Tensor) -> Tensor:
        """(out, in) fp64: how far fp32 may be from exact, a unit of rounding for each of its r + 2 operations."""
        size = folded_update(weight, self.down.abs(), self.up.abs(), self.scale, self.masked)
        return (len(self.down) + 2) * torch.finfo(torch.float32).eps * size


def folded_update(weight: Tensor, down: Tensor, up: Tensor, scale: float, masked: bool) -> Tensor:
    """scale · B A in fp64 on the CPU, (out, in); zero where the weight is, if masked."""
    update = scale * (up.detach().cpu().double() @ down.detach().cpu().double())
    return update.masked_fill_(weight.detach().cpu() == 0, 0) if masked else update
