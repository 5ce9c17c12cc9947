"""The patch on the stock Llama: constants added to what a linear layer gives, scales of norms, and nothing else.

A compensated head adds a constant vector to its slice of o_proj's input at every token. That equals one constant added
to o_proj's output, so the layer computes it once a step instead of once a token.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from accelerate.hooks import add_hook_to_module
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def learned_compensation(basis: Tensor, magnitudes: Tensor | None, component: Tensor | None) -> Tensor:
    """c_learned = Σ_i β_i v_i + b of n heads, Eq. 8: basis (n, d, d), magnitudes and component (n, d) or None.

    Row i of a head's basis is v_i. Returns (n, d) in the dtype of the basis.
    """
    learned = torch.zeros_like(basis[:, 0]) if component is None else component
    if magnitudes is None:
        return learned
    return learned + torch.einsum("nd,nde->ne", magnitudes, basis)


def head_columns(weight: Tensor, heads: list[int] | Tensor, head_dim: int) -> Tensor:
    """The columns W_O[:, h] of the given heads of one layer: weight (D, H·d) -> (n, D, d), in its dtype."""
    return weight.unflatten(1, (-1, head_dim)).transpose(0, 1)[heads]


def output_of_heads(columns: Tensor, learned: Tensor) -> Tensor:
    """Σ_h W_O[:, h] c_h: columns (n, D, d) and c (n, d) of one dtype -> (D,)."""
    return torch.einsum("nDd,nd->D", columns, learned)


class HeadCompensation(nn.Module):
    """Eq. 8 on n heads of one o_proj: the constant that they add to its output.

    heads (n,) and basis (n, d, d) are fixed; magnitudes and component (n, d), or None, are trained in fp32.
    """

    def __init__(self, heads: Tensor, basis: Tensor, magnitudes: Tensor | None, component: Tensor | None):
        super().__init__()
        self.register_buffer("heads", heads, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        for name, start in (("magnitudes", magnitudes), ("component", component)):
            self.register_parameter(name, None if start is None else nn.Parameter(start.clone()))
        self.register_buffer("columns", None, persistent=False)

    def keep(self, weight: Tensor) -> None:
        """Hold the heads' columns of the layer's frozen weight in fp32, as each step needs them."""
        self.columns = head_columns(weight.detach(), self.heads, self.basis.shape[-1]).float()

    def forward(self, weight: Tensor) -> Tensor:
        """(D,) fp32, given the layer's weight (D, H·d)."""
        columns = self.columns
        if columns is None:
            columns = head_columns(weight, self.heads, self.basis.shape[-1]).float()
        return output_of_heads(columns, learned_compensation(self.basis, self.magnitudes, self.component))

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU: what a merge writes."""
        return folded_compensation(weight, self.heads, self.basis, self.magnitudes, self.component)

    def rounding(self, weight: Tensor) -> Tensor:
        """(D,) fp64: how far fp32 may be from exact, a unit of rounding for each of its n·d + 2·d + 2 operations."""
        tensors = (weight, self.basis, self.magnitudes, self.component)
        absolute = (None if tensor is None else tensor.detach().abs() for tensor in tensors)
        weight, *rest = absolute
        operations = self.basis.shape[0] * self.basis.shape[1] + 2 * self.basis.shape[1] + 2
        return operations * torch.finfo(torch.float32).eps * folded_compensation(weight, self.heads, *rest)


def folded_compensation(
    weight: Tensor, heads: Tensor, basis: Tensor, magnitudes: Tensor | None, component: Tensor | None
) -> Tensor:
    """Σ_h W_O[:, h] c_h in fp64 on the CPU, (D,): rounded to any dtype it is the same bits whatever adds it up.

    weight: (D, H·d). heads: (n,). basis: (n, d, d). magnitudes, component: (n, d) or None.
    """
    fixed = [None if tensor is None else tensor.detach().cpu().double() for tensor in (basis, magnitudes, component)]
    columns = head_columns(weight.detach(), heads.to(weight.device), basis.shape[-1]).cpu().double()
    return output_of_heads(columns, learned_compensation(*fixed))


class Constant(nn.Module):
    """A free constant added to a linear layer's output: bias (D,), trained in fp32."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.clone())

    def keep(self, weight: Tensor) -> None:
        """Nothing of the weight is needed."""

    def forward(self, weight: Tensor) -> Tensor:
        """(D,) fp32."""
        return self.bias

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU."""
        return self.bias.detach().cpu().double()

    def rounding(self, weight: Tensor) -> Tensor:
        """(D,) fp64: nothing is computed, but the sum with other terms."""
        return torch.finfo(torch.float32).eps * self.folded(weight).abs()


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


class RestoredLinear(nn.Linear):
    """A frozen linear layer, its weight and bias the stock layer's own, with constants added to its output."""

    def __init__(self, stock: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = stock.in_features, stock.out_features
        self.weight, self.bias = stock.weight, stock.bias
        self.terms = nn.ModuleList()
        self.stored: torch.dtype | None = None
        """The dtype that a checkpoint keeps the bias in, once that is known: inference then rounds to it first."""
        self._kept: tuple[tuple, Tensor] | None = None

    def add(self, term: nn.Module) -> None:
        """One constant more: a module from the weight to (D,) fp32, with `folded` in fp64, and `keep` before steps."""
        self.terms.append(term.to(_place(self)))

    def restored_bias(self) -> Tensor:
        """The bias of a training step, the layer's own included: (D,) fp32."""
        added = [term(self.weight) for term in self.terms]
        own = [] if self.bias is None else [self.bias.float()]
        return sum([*added[1:], *own], start=added[0])

    def forward(self, z: Tensor) -> Tensor:
        # A compiled layer must not look at what is kept: it would be compiled again for each layer's.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None  # a step follows, which FSDP makes on a part of the terms that this layer doesn't see
            return _LinearPlusBias.apply(z, self.weight, self.restored_bias())
        return F.linear(z, self.weight, self._kept_bias(z.dtype))

    def _kept_bias(self, dtype: torch.dtype) -> Tensor:
        """The bias for inference, computed as a merge computes it, again only after a term or the weight changed."""
        # The frozen weight may be elsewhere each time, in a model that is partly on disk.
        state = dtype, self.stored, self.weight.device, self.weight._version
        state += tuple((t.device, t.data_ptr(), t._version) for t in self.terms.parameters())
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self.folded_bias().to(self.stored or dtype).to(dtype).to(self.weight.device)
        return self._kept[1]

    def folded_bias(self) -> Tensor:
        """The layer's own bias and all terms in fp64, on the CPU: (D,), in the order in which a merge adds them."""
        own = torch.zeros((), dtype=torch.float64) if self.bias is None else self.bias.detach().cpu().double()
        return sum((term.folded(self.weight) for term in self.terms), start=own)

    @torch.no_grad()
    def apart(self) -> float:
        """How far what trains is from what is merged, in units of what rounding to fp32 allows: at most 1 if right."""
        trains, merged = self.restored_bias().cpu().double(), self.folded_bias()
        allowed = sum(term.rounding(self.weight) for term in self.terms)
        allowed = allowed + torch.finfo(torch.float32).eps * len(self.terms) * merged.abs()
        return float(((trains - merged).abs() / allowed.clamp_min(torch.finfo(torch.float64).tiny)).max())


class _Scaled(torch.autograd.Function):
    """scale · hidden in hidden's dtype; the gradient of the scale is summed in fp32."""

    @staticmethod
    def forward(ctx, hidden: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, scale)
        return scale.to(hidden.dtype) * hidden

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, scale = ctx.saved_tensors
        grad_hidden = grad * scale.to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_scale = (grad * hidden).flatten(0, -2).sum(0, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        return grad_hidden, grad_scale


class RestoredNorm(LlamaRMSNorm):
    """An RMSNorm whose scale (D,) is trained in fp32."""

    def __init__(self, stock: LlamaRMSNorm, scale: Tensor):
        nn.Module.__init__(self)
        self.weight, self.variance_epsilon = stock.weight, stock.variance_epsilon
        self.scale = nn.Parameter(scale.to(_place(stock), copy=True))
        self.stored: torch.dtype | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        scale = self.scale if torch.is_grad_enabled() or self.stored is None else self.scale.to(self.stored)
        return _Scaled.apply(normed.to(hidden_states.dtype), scale)


def restored_linear(model: LlamaForCausalLM, layer: int, name: str) -> RestoredLinear:
    """The linear layer `name` (as `self_attn.o_proj`) of a decoder layer; the stock one is replaced, in place."""

    def make(stock: nn.Linear) -> RestoredLinear:
        linear = RestoredLinear(stock)
        # Of a model that is spread, accelerate's hook brings the weight when it is needed.
        return add_hook_to_module(linear, stock._hf_hook) if hasattr(stock, "_hf_hook") else linear

    return _replaced(model.model.layers[layer], name, RestoredLinear, make)


def _place(module: nn.Module) -> torch.device | str | int:
    """Where the module computes: where its weight is, or where accelerate brings it."""
    device = module.weight.device
    return module._hf_hook.execution_device if device.type == "meta" else device


def keep_columns(model: LlamaForCausalLM) -> None:
    """Convert what training needs of frozen weights to fp32 once, not each step; not for a model to be sharded."""
    for linear in model.modules():
        if isinstance(linear, RestoredLinear):
            for term in linear.terms:
                term.keep(linear.weight)


def restored_norm(model: LlamaForCausalLM, name: str, scale: Tensor) -> None:
    """Put a trained scale into the norm `name` (as `model.layers.3.input_layernorm`), in place."""
    _replaced(model, name, RestoredNorm, lambda stock: RestoredNorm(stock, scale))


def _replaced(inside: nn.Module, name: str, kind: type, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    place, _, last = name.rpartition(".")
    parent = inside.get_submodule(place)
    stock = getattr(parent, last)
    if not isinstance(stock, kind):
        setattr(parent, last, make(stock))
    return getattr(parent, last)


def terms_of(model: LlamaForCausalLM, name: str, kind: type) -> dict[int, nn.Module]:
    """By layer, the term of this kind on the linear layer `name` of each decoder layer that has one."""
    found = {}
    for index, layer in enumerate(model.model.layers):
        linear = layer.get_submodule(name)
        if isinstance(linear, RestoredLinear):
            found.update((index, term) for term in linear.terms if isinstance(term, kind))
    return found


def whole(tensor: Tensor) -> Tensor:
    """A trained tensor as fp32 on the CPU; gathered, if FSDP keeps a part of it in each process."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).float().cpu().clone()


def store_as(model: LlamaForCausalLM, dtypes: dict[str, torch.dtype]) -> None:
    """Let inference use what a checkpoint will hold: each restored tensor, by name, rounded to its stored dtype."""
    for name, dtype in dtypes.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, RestoredLinear | RestoredNorm):
            module.stored = dtype


def explicit_biases(model: LlamaForCausalLM, names: Iterable[str]) -> LlamaForCausalLM:
    """Give the model zero biases by these names, in place, where it has none.

    With them it runs the very operations of a merged checkpoint, so that their logits can be compared bit for bit.
    """
    for name in names:
        linear = model.get_submodule(name.removesuffix(".bias"))
        # Where accelerate brings the weights there is nothing to put beside them, nor are equal bits asked for.
        if linear.bias is None and linear.weight.device.type != "meta" and not isinstance(linear, RestoredLinear):
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
    return model
