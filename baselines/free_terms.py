"""Terms that start at zero and are trained freely, and the control `nothing`, which has no terms.

Compensated heads can add only what lies in the span of their columns of W_O; a free bias can add any vector, without
heads. `masked_full` is Wanda's `dense_ft` (Sun et al., ICLR 2024): the ceiling for methods that keep zeros.
"""

import torch
from transformers import AutoModelForCausalLM

from models.contract import MethodInputs, linear_shapes
from models.terms import Constant, MaskedChange, Term
from utils.common.methods import SITES


def output_bias(inputs: MethodInputs) -> dict[str, Constant]:
    """A bias on the linear layers of the named sites in every decoder layer."""
    shapes = linear_shapes(inputs.config)
    return {
        f"model.layers.{layer}.{name}.bias": Constant(torch.zeros(shapes[name][0]))
        for layer in range(inputs.config.num_hidden_layers)
        for site, name in SITES.items()
        if site in inputs.sites
    }


def norm_scales(inputs: MethodInputs) -> dict[str, Constant]:
    """A change of the scale of every RMSNorm of the model; no matrix is changed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(inputs.config)
    norms = {name: module.weight for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")}
    return {f"{name}.weight": Constant(torch.zeros(scale.shape)) for name, scale in norms.items()}


def masked_full(inputs: MethodInputs) -> dict[str, MaskedChange]:
    """A change (out, in) of each linear layer's weight where it is not zero, in fp32."""
    return {
        f"model.layers.{layer}.{name}.weight": MaskedChange(torch.zeros(shape))
        for layer in range(inputs.config.num_hidden_layers)
        for name, shape in linear_shapes(inputs.config).items()
    }


def nothing(inputs: MethodInputs) -> dict[str, Term]:
    """No terms: the pruned checkpoint goes through all stages, and the merge touches nothing."""
    return {}
