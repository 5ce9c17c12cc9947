"""Texts as token ids: read once, and handed on to the probes, to training and to the proof."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from data.sources import Sample, Split
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.prompts import Encoded, encode_all

MAY_GO = 0.1
"""The share of training or validation samples that may be left out without an error if their prompts are too long."""

PROOF_SAMPLES = 4
"""The number of samples on which the logits of the attached and the merged model are compared."""


@dataclass(frozen=True)
class Samples:
    """What a run trains on and validates with.

    texts, prompt_ids: of the training samples, in their order. prompt_ids: token ids of the prompts alone, not cut.
    """

    train: list[Encoded]
    valid: list[Encoded]
    texts: list[Sample]
    prompt_ids: list[list[int]]

    def to_prove(self) -> list[list[int]]:
        """Token ids of the PROOF_SAMPLES sequences that a merged model is proved on."""
        return [sample.ids for sample in (self.valid or self.train)[:PROOF_SAMPLES]]


def read_samples(args: Arguments, tokenizer: PreTrainedTokenizerBase, texts: Split) -> Samples:
    """Tokenize the texts, cut to -max_length tokens; drop samples whose prompt leaves no room for a response.

    Prints how many were dropped or cut. Raises UserError if more than MAY_GO of the training or of the validation
    samples would be dropped.
    """
    kept = _encode(args, tokenizer, texts.train, "training")
    training, valid = ([row[0] for row in rows] for rows in (kept, _encode(args, tokenizer, texts.valid, "validation")))
    tokens = sum(len(sample.ids) for sample in training)
    print(f"      {len(training)} training samples ({tokens:,} tokens) and {len(valid)} validation samples")
    return Samples(training, valid, texts=[text for _, text, _ in kept], prompt_ids=[ids for _, _, ids in kept])


def _encode(
    args: Arguments, tokenizer: PreTrainedTokenizerBase, texts: list[Sample], what: str
) -> list[tuple[Encoded, Sample, list[int]]]:
    """(sample, its texts, its prompt's ids) of each text with room for a response; UserError if too many lack it."""
    prompts, responses = [text.prompt for text in texts], [text.response for text in texts]
    encoded, prompt_ids = encode_all(tokenizer, prompts, responses, args.max_length)
    rows = list(zip(encoded, texts, prompt_ids, strict=True))
    long = [number for number, row in enumerate(rows, start=1) if row[0].prompt_length >= args.max_length]
    if long:
        named, s = ", ".join(map(str, long[:10])) + (", …" if len(long) > 10 else ""), "s" * (len(long) > 1)
        message = (
            f"{len(long)} {what} sample{s} with a prompt of -max_length {args.max_length} tokens or more, which leaves "
            f"no response (sample{s} {named})"
        )
        if len(long) > MAY_GO * len(rows):
            raise UserError(
                f"-max_length: {message}, more than a tenth of {len(rows)}; give a larger one, or shorter prompts"
            )
        print(f"      left out {message}")
    kept = [row for row in rows if row[0].prompt_length < args.max_length]
    if cut := sum(len(sample.ids) == args.max_length for sample, _, _ in kept):
        print(f"      {cut} of {len(rows)} {what} samples reach -max_length {args.max_length}; what is beyond is cut")
    return kept
