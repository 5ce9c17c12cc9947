"""LoFiT's first step (Yin et al., "LoFiT: Localized Fine-tuning on LLM Representations", NeurIPS 2024): which heads.

Its second step is b of Eq. 8 alone on these heads, `utils.compensation.HeadCompensations`.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.head_scales import scaled_heads
from models.modeling_llama import whole
from utils.common.files import workspace
from utils.compensation import INITIAL_STD
from utils.prompts import Encoded
from utils.training import TrainingSettings, train


def scale_norms(
    model: LlamaForCausalLM,
    samples: list[Encoded],
    settings: TrainingSettings,
    l1: float,
    device: str,
    sharded: bool = False,
) -> Tensor:
    """‖A‖₂ of every head, (L, H) fp32 on the CPU, after z ← (1 + A) ⊙ z was trained with loss + l1 · Σ|A|.

    A starts from N(0, 1e-3) and is thrown away. The model is on `device`, or on the CPU if it is to be sharded; all
    processes train together, and all get the norms. With settings.epochs 0 they are those of the start.
    """
    config = model.config
    shape = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    start = INITIAL_STD * torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))
    with scaled_heads(model, start) as scaled:
        if settings.epochs:
            # A is needed once and is cheap to train again: its checkpoints are nobody's.
            with workspace("lofit") as checkpoints:
                train(
                    model,
                    samples,
                    [],
                    settings,
                    device,
                    checkpoints,
                    resume=False,
                    sharded=sharded,
                    penalty=lambda: l1 * sum(heads.size for heads in scaled),
                )
        return torch.stack([whole(heads.scales).norm(dim=-1) for heads in scaled])
