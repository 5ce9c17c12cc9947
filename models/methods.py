"""From a method's name and a run's options to the parts that restore: what the table of methods stands for."""

from dataclasses import dataclass, fields
from importlib import import_module

from models.contract import RESIDUAL, SITES, Method
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.common.methods import CONSTANTS, METHODS, NORMS, Line

ATTENTION = frozenset({"attention"})
APPLIED = {"both": RESIDUAL, "all": frozenset(SITES)}


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
    def of(cls, args: Arguments) -> "Options":
        """What the flags say."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def sites(self) -> frozenset[str] | None:
        """Names of SITES; None where nothing was asked."""
        return sites_named(self.apply_to)


def parts_of(method: str, options: Options) -> tuple[tuple[str, Method], ...]:
    """The method, and what the options add to it: (name, method) pairs, in the order in which they are attached.

    Raises UserError if the constants are asked for elsewhere than where the method's own are.
    """
    line = METHODS[method]
    for flag in ("lora_targets", "lora_layers"):
        if getattr(options, flag) is not None and flag not in line.takes:
            able = ", ".join(name for name, other in METHODS.items() if flag in other.takes)
            raise UserError(f"-{flag}: {method} doesn't take it; leave it out, or give -method {able}")
    wanted = options.sites() or sites_named(line.sites)
    first = _made(line, wanted or ATTENTION, options)
    wanted = wanted or first.covers
    if not first.covers <= wanted:
        raise UserError(
            f"-apply_to: {method} compensates {', '.join(sorted(first.covers))}, {options.apply_to} leaves that out; "
            "give both or all, or -method output_bias"
        )
    parts = [(method, first)]
    if options.first:
        parts.insert(0, (options.first, _first(method, wanted, options)))
    if more := wanted - first.covers:
        parts.append(("constants", _made(CONSTANTS, more, options)))
    if options.train_norms or line.norms:
        parts.append(("norms", _made(NORMS, frozenset(), options)))
    _check_heeded(parts, options)
    return tuple(parts)


def sites_named(apply_to: str | None) -> frozenset[str] | None:
    """Names of SITES that a value of -apply_to stands for; None where nothing was asked."""
    return None if apply_to is None else APPLIED.get(apply_to, frozenset({apply_to}))


def _first(method: str, sites: frozenset[str], options: Options) -> Method:
    if options.first == method:
        raise UserError(f"-first: {method} is the method itself; name another closed form, or leave it out")
    part = _made(METHODS[options.first], sites or RESIDUAL, options)
    if part.needs.training:
        raise UserError(f"-first: {options.first} is trained; give a closed form, which needs no training")
    return part


def _check_heeded(parts: list[tuple[str, Method]], options: Options) -> None:
    lines = {**METHODS, "constants": CONSTANTS, "norms": NORMS}
    heeded = {flag for name, part in parts if part.needs.calibration for flag in lines[name].takes}
    if options.bias_start != "zero" and "bias_start" not in heeded:
        raise UserError(
            f"-bias_start: {' and '.join(name for name, _ in parts)} train no free bias; give -method output_bias or "
            "norms_biases, or an -apply_to that adds one, or leave it out"
        )
    if options.stream and "stream" not in heeded:
        raise UserError(
            f"-stream: {' and '.join(name for name, _ in parts)} read no calibration set by a stream of choice; give "
            "-method flap_bias, -first flap_bias or -bias_start closed_form, or leave it out"
        )


def _made(line: Line, sites: frozenset[str], options: Options) -> Method:
    module, _, name = line.made_by.partition(":")
    settings = {**line.settings, **{name: getattr(options, name) for name in line.takes}}
    if line.takes_sites:
        settings["sites"] = sites
    return getattr(import_module(module), name)(**settings)
