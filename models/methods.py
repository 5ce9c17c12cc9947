"""The table of methods: a new way of restoring is one file and one line here.

Modules are named, not imported: the table stands below the rooms that its methods are in, and a run loads only its own.
"""

from dataclasses import dataclass, field
from importlib import import_module

from models.contract import SITES, Method
from utils.common.errors import UserError

ATTENTION = frozenset({"attention"})


@dataclass(frozen=True)
class Line:
    """One method: `module:Class`, what the class is called with, and what it is, for --help."""

    made_by: str
    what: str
    settings: dict = field(default_factory=dict)
    takes_sites: bool = False
    """Whether the class is told by `sites` where -apply_to wants its constants."""


METHODS = {
    "restorelcc": Line("utils.compensation:HeadCompensations", "β and b of Eq. 8 on chosen heads"),
    "bias_only": Line("utils.compensation:HeadCompensations", "b of chosen heads alone", {"trained": ("component",)}),
    "magnitudes_only": Line(
        "utils.compensation:HeadCompensations", "β of chosen heads alone", {"trained": ("magnitudes",)}
    ),
    "output_bias": Line("baselines.output_bias:OutputBias", "a free bias of whole projections", takes_sites=True),
    "none": Line("baselines.nothing:Nothing", "restores nothing"),
}
"""What -method takes."""

CONSTANTS = Line("baselines.output_bias:OutputBias", "biases where the method itself has none", takes_sites=True)
NORMS = Line("baselines.norms:NormScales", "scales of all norms")


@dataclass(frozen=True)
class Options:
    """What a run adds to its method: -apply_to (None: where the method's own constants are) and -train_norms."""

    apply_to: str | None = None
    train_norms: bool = False

    def sites(self) -> frozenset[str] | None:
        """Names of SITES; None where nothing was asked."""
        return {None: None, "both": frozenset(SITES)}.get(self.apply_to, frozenset({self.apply_to}))


def parts_of(method: str, options: Options) -> tuple[tuple[str, Method], ...]:
    """The method, and what the options add to it: (name, method) pairs, in the order in which they are attached.

    Raises UserError if the constants are asked for elsewhere than where the method's own are.
    """
    wanted = options.sites()
    first = _made(METHODS[method], ATTENTION if wanted is None else wanted)
    wanted = first.covers if wanted is None else wanted
    if not first.covers <= wanted:
        raise UserError(
            f"-apply_to: {method} compensates {', '.join(sorted(first.covers))}, {options.apply_to} leaves that out; "
            "give both, or -method output_bias"
        )
    parts = [(method, first)]
    if more := wanted - first.covers:
        parts.append(("constants", _made(CONSTANTS, more)))
    if options.train_norms:
        parts.append(("norms", _made(NORMS, frozenset())))
    return tuple(parts)


def _made(line: Line, sites: frozenset[str]) -> Method:
    module, _, name = line.made_by.partition(":")
    settings = {**line.settings, "sites": sites} if line.takes_sites else line.settings
    return getattr(import_module(module), name)(**settings)
