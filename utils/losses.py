"""Cross-entropy at response tokens only, without ever holding all logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

IGNORED = -100
CHUNK = 256
"""Labelled tokens whose logits are in memory at once: enough for a CPU's full rate; not measured on a card."""


class _LogitsSpace:
    """Memory for one chunk of logits, the same for all chunks of all steps.

    Without it each step would ask the system for tens of megabytes anew, which a CPU pays for with more time than the
    softmax takes.
    """

    def __init__(self):
        self._logits = self._fp32 = torch.empty(0)

    def rows(self, count: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Two uninitialized (count, V) tensors, in the dtype of `weight` (V, D) and in fp32; one tensor if that is."""
        shape = CHUNK, len(weight)
        if (self._logits.shape, self._logits.dtype, self._logits.device) != (shape, weight.dtype, weight.device):
            self._logits = weight.new_empty(shape)
            self._fp32 = self._logits if weight.dtype == torch.float32 else weight.new_empty(shape, dtype=torch.float32)
        return self._logits[:count], self._fp32[:count]


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden states under a frozen output head.

    The head needs no gradient, so a chunk's gradient with respect to the hidden states is computed while its logits
    are still there: nothing is recomputed, and no more than one chunk of logits exists.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, space: _LogitsSpace) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(hidden), CHUNK):
            part = slice(begin, begin + CHUNK)
            wanted = torch.arange(len(hidden[part]), device=hidden.device), labels[part]
            logits, softmax = space.rows(len(hidden[part]), weight)
            torch.mm(hidden[part], weight.T, out=logits)
            labelled = logits[wanted].float()
            highest = logits.amax(-1, keepdim=True).float()
            softmax.copy_(logits).sub_(highest).exp_()
            summed = softmax.sum(-1, keepdim=True)
            total += (highest.squeeze(1) + summed.squeeze(1).log() - labelled).sum()
            if gradient is not None:
                softmax.div_(summed)[wanted] -= 1
                torch.mm(logits.copy_(softmax), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None


class ResponseLoss(nn.Module):
    """A Llama as a function from tokens to its mean loss on the labelled ones.

    No attention mask: rows are padded on the right, and causal attention never looks there.

    penalty: what is added to that mean in training, asked for after each forward pass; validation has none.
    """

    accepts_loss_kwargs = True
    """Tells transformers' Trainer to hand over the number of labelled tokens of the whole step."""

    def __init__(self, model: LlamaForCausalLM, penalty: Callable[[], Tensor] | None = None):
        super().__init__()
        self.model = model
        self._no_split_modules = model._no_split_modules
        """What FSDP shards as one unit; embeddings, last norm and head stay with this module."""
        self._space = _LogitsSpace()
        self._penalty = penalty

    def tie_weights(self) -> None:
        """For FSDP, which takes tied weights apart when it loads on one process only."""
        self.model.tie_weights()

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> dict:
        """input_ids, labels: (B, T) int64, labels -100 where not trained on; returns {"loss": scalar fp32}.

        The loss is the sum over labelled tokens / num_items_in_batch, by default the labels of this batch.
        """
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        labelled = targets != IGNORED
        head = self.model.lm_head.weight
        total = _FrozenHeadLoss.apply(hidden[:, :-1][labelled], head, targets[labelled], self._space)
        if self._penalty is not None and self.training:
            # Once a labelled token: the batches and processes that share a step then share one penalty.
            total = total + labelled.sum() * self._penalty()
        return {"loss": total / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)}
