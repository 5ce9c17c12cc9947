"""A model in memory behind lm_eval's interface: shared contexts, batches by tokens, one quiet bar a task."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.common.errors import UserError
from utils.common.progress import progress
from utils.evaluation.perplexity import token_scores
from utils.packing import PromptWithContinuations, by_length, pack


def token_budget(device: torch.device) -> int:
    """Tokens in a batch; more of them are no faster on a CPU, and their activations fill the memory."""
    return 1024 if device.type == "cpu" else 16384


class InMemoryLM(HFLM):
    """lm_eval's Hugging Face model around one that is already loaded.

    Each context is read once for all its continuations, in batches of a budget of tokens, with logits only where a
    token is scored and log-probabilities in fp32. The scores are HFLM's, up to rounding in the model's dtype; in bf16
    it moves a log-likelihood by some 0.1 nats. Text is generated as HFLM does, eight sequences a batch.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str, most: int | None = None):
        """label: names the model in bars. most: the maximum length of a sequence; None for the model's own."""
        with quiet(logging.ERROR):
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=most)
        self.label = label

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in windows of the model's length, all windows in batches by tokens."""
        with patch.object(self, "batch_size_per_gpu", sys.maxsize):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        length, budget = self.max_length, token_budget(self.device)
        requests = [request[1:] for request in requests]
        prompts, owners, cut = share_contexts(requests, length, budget)
        if cut:
            tqdm.write(f"{self.label}: {cut} requests longer than {length} tokens lost the start of their context")
        values = torch.zeros(len(requests), dtype=torch.float64)
        greedy = torch.ones(len(requests), dtype=torch.bool)
        with progress(total=len(requests), desc=self.label, unit="request") as bar:
            for chosen in by_length(prompts, budget):
                batch, members = pack([prompts[row] for row in chosen]), [owners[row] for row in chosen]
                # The columns (the prompt's last token, then the continuation's) each predict the request's next token.
                predicted = [
                    (row, column, target, owner)
                    for row, (places, asked) in enumerate(zip(batch.columns, members, strict=True))
                    for columns, owner in zip(places, asked, strict=True)
                    for column, target in zip(columns, requests[owner][1][-len(columns) :], strict=True)
                ]
                rows, columns, targets, owner = torch.tensor(predicted).T
                inputs = batch.inputs(self.model, self.device)
                hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
                hidden = hidden[rows.to(hidden.device), columns.to(hidden.device)]
                log_probability, is_best = token_scores(self.model, hidden, targets)
                values.index_add_(0, owner, log_probability)
                greedy[owner[~is_best]] = False
                bar.update(sum(map(len, members)))
        return list(zip(values.tolist(), greedy.tolist(), strict=True))


def share_contexts(
    requests: list[tuple[list[int], list[int]]], max_length: int, budget: int
) -> tuple[list[PromptWithContinuations], list[list[int]], int]:
    """Group requests (context ids, continuation ids) by context: (prompts, requests of each, number of cut requests).

    A request too long for the model loses the left end of its context, as in lm_eval; UserError if the continuation
    alone is too long. Sharing stops where a row would exceed `budget` tokens, and where continuations outgrow the
    context: attention over what a token may not see costs too.
    """
    latest: dict[tuple[int, ...], int] = {}
    prompts, owners, cut = [], [], 0
    for index, (context, continuation) in enumerate(requests):
        if len(continuation) > max_length:
            said = f"a continuation of {len(continuation)} tokens is longer than the model's {max_length} positions"
            raise UserError(f"-eval_tasks: {said}; leave its task out")
        read = [*context, *continuation][:-1]
        cut += len(read) > max_length
        read = read[-max_length:]
        start = len(read) - len(continuation) + 1
        prompt, rest = read[:start], read[start:]
        row = latest.get(tuple(prompt))
        fits = len(rest) < len(prompt)
        if row is not None and fits and len(prompts[row]) + len(rest) <= budget:
            prompts[row].continuations.append(rest)
            owners[row].append(index)
            continue
        if fits:
            latest[tuple(prompt)] = len(prompts)
        prompts.append(PromptWithContinuations(prompt, [rest]))
        owners.append([index])
    return prompts, owners, cut


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Silence messages of lm_eval, datasets and the hub below `level`, and lm_eval's bars for preparing requests."""
    with ExitStack() as stack:
        # Prompts are built and tokenized too fast for a bar; scoring has one.
        for module in ("lm_eval.api.task", "lm_eval.api.model"):
            stack.enter_context(patch(f"{module}.tqdm", lambda items, **_: items))
        stack.enter_context(patch("lm_eval.models.huggingface.tqdm", partial(progress, leave=False)))
        for logger in map(logging.getLogger, ("lm_eval", "datasets", "huggingface_hub")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        yield
