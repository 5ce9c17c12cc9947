"""The patch on the stock model: linear layers and norms that add terms to their parameters, and nothing else."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from models.terms import Term, merged, restored

ROUNDINGS = 64
"""How far a parameter in fp32 may be from its fp64 value, in units of fp32's epsilon times (largest value + largest
change of the parameter). Sums of thousands of products stay within a few units; wrong computations do not."""

PROBED = 64
"""Columns of a weight that are computed by `Term.through`, to compare them with the merged ones."""


class OfEveryToken(torch.autograd.Function):
    """The identity on `values` (…, D), which already contain the parameter (D,), detached.

    The backward pass gives the parameter its gradient: that of the output, summed over all tokens in fp32.
    """

    @staticmethod
    def forward(ctx, values: Tensor, parameter: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        return grad, grad.flatten(0, -2).sum(0, dtype=torch.float32) if ctx.needs_input_grad[1] else None


def trains(term: Term) -> bool:
    """Whether any of its parameters is trained."""
    return any(parameter.requires_grad for parameter in term.parameters())


class RestoredLayer(nn.Module):
    """A frozen layer that keeps the stock layer's weight and bias, and adds terms to them.

    stored: the checkpoint's dtypes of weight and bias, once known. Inference then rounds to them first.
    started: the weight with its fixed terms added, kept only during training.
    sharded: whether FSDP shards the terms. They are whole only within a pass, so nothing made of them can be cached.
    """

    def begin(self, stock: nn.Module) -> None:
        """Take over the stock layer's parameters."""
        nn.Module.__init__(self)
        self.weight, self.bias = stock.weight, getattr(stock, "bias", None)
        self.terms = nn.ModuleDict({"bias": nn.ModuleList(), "weight": nn.ModuleList()})
        self.stored: dict[str, torch.dtype] = {}
        self.started: Tensor | None = None
        self.sharded = False
        self._kept: dict[str, tuple[tuple, Tensor]] = {}

    @property
    def beside(self) -> list[Term]:
        """The weight's last term, in a list, if it is trained and applied by `Term.through`; else an empty list."""
        return [term for term in self.terms["weight"][-1:] if term.beside and trains(term)]

    def trained(self, part: str) -> Tensor | None:
        """The parameter in a training step: with its terms, in fp32; the layer's own if it has no terms."""
        own, terms = getattr(self, part), self.terms[part]
        if not len(terms):
            return own
        own = own.float() if own is not None else torch.zeros_like(self.weight[:, 0], dtype=torch.float32)
        return restored(own, terms, None if part == "weight" else self.weight)

    def merged(self, part: str, place: str | torch.device) -> Tensor:
        """The parameter as a merge computes it on that device, in fp64; on the CPU for mps, which lacks fp64."""
        place = "cpu" if torch.device(place).type == "mps" else place
        own, weight = (None if p is None else p.detach().to(place) for p in (getattr(self, part), self.weight))
        return merged(part, own, self.terms[part], weight)

    def inferred(self, part: str, dtype: torch.dtype) -> Tensor | None:
        """The parameter for inference, in `dtype`: the merged value, recomputed only after a term's parameter changed.
        In a sharded layer it is the value of a training step."""
        terms = self.terms[part]
        if self.sharded or not len(terms):
            value = self.trained(part)
            return value if value is None else value.to(dtype)
        # If accelerate spreads the model, it loads the weight for each pass; there is no room to cache a second one.
        spread = hasattr(self, "_hf_hook")
        kept = {} if spread else self._kept
        place = "cpu" if self.stored and not spread else self.weight.device  # a checkpoint is merged on the CPU
        state = dtype, *self.stored.items(), self.weight.device, self.weight._version
        state += tuple((t.device, t.data_ptr(), t._version) for t in terms.parameters())
        if kept.get(part, (None,))[0] != state:
            kept[part] = state, self.merged(part, place).to(self.stored.get(part, dtype)).to(self.weight.device, dtype)
        return kept[part][1]

    @torch.no_grad()
    def rounding_errors(self) -> list[float]:
        """Largest errors of trained (fp32) against merged (fp64) values, as shares of what ROUNDINGS allows: ≤ 1."""
        found = []
        for part in ("bias", "weight"):
            if not len(self.terms[part]):
                continue
            exact, own = self.merged(part, self.weight.device), getattr(self, part)
            own = torch.zeros_like(exact) if own is None else own.to(exact.device).double()
            allowed = float(own.abs().max() + (exact - own).abs().max()) * ROUNDINGS * torch.finfo(torch.float32).eps
            differences = [self.trained(part).to(exact.device) - exact]
            if part == "weight" and self.beside:
                # A step uses `through` instead of this weight: for unit vectors it returns the weight's columns.
                columns = torch.linspace(0, exact.shape[1] - 1, min(PROBED, exact.shape[1])).long()
                units = F.one_hot(columns, exact.shape[1]).to(self.weight.device, torch.float32)
                found_columns = self.beside[0].through(units, self.begun(torch.float32)).T
                differences.append(found_columns.to(exact.device) - exact[:, columns])
            found += [float(each.abs().max()) / max(allowed, 1e-300) for each in differences]
        return found


