"""FLAP's bias compensation in closed form: what pruning took from a layer's output on average, given back as a bias.

An et al., AAAI 2024, section on bias compensation, in its general form: b = (W - Ŵ) E[x] minimises E‖(W - Ŵ) x - b‖²
over constants b, whatever was pruned.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.contract import MethodInputs
from models.terms import Constant
from pruning.input_statistics import InputMeans
from pruning.layers import LINEARS_BY_INPUT, walk
from utils.common.methods import SITES


def flap_bias(inputs: MethodInputs) -> dict[str, Constant]:
    """The mean output gap of each layer and site: W E[x] + bias of the dense layer, minus that of the pruned layer.

    E[x] is the mean input of the layer in the dense model, as in FLAP. Sums over a batch of tokens are fp32, all else
    is fp64.
    """
    terms = {}
    wanted = {SITES[site] for site in inputs.sites}
    for each in walk(inputs.dense(), inputs.tokens, torch.device(inputs.device), "calibration means"):
        fed = [site for site, linears in LINEARS_BY_INPUT.items() if wanted & set(linears)]
        for site, mean in each.gather(fed, InputMeans).items():
            for linear in sorted(wanted & set(LINEARS_BY_INPUT[site])):
                name = f"model.layers.{each.index}.{linear}"
                gap = _mean_output(inputs.teacher, name, mean) - _mean_output(inputs.read, name, mean)
                terms[f"{name}.bias"] = Constant(gap.float())
    return terms


def _mean_output(read: Callable[[str], Tensor], name: str, mean: Tensor) -> Tensor:
    """W E[x] + bias, (out,) fp64: linear in x, so the mean of the layer's output."""
    output = read(f"{name}.weight").double() @ mean
    try:
        return output + read(f"{name}.bias").double()
    except KeyError:
        return output
