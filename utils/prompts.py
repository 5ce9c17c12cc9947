"""Which tokens of a sample belong to its response."""

from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not trained on."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample; `ids[:prompt_length]` is the prompt, the rest the response."""

    ids: list[int]
    prompt_length: int


def collate(samples: list[Encoded], pad_id: int, states: list[Tensor] | None = None) -> dict[str, Tensor]:
    """A batch, padded on the right; labels are IGNORED on prompts and padding.

    states: the teacher's hidden states for each sample's response, (n_i, D). The batch has them joined, (Σ n_i, D).
    """
    ids = [torch.tensor(sample.ids) for sample in samples]
    responses = [torch.arange(len(sample.ids)) >= sample.prompt_length for sample in samples]
    labels = [own.where(of_response, IGNORED) for own, of_response in zip(ids, responses, strict=True)]
    batch = {"input_ids": pad_sequence(ids, True, pad_id), "labels": pad_sequence(labels, True, IGNORED)}
    return batch if states is None else {**batch, "teacher": torch.cat(states)}


def encode_all(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str], max_length: int
) -> tuple[list[Encoded], list[list[int]]]:
    """Tokenize each prompt with its response, cut to max_length, and each prompt alone, uncut: (samples, prompt ids).

    The response starts at the first token where the two differ. That is the end of the prompt, or one token earlier
    if the tokenizer merged the prompt's last token with the response.
    """
    prompt_ids = _ids(tokenizer, [prompt.strip() for prompt in prompts])
    whole = answered(tokenizer, prompts, responses, max_length)
    samples = [Encoded(ids, common_prefix([alone, ids])) for alone, ids in zip(prompt_ids, whole, strict=True)]
    return samples, prompt_ids


def answered(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str], max_length: int
) -> list[list[int]]:
    """Token ids of each `prompt.strip() + " " + response`, cut on the right to `max_length` tokens.

    No end-of-sequence mark is added.
    """
    texts = [f"{prompt.strip()} {response}" for prompt, response in zip(prompts, responses, strict=True)]
    return [ids[:max_length] for ids in _ids(tokenizer, texts)]


def common_prefix(sequences: list[list[int]]) -> int:
    """The number of leading ids that all sequences share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # One call for all texts, so that a fast tokenizer uses all threads. It does not accept an empty list.
    return tokenizer(texts).input_ids if texts else []
