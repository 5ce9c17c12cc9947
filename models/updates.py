"""Changes of a frozen weight: each as a training step computes it, in fp32, and as a merge does, in fp64.

An update is a module from the weight as it is by then, (out, in), to what is added to it. One that says `beside` also
gives a step's z W'ᵀ without computing W', by `through`: the gradient of W', as dear as the forward pass, is saved.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = torch.finfo(torch.float32).eps


class LowRank(nn.Module):
    """A low-rank update of a weight: scale · B A, within the weight's mask or everywhere; in fp32.

    down: A (r, in); up: B (out, r). masked: whether the update is zero where the weight is.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float, masked: bool):
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
        self.scale, self.masked, self.beside = scale, masked, not masked

    def forward(self, weight: Tensor) -> Tensor:
        """What is added to the weight (out, in), fp32."""
        update = (self.scale * self.up) @ self.down
        return update.masked_fill(weight == 0, 0) if self.masked else update

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """z W'ᵀ in z's dtype, without a mask: z (…, in), weight (out, in)."""
        down, up = self.down.to(z.dtype), (self.scale * self.up).to(z.dtype)
        return F.linear(z, weight) + F.linear(F.linear(z, down), up)

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU: what a merge writes."""
        return folded_update(weight, self.down, self.up, self.scale, self.masked)

    def rounding(self, weight: Tensor) -> Tensor:
        """(out, in) fp64: how far fp32 may be from exact, a unit of rounding for each of its r + 2 operations."""
        size = folded_update(weight, self.down.abs(), self.up.abs(), self.scale, self.masked)
        return (len(self.down) + 2) * EPS * size


class FixedLowRank(LowRank):
    """A low-rank update that is not trained: what a closed form gave."""

    def __init__(self, down: Tensor, up: Tensor, scale: float, masked: bool):
        super().__init__(down, up, scale, masked)
        self.requires_grad_(False)


def folded_update(weight: Tensor, down: Tensor, up: Tensor, scale: float, masked: bool) -> Tensor:
    """scale · B A in fp64 on the CPU, (out, in); zero where the weight is, if masked."""
    update = scale * (_exact(up) @ _exact(down))
    return update.masked_fill_(weight.detach().cpu() == 0, 0) if masked else update


class Decomposed(LowRank):
    """DoRA (Liu et al., ICML 2024, Eqs. 5 and 11): W' = m / ‖V‖ ⊙ V by rows, with V = W + scale · B A.

    magnitudes (out,): m - ‖W‖, trained; as an offset it starts at W whatever came before. ‖V‖ has no gradient. Rows of
    W that are all zero stay as they are.
    """

    def __init__(self, down: Tensor, up: Tensor, magnitudes: Tensor, scale: float, masked: bool):
        super().__init__(down, up, scale, masked)
        self.magnitudes = nn.Parameter(magnitudes.clone())

    def forward(self, weight: Tensor) -> Tensor:
        """W' - W, fp32."""
        direction = weight + super().forward(weight)
        return gain_of_rows(weight, direction, self.magnitudes)[:, None] * direction - weight

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """z W'ᵀ in z's dtype, without a mask."""
        with torch.no_grad():
            wide = weight.float()
            direction = torch.addmm(wide, self.up, self.down, alpha=self.scale)
        return (gain_of_rows(wide, direction, self.magnitudes) * super().through(z, weight)).to(z.dtype)

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU."""
        weight = _exact(weight)
        direction = weight + super().folded(weight)
        return gain_of_rows(weight, direction, _exact(self.magnitudes))[:, None] * direction - weight

    def rounding(self, weight: Tensor) -> Tensor:
        """(out, in) fp64: to first order what rounding V, both norms (in + 2 operations each) and the rest can do."""
        weight = _exact(weight)
        direction = weight + super().folded(weight)
        offset = _exact(self.magnitudes)
        gain = gain_of_rows(weight, direction, offset)[:, None].abs()
        norm = EPS * (weight.shape[1] + 2)
        before, after = (torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (weight, direction))
        after = after.clamp_min(torch.finfo(torch.float64).tiny)
        moved = super().rounding(weight) + EPS * direction.abs()
        gain_moved = gain * (torch.linalg.vector_norm(moved, dim=1, keepdim=True) / after + norm + 2 * EPS)
        gain_moved += (before * norm + offset[:, None].abs() * EPS) / after * (before > 0)
        changed = gain * direction.abs()
        return gain * moved + gain_moved * direction.abs() + 2 * EPS * (weight.abs() + changed)


def gain_of_rows(weight: Tensor, direction: Tensor, magnitudes: Tensor) -> Tensor:
    """(out,): (‖W‖ + magnitudes) / ‖V‖ by rows, 1 if V = W and nothing was learned; 0 for rows of W that are zero."""
    before, after = (torch.linalg.vector_norm(tensor.detach(), dim=1) for tensor in (weight, direction))
    gain = (before + magnitudes) / after.clamp_min(torch.finfo(after.dtype).tiny)
    return torch.where(before > 0, gain, 0)


class InMask(nn.Module):
    """A free change of each weight that is not zero: change (out, in), trained in fp32; where the weight is zero so is
    its gradient."""

    def __init__(self, change: Tensor):
        super().__init__()
        self.change = nn.Parameter(change.clone())

    def forward(self, weight: Tensor) -> Tensor:
        """What is added to the weight (out, in), fp32."""
        return self.change.masked_fill(weight == 0, 0)

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU."""
        return _exact(self.change).masked_fill(weight.detach().cpu() == 0, 0)

    def rounding(self, weight: Tensor) -> Tensor:
        """(out, in) fp64: nothing is computed, but the sum with the weight."""
        return EPS * self.folded(weight).abs()

    def held(self, weight: Tensor) -> int:
        """How many of its numbers training can't move."""
        return int((weight == 0).sum())


class FixedInMask(InMask):
    """A change inside the mask that is not trained: what a method computed layer by layer."""

    def __init__(self, change: Tensor):
        super().__init__(change)
        self.requires_grad_(False)

    def held(self, weight: Tensor) -> int:
        """None: nothing of it counts as trained, so nothing is to be taken off."""
        return 0


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()
