"""HiRA on linear layers: W + W ⊙ (B A), whose rank is not bounded by r, and which is zero where the pruned weight is.

Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation", ICLR 2025. As in PEFT nothing scales B A.
"""

from torch import nn

from baselines.updates import LowRankUpdates, Parts
from models.contract import Needs
from models.updates import Hadamard


class HiRA(LowRankUpdates):
    """A and B for each chosen linear layer."""

    needs = Needs(training=True, updates=True, weights=True, weight_bytes=4)
    kind = Hadamard
    in_words = "factors of rank {rank} of {count} matrices"

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """The same for all matrices."""
        return Hadamard(**parts)
