"""The table of methods: a new way of restoring is one function, and one line here that names it but imports nothing."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module

from utils.common.errors import UserError

SITES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attention": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "ffn": "mlp.down_proj",
}
"""Where a constant may be added: the linear layers of a decoder layer, in the order of the forward pass."""

LINEAR_NAMES = tuple(site.rpartition(".")[2] for site in SITES.values())  # as -lora_targets names them
RESIDUAL = frozenset({"attention", "ffn"})  # those that write into the residual stream, last of attention and of MLP

APPLIED = {site: frozenset({site}) for site in SITES} | {"both": RESIDUAL, "all": frozenset(SITES), None: frozenset()}
"""The sites of each value of -apply_to."""


@dataclass(frozen=True)
class Needs:
    """What a method needs. heads: ranked heads; basis: V of each; calibration: the calibration set, both models, and
    dense weights in the pruned model's shapes; training: to be trained."""

    heads: bool = False
    basis: bool = False
    calibration: bool = False
    training: bool = False


@dataclass(frozen=True)
class MethodSpec:
    """One method. made_by: `module:function` (MethodInputs → terms by parameter). what: for --help. title: for reports.

    needs: a method that trains nothing is a closed form, and may run before another. sites: where it adds constants, as
    a value of -apply_to; moves: whether -apply_to decides instead. takes: all flags and seeds that it reads, which are
    in the cache key of a closed form. selection: the default of -head_selection. llama_only: it computes Llama's own
    decoder layer. fills: whether a merge fills zeros. about: text for the model's card.
    """

    made_by: str
    what: str
    title: str
    needs: Needs = Needs(training=True)
    sites: str | None = None
    moves: bool = False
    takes: tuple[str, ...] = ()
    selection: str = "contrastive"
    llama_only: bool = False
    fills: bool = False
    about: str = ""

    def function(self) -> Callable:
        """The method itself."""
        module, _, name = self.made_by.partition(":")
        return getattr(import_module(module), name)


PAPER = (
    'RestoreLCC (Feng et al., "Restoring Pruned Large Language Models via Lost Component Compensation", NeurIPS '
    "2025) learns one constant vector per chosen attention head. Here they are folded into o_proj.bias: every "
    "weight is the pruned checkpoint's own, and each of its zeros is still a zero."
)

_HEADS = {"sites": "attention", "about": PAPER}
_BETA = Needs(heads=True, basis=True, training=True)
_B = Needs(heads=True, training=True)
_RANK, _LORA = ("lora_rank",), ("lora_rank", "lora_targets")
_CLOSED = Needs(calibration=True)
_BIAS = "baselines.free_terms:output_bias"
_FROM = "in closed form, from -calib_data"
_INSIDE = "inside the mask, zeros kept"
_ADMM = "baselines.admm_update"

METHODS = {
    "restorelcc": MethodSpec(
        "utils.compensation:restorelcc", "β and b of Eq. 8 on chosen heads", "RestoreLCC", _BETA, **_HEADS
    ),
    "bias_only": MethodSpec("utils.compensation:bias_only", "b of chosen heads", "RestoreLCC (b alone)", _B, **_HEADS),
    "magnitudes_only": MethodSpec(
        "utils.compensation:magnitudes_only", "β of chosen heads alone", "RestoreLCC (β alone)", _BETA, **_HEADS
    ),
    "output_bias": MethodSpec(
        _BIAS, "a free bias of whole projections", "a bias of whole projections", sites="attention", moves=True
    ),
    "lofit": MethodSpec(
        "utils.compensation:bias_only", "LoFiT: b of heads that it selects", "LoFiT", _B, "attention", selection="lofit"
    ),
    "flap_bias": MethodSpec(
        "baselines.flap_bias:flap_bias", f"FLAP's bias {_FROM}", "FLAP's bias", _CLOSED, "both", moves=True
    ),
    "masked_lora": MethodSpec("baselines.lora:masked_lora", f"LoRA {_INSIDE}", "masked LoRA", takes=_LORA),
    "masked_dora": MethodSpec("baselines.lora:masked_dora", f"DoRA {_INSIDE}", "masked DoRA", takes=_LORA),
    "masked_full": MethodSpec("baselines.free_terms:masked_full", "all non-zero weights", "masked full fine-tuning"),
    "lora": MethodSpec("baselines.lora:lora", "LoRA on all linear layers", "LoRA", takes=_LORA, fills=True),
    "dora": MethodSpec("baselines.lora:dora", "DoRA on all linear layers", "DoRA", takes=_LORA, fills=True),
    "eora": MethodSpec("baselines.eora:eora", f"EoRA's update {_FROM}", "EoRA", _CLOSED, takes=_RANK, fills=True),
    "admm_update": MethodSpec(f"{_ADMM}:admm_update", f"ADMM {_FROM}, {_INSIDE}", "ADMM's weight update", _CLOSED),
    "admm_residual": MethodSpec(
        f"{_ADMM}:admm_residual", f"ADMM, residual stream restored too, {_INSIDE}", "ADMM's residual update", _CLOSED
    ),
    "reconstruct": MethodSpec(
        "baselines.reconstruct:reconstruct",
        f"half a layer at a time, trained on -calib_data, {_INSIDE}",
        "block reconstruction",
        _CLOSED,
        takes=("training_seed",),
        llama_only=True,
    ),
    "none": MethodSpec("baselines.free_terms:nothing", "restores nothing", "nothing", Needs()),
}
"""The values of -method."""


