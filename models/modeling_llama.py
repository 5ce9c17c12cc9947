"""RestoreLCC's patch on the stock Llama: what Eq. 8 adds to `o_proj`, and nothing else.

A compensated head adds a constant vector to its slice of o_proj's input at every token. That equals one constant added
to o_proj's output, so the layer computes it once a step instead of once a token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

INITIAL_STD = 1e-3
"""Standard deviation of β and b before training [P]."""


@dataclass(frozen=True)
class Restoration:
    """What training learns, and what it needs to be attached again.

    heads: n pairs (layer, head), in ascending order.
    basis: (n, d, d) fp32, row i of a head is v_i, orthonormal.
    magnitudes: (n, d) fp32, β; None with `bias_only`.
    component: (n, d) fp32, b; None with `magnitudes_only`.
    """

    heads: list[tuple[int, int]]
    basis: Tensor
    magnitudes: Tensor | None
    component: Tensor | None

    def compensation(self) -> Tensor:
        """c_learned = Σ_i β_i v_i + b for each head: (n, d) fp32, Eq. 8."""
        return learned_compensation(self.basis, self.magnitudes, self.component)

    def zeroed(self) -> "Restoration":
        """The same heads and bases with β = b = 0: restores nothing."""
        zeros = (None if t is None else torch.zeros_like(t) for t in (self.magnitudes, self.component))
        return Restoration(self.heads, self.basis, *zeros)


def learned_compensation(basis: Tensor, magnitudes: Tensor | None, component: Tensor | None) -> Tensor:
    """Eq. 8 for n heads: basis (n, d, d), magnitudes and component (n, d) or None; returns (n, d)."""
    learned = torch.zeros_like(basis[:, 0]) if component is None else component
    if magnitudes is None:
        return learned
    return learned + torch.einsum("nd,nde->ne", magnitudes, basis)


def head_columns(weight: Tensor, heads: list[int] | Tensor, head_dim: int) -> Tensor:
    """The columns W_O[:, h] of the given heads of one layer: weight (D, H·d) -> (n, D, d), in fp32."""
    return weight.unflatten(1, (-1, head_dim)).transpose(0, 1)[heads].float()


class _LinearPlusBias(torch.autograd.Function):
    """z Wᵀ + bias with a frozen W: the bias is added in z's dtype, its gradient is summed in fp32."""

    @staticmethod
    def forward(ctx, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(z, weight, bias.to(z.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (weight,) = ctx.saved_tensors
        grad_z = grad @ weight if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return grad_z, None, grad_bias


class CompensatedProjection(nn.Linear):
    """`o_proj` with learned compensations on some of its heads.

    Weight and bias are the stock layer's own tensors, frozen. `magnitudes` and `component` (n, d) are trained in fp32
    whatever the model's dtype; `basis` (n, d, d) is fixed.
    """

    def __init__(self, stock: nn.Linear, heads: list[int], restoration: Restoration):
        nn.Module.__init__(self)
        self.in_features, self.out_features = stock.in_features, stock.out_features
        self.weight, self.bias = stock.weight, stock.bias
        self.head_dim = restoration.basis.shape[-1]
        device = stock.weight.device
        self.register_buffer("heads", torch.tensor(heads, device=device), persistent=False)
        self.register_buffer("basis", restoration.basis.to(device), persistent=False)
        for name in ("magnitudes", "component"):
            start = getattr(restoration, name)
            self.register_parameter(name, None if start is None else nn.Parameter(start.to(device, copy=True)))
        self._kept: tuple[tuple, Tensor] | None = None

    def compensated_bias(self) -> Tensor:
        """The bias to add, the layer's own included: Σ_h W_O[:, h] c_h, (D,) fp32."""
        learned = learned_compensation(self.basis, self.magnitudes, self.component)
        added = torch.einsum("nDd,nd->D", head_columns(self.weight, self.heads, self.head_dim), learned)
        return added if self.bias is None else added + self.bias.float()

    def forward(self, z: Tensor) -> Tensor:
        # A compiled layer must not look at what is kept: it would be compiled again for each layer's.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None  # a step follows, which FSDP makes on a part of β and b that this layer doesn't see
            return _LinearPlusBias.apply(z, self.weight, self.compensated_bias())
        return F.linear(z, self.weight, self._kept_bias(z.dtype))

    def _kept_bias(self, dtype: torch.dtype) -> Tensor:
        """The bias for inference, computed again only after β, b or the weight were changed or moved."""
        sources = (self.magnitudes, self.component, self.weight)
        state = dtype, *((t.device, t.data_ptr(), t._version) for t in sources if t is not None)
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self.compensated_bias().to(dtype)
        return self._kept[1]


def initial_restoration(heads: list[tuple[int, int]], basis: Tensor, method: str, seed: int) -> Restoration:
    """β and b drawn from N(0, 1e-3) for the chosen heads.

    method: `restorelcc` has both, `bias_only` no β, `magnitudes_only` no b.
    heads: pairs (layer, head). basis: (L, H, d, d), of which the chosen heads' is kept.
    """
    heads = sorted(heads)
    layers, within = (list(column) for column in zip(*heads, strict=True))
    chosen = basis[layers, within].float()
    generator = torch.Generator().manual_seed(seed)
    magnitudes, component = (INITIAL_STD * torch.randn(chosen.shape[:2], generator=generator) for _ in range(2))
    return Restoration(
        heads,
        chosen,
        None if method == "bias_only" else magnitudes,
        None if method == "magnitudes_only" else component,
    )


def attach(model: LlamaForCausalLM, restoration: Restoration) -> LlamaForCausalLM:
    """Replace `o_proj` of each layer that has chosen heads, in place; only β and b require gradients afterwards."""
    model.requires_grad_(False)
    for layer, rows in _rows_by_layer(restoration.heads).items():
        attention = model.model.layers[layer].self_attn
        part = Restoration(
            [restoration.heads[row] for row in rows],
            restoration.basis[rows],
            None if restoration.magnitudes is None else restoration.magnitudes[rows],
            None if restoration.component is None else restoration.component[rows],
        )
        attention.o_proj = CompensatedProjection(attention.o_proj, [head for _, head in part.heads], part)
    return model


def read_restoration(model: LlamaForCausalLM) -> Restoration:
    """The restoration attached to `model`, as it stands now, on the CPU; of a sharded model, by all processes."""
    heads, parts = [], {"basis": [], "magnitudes": [], "component": []}
    for layer, projection in compensated_projections(model).items():
        heads += [(layer, head) for head in projection.heads.tolist()]
        for name, found in parts.items():
            tensor = getattr(projection, name)
            if tensor is not None:
                found.append(_whole(tensor.detach()).float().cpu().clone())
    return Restoration(heads, *(torch.cat(found) if found else None for found in parts.values()))


def compensated_projections(model: LlamaForCausalLM) -> dict[int, CompensatedProjection]:
    """The patched `o_proj` of each layer that has one."""
    projections = {index: layer.self_attn.o_proj for index, layer in enumerate(model.model.layers)}
    return {index: p for index, p in projections.items() if isinstance(p, CompensatedProjection)}


def _whole(tensor: Tensor) -> Tensor:
    """The tensor; gathered, if FSDP keeps a part of it in each process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _rows_by_layer(heads: list[tuple[int, int]]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, (layer, _) in enumerate(heads):
        rows.setdefault(layer, []).append(row)
    return rows
