"""A model in memory behind lm_eval's interface: quiet, one progress bar a task, batches by tokens on a CPU."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import datasets
import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

CPU_TOKENS = 2048
"""Tokens in a batch on a CPU: more of them are no faster there, and their logits fill the memory."""

GPU_TOKENS = 16384


def batch_for(tokens: int, batch_size: int | str, device: torch.device) -> int:
    """Sequences of `tokens` tokens in a batch; "auto" fills the device's token budget."""
    if batch_size != "auto":
        return int(batch_size)
    return max(1, (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS) // tokens)


class InMemoryLM(HFLM):
    """lm_eval's Hugging Face model around one that is already loaded; scores are HFLM's own.

    batch_size: sequences a batch, or "auto": as many as the device's token budget holds. Requests are sorted by
    length, so that little of a batch is padding.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str, label: str):
        with quiet(logging.ERROR):
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.label = label

    def _detect_batch_size(self, requests=None, pos: int = 0) -> int:
        # HFLM finds it by running out of memory, which a CPU doesn't do in time.
        tokens = len(requests[pos][1]) + len(requests[pos][2]) if requests else self.max_length
        return batch_for(tokens, "auto", self.device)

    def _batch_scheduler(self, pos, n_reordered_requests) -> int:
        return self._detect_batch_size(n_reordered_requests, pos)


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Hold back what lm_eval, datasets and transformers say below `level`, and the bars of preparing rows."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers], transformers_logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    with ExitStack() as stack:
        # Building prompts takes no time worth a bar; the one that scores them stays.
        stack.enter_context(patch("lm_eval.api.task.tqdm", partial(tqdm, disable=True)))
        for logger in loggers:
            logger.setLevel(level)
        transformers_logging.set_verbosity(logging.ERROR)
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            for logger, old in zip(loggers, before[0], strict=True):
                logger.setLevel(old)
            transformers_logging.set_verbosity(before[1])
            if not bars:
                datasets.enable_progress_bars()
