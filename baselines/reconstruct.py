"""Block reconstruction inside the mask: weights trained, half a decoder layer at a time, to give the dense output.

Settings of ZIB-IOL/Free-Lunch-in-LLM-Compression (windows of attention and of MLP, AdamW at 1e-5, linear with 10 % of
warm-up) and EBFT (10 epochs). Weight decay is 0; the norms are frozen. Each step uses one of `LayerInputs.batches`; an
epoch takes all, in a new order. Their learning rate and number of epochs have almost no effect on SmolLM2-135M
(docs/results/wanda-50-methods.md): here the rate is a hundred times theirs, for two epochs.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import get_linear_schedule_with_warmup

from models.contract import MethodInputs
from models.families import ATTENTION, MLP
from models.terms import MaskedChange, inside_mask
from pruning.layers import LayerInputs, walk
from utils.common.errors import UserError
from utils.common.progress import progress

LR, EPOCHS = 1e-3, 2
WARMUP = 0.1
"""Share of the training steps of a half layer."""


class HalfLayer(nn.Module):
    """Half a decoder layer with its residual: input_layernorm to o_proj, or post_attention_layernorm to down_proj.

    weights: of its linear layers, by their names in the layer.
    """

    def __init__(self, layer: nn.Module, attention: bool):
        super().__init__()
        self.layer, self.attention = layer, attention
        names = ATTENTION if attention else MLP
        self.weights = {name: layer.get_submodule(name).weight.detach() for name in names}

    def forward(self, hidden: Tensor, **kwargs) -> Tensor:
        """Hidden states (B, T, D) after this half. kwargs: the decoder layer's other arguments."""
        if self.attention:
            normed = self.layer.input_layernorm(hidden)
            return hidden + self.layer.self_attn(hidden_states=normed, **kwargs)[0]
        return hidden + self.layer.mlp(self.layer.post_attention_layernorm(hidden))

    @torch.no_grad()
    def passed(self, inputs: LayerInputs) -> LayerInputs:
        """The inputs with hidden states as they are after this half."""
        outputs = [self(batch, **inputs.kwargs) for batch in inputs.batches()]
        return replace(inputs, hidden=torch.cat(outputs))

    def loss(self, changes: dict[str, Tensor], inputs: Tensor, targets: Tensor, kwargs: dict) -> Tensor:
        """The mean squared error of one batch, fp32; changes (out, in) fp32 apply where the weight isn't zero."""
        weights = {
            f"layer.{name}.weight": (weight.float() + inside_mask(changes[name], weight.float())).to(weight.dtype)
            for name, weight in self.weights.items()
        }
        return F.mse_loss(functional_call(self, weights, (inputs,), kwargs).float(), targets.float())


def reconstruct(inputs: MethodInputs) -> dict[str, MaskedChange]:
    """The weights inside the mask, trained half by half on the mean squared error of the half's output.

    Layers are trained in order. A half's inputs come from the restored halves before it; its target is the dense half's
    output for the same inputs. A half whose error on the calibration set has not become smaller stays unchanged.
    errors: that mean squared error, before and after.
    """
    generator, terms = torch.Generator().manual_seed(inputs.seed), {}
    device, dense = torch.device(inputs.device), inputs.dense()
    for fed in walk(inputs.pruned(), inputs.tokens, device, "block reconstruction"):
        teacher = dense.model.layers[fed.index].to(device)
        for attention in (True, False):
            half, target = HalfLayer(fed.layer, attention), HalfLayer(teacher, attention).passed(fed)
            changes, *errors = train_half(half, fed, target, generator)
            for name, change in changes.items():
                term = MaskedChange(change.cpu(), errors=torch.tensor(errors))
                terms[f"model.layers.{fed.index}.{name}.weight"] = term
                half.weights[name].copy_(half.weights[name] + change)
            fed = half.passed(fed)
        teacher.to("cpu")
    return terms


def train_half(
    half: HalfLayer, inputs: LayerInputs, target: LayerInputs, generator: torch.Generator
) -> tuple[dict[str, Tensor], float, float]:
    """(changes by linear layer, (out, in) fp32, error before, error after): zeros if the error has not become smaller.

    generator: draws the order of the batches. Raises UserError if the error before is not finite.
    """
    batches = list(zip(inputs.batches(), target.batches(), strict=True))

    @torch.no_grad()
    def error(changes: dict[str, Tensor]) -> float:
        losses = (len(batch[0]) * float(half.loss(changes, *batch, inputs.kwargs)) for batch in batches)
        return sum(losses) / len(inputs.hidden)

    changes = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in half.weights.items()}
    before, name = error(changes), f"layer {inputs.index}"
    if not before < float("inf"):
        raise UserError(f"-dtype: {name} is not finite on the calibration set; try bfloat16 or float32")
    if before == 0:
        return changes, before, before
    trained = {key: change.clone().requires_grad_() for key, change in changes.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0)
    steps = EPOCHS * len(batches)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    order = (index for _ in range(EPOCHS) for index in torch.randperm(len(batches), generator=generator))
    with torch.enable_grad(), progress(order, desc=name, total=steps, unit="step", leave=False) as bar:
        for index in bar:
            # Relative to the initial error: a small loss would vanish beside Adam's epsilon, or underflow in fp16.
            loss = half.loss(trained, *batches[index], inputs.kwargs) / before
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(error=f"{before:.3g} -> {before * float(loss.detach()):.3g}", refresh=False)
    found = {key: change.detach() for key, change in trained.items()}
    after = error(found)
    return (found, before, after) if after < before else (changes, before, before)
