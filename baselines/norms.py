"""The scales of all RMSNorms, trained: 1-d weights, so that each weight of a matrix keeps its bits."""

import torch

from models.contract import MethodInputs
from models.terms import Constant


def norm_scales(inputs: MethodInputs) -> dict[str, Constant]:
    """Changes (D,) of the scales of both norms of every decoder layer and of the last one, from zero."""
    kinds = ("input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{n}.{kind}" for n in range(inputs.config.num_hidden_layers) for kind in kinds]
    size = inputs.config.hidden_size
    return {f"{name}.weight": Constant(torch.zeros(size)) for name in [*names, "model.norm"]}
