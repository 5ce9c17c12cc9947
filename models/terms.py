"""Terms: what is added to a parameter of the pruned model. A restoration maps parameter names to lists of terms."""

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from utils.common.names import counted


def learned_compensation(basis: Tensor, magnitudes: Tensor | None, component: Tensor | None) -> Tensor:
    """c_learned = Σ_i β_i v_i + b of n heads, Eq. 8: basis (n, d, d), magnitudes and component (n, d) or None.

    Row i of a head's basis is v_i. Returns (n, d) in the dtype of the basis.
    """
    learned = torch.zeros_like(basis[:, 0]) if component is None else component
    if magnitudes is None:
        return learned
    return learned + torch.einsum("nd,nde->ne", magnitudes, basis)


class Term(nn.Module):
    """A change that is added to one parameter of the pruned model.

    forward(weight): the change, of the parameter's shape, in the dtype of the term: fp32 in a training step, fp64 in a
    merge. weight: for a bias, its layer's weight as it is stored; for a weight, its value after the terms before this.

    It is built from its tensors alone, so that a saved one can be rebuilt. learned: names of its parameters. fixed:
    names of its buffers, which are not trained. Any of these may be None. keeps_zeros: whether zeros of the weight stay
    zero. beside: whether it has `through(z, weight)`, which computes z (W + term)ᵀ without keeping W + term for the
    backward pass, in less time or memory. what: its description in words.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[tuple[str, ...]] = ()
    keeps_zeros: ClassVar[bool] = True
    beside: ClassVar[bool] = False
    what: ClassVar[str] = "terms"
    kinds: ClassVar[dict[str, type["Term"]]] = {}
    """All imported subclasses, by class name."""

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        Term.kinds[cls.__name__] = cls

    def __init__(self, *values: Tensor, **tensors: Tensor):
        super().__init__()
        tensors |= dict(zip(self.learned + self.fixed, values, strict=False))
        if unknown := set(tensors) - {*self.learned, *self.fixed}:
            raise ValueError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name in self.learned:
            value = tensors.get(name)
            self.register_parameter(name, None if value is None else nn.Parameter(value.detach().contiguous()))
        for name in self.fixed:
            value = tensors.get(name)
            self.register_buffer(name, None if value is None else value.detach().contiguous(), persistent=False)

    def tensors(self, place: str | torch.device = "cpu") -> dict[str, Tensor]:
        """The tensors it is built from, on that device. If they are sharded, all processes must call it."""
        found = {name: getattr(self, name) for name in self.learned + self.fixed}
        return {name: whole(tensor, place) for name, tensor in found.items() if tensor is not None}

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter((*self.parameters(), *self.buffers()))).device

    def exact(self, place: torch.device) -> "Term":
        """The same in fp64, on that device: what a merge computes with."""
        return type(self)(**{n: t.double() if t.is_floating_point() else t for n, t in self.tensors(place).items()})

    def held(self, weight: Tensor) -> int:
        """The number of trainable entries that have no effect, because `weight` is zero there."""
        return 0

    @classmethod
    def describe(cls, terms: "list[Term]", place: str) -> str:
        """Terms of this kind in words, such as: changes of 210 weights."""
        return f"{cls.what} of {counted(len(terms), place)}"


def whole(tensor: Tensor, place: str | torch.device = "cpu") -> Tensor:
    """A term's tensor on that device, detached. If it is sharded (a DTensor), it is gathered from all processes."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to(place)


def restored(value: Tensor, terms: Iterable[Term], weight: Tensor | None = None) -> Tensor:
    """The parameter's value with all terms added, in order.

    Each term is computed on its own device, and its result is moved to the value's.

    weight: for a bias, its layer's weight. None for a weight: each term is then given the value after those before it.
    """
    for term in terms:
        value = value + term((value if weight is None else weight).to(term.device)).to(value.device)
    return value


@torch.no_grad()
def merged(part: str, own: Tensor | None, terms: Iterable[Term], weight: Tensor) -> Tensor:
    """A layer's weight or bias (`part`) with all terms, fp64, on the weight's device. own: None if there is no bias."""
    own = weight.new_zeros(len(weight), dtype=torch.float64) if own is None else own.double()
    return restored(own, (term.exact(weight.device) for term in terms), None if part == "weight" else weight)


def inside_mask(values: Tensor, weight: Tensor) -> Tensor:
    """`values` where `weight` is not zero, else 0. Both must have the same dtype.

    This is the backward of hardshrink, which reads each input once: masked_fill takes twenty times as long on a CPU.
    """
    return torch.ops.aten.hardshrink_backward(values, weight, 0)


class Constant(Term):
    """A free change of a bias (D,), or of a norm's scale (D,)."""

    learned = ("change",)
    what = "changes"

    def forward(self, weight: Tensor) -> Tensor:
        return self.change


