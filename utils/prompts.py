"""Which tokens of a sample belong to its response."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample; `ids[:prompt_length]` is the prompt, the rest the response."""

    ids: list[int]
    prompt_length: int


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, max_length: int) -> Encoded:
    """Token ids of `prompt.strip() + " " + response`, cut on the right to `max_length` tokens.

    The response starts where the ids first differ from the prompt's own: that is the prompt's length in tokens, less
    a last token that the tokenizer merged with the response. No end-of-sequence mark is added.
    """
    alone = tokenizer(prompt.strip()).input_ids
    whole = tokenizer(f"{prompt.strip()} {response}").input_ids
    return Encoded(whole[:max_length], min(common_prefix([alone, whole]), max_length))


def common_prefix(sequences: list[list[int]]) -> int:
    """The number of leading ids that all sequences share."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
