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


class FixedConstant(Constant):
    """A constant that is not trained: what a closed form gave."""

    def __init__(self, bias: Tensor):
        super().__init__(bias)
        self.bias.requires_grad_(False)


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


class FixedChange(nn.Module):
    """A change of a weight that is not trained: change (out, in) fp32, left out where the weight is zero."""

    def __init__(self, change: Tensor):
        super().__init__()
        self.change = nn.Parameter(change, requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        """What is added to the weight (out, in), fp32."""
        return self.change.masked_fill(weight == 0, 0)

    def folded(self, weight: Tensor) -> Tensor:
        """The same in fp64, on the CPU: what a merge writes."""
        return folded_change(weight, self.change)

    def rounding(self, weight: Tensor) -> Tensor:
        """(out, in) fp64: nothing is computed, but the sum with the weight."""
        return torch.finfo(torch.float32).eps * self.folded(weight).abs()


def folded_change(weight: Tensor, change: Tensor) -> Tensor:
    """The change in fp64 on the CPU, (out, in); zero where the weight is."""
    return change.detach().cpu().double().masked_fill_(weight.detach().cpu() == 0, 0)


def changed(weight: Tensor, updates: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """The weight after all updates, one after another."""
    for update in updates:
        weight = weight + update(weight)
    return weight


class RestoredLinear(nn.Linear):
    """A frozen linear layer, its weight and bias the stock layer's own, with what is learned added to them.

    terms add constants to the output; updates add to the weight, each to what the ones before it have made of it.
    """

    def __init__(self, stock: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = stock.in_features, stock.out_features
        self.weight, self.bias = stock.weight, stock.bias
        self.terms, self.updates = nn.ModuleList(), nn.ModuleList()
        self.stored: dict[str, torch.dtype] = {}
        """The dtypes in which a checkpoint keeps weight and bias, once known: inference then rounds to them first."""
        self._kept: tuple[tuple, Tensor, Tensor | None] | None = None

    def add(self, term: nn.Module) -> None:
        """One constant more: a module from the weight to (D,) fp32, with `folded` in fp64, and `keep` before steps."""
        self.terms.append(term.to(_place(self)))

    def update(self, update: nn.Module) -> None:
        """One change of the weight more: a module from the weight as it is by then to what is added to it, fp32.

        It has the same in fp64 as `folded`, and `rounding`, how far the two may be apart.
        """
        self.updates.append(update.to(_place(self)))

    def restored_bias(self) -> Tensor | None:
        """The bias of a training step, the layer's own included: (D,) fp32."""
        added = [term(self.weight) for term in self.terms]
        own = [] if self.bias is None else [self.bias.float()]
        return sum([*added[1:], *own], start=added[0]) if added else self.bias

    def restored_weight(self) -> Tensor:
        """The weight of a training step: (out, in) fp32."""
        return changed(self.weight.float(), self.updates)

    def forward(self, z: Tensor) -> Tensor:
        # A compiled layer must not look at what is kept: it would be compiled again for each layer's.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None  # a step follows, which FSDP makes on a part of the terms that this layer doesn't see
            if len(self.updates):
                bias = self.restored_bias()
                return F.linear(z, self.restored_weight().to(z.dtype), None if bias is None else bias.to(z.dtype))
            return _LinearPlusBias.apply(z, self.weight, self.restored_bias())
        return F.linear(z, *self._inference(z.dtype))

    def _inference(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, computed as a merge computes them, again only after something that is learned changed."""
        # The frozen weight may be elsewhere each time, in a model that is partly on disk.
        learned = (*self.terms.parameters(), *self.updates.parameters())
        state = dtype, *self.stored.items(), self.weight.device, self.weight._version
        state += tuple((t.device, t.data_ptr(), t._version) for t in learned)
        if self._kept is None or self._kept[0] != state:

            def kept(name: str, folded: Tensor) -> Tensor:
                return folded.to(self.stored.get(name, dtype)).to(dtype).to(self.weight.device)

            weight = kept("weight", self.folded_weight()) if len(self.updates) else None
            self._kept = state, weight, kept("bias", self.folded_bias()) if len(self.terms) else None
        _, weight, bias = self._kept
        return self.weight if weight is None else weight, self.bias if bias is None else bias

    def folded_weight(self) -> Tensor:
        """The weight and all updates in fp64, on the CPU: (out, in), in the order in which a merge adds them."""
        return changed(self.weight.detach().cpu().double(), [update.folded for update in self.updates])

    def folded_bias(self) -> Tensor:
        """The layer's own bias and all terms in fp64, on the CPU: (D,), in the order in which a merge adds them."""
        own = torch.zeros((), dtype=torch.float64) if self.bias is None else self.bias.detach().cpu().double()
        return sum((term.folded(self.weight) for term in self.terms), start=own)

    @torch.no_grad()
    def apart(self) -> float:
        """How far what trains is from what is merged, in units of what rounding to fp32 allows: at most 1 if right."""
        pairs = []
        if len(self.terms):
            pairs.append((self.restored_bias(), self.folded_bias(), self.terms))
        if len(self.updates):
            pairs.append((self.restored_weight(), self.folded_weight(), self.updates))
        found = 0.0
        for trains, merged, parts in pairs:
            allowed = sum(part.rounding(self.weight) for part in parts)
            allowed = allowed + torch.finfo(torch.float32).eps * len(parts) * merged.abs()
            apart = (trains.cpu().double() - merged).abs() / allowed.clamp_min(torch.finfo(torch.float64).tiny)
            found = max(found, float(apart.max()))
        return found


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
        self.stored: dict[str, torch.dtype] = {}

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        scale = self.scale if torch.is_grad_enabled() else self.scale.to(self.stored.get("weight", self.scale.dtype))
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
    """By layer, the term or update of this kind on the linear layer `name` of each decoder layer that has one."""
    found = {}
    for index, layer in enumerate(model.model.layers):
        linear = layer.get_submodule(name)
        if isinstance(linear, RestoredLinear):
            found.update((index, term) for term in (*linear.terms, *linear.updates) if type(term) is kind)
    return found


def whole(tensor: Tensor) -> Tensor:
    """A trained tensor as fp32 on the CPU; gathered, if FSDP keeps a part of it in each process."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).float().cpu().clone()


def store_as(model: LlamaForCausalLM, dtypes: dict[str, torch.dtype]) -> None:
    """Let inference use what a checkpoint will hold: each restored tensor, by name, rounded to its stored dtype."""
    for name, dtype in dtypes.items():
        place, _, part = name.rpartition(".")
        module = model.get_submodule(place)
        if isinstance(module, RestoredLinear | RestoredNorm):
            module.stored[part] = dtype


def explicit_biases(model: LlamaForCausalLM, names: Iterable[str]) -> LlamaForCausalLM:
    """Give the model zero biases by these names, in place, where it has none.

    With them it runs the very operations of a merged checkpoint, so that their logits can be compared bit for bit.
    """
    for name in names:
        linear = model.get_submodule(name.removesuffix(".bias"))
        # Where accelerate brings the weights there is nothing to put beside them, nor are equal bits asked for.
        has_one = linear.bias is not None or (isinstance(linear, RestoredLinear) and len(linear.terms))
        if not has_one and linear.weight.device.type != "meta":
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
    return model
