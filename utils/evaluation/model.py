"""A model in memory behind lm_eval's interface: shared contexts, batches by tokens, one quiet bar a task."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import datasets
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from models.loading import input_device
from utils.common.progress import progress
from utils.evaluation.packing import Batch, batch_tensors, batches, pack
from utils.evaluation.token_scores import token_scores

CPU_TOKENS = 1024
"""Tokens in a batch on a CPU: more of them are no faster there, and their activations fill the memory."""

GPU_TOKENS = 16384

_GENERATED_BATCH = 8
"""Sequences a batch where a task generates text and no batch size was given."""


def token_budget(device: torch.device) -> int:
    """Tokens in a batch when the batch size is "auto"."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


class InMemoryLM(HFLM):
    """lm_eval's Hugging Face model around one that is already loaded.

    batch_size: a number, to run HFLM's own path with that many sequences a batch, as lm_eval's command line does; or
    "auto", to read each context once for all its continuations, in batches of a budget of tokens, with logits only
    where a token is scored and log-probabilities in fp32. The two agree to the rounding of the model's dtype: fp32
    gives the same scores, while bf16 moves a log-likelihood by some 0.1 nats either way, which turns rows whose
    choices are that close.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str, label: str):
        self.packs = batch_size == "auto"
        with quiet(logging.ERROR):
            size = _GENERATED_BATCH if self.packs else int(batch_size)
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=size)
        self._device = input_device(model)
        self.label = label

    @contextmanager
    def windows_of(self, length: int) -> Iterator[None]:
        """Within it, no sequence is longer than `length` tokens, as with lm_eval's model argument max_length."""
        before, self._max_length = self._max_length, min(length, self.max_length)
        try:
            yield
        finally:
            self._max_length = before

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in windows of the model's length, each window's first token given one more."""
        if not self.packs:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        windows, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += value
        return totals

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        if not self.packs:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, **kwargs)
        budget = token_budget(self.device)
        packed, cut = pack([request[1:] for request in requests], self.max_length, budget)
        if cut:
            tqdm.write(
                f"{self.label}: {cut} contexts longer than the model's {self.max_length} tokens lost their start"
            )
        values = torch.zeros(len(requests), dtype=torch.float64)
        greedy = torch.ones(len(requests), dtype=torch.bool)
        with progress(total=len(requests), desc=self.label, unit="request") as bar:
            for groups in batches(packed, budget):
                batch = batch_tensors(groups)
                log_probability, is_best = self._batch_scores(batch)
                values.index_add_(0, batch.owners, log_probability)
                greedy[batch.owners[~is_best]] = False
                bar.update(sum(len(group.members) for group in groups))
        return list(zip(values.tolist(), greedy.tolist(), strict=True))

    @torch.inference_mode()
    def _batch_scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(P,) float64 log-probability of each target, (P,) bool whether it is the likeliest token; on the CPU."""
        inputs = {"input_ids": batch.ids.to(self.device), "position_ids": batch.positions.to(self.device)}
        if batch.allowed is None:
            del inputs["position_ids"]
        else:
            # Additive, which every attention but the flash kernels takes.
            mask = torch.zeros(batch.allowed.shape, dtype=self.model.dtype)
            mask.masked_fill_(~batch.allowed, torch.finfo(mask.dtype).min)
            inputs["attention_mask"] = mask.unsqueeze(1).to(self.device)
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        hidden = hidden[batch.rows.to(hidden.device), batch.columns.to(hidden.device)]
        return token_scores(self.model, hidden, batch.targets)


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Hold back what lm_eval, datasets and transformers say below `level`, and the bars of preparing requests."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers], transformers_logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    with ExitStack() as stack:
        # Prompts and their tokens are made in no time worth a bar; scoring them is.
        for module in ("lm_eval.api.task", "lm_eval.api.model"):
            stack.enter_context(patch(f"{module}.tqdm", lambda items, **_: items))
        stack.enter_context(patch("lm_eval.models.huggingface.tqdm", partial(progress, leave=False)))
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
