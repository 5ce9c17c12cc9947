"""z is the input of o_proj by head at the last token, however samples are batched, padded or shared."""

from contextlib import nullcontext

import pytest
import torch

from models.loading import load_model
from tests.builders import masks_of
from utils.activations import last_token_activations
from utils.packing import PromptWithContinuations, by_length, pack


def direct(model, ids: list[int]) -> torch.Tensor:
    """One sequence alone through the whole model: (L, H, d)."""
    found = []
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0, -1]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    heads, width = model.config.num_attention_heads, model.config.head_dim
    return torch.stack(found).unflatten(-1, (heads, width))


def sequences(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 40, (count,), generator=generator).tolist()
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def model(make_tiny_llama):
    return load_model(make_tiny_llama(), torch.float32, "cpu", "-base_model_name")


def test_batched_activations_equal_one_sequence_at_a_time(model, monkeypatch):
    monkeypatch.setattr("utils.activations.CPU_TOKENS_A_BATCH", 100)
    rows = sequences(11)
    z = last_token_activations(model, [PromptWithContinuations(ids, [[]]) for ids in rows], "z")
    assert z.shape == (1, 3, 6, 11, 8)
    for row, ids in enumerate(rows):
        assert torch.allclose(z[0, :, :, row], direct(model, ids), atol=1e-5)


def test_continuations_that_share_a_prompt_equal_separate_sequences(model, monkeypatch):
    monkeypatch.setattr("utils.activations.CPU_TOKENS_A_BATCH", 150)
    prompts, right, wrong = sequences(7), sequences(8)[1:], sequences(9)[2:]
    rows = [PromptWithContinuations(prompt, [[], a, b]) for prompt, a, b in zip(prompts, right, wrong, strict=True)]
    z = last_token_activations(model, rows, "z")
    for row, (prompt, a, b) in enumerate(zip(prompts, right, wrong, strict=True)):
        for number, ids in enumerate([prompt, prompt + a, prompt + b]):
            assert torch.allclose(z[number, :, :, row], direct(model, ids), atol=1e-5)


def test_single_continuations_need_no_mask_though_rows_are_padded(model, monkeypatch):
    """With torch's own attention, which on a card is a fused kernel if no mask is handed over."""
    rows = [PromptWithContinuations(ids, [[]]) for ids in sequences(7)]
    expected = last_token_activations(model, rows, "z")
    monkeypatch.setattr("utils.activations.cpu_attention", nullcontext)
    seen = masks_of(model)
    z = last_token_activations(model, rows, "z")
    assert set(seen) == {None} and len(seen) == 3
    assert torch.allclose(z, expected, atol=1e-5)
    last_token_activations(model, [PromptWithContinuations([1, 2], [[], [3]])], "z")
    assert seen[-1] is not None


def test_no_hook_stays_and_the_model_still_answers(model):
    before = model(torch.tensor([[1, 2, 3]])).logits
    last_token_activations(model, [PromptWithContinuations([1, 2, 3], [[]])], "z")
    assert torch.equal(before, model(torch.tensor([[1, 2, 3]])).logits)


def test_rope_scaling_and_attention_bias_change_nothing_of_this(make_tiny_llama):
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder = make_tiny_llama(attention_bias=True, rope_parameters=scaled)
    model = load_model(folder, torch.float32, "cpu", "-base_model_name")
    rows = [PromptWithContinuations(ids, [[], [7, 8, 9]]) for ids in sequences(3)]
    z = last_token_activations(model, rows, "z")
    for index, row in enumerate(rows):
        assert torch.allclose(z[1, :, :, index], direct(model, row.prompt + [7, 8, 9]), atol=1e-5)


def test_a_shared_prompt_is_read_once_and_continuations_do_not_see_each_other():
    rows = [PromptWithContinuations(list(range(8)), [[20, 21], [], [40]]), PromptWithContinuations([9], [[]])]
    batch = pack(rows)
    assert batch.ids.tolist() == [[*range(8), 20, 21, 40], [9] + [0] * 10]
    assert batch.positions[0].tolist() == [*range(8), 8, 9, 8]
    assert batch.columns == [[[7, 8, 9], [7], [7, 10]], [[0]]]
    sees = [batch.visible[0, query].nonzero().flatten().tolist() for query in (4, 9, 10)]
    assert sees == [[*range(5)], [*range(8), 8, 9], [*range(8), 10]]
    mask = batch.inputs(torch.device("cpu"), torch.bfloat16)["attention_mask"]
    assert mask.shape == (2, 1, 11, 11) and mask.dtype == torch.bfloat16
    assert torch.equal(mask.squeeze(1) == 0, batch.visible) and batch.visible.any(-1).all()


def test_batches_hold_a_budget_of_padded_tokens_longest_first():
    rows = [[0] * length for length in (3, 90, 7, 7, 20)]
    assert by_length(rows, 42) == [[1], [4, 2], [3, 0]]