def method_draws(*names: str | None) -> bool:
    """Whether one of these methods uses the training seed even if nothing is trained."""
    return any("training_seed" in METHODS[name].takes for name in names if name in METHODS)


_BY_ADMM = ("admm_update", "admm_residual")
NOT_AFTER = {
    "eora": ((*_BY_ADMM, "reconstruct", "masked_lora", "masked_dora", "masked_full"), "fills zeros that it keeps"),
    "flap_bias": (("eora", *_BY_ADMM), "restores a mean that it would restore again"),
}
"""For each closed form, the methods that it must not precede, and why."""

CONSTANTS = MethodSpec(_BIAS, "biases where the method itself has none", "biases", moves=True)
NORMS = MethodSpec("baselines.free_terms:norm_scales", "scales of all norms", "norm scales")


@dataclass(frozen=True)
class Options:
    """The flags that a method gets. None: the method's own sites (apply_to), all (lora_targets), or nothing (first)."""

    apply_to: str | None = None
    train_norms: bool = False
    lora_rank: int = 8
    lora_targets: str | None = None
    first: str | None = None

    @classmethod
    def of(cls, args: object) -> "Options":
        """The options from an object that has them as attributes, such as Arguments."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Part:
    """A method, or what the options add to it. name: in METHODS, or `constants`, `norms`; sites: of its constants."""

    name: str
    spec: MethodSpec
    sites: frozenset[str]


def parts_of(method: str, options: Options) -> tuple[Part, ...]:
    """The method, and what the options add to it, in the order in which they restore; UserError if they don't fit."""
    spec = METHODS[method]
    if options.lora_targets is not None and "lora_targets" not in spec.takes:
        able = ", ".join(name for name, other in METHODS.items() if "lora_targets" in other.takes)
        raise UserError(f"-lora_targets: {method} doesn't take it; leave it out, or give -method {able}")
    wanted = APPLIED[options.apply_to or spec.sites]
    own = wanted if spec.moves else APPLIED[spec.sites]
    if not own <= wanted:
        raise UserError(
            f"-apply_to: {method} compensates {', '.join(sorted(own))}, {options.apply_to} leaves that out; "
            "give both or all, or -method output_bias"
        )
    parts = [Part(method, spec, own)]
    if (first := options.first) and first != "none":
        if first == method:
            raise UserError(f"-first: {first} is the method itself; name another closed form, or give -first none")
        closed = METHODS[first]
        if closed.needs.training:
            raise UserError(f"-first: {first} is trained; give a closed form, which needs no training")
        others, why = NOT_AFTER.get(first, ((), ""))
        if method in others:
            raise UserError(f"-first: {method} can't follow {first}, which {why}; name another, or leave it out")
        parts.insert(0, Part(first, closed, APPLIED[(closed.moves and options.apply_to) or closed.sites]))
    if more := wanted - own:
        parts.append(Part("constants", CONSTANTS, more))
    if options.train_norms:
        parts.append(Part("norms", NORMS, frozenset()))
    return tuple(parts)


def needs_of(method: str, options: Options) -> Needs:
    """What the method and all that the options add to it need; UserError if they don't go together."""
    parts = parts_of(method, options)
    return Needs(**{each.name: any(getattr(part.spec.needs, each.name) for part in parts) for each in fields(Needs)})
