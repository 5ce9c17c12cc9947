"""What heads compute (z), what they lost by pruning (Eqs. 3-4), and which tell right from wrong."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.run import head_by_head, one_by_one
from models.loading import load_model
from tests.builders import masks_of, mistake, rewrite
from utils.activations import last_token_activations
from utils.components import lost_components, random_basis
from utils.negatives import locate_encoder, most_similar_choice, most_similar_other, sentence_embeddings
from utils.packing import PromptWithContinuations, by_length
from utils.probing import EPOCHS, LEARNING_RATE, TRAIN_SHARE, order_randomly, probe_heads, rank_heads

LAYERS, HEADS, SAMPLES, WIDTH = 3, 5, 120, 7
EVERYTHING = torch.ones(2, 3, dtype=torch.bool)


def sequences(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 40, (count,), generator=generator).tolist()
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def test_continuations_that_share_a_prompt_equal_separate_sequences(make_tiny_llama, monkeypatch):
    monkeypatch.setattr("utils.activations.CPU_TOKENS_A_BATCH", 150)
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    prompts, right, wrong = sequences(7), sequences(8)[1:], sequences(9)[2:]
    rows = [PromptWithContinuations(prompt, [[], a, b]) for prompt, a, b in zip(prompts, right, wrong, strict=True)]
    for shape in ({}, {"attention_bias": True, "rope_parameters": scaled}):
        model = load_model(make_tiny_llama(**shape), torch.float32, "cpu", "-base_model_name")
        before = model(torch.tensor([[1, 2, 3]])).logits
        z = last_token_activations(model, rows, "z")
        assert z.shape == (3, 3, 6, 7, 8) and torch.allclose(z, one_by_one(model, rows), atol=1e-5)
        assert torch.equal(before, model(torch.tensor([[1, 2, 3]])).logits)  # no hook stays


def test_single_continuations_need_no_mask_though_rows_are_padded(make_tiny_llama, monkeypatch):
    """With torch's own attention, which on a card is a fused kernel if no mask is handed over."""
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-base_model_name")
    monkeypatch.setattr("utils.activations.cpu_attention", nullcontext)
    seen, rows = masks_of(model), [PromptWithContinuations(ids, [[]]) for ids in sequences(7)]
    z = last_token_activations(model, rows, "z")
    assert set(seen) == {None} and len(seen) == 3
    last_token_activations(model, [PromptWithContinuations([1, 2], [[], [3]])], "z")
    assert seen[-1] is not None
    assert torch.allclose(z, one_by_one(model, rows), atol=1e-5)


def test_activations_that_overflow_are_told(make_tiny_llama):
    folder = rewrite(make_tiny_llama(), lambda t: [each.mul_(3000) for name, each in t.items() if "mlp" in name])
    given = load_model(folder, torch.float16, "cpu", "-b"), [PromptWithContinuations([1, 2], [[]])], "dense z"
    mistake("^-dtype: one of the dense z is not finite; the model overflows", last_token_activations, *given)


def test_batches_hold_a_budget_of_padded_tokens_longest_first():
    assert by_length([[0] * length for length in (3, 90, 7, 7, 20)], 42) == [[1], [4, 2], [3, 0]]