class RestoredLinear(RestoredLayer, nn.Linear):
    """A linear layer with terms on its weight and bias."""

    def __init__(self, stock: nn.Linear):
        self.begin(stock)
        self.in_features, self.out_features = stock.in_features, stock.out_features

    def forward(self, z: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.linear(z, self.inferred("weight", z.dtype), self.inferred("bias", z.dtype))
        self._kept = {}  # which a step makes stale
        bias, beside = self.trained("bias"), self.beside
        own = None if bias is None else bias.detach().to(z.dtype)
        weight = self.started
        if weight is None:
            weight = self.begun(self.weight.dtype) if beside else self.trained("weight")
        if not beside:
            output = F.linear(z, weight.to(z.dtype), own)
        else:
            output = beside[0].through(z, weight)
            output = output if own is None else output + own
        return output if bias is None else OfEveryToken.apply(output, bias)

    def begun(self, dtype: torch.dtype) -> Tensor:
        """The weight, in `dtype`, with all terms except that of `beside`; the layer's own if there are no others."""
        before = self.terms["weight"][: len(self.terms["weight"]) - len(self.beside)]
        return restored(self.weight.float(), before).to(dtype) if len(before) else self.weight

    def keep(self) -> None:
        """Add fixed terms to the weight once, not in each step. Skipped if other terms than that of `beside` train."""
        fixed = [term for term in self.terms["weight"] if not trains(term)]
        if fixed and [*fixed, *self.beside] == list(self.terms["weight"]):
            with torch.no_grad():
                self.started = self.begun(self.weight.dtype)
            for term in fixed:  # no step needs them: of a 7B model, ADMM's changes are 26 GB
                term.cpu()


class RestoredNorm(RestoredLayer):
    """An RMSNorm with terms on its scale (D,). The stock class computes the norm with the new scale."""

    def __init__(self, stock: nn.Module):
        self.begin(stock)
        self.stock = (remove_hook_from_module(stock),)  # in a tuple, so it is no submodule: its scale is this layer's

    def forward(self, hidden_states: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            own, self._kept = self.trained("weight"), {}
            scale = OfEveryToken.apply(own.detach().to(hidden_states.dtype).expand_as(hidden_states), own)
        else:
            scale = self.inferred("weight", hidden_states.dtype)
        return functional_call(self.stock[0], {"weight": scale}, (hidden_states,))


def attach(model: PreTrainedModel, terms: Mapping[str, Sequence[Term]]) -> PreTrainedModel:
    """Attach terms to the parameters of these names, in place. Afterwards only trained terms require gradients.

    Fixed terms stay on the CPU: inference uses merged weights, and training moves what it needs.
    """
    model.requires_grad_(False)
    for name, some in terms.items():
        stem, _, part = name.rpartition(".")
        layer = model.get_submodule(stem)
        if not isinstance(layer, RestoredLayer):
            # Of a model that is spread, accelerate's hook brings the weight when it is needed.
            hook = getattr(layer, "_hf_hook", None)
            layer = RestoredLinear(layer) if isinstance(layer, nn.Linear) else RestoredNorm(layer)
            model.set_submodule(stem, add_hook_to_module(layer, hook) if hook else layer)
        at_hand = layer.weight.device.type != "meta"
        place = layer.weight.device if at_hand else layer._hf_hook.execution_device
        layer.terms[part].extend(term.to(place) if trains(term) else term for term in some)
    return model


def restored_layers(model: PreTrainedModel) -> list[RestoredLayer]:
    """All layers that have terms."""
    return [module for module in model.modules() if isinstance(module, RestoredLayer)]


def keep_frozen(model: nn.Module, sharded: bool = False) -> None:
    """Before training, add fixed terms to frozen weights once (see `keep`). A model to be sharded caches nothing."""
    for layer in restored_layers(model):
        layer.sharded = sharded
        if isinstance(layer, RestoredLinear) and not sharded:
            layer.keep()


def numbers_trained(model: PreTrainedModel) -> int:
    """The number of trainable parameters, without the entries that a mask holds at zero."""
    held = sum(term.held(layer.weight) for layer in restored_layers(model) for term in layer.terms["weight"])
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) - held


def max_rounding_error(model: PreTrainedModel) -> float:
    """The largest of `rounding_errors` of all layers that are not on the meta device. NaN if one is NaN, 0 if none."""
    layers = (layer for layer in restored_layers(model) if layer.weight.device.type != "meta")
    found = [error for layer in layers for error in layer.rounding_errors()]
    return float(torch.tensor([0.0, *found], dtype=torch.float64).max())


def explicit_biases(model: PreTrainedModel, names: Iterable[str]) -> PreTrainedModel:
    """Add zero biases of these names to the model, in place, where it has none.

    With them it runs exactly the operations of a merged checkpoint, so that logits can be compared bit by bit.
    """
    for name in names:
        linear = model.get_submodule(name.removesuffix(".bias"))
        # A weight that accelerate offloads is on the meta device. It gets no bias; logits need not be equal then.
        has_one = linear.bias is not None or (isinstance(linear, RestoredLinear) and len(linear.terms["bias"]))
        if not has_one and linear.weight.device.type != "meta":
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
    return model
