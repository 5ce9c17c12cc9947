"""A scale on what each query head gives, before o_proj: LoFiT's z ← (1 + A) ⊙ z, for as long as A is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class _ScaledHeads(torch.autograd.Function):
    """(1 + A) ⊙ z, computed in fp32 and rounded to z's dtype once; the gradient of A is summed in fp32.

    1 + A rounded to bf16 first would be 1 for every |A| below 0.004.
    """

    @staticmethod
    def forward(ctx, z: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(z, scales)
        return ((1 + scales) * z).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, scales = ctx.saved_tensors
        grad_z = ((1 + scales) * grad).to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_scales = (grad * z).flatten(0, -2).sum(0, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        return grad_z, grad_scales


class ScaledHeads(nn.Linear):
    """A frozen o_proj, its weight and bias the stock layer's own, on scaled heads: scales A (H, d), trained in fp32."""

    def __init__(self, stock: nn.Linear, scales: Tensor):
        nn.Module.__init__(self)
        self.in_features, self.out_features = stock.in_features, stock.out_features
        self.weight, self.bias = stock.weight, stock.bias
        self.scales = nn.Parameter(scales.to(stock.weight.device, torch.float32, copy=True))
        self.size = torch.zeros(())
        """Σ|A| of the last forward pass: taken there, where FSDP has the whole of A and reduces its gradient."""

    def forward(self, z: Tensor) -> Tensor:
        self.size = self.scales.abs().sum()
        return F.linear(_ScaledHeads.apply(z, self.scales.flatten()), self.weight, self.bias)


@contextmanager
def scaled_heads(model: LlamaForCausalLM, start: Tensor) -> Iterator[list[ScaledHeads]]:
    """Within it, the model scales all heads, layer by layer from A = start (L, H, d); nothing else requires gradients.

    Afterwards it has its own layers again, and nothing requires gradients.
    """
    model.requires_grad_(False)
    attention = [layer.self_attn for layer in model.model.layers]
    stocks = [module.o_proj for module in attention]
    scaled = [ScaledHeads(stock, scales) for stock, scales in zip(stocks, start, strict=True)]
    try:
        for module, heads in zip(attention, scaled, strict=True):
            module.o_proj = heads
        yield scaled
    finally:
        for module, stock in zip(attention, stocks, strict=True):
            module.o_proj = stock