@pytest.mark.parametrize("samples", [40, 4])
@pytest.mark.parametrize("count", [1, 3, WIDTH])
def test_component_and_basis_are_those_of_a_direct_svd_and_a_random_basis_is_seeded(samples, count):
    gap = torch.randn(LAYERS, HEADS, samples, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5
    found = lost_components(gap, count)
    u, sigma, v = torch.linalg.svd(gap.double(), full_matrices=False)
    mean = (u * sigma.unsqueeze(2)).mean(2)[..., None, :count] @ v[..., :count, :]
    assert torch.allclose(found.component.double(), mean.squeeze(2), atol=1e-5)
    overlap = (found.basis.double()[..., : v.shape[2], :] @ v.mT).abs()
    assert torch.allclose(overlap, torch.eye(v.shape[2]).double().expand_as(overlap), atol=1e-3)
    drawn = random_basis(found.basis, 3)
    assert torch.equal(drawn, random_basis(found.basis, 3)) and not torch.equal(drawn, random_basis(found.basis, 4))
    for basis in (found.basis, drawn):  # of fewer samples than directions too
        assert torch.allclose(basis @ basis.mT, torch.eye(WIDTH).expand_as(basis), atol=1e-5)
    assert (found.explained.diff(dim=-1) <= 1e-6).all()
    assert torch.allclose(found.explained.sum(-1), torch.ones(LAYERS, HEADS), atol=1e-5)
    if count == WIDTH:
        assert torch.allclose(found.component, gap.mean(2), atol=1e-5)
    gap[1, 3] = 0
    nothing_lost = lost_components(gap, count)
    assert not nothing_lost.component[1, 3].any() and not nothing_lost.explained[1, 3].any()


def test_batched_probes_equal_one_torch_module_a_head():
    generator = torch.Generator().manual_seed(0)
    shared, right, wrong = (torch.randn(LAYERS, HEADS, SAMPLES, WIDTH, generator=generator) for _ in range(3))
    right[1, 2] += 0.4  # noise everywhere, but in this head right answers lie one way and wrong ones the other
    wrong[1, 2] -= 0.4
    scores = probe_heads(shared, right, wrong, seed=7)
    _, accuracy, losses = head_by_head(shared, torch.zeros_like(shared), right, wrong, seed=7)
    assert torch.allclose(scores["loss"], losses, atol=1e-4)
    assert (LEARNING_RATE, EPOCHS, TRAIN_SHARE) == (0.01, 200, 0.7)  # the reference reads them too
    assert (scores["accuracy"] - accuracy).abs().max() < 1.5 / ((1 - TRAIN_SHARE) * 2 * SAMPLES)


def test_directions_of_a_steep_gap_are_those_of_an_svd():
    draw = torch.Generator().manual_seed(0)
    turn, own = (torch.linalg.qr(torch.randn(n, 8, generator=draw, dtype=torch.float64))[0] for n in (40, 8))
    gap = (turn * torch.logspace(0, -5, 8, dtype=torch.float64)) @ own.T
    overlap = (lost_components(gap[None, None].float(), 8).basis[0, 0].double() @ own).abs()
    assert torch.allclose(overlap, torch.eye(8).double(), atol=2e-2)


def test_ties_go_to_the_lower_loss_and_heads_that_cannot_be_restored_are_left_out():
    accuracy = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.5]])
    losses = torch.tensor([[0.3, 0.1, 0.7], [0.2, 0.6, 0.5]])
    assert rank_heads(accuracy, EVERYTHING, losses) == [(0, 2), (0, 1), (1, 0), (0, 0), (1, 2), (1, 1)]
    norms = torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 3.0]])
    assert rank_heads(norms, EVERYTHING) == [(1, 0), (0, 1), (1, 2), (0, 2), (0, 0), (1, 1)]
    assert order_randomly(EVERYTHING, 1) == order_randomly(EVERYTHING, 1) != order_randomly(EVERYTHING, 2)
    usable = torch.tensor([[True, False, True], [False, True, True]])
    for heads in (rank_heads(accuracy, usable, losses), rank_heads(norms, usable), order_randomly(usable, 0)):
        assert sorted(heads) == [(0, 0), (0, 2), (1, 1), (1, 2)]


def test_the_wrong_answer_is_the_most_similar_one_of_another_text(monkeypatch):
    monkeypatch.setattr("utils.negatives.CHUNK", 2)
    angles = torch.tensor([0.0, 0.1, 0.0, 0.8, 3.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert most_similar_other(embeddings, ["a", "b", "a", "c", "d"]) == [1, 0, 1, 1, 3]  # never its own text again
    mistake(r"^-data_path: all responses are the same", most_similar_other, embeddings[:2], ["a", "a"])
    right, wrong = embeddings[:2], (embeddings[3:], embeddings[[4, 0]])
    assert most_similar_choice(right, wrong, [["c", "d"], ["d", "a"]]) == ["c", "a"]


def test_embeddings_are_means_over_each_texts_own_tokens_whatever_its_batch():
    texts = ["yes", "a long answer of many more words than the others have", "a short one"]
    tokenizer, model = (kind.from_pretrained(locate_encoder()) for kind in (AutoTokenizer, AutoModel))
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in texts]
    expected = torch.nn.functional.normalize(torch.cat(alone), dim=1)
    assert torch.allclose(sentence_embeddings(texts, locate_encoder(), "cpu"), expected, atol=1e-5)
