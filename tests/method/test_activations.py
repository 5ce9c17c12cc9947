"""z is the input of o_proj by head at the last token, however samples are batched, padded or shared."""

from contextlib import nullcontext

import torch

from models.loading import load_model
from tests.baselines.test_closed_forms import inputs_seen
from tests.builders import masks_of
from utils.activations import last_token_activations
from utils.packing import PromptWithContinuations, by_length, pack


def direct(model, ids: list[int]) -> torch.Tensor:
    """One sequence alone through the whole model: (L, H, d)."""
    seen = inputs_seen(model, torch.tensor([ids]))
    return torch.stack([seen[f"model.layers.{n}.self_attn.o_proj"][-1] for n in range(3)]).unflatten(-1, (6, 8)).float()


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
        assert z.shape == (3, 3, 6, 7, 8)
        for row, (prompt, a, b) in enumerate(zip(prompts, right, wrong, strict=True)):
            for number, ids in enumerate([prompt, prompt + a, prompt + b]):
                assert torch.allclose(z[number, :, :, row], direct(model, ids), atol=1e-5)
        assert torch.equal(before, model(torch.tensor([[1, 2, 3]])).logits)  # no hook stays


def test_single_continuations_need_no_mask_though_rows_are_padded(make_tiny_llama, monkeypatch):
    """With torch's own attention, which on a card is a fused kernel if no mask is handed over."""
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-base_model_name")
    monkeypatch.setattr("utils.activations.cpu_attention", nullcontext)
    seen, rows = masks_of(model), sequences(7)
    z = last_token_activations(model, [PromptWithContinuations(ids, [[]]) for ids in rows], "z")
    assert set(seen) == {None} and len(seen) == 3
    last_token_activations(model, [PromptWithContinuations([1, 2], [[], [3]])], "z")
    assert seen[-1] is not None
    for row, ids in enumerate(rows):
        assert torch.allclose(z[0, :, :, row], direct(model, ids), atol=1e-5)


def test_a_shared_prompt_is_read_once_and_continuations_do_not_see_each_other(make_tiny_llama):
    rows = [PromptWithContinuations(list(range(8)), [[20, 21], [], [40]]), PromptWithContinuations([9], [[]])]
    batch = pack(rows)
    assert batch.ids.tolist() == [[*range(8), 20, 21, 40], [9] + [0] * 10]
    assert batch.positions[0].tolist() == [*range(8), 8, 9, 8]
    assert batch.columns == [[[7, 8, 9], [7], [7, 10]], [[0]]]
    sees = [batch.visible[0, query].nonzero().flatten().tolist() for query in (4, 9, 10)]
    assert sees == [[*range(5)], [*range(8), 8, 9], [*range(8), 10]]
    model = load_model(make_tiny_llama(), torch.bfloat16, "cpu", "-p")
    mask = batch.inputs(model, torch.device("cpu"))["attention_mask"]
    assert mask.shape == (2, 1, 11, 11) and mask.dtype == torch.bfloat16
    assert torch.equal(mask.squeeze(1) == 0, batch.visible) and batch.visible.any(-1).all()


def test_batches_hold_a_budget_of_padded_tokens_longest_first():
    rows = [[0] * length for length in (3, 90, 7, 7, 20)]
    assert by_length(rows, 42) == [[1], [4, 2], [3, 0]]
