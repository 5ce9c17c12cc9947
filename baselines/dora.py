"""DoRA on linear layers, and masked DoRA, whose low-rank change is zero where the pruned weight is.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024: W' = m / ‖V‖ ⊙ V by rows, V = W + s·B A, with the
norm detached from the gradient, as in PEFT. V = W + s·M ⊙ (B A) keeps every zero.
"""

from dataclasses import replace
from typing import ClassVar

from baselines.lora import LoRA
from models.contract import Needs
from models.updates import Decomposed


class DoRA(LoRA):
    """A, B and a magnitude for each row of each chosen linear layer.

    The state has `NAME.magnitudes` (n, out) besides: m - ‖W‖, zero at first, so that DoRA starts at the weight as it is
    after what restored before it.
    """

    kind = Decomposed
    rest: ClassVar = {"up": 0.0, "magnitudes": 0.0}
    in_words = "magnitudes and updates of rank {rank} of {count} matrices"

    @property
    def needs(self) -> Needs:
        """LoRA's; beside the weight also outputs, inside the mask also V in fp32."""
        return replace(super().needs, outputs=not self.masked, weight_bytes=5 * self.masked)

    def part_shapes(self, linear: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """A, B and the magnitudes."""
        return {**super().part_shapes(linear, outputs, inputs), "magnitudes": (outputs,)}
