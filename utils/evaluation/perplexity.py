"""Log-probabilities of given tokens, and WikiText-2: its pages, its windows, the pruning papers' token perplexity."""

import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.families import final_logits
from utils.common.progress import progress

CHUNK = 256  # positions whose logits exist at a time: they stay in the cache of a CPU, and cost a GPU few launches
_BEFORE_TOP_HEADING = re.compile(r"\n(?= ?= [^=\n].*[^=\n] = ?(?:\n|\Z))")


def token_scores(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) float64 log-probability (nats) of each target, and (P,) bool whether it is the likeliest; on the CPU.

    hidden: (P, D), the last hidden states that predict. targets: (P,) int64. The softmax is taken in fp32.
    """
    scores, likeliest, head = [], [], model.get_output_embeddings()
    with align_module_device(head):  # of a model that is spread, its weight is fetched once, not for each chunk
        for part, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = final_logits(model.config, F.linear(part.to(head.weight.device), head.weight)).float()
            wanted = wanted.to(logits.device)
            chosen = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
            scores.append((chosen - logits.logsumexp(1)).cpu().double())  # not every device has fp64
            likeliest.append((logits.argmax(1) == wanted).cpu())
    return torch.cat(scores), torch.cat(likeliest)


def pages(rows: Iterable[str]) -> list[str]:
    """The articles, each from its top heading (` = Title = `) to the next, as the raw file writes them."""
    text = "\n".join(row.removesuffix("\n") or " " for row in rows)
    return [page for page in _BEFORE_TOP_HEADING.split(text) if page.strip()]


def token_windows(tokenizer: PreTrainedTokenizerBase, text: str, length: int, limit: int | None) -> Tensor:
    """(n, length) int64: the first `limit` whole windows of the text's tokens; a shorter text is one window."""
    # The tokenizer would warn that the sequence is longer than the model takes: it is cut right after.
    ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
    length = min(length, len(ids))
    count = len(ids) // length
    return ids[: count * length].view(count, length)[:limit]


@torch.inference_mode()
def window_losses(model: PreTrainedModel, windows: Tensor, batch_size: int, description: str) -> list[float]:
    """Mean negative log-likelihood (nats per token) of the tokens after the first of each of `windows` (n, length)."""
    losses = []
    with progress(total=len(windows), desc=description, unit="window") as bar:
        for batch in windows.split(batch_size):
            batch = batch.to(model.device)
            hidden = model.base_model(input_ids=batch, use_cache=False).last_hidden_state[:, :-1]
            scores, _ = token_scores(model, hidden.flatten(0, 1), batch[:, 1:].flatten())
            losses += (-scores.view(len(batch), -1).mean(dim=1)).tolist()
            bar.update(len(batch))
    return losses
