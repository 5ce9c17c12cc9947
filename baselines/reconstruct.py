"""Block reconstruction inside the mask: weights trained, half a decoder layer at a time, to give the dense output.

Settings of ZIB-IOL/Free-Lunch-in-LLM-Compression (windows of attention and of MLP, AdamW at 1e-5, linear with 10 % of
warm-up) and EBFT (10 epochs). Weight decay is 0; the norms are frozen. A step takes one batch of whole sequences, as
many as one forward pass takes, the same ones in each epoch, in another order. Their rate and epochs do next to
nothing on SmolLM2-135M (docs/results.md): here it is a hundred times theirs, for two epochs.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import get_linear_schedule_with_warmup

from models.checkpoint import LINEARS
from models.contract import MethodInputs
from models.terms import MaskedChange
from pruning.layers import LayerInputs, put, walk
from utils.common.errors import UserError
from utils.common.progress import progress

LR, EPOCHS = 1e-3, 2
WARMUP = 0.1
"""Of all steps of a window."""


class AttentionHalf(nn.Module):
    """The first half of a decoder layer, input_layernorm to o_proj, with its residual."""

    linears = LINEARS[:4]

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, **kwargs) -> Tensor:
        """(B, T, D) after it. kwargs: what a decoder layer takes besides."""
        normed = self.layer.input_layernorm(hidden)
        return hidden + self.layer.self_attn(hidden_states=normed, **kwargs)[0]


class MlpHalf(nn.Module):
    """The second half of a decoder layer, post_attention_layernorm to down_proj, with its residual."""

    linears = LINEARS[4:]

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, **kwargs) -> Tensor:
        """(B, T, D) after it. kwargs: what a decoder layer takes besides; none of it is needed."""
        return hidden + self.layer.mlp(self.layer.post_attention_layernorm(hidden))


HALVES = (AttentionHalf, MlpHalf)


def reconstruct(inputs: MethodInputs) -> dict[str, MaskedChange]:
    """The weights inside the mask, trained window by window on the mean squared error of the window's output.

    Layers in order, each half on what the restored halves before it give, towards what the dense half makes of it. A
    window that is not better at the end than at the start, on the calibration set itself, stays as it was. errors:
    that mean squared error, of the half.
    """
    generator, terms = torch.Generator().manual_seed(inputs.seed), {}
    device, dense = torch.device(inputs.device), inputs.dense()
    for each in walk(inputs.pruned(), inputs.tokens, device, "block reconstruction"):
        teacher = dense.model.layers[each.index].to(device)
        fed = each
        for half in HALVES:
            target = replace(fed, hidden=passed(half(teacher), fed))
            window = Window(half(each.layer), list(zip(fed.batches(), target.batches(), strict=True)), each.kwargs)
            changes, *errors = window.train(LR, EPOCHS, generator, f"layer {each.index}")
            for name, change in changes.items():
                full = f"model.layers.{each.index}.{name}.weight"
                terms[full] = MaskedChange(change.cpu(), errors=torch.tensor(errors))
                linear = each.layer.get_submodule(name)
                put(linear.weight + change, linear)
            fed = replace(fed, hidden=passed(half(each.layer), fed))
        teacher.to("cpu")
    return terms


@torch.no_grad()
def passed(half: nn.Module, inputs: LayerInputs) -> Tensor:
    """The hidden states (S, T, D) after half a layer."""
    return torch.cat([half(batch, **inputs.kwargs) for batch in inputs.batches()])


class Window:
    """Half a decoder layer whose linear layers' non-zero weights are trained.

    batches: (inputs, wanted outputs), (B, T, D) each. kwargs: what the decoder layer takes besides.
    """

    def __init__(self, half: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], kwargs: dict):
        self.half, self.batches, self.kwargs = half, batches, kwargs
        self.frozen = {name: half.layer.get_submodule(name).weight.detach() for name in half.linears}

    def loss(self, changes: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of one batch, fp32; changes (out, in) fp32 count where the weight is not zero."""
        weights = {
            f"layer.{name}.weight": (weight.float() + changes[name] * (weight != 0)).to(weight.dtype)
            for name, weight in self.frozen.items()
        }
        return F.mse_loss(functional_call(self.half, weights, (inputs,), self.kwargs).float(), targets.float())

    @torch.no_grad()
    def error(self, changes: dict[str, Tensor]) -> float:
        """The same over all batches, each with the weight of its sequences."""
        sizes = [len(inputs) for inputs, _ in self.batches]
        losses = (float(self.loss(changes, *batch)) for batch in self.batches)
        return sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / sum(sizes)

    def train(
        self, lr: float, epochs: int, generator: torch.Generator, name: str
    ) -> tuple[dict[str, Tensor], float, float]:
        """(changes by linear layer, (out, in) fp32, error before, error after): zeros if they would not make it better.

        generator: draws the order of the batches. name: for the progress bar. Raises UserError if the error before is
        not finite.
        """
        changes = {key: torch.zeros_like(weight, dtype=torch.float32) for key, weight in self.frozen.items()}
        before = self.error(changes)
        if not before < float("inf"):
            raise UserError(f"-dtype: {name} is not finite on the calibration set; try bfloat16 or float32")
        if before == 0:
            return changes, before, before
        trained = {key: change.clone().requires_grad_() for key, change in changes.items()}
        optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
        steps = epochs * len(self.batches)
        schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
        order = (index for _ in range(epochs) for index in torch.randperm(len(self.batches), generator=generator))
        with torch.enable_grad(), progress(order, desc=name, total=steps, unit="step", leave=False) as bar:
            for index in bar:
                # As a share of the first error: small ones would drown in Adam's epsilon, or in fp16's range.
                loss = self.loss(trained, *self.batches[index]) / before
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(error=f"{before:.3g} -> {before * float(loss.detach()):.3g}", refresh=False)
        found = {key: change.detach() for key, change in trained.items()}
        after = self.error(found)
        return (found, before, after) if after < before else (changes, before, before)
