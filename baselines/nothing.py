"""The control that restores nothing: the pruned checkpoint, through all stages."""

from models.contract import MethodInputs
from models.terms import Term


def nothing(inputs: MethodInputs) -> dict[str, Term]:
    """No terms, and a merge that touches nothing."""
    return {}
