"""What a pruning method does to one decoder layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pruning.input_statistics import Hessian, InputNorms

Values = Mapping[str, torch.Tensor]
"""What was gathered, by site."""


@dataclass(frozen=True)
class Stage:
    """One pass of the calibration set over one decoder layer, and the pruning that follows it.

    sites: whose inputs are gathered; none means no pass. statistic: what is gathered of them. prune: changes the layer
    in place, and returns the relative error of each linear layer where it knows it.
    """

    sites: tuple[str, ...]
    statistic: type[InputNorms | Hessian]
    prune: Callable[[nn.Module, Values], dict[str, float]]
