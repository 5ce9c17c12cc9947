"""Full fine-tuning inside the mask: all weights of linear layers that are not zero, the ceiling of what keeps zeros.

Wanda's `dense_ft` (Sun et al., ICLR 2024). The change is trained and saved, not the weight, in fp32.
"""

from typing import ClassVar

from torch import nn

from baselines.updates import Parts, WeightUpdates
from models.contract import Needs, State
from models.updates import InMask


class MaskedFull(WeightUpdates):
    """The state: `NAME.change` (L, out, in) fp32 of each linear layer; zero at first, and wherever the weight is."""

    needs = Needs(training=True, updates=True, weights=True, weight_bytes=1)
    kind = InMask
    rest: ClassVar = {"change": 0.0}

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """The same for all matrices."""
        return InMask(**parts)

    def part_shapes(self, linear: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """As the weight."""
        return {"change": (outputs, inputs)}

    def describe(self, state: State) -> str:
        """ "all weights of 210 matrices that are not zero"."""
        return f"all weights of {sum(map(len, state.values()))} matrices that are not zero"
