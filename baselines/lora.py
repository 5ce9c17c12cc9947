"""LoRA and DoRA on linear layers, and both inside the mask (as in PERP): the update is zero where the weight is.

W + s·B A, or W + s·M ⊙ (B A) with M the mask of non-zero weights; s = alpha / r. DoRA (Liu et al., ICML 2024) also has
a magnitude for each row. Merging the unmasked ones fills zeros; the proof counts how many.
"""

from functools import partial

import torch

from models.contract import MethodInputs, linear_shapes
from models.terms import DoRA, LowRank, MaskedDoRA, MaskedLowRank

SCALE = 2.0
"""alpha / r: that of Wanda's, LLM-Pruner's and PERP's settings."""


def lora(inputs: MethodInputs, kind: type[LowRank] = LowRank) -> dict[str, LowRank]:
    """An update of rank r for each chosen linear layer: A (r, in) initialized like nn.Linear, B zero."""
    options, config = inputs.options, inputs.config
    targets = options.lora_targets and options.lora_targets.split(",")
    generator = torch.Generator().manual_seed(inputs.seed)
    terms = {}
    for name, (out, width) in linear_shapes(config).items():
        if targets and name.split(".")[1] not in targets:
            continue
        drawn = torch.empty(config.num_hidden_layers, options.lora_rank, width)
        drawn.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        for layer, down in enumerate(drawn):
            rest = {"magnitudes": torch.zeros(out)} if "magnitudes" in kind.learned else {}
            up = torch.zeros(out, options.lora_rank)
            terms[f"model.layers.{layer}.{name}.weight"] = kind(down=down, up=up, scale=torch.tensor(SCALE), **rest)
    return terms


masked_lora = partial(lora, kind=MaskedLowRank)
dora = partial(lora, kind=DoRA)
masked_dora = partial(lora, kind=MaskedDoRA)
