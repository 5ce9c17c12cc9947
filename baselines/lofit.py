"""LoFiT's first step (Yin et al., "LoFiT: Localized Fine-tuning on LLM Representations", NeurIPS 2024): which heads.

Its second step is b of Eq. 8 alone on these heads, `utils.compensation.bias_only`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from models.loading import head_shape
from models.modeling_llama import OfEveryToken, attach
from models.terms import Term
from utils.common.methods import SITES
from utils.compensation import INITIAL_STD
from utils.prompts import Encoded
from utils.training import TrainingSettings, train

LR, L1 = 5e-3, 5e-4
"""Its authors': AdamW's rate, falling linearly to 0, and the weight λ of Σ|A| in the loss."""


class HeadScale(Term):
    """z ← (1 + A) ⊙ z before o_proj, as a change of its weight (D, H·d): its columns times A (H, d)."""

    learned = ("scales",)
    beside = True
    size: Tensor | None = None
    """Σ|A| of the last forward pass: taken there, where FSDP has the whole of A and reduces its gradient."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scales.flatten()

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """(1 + A) ⊙ z, in fp32 and rounded once, through the layer: in bf16 1 + A would be 1 for |A| below 0.004."""
        self.size = self.scales.abs().sum()
        gain = 1 + self.scales.flatten()
        return F.linear((OfEveryToken.apply(gain.detach().expand_as(z), gain) * z).to(z.dtype), weight)


def scale_norms(
    model: LlamaForCausalLM,
    samples: list[Encoded],
    settings: TrainingSettings,
    l1: float,
    device: str,
    checkpoints: Path,
    belongs: str = "",
) -> Tensor:
    """‖A‖₂ of every head, (L, H) fp32 on the CPU, after z ← (1 + A) ⊙ z was trained with loss + l1 · Σ|A|.

    A starts from N(0, 1e-3); it stays in the model, which is on `device`, or on the CPU if it is to be sharded. All
    processes train together, and all get the norms. With settings.num_epoch 0 they are those of the start. checkpoints
    and belongs: see `train`.
    """
    shape = head_shape(model.config)
    start = INITIAL_STD * torch.randn(shape, generator=torch.Generator().manual_seed(settings.training_seed))
    scales = [HeadScale(own) for own in start]
    attach(model, {f"model.layers.{n}.{SITES['attention']}.weight": [own] for n, own in enumerate(scales)})
    if settings.num_epoch:

        def penalty() -> Tensor:
            return l1 * sum(own.size for own in scales)

        train(model, samples, [], settings, device, checkpoints, penalty=penalty, belongs=belongs)
    return torch.stack([own.tensors()["scales"].norm(dim=-1) for own in scales])
