"""Head activations at the last token: forward passes only, and nothing kept but what is asked for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.cpu_attention import cpu_attention
from models.loading import head_shape, input_device
from utils.common.progress import progress
from utils.packing import PromptWithContinuations, by_length, pack

CPU_TOKENS_A_BATCH = 512
"""On a CPU, where more of them are no faster, and rows of a larger batch differ more in length."""

TOKENS_A_BATCH = 4096
"""Padded tokens in one forward pass. A mask holds tokens² numbers a row, so rows stay bounded too."""


def last_token_activations(model: LlamaForCausalLM, rows: list[PromptWithContinuations], description: str) -> Tensor:
    """z[l, h], the input of o_proj by head, at the last token of every continuation: (C, L, H, N, d) fp32 on the CPU.

    All N prompts have the same number C of continuations. Those of a prompt share one pass over it, and z is what
    separate passes give. Rows are batched by length; layers after the last o_proj's input are not run.
    """
    layers, heads, width = head_shape(model.config)
    found = torch.empty(len(rows[0].continuations), layers, heads, len(rows), width)
    device = input_device(model)
    with (
        torch.no_grad(),
        cpu_attention(model),
        progress(total=sum(map(len, rows)), desc=description, unit="tok", unit_scale=True) as bar,
    ):
        for chosen in by_length(rows, CPU_TOKENS_A_BATCH if device.type == "cpu" else TOKENS_A_BATCH):
            batch = pack([rows[row] for row in chosen])
            last = torch.tensor([[places[-1] for places in row] for row in batch.columns])
            with _captured_inputs(model, last) as captured, suppress(_Reached):
                model.model(**batch.inputs(model, device), use_cache=False)
            for layer, z in enumerate(captured):
                # (B, C, H·d) -> (C, H, B, d)
                found[:, layer, :, chosen] = z.unflatten(-1, (heads, width)).permute(1, 2, 0, 3)
            bar.update(sum(len(rows[row]) for row in chosen))
    return found


class _Reached(Exception):
    """Raised once the last layer's input is in hand: what follows it is not needed."""


@contextmanager
def _captured_inputs(model: LlamaForCausalLM, columns: Tensor) -> Iterator[list[Tensor]]:
    """What each o_proj is fed at the columns (B, C) of its rows: (B, C, H·d) fp32 on the CPU, layer by layer."""
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    captured: list[Tensor] = []

    def capture(_, inputs):
        z = inputs[0]
        rows = torch.arange(len(z), device=z.device).unsqueeze(1)
        captured.append(z[rows, columns.to(z.device)].float().cpu())
        if len(captured) == len(projections):
            raise _Reached

    with ExitStack() as hooks:
        for projection in projections:
            hooks.enter_context(projection.register_forward_pre_hook(capture))
        yield captured
