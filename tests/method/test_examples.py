"""Greedy answers are the model's own likeliest tokens, and the loss is that of the sample's response."""

import pytest
import torch
from transformers import LlamaForCausalLM

from utils.examples import ends_of, greedy, response_nats
from utils.prompts import Encoded


@pytest.fixture
def model(make_tiny_llama) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(make_tiny_llama(max_position_embeddings=12)).eval()


def test_an_answer_is_the_likeliest_ids_whatever_the_checkpoint_asks_generation_to_do(model):
    model.generation_config.repetition_penalty, model.generation_config.do_sample = 5.0, True
    expected = [5, 9, 77]
    for _ in range(7):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert greedy(model, [5, 9, 77], 7, frozenset()) == (expected[3:], False)


def test_an_answer_stops_before_what_ends_a_text_and_at_the_models_last_position(model):
    made, _ = greedy(model, [5, 9, 77], 48, frozenset())
    assert len(made) == 12 - 3
    end = made[2]
    assert greedy(model, [5, 9, 77], 48, frozenset([end])) == (made[: made.index(end)], True)
    assert greedy(model, [5] * 13, 48, frozenset()) == ([], False)
    assert ends_of(model) == {257}


def test_the_loss_is_of_the_response_alone(model):
    ids = [5, 9, 77, 30, 8]
    odds = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    loss, tokens = response_nats(model, Encoded(ids, 3))
    assert tokens == 2
    assert abs(loss + float(odds[2, 30] + odds[3, 8]) / 2) < 1e-6
    assert response_nats(model, Encoded(ids, 0))[1] == 4  # nothing predicts the first
