"""What pruning took from linear layers' outputs on average over the calibration set, in one of three senses.

Each is W E[x] + bias of the dense layer, less the same of the restored one, with E[x] of the stream that is said:
(W - Ŵ) E[x] where both are fed the same, which minimises E‖(W - Ŵ) x - b‖² over constants b.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from baselines.streams import GROUPS, walk
from models.contract import SITES, Given, State


def mean_gaps(given: Given, sites: Collection[str], stream: str) -> State:
    """For each site of models.contract.SITES: (L, out) fp32, the constants to be added to the pruned model.

    stream: of utils.common.names.STREAMS. `dense`: both layers are fed what the dense model's is. `pruned`: both are
    fed what the restored model's is. `sequential`: each is fed by its own model, so that the mean of the restored
    layer's output becomes the dense one's. In the last two a constant is in its place before the next is computed,
    within a decoder layer too. Sums over a batch of tokens are fp32, all else is fp64.
    """
    found: dict[str, list[Tensor]] = {site: [] for site in SITES if site in sites}
    for block in walk(given, "calibration means", dense=stream != "pruned", restored=stream != "dense"):
        dense = block.dense and block.dense.mean_inputs(found)
        for group in GROUPS:
            if not (asked := [site for site in group if site in found]):
                continue
            restored = block.restored and block.restored.mean_inputs(asked)
            for site in asked:
                name = f"model.layers.{block.index}.{SITES[site]}"
                gap = _mean_output(given.teacher, name, (dense or restored)[site])
                gap -= _mean_output(given.read, name, (restored or dense)[site])
                found[site].append(gap.float())
                if block.restored:
                    add_bias(block.restored.layer.get_submodule(SITES[site]), gap)
    return {site: torch.stack(rows) for site, rows in found.items()}


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
