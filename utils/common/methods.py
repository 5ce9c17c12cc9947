"""The table of methods: a new way of restoring is one file and one line here.

Modules are named, not imported: flags and help read the table without them, and a run loads only its own.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One method: `module:Class` (see models.contract), what it is, for --help, and what the class is called with.

    takes_sites: whether the class is also told by `sites` where -apply_to wants its constants.
    """

    made_by: str
    what: str
    settings: dict = field(default_factory=dict)
    takes_sites: bool = False


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
