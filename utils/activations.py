"""Collect head activations at the last token, by forward passes that keep nothing else."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.cpu_attention import cpu_attention
from models.loading import head_shape
from pruning.layers import finite, seen_inputs
from utils.common.progress import progress
from utils.packing import PromptWithContinuations, by_length, pack

CPU_TOKENS_A_BATCH = 512
"""Padded tokens in one forward pass on a CPU. More are no faster, and rows of a larger batch differ more in length."""

TOKENS_A_BATCH = 4096
"""Padded tokens in one forward pass. It also bounds the attention mask, with T² numbers for each row of T tokens."""


def last_token_activations(model: LlamaForCausalLM, rows: list[PromptWithContinuations], description: str) -> Tensor:
    """z[l, h], head h's slice of o_proj's input, at each continuation's last token: (C, L, H, N, d) fp32 on the CPU.

    All N prompts have the same number C of continuations. The continuations of a prompt share one forward pass, with
    the z that separate passes would give. Rows are batched by length. The pass stops at the last o_proj's input. Raises
    UserError if z is not finite.
    """
    layers, heads, width = head_shape(model.config)
    found = torch.empty(len(rows[0].continuations), layers, heads, len(rows), width)
    projections = {number: layer.self_attn.o_proj for number, layer in enumerate(model.model.layers)}
    with (
        torch.no_grad(),
        cpu_attention(model),
        progress(total=sum(map(len, rows)), desc=description, unit="tok", unit_scale=True) as bar,
    ):
        for chosen in by_length(rows, CPU_TOKENS_A_BATCH if model.device.type == "cpu" else TOKENS_A_BATCH):
            batch = pack([rows[row] for row in chosen])
            last = torch.tensor([[places[-1] for places in row] for row in batch.columns])

            def see(layer: int, z: Tensor, chosen=chosen, last=last) -> None:
                rows = torch.arange(len(z), device=z.device).unsqueeze(1)
                fed = z[rows, last.to(z.device)].float().cpu()
                # (B, C, H·d) -> (C, H, B, d)
                found[:, layer, :, chosen] = fed.unflatten(-1, (heads, width)).permute(1, 2, 0, 3)

            with seen_inputs(projections, see):
                model.model(**batch.inputs(model, model.device), use_cache=False)
            bar.update(sum(len(rows[row]) for row in chosen))
    return finite(found, f"one of the {description}")
