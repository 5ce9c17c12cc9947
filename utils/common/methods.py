"""The table of methods: a new way of restoring is one function and one line here.

Functions are named, not imported: flags and help read the table without them, and a run loads only its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import reduce
from importlib import import_module
from operator import or_

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

RESIDUAL = frozenset({"attention", "ffn"})
"""Those that write into the residual stream: the last linear layer of attention, and of the MLP."""

APPLIED = {"both": RESIDUAL, "all": frozenset(SITES)}
"""Values of -apply_to that stand for several of them."""


@dataclass(frozen=True)
class Needs:
    """What must be computed before a method can start, and whether it is trained.

    heads: ranked heads. basis: V of each. calibration: the calibration set, and both models to run it through.
    training: samples and steps. teacher: the dense checkpoint's weights, of the pruned one's shapes.
    calibration_epochs: how often a start trains all weights on the calibration set, for -plan.

    Of a training step, for -plan: updates: changes of weights are trained, so what linear layers are fed is kept for
    the backward pass; outputs: and what they give. weights: changed weights are computed whole, and kept; weight_bytes:
    with so many bytes more for each weight, in half precision.
    """

    heads: bool = False
    basis: bool = False
    calibration: bool = False
    training: bool = False
    teacher: bool = False
    calibration_epochs: int = 0
    updates: bool = False
    outputs: bool = False
    weights: bool = False
    weight_bytes: int = 0

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(**{name: max(value, getattr(other, name)) for name, value in vars(self).items()})


@dataclass(frozen=True)
class MethodSpec:
    """One method: `module:function` (from models.contract.MethodInputs to terms by parameter), what it is, for --help,
    and its name in a report.

    needs: for its inputs; a method that trains nothing is a closed form, and may stand before another. sites: where it
    adds constants, as -apply_to says it; moves: whether -apply_to decides instead. norms: whether the scales of all
    norms are trained too. takes: flags that it heeds, of Options. numbers: what it learns, for -plan (utils/plan/
    counts.py). selection: -head_selection, if nothing is said. about: a paragraph for the model's card.
    """

    made_by: str
    what: str
    title: str
    needs: Needs = Needs(training=True)
    sites: str | None = None
    moves: bool = False
    norms: bool = False
    takes: tuple[str, ...] = ()
    numbers: str = ""
    selection: str = "contrastive"
    about: str = ""

    def function(self) -> Callable:
        """The method itself."""
        module, _, name = self.made_by.partition(":")
        return getattr(import_module(module), name)


PAPER = (
    'RestoreLCC (Feng et al., "Restoring Pruned Large Language Models via Lost Component Compensation", NeurIPS '
    "2025) learns one constant vector per chosen attention head. Here they are folded into `o_proj.bias`: every "
    "weight is the pruned checkpoint's own, and each of its zeros is still a zero."
)

_HEADS = {"sites": "attention", "about": PAPER}
_BETA = Needs(heads=True, basis=True, training=True)
_B = Needs(heads=True, training=True)
_LORA = {"takes": ("lora_rank", "lora_alpha", "lora_targets", "lora_layers"), "numbers": "A B"}
_DORA = {**_LORA, "numbers": "A B m"}
_BIAS = {"moves": True, "takes": ("bias_start", "stream"), "numbers": "biases"}
_BESIDE = Needs(training=True, updates=True)
_MASKED = Needs(training=True, updates=True, weights=True, weight_bytes=1)
_CLOSED = Needs(calibration=True, teacher=True)
_CHANGED = replace(_CLOSED, weights=True)

METHODS = {
    "restorelcc": MethodSpec(
        "utils.compensation:restorelcc",
        "β and b of Eq. 8 on chosen heads",
        "RestoreLCC",
        _BETA,
        numbers="β b",
        **_HEADS,
    ),
    "bias_only": MethodSpec(
        "utils.compensation:bias_only", "b of chosen heads alone", "RestoreLCC (b alone)", _B, numbers="b", **_HEADS
    ),
    "magnitudes_only": MethodSpec(
        "utils.compensation:magnitudes_only",
        "β of chosen heads alone",
        "RestoreLCC (β alone)",
        _BETA,
        numbers="β",
        **_HEADS,
    ),
    "output_bias": MethodSpec(
        "baselines.output_bias:output_bias",
        "a free bias of whole projections",
        "a bias of whole projections",
        sites="attention",
        **_BIAS,
    ),
    "lofit": MethodSpec(
        "utils.compensation:bias_only",
        "LoFiT: b of heads that it selects itself",
        "LoFiT",
        _B,
        sites="attention",
        numbers="b",
        selection="lofit",
    ),
    "norms_biases": MethodSpec(
        "baselines.output_bias:output_bias",
        "a free bias of all linear layers, and the scales of all norms",
        "biases of all linear layers",
        sites="all",
        norms=True,
        **_BIAS,
    ),
    "flap_bias": MethodSpec(
        "baselines.flap_bias:flap_bias",
        "FLAP's bias in closed form, from -calib_data",
        "FLAP's bias",
        _CLOSED,
        sites="attention",
        moves=True,
        takes=("stream",),
        numbers="biases",
    ),
    "masked_lora": MethodSpec(
        "baselines.lora:masked_lora", "LoRA inside the mask, zeros kept", "masked LoRA", _MASKED, **_LORA
    ),
    "masked_dora": MethodSpec(
        "baselines.lora:masked_dora",
        "DoRA inside the mask, zeros kept",
        "masked DoRA",
        replace(_MASKED, weight_bytes=5),
        **_DORA,
    ),
    "masked_full": MethodSpec(
        "baselines.masked_full:masked_full",
        "all weights that are not zero",
        "masked full fine-tuning",
        _MASKED,
        numbers="W",
    ),
    "lora": MethodSpec(
        "baselines.lora:lora", "LoRA on all linear layers; merged, it fills the zeros", "LoRA", _BESIDE, **_LORA
    ),
    "dora": MethodSpec(
        "baselines.lora:dora",
        "DoRA on all linear layers; merged, it fills the zeros",
        "DoRA",
        replace(_BESIDE, outputs=True),
        **_DORA,
    ),
    "eora": MethodSpec(
        "baselines.eora:eora",
        "EoRA's update of all linear layers in closed form, from -calib_data; merged, it fills the zeros",
        "EoRA",
        _CLOSED,
        takes=("lora_rank",),
        numbers="A B",
    ),
    "admm_update": MethodSpec(
        "baselines.admm_update:admm_update",
        "least squares inside the mask by ADMM, on -calib_data; zeros kept",
        "ADMM's weight update",
        _CHANGED,
        takes=("stream",),
        numbers="W",
    ),
    "reconstruct": MethodSpec(
        "baselines.reconstruct:reconstruct",
        "weights inside the mask trained to give each half layer's dense output on -calib_data; zeros kept",
        "block reconstruction",
        _CHANGED,
        takes=("stream", "reconstruct_lr", "reconstruct_epochs"),
        numbers="W",
    ),
    "none": MethodSpec("baselines.nothing:nothing", "restores nothing", "nothing", Needs()),
}
"""What -method takes."""

CONSTANTS = MethodSpec(
    "baselines.output_bias:output_bias", "biases where the method itself has none", "biases", **_BIAS
)
NORMS = MethodSpec("baselines.norms:norm_scales", "scales of all norms", "norm scales", numbers="norms")


@dataclass(frozen=True)
class Options:
    """What a run tells its method: the flags of the same names.

    apply_to: None where the method's own constants are. first: a closed form that restores before the method. stream:
    one of utils.common.names.STREAMS, None for the method's own. lora_targets, lora_layers: None for all. bias_start:
    of trained free biases, one of utils.common.names.BIAS_STARTS.
    """

    apply_to: str | None = None
    train_norms: bool = False
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: str | None = None
    lora_layers: str | None = None
    first: str | None = None
    stream: str | None = None
    bias_start: str = "zero"
    reconstruct_lr: float = 1e-5
    reconstruct_epochs: int = 10

    @classmethod
    def of(cls, args: object) -> "Options":
        """What the flags say: attributes of these names."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Part:
    """A method, or what the options add to it: its name in the table, its line there, and what the options make of it.

    sites: where it adds constants, of SITES. needs: with what the options ask for.
    """

    name: str
    spec: MethodSpec
    sites: frozenset[str]
    needs: Needs


