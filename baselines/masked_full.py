"""Full fine-tuning inside the mask: all weights of linear layers that are not zero, the ceiling of what keeps zeros.

Wanda's `dense_ft` (Sun et al., ICLR 2024). The change is trained and saved, not the weight, in fp32.
"""

import torch

from models.contract import MethodInputs, linear_shapes
from models.terms import MaskedChange


def masked_full(inputs: MethodInputs) -> dict[str, MaskedChange]:
    """A change (out, in) of each linear layer's weight, from zero."""
    return {
        f"model.layers.{layer}.{name}.weight": MaskedChange(torch.zeros(shape))
        for layer in range(inputs.config.num_hidden_layers)
        for name, shape in linear_shapes(inputs.config).items()
    }
