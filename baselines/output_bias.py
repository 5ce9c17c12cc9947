"""A free constant on what linear layers give: a bias of the whole projection.

What compensated heads can add lies in the span of their columns of W_O; this has no such bound, and no heads.
"""

import torch

from models.contract import MethodInputs, linear_shapes
from models.terms import Constant
from utils.common.methods import SITES


def output_bias(inputs: MethodInputs) -> dict[str, Constant]:
    """A bias on the linear layers of the named sites in every decoder layer, from zero."""
    shapes = linear_shapes(inputs.config)
    return {
        f"model.layers.{layer}.{name}.bias": Constant(torch.zeros(shapes[name][0]))
        for layer in range(inputs.config.num_hidden_layers)
        for site, name in SITES.items()
        if site in inputs.sites
    }