def parts_of(method: str, options: Options) -> tuple[Part, ...]:
    """The method, and what the options add to it, in the order in which they restore.

    Raises UserError if the constants are asked for elsewhere than where the method's own are, or for a flag that
    nothing heeds.
    """
    spec = METHODS[method]
    for flag in ("lora_targets", "lora_layers"):
        if getattr(options, flag) is not None and flag not in spec.takes:
            able = ", ".join(name for name, other in METHODS.items() if flag in other.takes)
            raise UserError(f"-{flag}: {method} doesn't take it; leave it out, or give -method {able}")
    wanted = sites_named(options.apply_to) or sites_named(spec.sites)
    own = wanted if spec.moves else sites_named(spec.sites)
    if not own <= wanted:
        raise UserError(
            f"-apply_to: {method} compensates {', '.join(sorted(own))}, {options.apply_to} leaves that out; "
            "give both or all, or -method output_bias"
        )
    parts = [_part(method, spec, own, options)]
    if options.first:
        parts.insert(0, _first(method, wanted or RESIDUAL, options))
    if more := wanted - own:
        parts.append(_part("constants", CONSTANTS, more, options))
    if options.train_norms or spec.norms:
        parts.append(_part("norms", NORMS, frozenset(), options))
    _check_heeded(parts, options)
    return tuple(parts)


