"""LoFiT's first step (Yin et al., "LoFiT: Localized Fine-tuning on LLM Representations", NeurIPS 2024): rank heads.

Its second step trains b of Eq. 8 alone on the best heads: `utils.compensation.bias_only`.
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
"""The authors' values: AdamW's learning rate, with linear decay to 0, and the weight λ of Σ|A| in the loss."""


class HeadScale(Term):
    """z ← (1 + A) ⊙ z before o_proj, as a change of its weight (D, H·d): its columns times A (H, d)."""

    learned = ("scales",)
    beside = True
    size: Tensor | None = None
    """Σ|A| of the last forward pass, computed there, where FSDP has gathered A and so reduces its gradient."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scales.flatten()

    def through(self, z: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for (1 + A) ⊙ z, computed in fp32 and rounded once: in bf16 1 + A is 1 for |A| < 0.002."""
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
    """Train A of z ← (1 + A) ⊙ z with loss + l1 · Σ|A|. Returns ‖A‖₂ of every head, (L, H) fp32 on the CPU.

    A starts from N(0, 1e-3) and stays attached to the model. model: on `device`, or on the CPU if it is to be sharded.
    All processes train together, and all get the norms. If settings.num_epoch is 0, they are those of the initial A.
    checkpoints and belongs: see `train`.
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
