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

    states: the teacher's, (n_i, D) for the response of each sample; a batch has them as its labels follow each other.
    """
    ids = [torch.tensor(sample.ids) for sample in samples]
    responses = [torch.arange(len(sample.ids)) >= sample.prompt_length for sample in samples]
    labels = [own.where(of_response, IGNORED) for own, of_response in zip(ids, responses, strict=True)]
    batch = {"input_ids": pad_sequence(ids, True, pad_id), "labels": pad_sequence(labels, True, IGNORED)}
    return batch if states is None else {**batch, "teacher": torch.cat(states)}


def encode_all(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str], max_length: int
) -> tuple[list[Encoded], list[list[int]]]:
    """(samples, the prompts' own ids at full length), in one call of the tokenizer for each of the two.

    A response starts where the sample's ids first differ from the prompt's own: that is the prompt's length in tokens,
    less a last token that the tokenizer merged with the response.
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
    # One call for all: a fast tokenizer then works in all threads. It cannot take none.
    return tokenizer(texts).input_ids if texts else []
