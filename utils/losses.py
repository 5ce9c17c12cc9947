"""Cross-entropy and distillation at response tokens, and at all tokens of a text, without ever holding all logits.

The losses are those of one training batch, or of all validation samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedConfig

from models.cpu_attention import cpu_attention
from models.families import final_logits
from utils.common.errors import UserError
from utils.common.progress import progress
from utils.distillation import Distillation
from utils.packing import by_length
from utils.prompts import IGNORED, Encoded, collate

CHUNK = 128
"""Labelled tokens whose logits are in memory at once: enough for a CPU's full rate; not measured on a card."""

VALID_TOKENS_A_BATCH = 4096

NOT_FINITE = (
    "-dtype: the validation loss is not finite before any training; try float32, or look at the validation "
    "samples and the models"
)

GATHERED_FP32, GATHERED_HALF = 1e-4, 2e-3
"""Relative difference of validation losses, in fp32 and below, that is allowed for other devices and shapes."""


class _Known(torch.autograd.Function):
    """A scalar whose gradient with respect to `hidden` is known."""

    @staticmethod
    def forward(ctx, hidden: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None


def frozen_head_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    config: PreTrainedConfig,
    taught: Tensor | None = None,
    teachers_head: Tensor | None = None,
    share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Summed loss of hidden states (n, D) under a frozen output head (V, D), and the losses of each token.

    Without a teacher the loss is cross-entropy. With `taught`, the teacher's hidden states (n, D) of the same tokens,
    and its head (V, D), it is (1 - w)·CE + w·KL(teacher ‖ student), where w is `share`. The losses of each token are
    fp32: cross-entropy (1, n), or with a teacher cross-entropy and KL (2, n).

    The head is frozen. So the gradient with respect to a chunk's hidden states is computed while its logits are still
    in memory: nothing is recomputed, and only one chunk of logits exists at a time.
    """
    tokens, gradients = [], []
    by_chunk = [repeat(None) if each is None else each.split(CHUNK) for each in (hidden.detach(), labels, taught)]
    for states, wanted, teacher in zip(*by_chunk, strict=False):
        student = _log_probabilities(states.requires_grad_(hidden.requires_grad), head, config)
        losses = [F.nll_loss(student, wanted, reduction="none")]
        if teacher is not None:
            target = _log_probabilities(teacher, teachers_head, config)
            losses.append(F.kl_div(student, target, log_target=True, reduction="none").sum(-1))
        if hidden.requires_grad:
            gradients += torch.autograd.grad(((1 - share) * losses[0] + share * losses[-1]).sum(), states)
        tokens.append(torch.stack(losses).detach())
    own = torch.cat(tokens, 1)
    total = ((1 - share) * own[0] + share * own[-1]).sum()
    return _Known.apply(hidden, total, torch.cat(gradients)) if gradients else total, own


def _log_probabilities(hidden: Tensor, head: Tensor, config: PreTrainedConfig) -> Tensor:
    """Log-probabilities (n, V) in fp32, from hidden states (n, D) and an output head (V, D)."""
    return final_logits(config, F.linear(hidden, head)).log_softmax(-1, torch.float32)


class ResponseLoss(nn.Module):
    """A model whose forward pass returns the mean loss of the labelled tokens.

    distillation: the teacher; its KL is part of the training loss. In evaluation mode the forward pass returns each
    token's cross-entropy, whatever the training loss is, and with a teacher the KL beside it.

    There is no attention mask: rows are padded on the right, and causal attention never looks there.

    penalty: called after each forward pass in training, and added to that mean; validation has none.
    processes: their number. With a teacher each reads a window of text per step; the mean of their KLs is added.
    """

    accepts_loss_kwargs = True
    """Tells transformers' Trainer to hand over the number of labelled tokens of the whole step."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        distillation: Distillation | None = None,
        penalty: Callable[[], Tensor] | None = None,
        processes: int = 1,
    ):
        super().__init__()
        self.processes = processes
        self.model = model
        self.distillation = distillation
        self._no_split_modules = model._no_split_modules
        """The classes that FSDP shards as one unit; embeddings, last norm and head stay with this module."""
        self._penalty = penalty

    def tie_weights(self) -> None:
        """Called by FSDP, which unties tied weights when it loads them in one process only."""
        self.model.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        teacher: Tensor | None = None,
        of_text: Tensor | None = None,
    ) -> dict:
        """input_ids, labels: (B, T) int64, labels -100 where not trained on; returns {"loss": scalar fp32} in training.

        The loss is the sum over labelled tokens / num_items_in_batch, by default their number in this batch. teacher:
        (n, D), the dense model's last hidden states at the positions that predict labelled tokens, row by row. of_text:
        such states (T - 1, D) for a window of text (1, T), whose loss is the mean KL; its labels are all -100, so that
        the Trainer counts none. In evaluation mode {"tokens": (1, n) fp32} is returned, the cross-entropy of each
        labelled token, row by row; with a teacher (2, n), where the second row is the KL.
        """
        if of_text is not None:
            total, tokens = self._summed(input_ids, input_ids, of_text, 1.0)
            return {"loss": total / (tokens.shape[1] * self.processes)}
        total, tokens = self._summed(input_ids, labels, teacher, self.distillation and self.distillation.weight)
        if not self.training:
            return {"tokens": tokens}
        if self._penalty is not None:
            # Once per labelled token, so that the batches and processes of a step together add one penalty.
            total = total + tokens.shape[1] * self._penalty()
        return {"loss": total / (tokens.shape[1] if num_items_in_batch is None else num_items_in_batch)}

    def _summed(
        self, input_ids: Tensor, labels: Tensor, teacher: Tensor | None, share: float | None
    ) -> tuple[Tensor, Tensor]:
        """(summed loss of a batch, losses of each token). share: the weight of the KL in the sum."""
        # If the model is spread over devices, its last layer may be on another one.
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state.to(labels.device)
        targets = labels[:, 1:]
        labelled = targets != IGNORED
        head = self.model.lm_head.weight
        hidden, target = hidden[:, :-1][labelled], ()
        if self.distillation:
            own = self.distillation.head
            target = teacher, head if own is None else own, share
        return frozen_head_loss(hidden, head, targets[labelled], self.model.config, *target)


