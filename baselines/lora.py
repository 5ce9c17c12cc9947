"""LoRA on linear layers, and masked LoRA (PERP's), whose update is zero where the pruned weight is.

W + s·B A, or W + s·M ⊙ (B A) with the mask M read from the weight; s = alpha / r. Merged, LoRA fills the zeros: how
many are left is a finding. Masked LoRA keeps them all.
"""

from torch import nn

from baselines.updates import LowRankUpdates, Parts
from models.contract import KEPT, REPORTED, Needs
from models.updates import LowRank


class LoRA(LowRankUpdates):
    """An update of rank r for each chosen linear layer: A and B."""

    kind = LowRank

    def __init__(
        self,
        lora_rank: int,
        lora_alpha: float,
        masked: bool = False,
        lora_targets: str | None = None,
        lora_layers: str | None = None,
    ):
        super().__init__(lora_rank, lora_targets, lora_layers)
        self.scale, self.masked = lora_alpha / lora_rank, masked
        self.zeros = KEPT if masked else REPORTED
        self.in_words += ", inside the mask" if masked else ""

    @property
    def needs(self) -> Needs:
        """Training; inside the mask of whole weights, with the mask."""
        return Needs(training=True, updates=True, weights=self.masked, weight_bytes=int(self.masked))

    def update(self, linear: str, parts: Parts) -> nn.Module:
        """The same for all matrices."""
        return self.kind(**parts, scale=self.scale, masked=self.masked)
