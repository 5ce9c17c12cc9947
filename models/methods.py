"""From a method's name and a run's options to the parts that restore: what the table of methods stands for."""

from dataclasses import dataclass, fields
from importlib import import_module

from models.contract import SITES, Method
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.common.methods import CONSTANTS, METHODS, NORMS, Line

ATTENTION = frozenset({"attention"})


@dataclass(frozen=True)
class Options:
    """What a run tells its method: -apply_to (None: where the method's own constants are), -train_norms, and sizes."""

    apply_to: str | None = None
    train_norms: bool = False
    lora_rank: int = 8
    lora_alpha: float = 16.0

    @classmethod
    def of(cls, args: Arguments) -> "Options":
        """What the flags say."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def sites(self) -> frozenset[str] | None:
        """Names of SITES; None where nothing was asked."""
        return {None: None, "both": frozenset(SITES)}.get(self.apply_to, frozenset({self.apply_to}))


def parts_of(method: str, options: Options) -> tuple[tuple[str, Method], ...]:
    """The method, and what the options add to it: (name, method) pairs, in the order in which they are attached.

    Raises UserError if the constants are asked for elsewhere than where the method's own are.
    """
    wanted = options.sites()
    first = _made(METHODS[method], ATTENTION if wanted is None else wanted, options)
    wanted = first.covers if wanted is None else wanted
    if not first.covers <= wanted:
        raise UserError(
            f"-apply_to: {method} compensates {', '.join(sorted(first.covers))}, {options.apply_to} leaves that out; "
            "give both, or -method output_bias"
        )
    parts = [(method, first)]
    if more := wanted - first.covers:
        parts.append(("constants", _made(CONSTANTS, more, options)))
    if options.train_norms:
        parts.append(("norms", _made(NORMS, frozenset(), options)))
    return tuple(parts)


def _made(line: Line, sites: frozenset[str], options: Options) -> Method:
    module, _, name = line.made_by.partition(":")
    settings = {**line.settings, **{name: getattr(options, name) for name in line.takes}}
    if line.takes_sites:
        settings["sites"] = sites
    return getattr(import_module(module), name)(**settings)
