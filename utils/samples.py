"""Texts as token ids: read once, and handed on to the probes, to training and to the proof."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from data.sources import Sample, Split
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.prompts import Encoded, encode_all

MAY_GO = 0.1
"""The share of training or of validation samples that may be left out unasked because their prompts are too long."""

PROOF_SAMPLES = 4
"""Samples whose logits the attached and the merged model are compared on."""


@dataclass(frozen=True)
class Samples:
    """What a run trains on and validates with.

    prompts, responses, prompt_ids, wrong_choices: of the training samples, in their order. prompt_ids: the prompt's
    own, at full length. wrong_choices: a task's own wrong answers; None where r⁻ is another sample's response.
    """

    train: list[Encoded]
    valid: list[Encoded]
    prompts: list[str]
    responses: list[str]
    prompt_ids: list[list[int]]
    wrong_choices: list[list[str]] | None

    def to_prove(self) -> list[list[int]]:
        """Token ids of the PROOF_SAMPLES sequences that a merged model is proved on."""
        return [sample.ids for sample in (self.valid or self.train)[:PROOF_SAMPLES]]


def read_samples(args: Arguments, tokenizer: PreTrainedTokenizerBase, texts: Split) -> Samples:
    """The texts' token ids, cut to -max_length; samples whose prompt leaves no room for a response are left out.

    Says how many of each were left out or cut. Raises UserError if more than MAY_GO of the training or of the
    validation samples would go, or if no two training samples remain.
    """
    training, kept, prompt_ids = _encode(args, tokenizer, texts.train, "training")
    valid, _, _ = _encode(args, tokenizer, texts.valid, "validation")
    if len(training) < 2:
        raise UserError(
            f"-max_length: {len(training)} training samples have room for a response within {args.max_length} tokens; "
            "give a larger one"
        )
    tokens = sum(len(sample.ids) for sample in training)
    print(f"      {len(training)} training and {len(valid)} validation samples, {tokens:,} tokens")
    own = [list(sample.negatives) for sample in kept if sample.negatives is not None]
    return Samples(
        train=training,
        valid=valid,
        prompts=[sample.prompt for sample in kept],
        responses=[sample.response for sample in kept],
        prompt_ids=prompt_ids,
        wrong_choices=own or None,
    )


def _encode(
    args: Arguments, tokenizer: PreTrainedTokenizerBase, texts: list[Sample], what: str
) -> tuple[list[Encoded], list[Sample], list[list[int]]]:
    """(samples, their texts, their prompts' ids) of those that have room for a response."""
    encoded, prompt_ids = encode_all(
        tokenizer, [text.prompt for text in texts], [text.response for text in texts], args.max_length
    )
    kept = [row for row, sample in enumerate(encoded) if sample.prompt_length < args.max_length]
    _judge_long(args, sorted(set(range(len(encoded))) - set(kept)), len(encoded), what)
    cut = sum(len(encoded[row].ids) == args.max_length for row in kept)
    if cut:
        print(
            f"      {cut} of {len(encoded)} {what} samples reach -max_length {args.max_length}; what is beyond is cut"
        )
    return [encoded[row] for row in kept], [texts[row] for row in kept], [prompt_ids[row] for row in kept]


def _judge_long(args: Arguments, rows: list[int], total: int, what: str) -> None:
    """Say which samples are left out, or raise UserError if they may not be."""
    if not rows:
        return
    named = ", ".join(str(row + 1) for row in rows[:10]) + (", …" if len(rows) > 10 else "")
    message = (
        f"{len(rows)} {what} sample{'s' * (len(rows) > 1)} with a prompt of -max_length {args.max_length} tokens or "
        f"more, which leaves no response (samples {named})"
    )
    if len(rows) > MAY_GO * total:
        raise UserError(f"-max_length: {message}, more than a tenth of {total}; give a larger one")
    print(f"      left out {message}")