class HeadConstant(Term):
    """Eq. 8 for n heads of one layer, as a change of o_proj.bias: Σ_h W_O[:, h] (Σ_i β_i v_i + b).

    A compensated head adds a constant to its slice of o_proj's input at every token. This is one constant added to
    o_proj's output, computed once a step. heads (n,) int64, ascending; basis (n, d, d); magnitudes (β) and component
    (b) (n, d), either of which may be missing.
    """

    learned = ("magnitudes", "component")
    fixed = ("heads", "basis")

    def forward(self, weight: Tensor) -> Tensor:
        """(D,), given W_O (D, H·d)."""
        columns = weight.unflatten(1, (-1, self.basis.shape[-1])).transpose(0, 1)[self.heads]  # (n, D, d)
        learned = learned_compensation(self.basis, self.magnitudes, self.component)
        return torch.einsum("nDd,nd->D", columns.to(self.basis.dtype), learned)

    @classmethod
    def describe(cls, terms: list[Term], place: str) -> str:
        """In words: β and b of 68 heads."""
        symbols = [s for s, name in zip("βb", cls.learned, strict=True) if getattr(terms[0], name) is not None]
        return f"{' and '.join(symbols)} of {counted(sum(len(term.heads) for term in terms), 'head')}"


class MaskedChange(Term):
    """A free change (out, in) of each weight that is not zero: masked full fine-tuning, or what a closed form found.

    errors (2,): of a closed form, its error before and after.
    """

    learned = ("change",)
    fixed = ("errors",)
    what = "non-zero values"

    def forward(self, weight: Tensor) -> Tensor:
        return inside_mask(self.change, weight)

    def held(self, weight: Tensor) -> int:
        return int((weight == 0).sum()) if self.change.requires_grad else 0

    @classmethod
    def describe(cls, terms: list[Term], place: str) -> str:
        """In words: non-zero values of 210 weights, mean error 0.12 -> 0.08."""
        known = [term.errors.double() for term in terms if term.errors is not None]
        errors = ", mean error {:.3g} -> {:.3g}".format(*torch.stack(known).mean(0).tolist()) if known else ""
        return super().describe(terms, place) + errors


class LowRank(Term):
    """LoRA: scale · B A, with down A (r, in), up B (out, r), and scale (), a 0-d tensor."""

    learned = ("down", "up")
    fixed = ("scale",)
    keeps_zeros = False
    beside = True
    what = "low-rank updates"

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in)."""
        update = (self.scale * self.up) @ self.down
        return inside_mask(update, weight) if self.keeps_zeros else update

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """z (W + scale · B A)ᵀ in z's dtype: z (…, in), weight (out, in)."""
        down, up = self.down.to(z.dtype), (self.scale * self.up).to(z.dtype)
        return F.linear(z, weight.to(z.dtype)) + F.linear(F.linear(z, down), up)


class MaskedLowRank(LowRank):
    """LoRA where the weight is not zero: scale · M ⊙ (B A), with M the mask of non-zero weights."""

    keeps_zeros = True
    what = "low-rank updates, inside the mask,"

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """z (W + scale · M ⊙ (B A))ᵀ in z's dtype."""
        return _InsideMask.apply(z, *(tensor.to(z.dtype) for tensor in (weight, self.scale * self.up, self.down)))


class _InsideMask(torch.autograd.Function):
    """z (W + M ⊙ (B A))ᵀ. The backward pass recomputes the sum and M: kept, they would take a second model's memory."""

    @staticmethod
    def forward(ctx, z: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight, up, down)
        return F.linear(z, inside_mask(torch.addmm(weight, up, down), weight))  # = W + M ⊙ (B A): both are 0 where W is

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, up, down = ctx.saved_tensors
        update = inside_mask(grad.flatten(0, -2).T @ z.flatten(0, -2), weight)
        before = grad @ inside_mask(torch.addmm(weight, up, down), weight) if ctx.needs_input_grad[0] else None
        return before, None, update @ down.T, up.T @ update


class DoRA(LowRank):
    """DoRA (Liu et al., ICML 2024, Eqs. 5 and 11): W' = m / ‖V‖ ⊙ V by rows, with V = W + scale · B A.

    magnitudes (out,): the offset m - ‖W‖ of each row. At 0, with B A = 0, W' is W, whatever terms came before. ‖V‖ is
    detached: it has no gradient. Rows of W that are all zero stay zero.
    """

    learned = ("down", "up", "magnitudes")
    what = "magnitudes and low-rank updates"

    def forward(self, weight: Tensor) -> Tensor:
        """W' - W."""
        direction = weight + super().forward(weight)
        return gain_of_rows(weight, direction, self.magnitudes)[:, None] * direction - weight

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """z W'ᵀ in z's dtype."""
        with torch.no_grad():
            wide = weight.float()
            direction = torch.addmm(wide, self.scale * self.up, self.down)
        return (gain_of_rows(wide, direction, self.magnitudes) * super().through(z, weight)).to(z.dtype)


class MaskedDoRA(DoRA):
    """DoRA with V = W + scale · M ⊙ (B A)."""

    keeps_zeros, beside = True, False
    what = "magnitudes and low-rank updates, inside the mask,"


def gain_of_rows(weight: Tensor, direction: Tensor, magnitudes: Tensor) -> Tensor:
    """(out,): (‖W‖ + magnitudes) / ‖V‖ by rows, 1 if V = W and nothing was learned; 0 for rows of W that are zero."""
    before, after = (torch.linalg.vector_norm(tensor.detach(), dim=1) for tensor in (weight, direction))
    gain = (before + magnitudes) / after.clamp_min(torch.finfo(after.dtype).tiny)
    return torch.where(before > 0, gain, 0)
