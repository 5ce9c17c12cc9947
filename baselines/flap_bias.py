"""FLAP's bias compensation in closed form: what pruning took from a layer's output on average, given back as a bias.

An et al., AAAI 2024, section on bias compensation, in its general form: b = (W - Ŵ) E[x] minimises E‖(W - Ŵ) x - b‖²
over constants b, whatever was pruned.
"""

from collections.abc import Callable

from torch import Tensor, nn

from baselines.streams import GROUPS, walk
from models.contract import MethodInputs
from models.terms import Constant
from utils.common.methods import SITES


def flap_bias(inputs: MethodInputs) -> dict[str, Constant]:
    """The mean gap of each layer and site, W E[x] + bias of the dense layer less the same of the restored one.

    stream: of utils.common.names.STREAMS. `dense`, FLAP's own: both layers are fed what the dense model's is.
    `pruned`: both are fed what the restored model's is. `sequential`: each is fed by its own model, so that the mean of
    the restored layer's output becomes the dense one's. In the last two a constant is in its place before the next is
    computed, within a decoder layer too. Sums over a batch of tokens are fp32, all else is fp64.
    """
    stream, terms = inputs.options.stream or "dense", {}
    for block in walk(inputs, "calibration means", dense=stream != "pruned", restored=stream != "dense"):
        dense = block.dense and block.dense.mean_inputs(inputs.sites)
        for group in GROUPS:
            if not (asked := [site for site in group if site in inputs.sites]):
                continue
            restored = block.restored and block.restored.mean_inputs(asked)
            for site in asked:
                name = f"model.layers.{block.index}.{SITES[site]}"
                gap = _mean_output(inputs.teacher, name, (dense or restored)[site])
                gap -= _mean_output(inputs.read, name, (restored or dense)[site])
                terms[f"{name}.bias"] = Constant(gap.float())
                if block.restored:
                    add_bias(block.restored.layer.get_submodule(SITES[site]), gap)
    return terms


def add_bias(linear: nn.Linear, bias: Tensor) -> None:
    """Add (out,) fp64 to the layer's bias, in place; it gets one in its weight's dtype where it has none."""
    if linear.bias is not None:
        bias = bias + linear.bias.detach().cpu().double()
    linear.bias = nn.Parameter(bias.to(linear.weight.dtype).to(linear.weight.device), requires_grad=False)


def _mean_output(read: Callable[[str], Tensor], name: str, mean: Tensor) -> Tensor:
    """W E[x] + bias, (out,) fp64: linear in x, so the mean of the layer's output."""
    output = read(f"{name}.weight").double() @ mean
    try:
        return output + read(f"{name}.bias").double()
    except KeyError:
        return output
