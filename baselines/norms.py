"""The scales of all RMSNorms, trained: 1-d weights, so that each weight of a matrix keeps its bits."""

import torch

from models.contract import MethodInputs
from models.families import norm_widths
from models.terms import Constant


def norm_scales(inputs: MethodInputs) -> dict[str, Constant]:
    """A change of the scale of every norm of the model, from zero."""
    return {f"{name}.weight": Constant(torch.zeros(width)) for name, width in norm_widths(inputs.config).items()}
