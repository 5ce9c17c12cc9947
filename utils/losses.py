"""Cross-entropy and distillation at response tokens, and at all of a text, without ever holding all logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.families import logits_cap, logits_scale
from utils.distillation import Distillation, last_states
from utils.prompts import IGNORED

CHUNK = 256
"""Labelled tokens whose logits are in memory at once: enough for a CPU's full rate; not measured on a card."""


class _LogitsSpace:
    """Memory for chunks of logits, the same for all chunks of all steps.

    Without it each step would ask the system for tens of megabytes anew, which a CPU pays for with more time than the
    softmax takes.
    """

    def __init__(self):
        self._kept: dict[str, Tensor] = {}

    def rows(self, use: str, count: int, head: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialized (count, V), for an output head (V, D)."""
        kept = self._kept.get(use)
        if kept is None or (kept.shape[1], kept.dtype, kept.device) != (len(head), dtype, head.device):
            kept = self._kept[use] = head.new_empty(CHUNK, len(head), dtype=dtype)
        return kept[:count]


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed loss of hidden states under a frozen output head; beside it each token's cross-entropy and divergence.

    Without a teacher that is cross-entropy. With one, its hidden states (n, D) of the same tokens and its head (V, D),
    it is (1 - w)·CE + w·KL(teacher ‖ student), w the share, and the gradient at the logits softmax - (w·softmax of the
    teacher + (1 - w)·one-hot). The tokens' own are (1, n) fp32, the cross-entropies, or (2, n) with the divergences.

    The head needs no gradient, so a chunk's gradient with respect to the hidden states is computed while its logits
    are still there: nothing is recomputed, and no more than one chunk of logits exists. cap: see `logits_cap`.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        space: _LogitsSpace,
        cap: float | None = None,
        taught: Tensor | None = None,
        teachers_head: Tensor | None = None,
        share: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        total, divergence = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        has_teacher = taught is not None
        tokens = torch.empty(1 + has_teacher, len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(hidden), CHUNK):
            part = slice(begin, begin + CHUNK)
            wanted = torch.arange(len(hidden[part]), device=hidden.device), labels[part]
            logits = space.rows("logits", len(hidden[part]), weight, weight.dtype)
            softmax = logits if logits.dtype == torch.float32 else space.rows("fp32", len(logits), weight)
            if has_teacher:
                teacher, entropy = _teach(taught[part], teachers_head, space, cap, logits, softmax)
            torch.mm(hidden[part], weight.T, out=logits)
            if cap:
                logits.div_(cap).tanh_()
                slope = 1 - logits.float().square()
                logits.mul_(cap)
            labelled = logits[wanted].float()
            highest = logits.amax(-1, keepdim=True).float()
            softmax.copy_(logits).sub_(highest)
            if has_teacher:
                shared = torch.linalg.vecdot(teacher, softmax)
            summed = softmax.exp_().sum(-1, keepdim=True)
            if has_teacher:
                divergence += torch.sub(summed.squeeze(1).log() - shared, entropy, out=tokens[1, part]).sum()
            total += torch.sub(highest.squeeze(1) + summed.squeeze(1).log(), labelled, out=tokens[0, part]).sum()
            if gradient is not None:
                softmax.div_(summed)[wanted] -= 1 - share
                if has_teacher:
                    softmax.sub_(teacher, alpha=share)
                if cap:
                    softmax.mul_(slope)
                torch.mm(logits.copy_(softmax), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(tokens)
        return (1 - share) * total + share * divergence, tokens

    @staticmethod
    def backward(ctx, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, *(None for _ in ctx.needs_input_grad[1:])


def _teach(
    hidden: Tensor, head: Tensor, space: _LogitsSpace, cap: float | None, logits: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """The teacher's softmax (n, V) of a chunk, fp32, and its entropy (n,) in nats.

    logits, scratch: the memory that the student's logits will take next. The entropy is summed by the operations that
    sum the cross-entropy of teacher and student, so that a student that is the teacher has no divergence.
    """
    torch.mm(hidden, head.T, out=logits)
    if cap:
        logits.div_(cap).tanh_().mul_(cap)
    softmax = space.rows("teacher", len(logits), head)
    softmax.copy_(logits).sub_(logits.amax(-1, keepdim=True).float())
    scratch.copy_(softmax)
    summed = softmax.exp_().sum(-1, keepdim=True)
    softmax.div_(summed)
    return softmax, summed.squeeze(1).log() - torch.linalg.vecdot(softmax, scratch)


class ResponseLoss(nn.Module):
    """A model as a function from tokens to its mean loss on the labelled ones.

    distillation: the teacher, which in training has its share of the loss. An evaluation gives each token's
    cross-entropy, whatever was trained on, and beside it the divergence from the teacher.

    No attention mask: rows are padded on the right, and causal attention never looks there.

    penalty: what is added to that mean in training, asked for after each forward pass; validation has none.
    processes: how many there are. Each has a window of text in a step, and the step the mean of their KL.
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
        """What FSDP shards as one unit; embeddings, last norm and head stay with this module."""
        self._space = _LogitsSpace()
        self._penalty = penalty

    def tie_weights(self) -> None:
        """For FSDP, which takes tied weights apart when it loads on one process only."""
        self.model.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        teacher: Tensor | None = None,
        text: Tensor | None = None,
        of_text: Tensor | None = None,
    ) -> dict:
        """input_ids, labels: (B, T) int64, labels -100 where not trained on; returns {"loss": scalar fp32} in training.

        The loss is the sum over labelled tokens / num_items_in_batch, by default the labels of this batch. teacher:
        (n, D), the dense model's last hidden states where labelled tokens are predicted, row by row of the batch; by
        default the teacher's own model gives them. text: (1, T), on which the mean KL is added to the loss; of_text:
        its states (T - 1, D). An evaluation returns {"tokens": (1, n) fp32}, the cross-entropy of each labelled token,
        row by row of the batch; (2, n) with a teacher, from whom the second is KL.
        """
        total, tokens = self._summed(input_ids, labels, teacher, self.distillation and self.distillation.weight)
        if not self.training:
            return {"tokens": tokens}
        if self._penalty is not None:
            # Once a labelled token: the batches and processes that share a step then share one penalty.
            total = total + tokens.shape[1] * self._penalty()
        loss = total / (tokens.shape[1] if num_items_in_batch is None else num_items_in_batch)
        if text is not None:
            summed, _ = self._summed(text, text, of_text, 1.0)
            loss = loss + summed / (text[:, 1:].numel() * self.processes)
        return {"loss": loss}

    def _summed(
        self, input_ids: Tensor, labels: Tensor, teacher: Tensor | None, share: float | None
    ) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch, KL having this share of it, and its tokens' own losses."""
        # The last layer of a model that is spread may be elsewhere.
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state.to(labels.device)
        targets = labels[:, 1:]
        labelled = targets != IGNORED
        head = self.model.lm_head.weight
        scale, cap = logits_scale(self.model.config), logits_cap(self.model.config)
        hidden, target = hidden[:, :-1][labelled], ()
        if self.distillation:
            if teacher is None:
                teacher = last_states(self.distillation.model, input_ids)[:, :-1][labelled]
            own = self.distillation.head
            target = teacher if scale == 1 else teacher / scale, head if own is None else own, share
        hidden = hidden if scale == 1 else hidden / scale
        return _FrozenHeadLoss.apply(hidden, head, targets[labelled], self._space, cap, *target)