@dataclass
class TrainingResult:
    """history: rows {"step", "epoch", "loss", "learning_rate"} and {"step", "epoch", "valid_loss"}, the latter with
    "valid_kl" under distillation.

    loss: the training loss; valid_loss: always cross-entropy; valid_kl: KL from the dense model; all in nats.
    valid_rows: for each sample, in the last validation, [summed cross-entropy in nats, labelled tokens].
    """

    history: list[dict] = field(default_factory=list)
    valid_rows: list[list[float]] = field(default_factory=list)


def validate(model: LlamaForCausalLM, valid: list[Encoded]) -> TrainingResult:
    """Validate a model without training it, as `train` does before the first step.

    The history has one row, for step 0, or none without validation samples. model: with or without a restoration
    attached, on one device or spread over several. Raises UserError if the loss is not finite.
    """
    if not valid:
        return TrainingResult()
    with cpu_attention(model), align_module_device(model.lm_head, model.device):  # a spread model's may be elsewhere
        rows = response_loss(ResponseLoss(model).eval(), valid, model.config.pad_token_id or 0)
    total, count = rows.sum(0).tolist()
    if not math.isfinite(total):
        raise UserError(NOT_FINITE)
    return TrainingResult([{"step": 0, "epoch": 0.0, "valid_loss": total / count}], valid_rows=rows.tolist())


def check_gathered(model: LlamaForCausalLM, valid: list[Encoded], training: TrainingResult) -> None:
    """Raise UserError unless the whole model has the sharded model's last validation loss. If it has not, what was
    gathered from the processes, and saved, is not what they trained."""
    losses = [row["valid_loss"] for row in training.history if "valid_loss" in row]
    if not losses:
        print("      without validation samples the gathered model is not compared with the sharded one")
        return
    (found,) = validate(model, valid).history
    allowed = GATHERED_FP32 if model.dtype == torch.float32 else GATHERED_HALF
    if not math.isclose(found["valid_loss"], losses[-1], rel_tol=allowed):
        raise UserError(
            f"accelerate launch: the validation loss is {found['valid_loss']:.5f} with the saved restoration, but was "
            f"{losses[-1]:.5f} with the sharded model (allowed difference: {100 * allowed:g} %): FSDP gathered other "
            "values than it trained; train without --use_fsdp"
        )


@torch.no_grad()
def response_loss(
    model: torch.nn.Module,
    samples: list[Encoded],
    pad_id: int,
    part: int = 0,
    parts: int = 1,
    states: list[Tensor] | None = None,
) -> Tensor:
    """[summed cross-entropy in nats, labelled tokens] of each sample: (N, 2) fp64; under distillation (N, 3), with the
    summed KL. The result is on the CPU, since not every device has fp64.

    With several `parts`, each computes some of the batches and has zeros for all other samples: the parts add up.

    model: a ResponseLoss, or a distributed wrapper of one, in evaluation mode. states: the teacher's, of each sample.
    All parts run the same number of batches, so that the processes of a sharded model stay in step: a part without a
    batch left repeats another part's, and leaves it out of the result.
    """
    device = next(model.parameters()).device
    batches = by_length([sample.ids for sample in samples], VALID_TOKENS_A_BATCH)
    found: list[tuple[list[int], list[int], Tensor]] = []
    with progress(total=len(samples), desc="validation loss", unit="sample", leave=False) as bar:
        for first in range(0, len(batches), parts):
            mine = first + part < len(batches)
            rows = batches[first + part if mine else first]
            batch = collate([samples[row] for row in rows], pad_id, states and [states[row] for row in rows])
            counts = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
            tokens = model(**{name: tensor.to(device) for name, tensor in batch.items()})["tokens"]
            if mine:
                found.append((rows, counts, tokens))
            bar.update(sum(len(rows) for rows in batches[first : first + parts]))
    summed = torch.zeros(len(samples), 1 + len(tokens), dtype=torch.float64)
    # Copied to the CPU only now, so that the device does not wait after each batch.
    for rows, counts, tokens in found:
        for row, count, own in zip(rows, counts, tokens.cpu().double().split(counts, dim=1), strict=True):
            loss, *divergence = own.sum(1).tolist()
            summed[row] = torch.tensor([loss, count, *divergence], dtype=torch.float64)
    return summed
