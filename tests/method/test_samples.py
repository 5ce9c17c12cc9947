"""Samples are tokenized in batches as one by one, and answers are the likeliest tokens."""

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data.sources import Sample, Split
from models.loading import load_tokenizer
from tests.builders import byte_tokenizer, mistake
from utils.common.flags import parse_arguments
from utils.examples import ends_of, greedy
from utils.prompts import Encoded, answered, common_prefix, encode_all
from utils.samples import read_samples

SHORT, LONG = "Say it.", "Say it again, and again, and again." * 2


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, <s> before each text, and ': ' as one token: a prompt's last token merges with what follows."""
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", ": ", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", " ")]))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.mark.parametrize(("kind", "max_length"), [("bytes", 9), ("merging", 9), ("merging", 500), ("real", 500)])
def test_a_batch_gives_the_ids_of_one_by_one(request, kind, max_length):
    if kind == "real":
        tokenizer = load_tokenizer(request.getfixturevalue("stories"), "-b")
    else:
        tokenizer = {"bytes": byte_tokenizer, "merging": merging_tokenizer}[kind]()
    # The last repeats a template's own words: searching for them would cut in the wrong place.
    prompts = ["Q:", "  Say it three times:  ", "A rather long question, is it not?", "x", "Q:\nA:", "x ### Response:"]
    responses = ["a", "it it it", " two spaces", "", "yes\nno", "### Response: y"]
    samples, prompt_ids = encode_all(tokenizer, prompts, responses, max_length)
    for sample, prompt, response in zip(samples, prompts, responses, strict=True):
        alone, whole = (tokenizer(text).input_ids for text in (prompt.strip(), f"{prompt.strip()} {response}"))
        assert sample == Encoded(whole[:max_length], min(common_prefix([alone, whole]), max_length))
    assert prompt_ids == [tokenizer(prompt.strip()).input_ids for prompt in prompts]
    assert answered(tokenizer, prompts, responses, max_length) == [sample.ids for sample in samples]
    assert encode_all(tokenizer, [], [], max_length) == ([], [])
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == 2 and common_prefix([[1], [2]]) == 0
    if kind == "merging" and max_length == 500:
        assert samples[0].prompt_length == len(prompt_ids[0]) - 1


def read(train: list[str], valid: list[str] = (), wrong: list[tuple[str, ...]] | None = None):
    """What a run reads of these prompts, each answered with yes and its number."""
    own = wrong or [None] * len(train)
    texts = [Sample(prompt, f"yes {row}", own[row]) for row, prompt in enumerate(train)]
    split = Split(texts, [Sample(prompt, f"yes {row}") for row, prompt in enumerate(valid)])
    return read_samples(parse_arguments(["-max_length", "40"]), byte_tokenizer(), split)


def test_a_tenth_of_too_long_prompts_is_left_out_with_a_count_and_the_rest_stays_together(capsys):
    train = [LONG if row in (3, 11) else f"{SHORT} {row}" for row in range(20)]
    samples = read(train, [LONG if row == 0 else SHORT for row in range(10)], [(f"no {row}",) for row in range(20)])
    printed = capsys.readouterr().out
    assert "left out 2 training samples with a prompt of -max_length 40 tokens or more" in printed
    assert "(samples 4, 12)" in printed
    assert "left out 1 validation sample with" in printed and "(sample 1)" in printed
    assert f"18 training samples ({sum(len(each.ids) for each in samples.train)} tokens) and 9 validation" in printed
    rows = [row for row in range(20) if row not in (3, 11)]
    tokenizer, prompts, responses = byte_tokenizer(), *([f"{text} {row}" for row in rows] for text in (SHORT, "yes"))
    wrong = [(f"no {row}",) for row in rows]
    assert samples.texts == list(map(Sample, prompts, responses, wrong))
    assert samples.prompt_ids == [tokenizer(prompt).input_ids for prompt in prompts]
    assert [sample.ids for sample in samples.train] == answered(tokenizer, prompts, responses, 40)
    assert samples.to_prove() == [sample.ids for sample in samples.valid[:4]]
    alone = read([SHORT] * 3)
    assert alone.texts[0].negatives is None and alone.to_prove() == [sample.ids for sample in alone.train]


def test_more_than_a_tenth_too_long_stop_the_run():
    many, few = [LONG] * 2 + [SHORT] * 17, [SHORT] * 10
    for given, what in (((many, few), "training"), ((few, many), "validation")):
        mistake(rf"^-max_length: 2 {what} samples .*\(samples 1, 2\), more than a tenth of 19", read, *given)


def test_an_answer_is_the_likeliest_ids_until_what_ends_a_text_or_the_models_last_position(make_tiny_llama):
    model = LlamaForCausalLM.from_pretrained(make_tiny_llama(max_position_embeddings=12)).eval()
    model.generation_config.repetition_penalty, model.generation_config.do_sample = 5.0, True
    expected = [5, 9, 77]
    for _ in range(7):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert greedy(model, [5, 9, 77], 7, frozenset()) == (expected[3:], False)
    made, _ = greedy(model, [5, 9, 77], 48, frozenset())
    assert len(made) == 12 - 3
    end = made[2]
    assert greedy(model, [5, 9, 77], 48, frozenset([end])) == (made[: made.index(end)], True)
    assert greedy(model, [5] * 13, 48, frozenset()) == ([], False) and ends_of(model) == {257}