def needs_of(method: str, options: Options) -> Needs:
    """What the method and all that the options add to it need; UserError if they don't go together."""
    return reduce(or_, (part.needs for part in parts_of(method, options)))


def sites_named(apply_to: str | None) -> frozenset[str]:
    """Names of SITES that a value of -apply_to stands for."""
    return frozenset() if apply_to is None else APPLIED.get(apply_to, frozenset({apply_to}))


def _part(name: str, spec: MethodSpec, sites: frozenset[str], options: Options) -> Part:
    needs = spec.needs
    if options.bias_start == "closed_form" and "bias_start" in spec.takes:
        needs |= _CLOSED
    if "reconstruct_epochs" in spec.takes:
        needs |= Needs(calibration_epochs=options.reconstruct_epochs)
    return Part(name, spec, sites, needs)


def _first(method: str, sites: frozenset[str], options: Options) -> Part:
    if options.first == method:
        raise UserError(f"-first: {method} is the method itself; name another closed form, or leave it out")
    part = _part(options.first, METHODS[options.first], sites, options)
    if part.needs.training:
        raise UserError(f"-first: {options.first} is trained; give a closed form, which needs no training")
    return part


def _check_heeded(parts: list[Part], options: Options) -> None:
    heeded = {flag for part in parts if part.needs.calibration for flag in part.spec.takes}
    named = " and ".join(part.name for part in parts)
    if options.bias_start != "zero" and "bias_start" not in heeded:
        raise UserError(
            f"-bias_start: {named} train no free bias; give -method output_bias or norms_biases, or an -apply_to that "
            "adds one, or leave it out"
        )
    if options.stream and "stream" not in heeded:
        raise UserError(
            f"-stream: {named} read no calibration set by a stream of choice; give -method flap_bias, -first flap_bias "
            "or -bias_start closed_form, or leave it out"
        )
