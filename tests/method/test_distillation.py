"""Distillation is exact from the dense model's last states, and each sample learns from its own."""

import pytest
import torch
import torch.nn.functional as F

from models.loading import load_model
from models.modeling_llama import attach
from models.terms import Constant
from tests.builders import SAMPLES, batch, learned_in, trained, zeroed
from tests.method.test_training import attached, encoded, settings
from utils.distillation import Distillation, by_sample, last_states, teacher_states
from utils.losses import ResponseLoss
from utils.prompts import IGNORED, Encoded
from utils.training import response_loss, train


@pytest.fixture
def dense(make_tiny_llama):
    return load_model(make_tiny_llama(seed=3), torch.float32, "cpu", "-b")


@pytest.fixture
def pruned(make_tiny_llama):
    """Of other random weights, but the dense model's head."""
    return load_model(make_tiny_llama(seed=3, zeros=0.5), torch.float32, "cpu", "-p")


@pytest.mark.parametrize(
    ("weight", "chunk", "own_head", "size"),
    [(0.25, 1, False, 1), (0.5, 3, True, 1), (1.0, 256, True, 1), (0.5, 3, False, 30)],
)
def test_loss_and_gradient_are_those_of_full_logits(dense, pruned, monkeypatch, weight, chunk, own_head, size):
    """The teacher's final norm is its own, though the student's is trained. size: of logits that overflow nothing."""
    monkeypatch.setattr("utils.losses.CHUNK", chunk)
    with torch.no_grad():
        pruned.lm_head.weight.mul_(size)
        dense.lm_head.weight.mul_(size * (1 + own_head))
    attach(pruned, {**trained().terms, "model.norm.weight": [Constant(3 - pruned.model.norm.weight)]})
    parameters = [p for p in pruned.parameters() if p.requires_grad]
    inputs, states = batch(SAMPLES), teacher_states(dense, SAMPLES, "")
    distillation = Distillation(weight, dense.lm_head.weight if own_head else None)
    found = ResponseLoss(pruned, distillation).train()(**inputs, teacher=states)["loss"]
    labels = inputs["labels"][:, 1:]
    student, teacher = (
        model(inputs["input_ids"]).logits[:, :-1][labels != IGNORED].log_softmax(-1) for model in (pruned, dense)
    )
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    wanted = (1 - weight) * F.nll_loss(student, labels[labels != IGNORED]) + weight * divergence
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    gradients = [torch.autograd.grad(loss, parameters) for loss in (found, wanted)]
    assert len(parameters) == 5
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_dense_model_learns_nothing_from_its_own_states(make_tiny_llama, dtype):
    folder = make_tiny_llama(seed=3, dtype=dtype)
    states = teacher_states(load_model(folder, dtype, "cpu", "-b"), SAMPLES, "")
    for restoration, equal in ((zeroed(trained()), True), (trained(), False)):
        model = restoration.attach(load_model(folder, dtype, "cpu", "-b"))
        loss = ResponseLoss(model, Distillation(1.0)).train()(**batch(SAMPLES), teacher=states)["loss"]
        loss.backward()
        steepest = max(float(p.grad.abs().max()) for p in model.parameters() if p.requires_grad)
        # Both go forward alike, in batches of other lengths: what is left is rounding.
        assert (abs(float(loss.detach())) < 1e-5, steepest < 1e-4) == (equal, equal)


def test_kept_states_are_those_of_each_sample_alone(dense, monkeypatch):
    monkeypatch.setattr("utils.distillation.CPU_TOKENS_A_BATCH", 9)
    samples = [*SAMPLES, Encoded([4, 4, 2, 1], 0)]
    for sample, states in zip(samples, by_sample(teacher_states(dense, samples, ""), samples), strict=True):
        alone = last_states(dense, torch.tensor([sample.ids]))[0]
        assert torch.allclose(states, alone[max(0, sample.prompt_length - 1) : -1], atol=1e-5)
        logits = dense(torch.tensor([sample.ids])).logits[0, max(0, sample.prompt_length - 1) : -1]
        assert torch.allclose(dense.lm_head(states), logits, atol=1e-5)


def test_validation_is_cross_entropy_whatever_was_trained_on_with_the_divergence_beside(dense, pruned):
    states = by_sample(teacher_states(dense, SAMPLES, ""), SAMPLES)
    plain = response_loss(ResponseLoss(pruned).eval(), SAMPLES, 257, "").sum(0).tolist()
    model = ResponseLoss(pruned, Distillation(0.9))
    found = response_loss(model.eval(), SAMPLES, 257, "", states=states).sum(0).tolist()
    assert found[:2] == plain
    summed = model.train()(**batch(SAMPLES), num_items_in_batch=1, teacher=torch.cat(states))["loss"]
    assert 0.1 * found[0] + 0.9 * found[2] == pytest.approx(float(summed), rel=1e-5)


def distil(folder, samples: list[Encoded], distillation, place, valid=(), **changes):
    """(history, state) of a small training on the pruned model in `folder`."""
    model = attached(folder, restoration=zeroed(trained()))
    result = train(model, samples, list(valid), settings(**changes), "cpu", place, distillation=distillation)
    return result.history, learned_in(model)


@pytest.mark.parametrize(
    "changes",
    [{"gradient_checkpointing": True}, {"group_by_length": False, "batch_size": 2, "accumulation": 3}],
    ids=str,
)
def test_each_sample_learns_from_its_own_states_however_batches_are_made(make_tiny_llama, tmp_path, dense, changes):
    folder = make_tiny_llama(seed=3, zeros=0.5)
    samples, valid = encoded(folder, 13), encoded(folder, 19)[13:]
    kept = [by_sample(teacher_states(dense, part, ""), part) for part in (samples, valid)]
    found = [
        distil(folder, samples, distillation, tmp_path / str(number), valid, **changes)
        for number, distillation in enumerate((Distillation(1.0, None, *kept), Distillation(1.0, model=dense)))
    ]
    rows = [[list(row.values()) for row in history] for history, _ in found]
    assert len(rows[0]) == len(rows[1])
    for mine, other in zip(*rows, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    assert all(torch.allclose(found[0][1][name], found[1][1][name], atol=1e-5) for name in ("magnitudes", "component"))
    # It brings the pruned model closer to the dense one, and not with the states of other tokens.
    divergences = [row["valid_kl"] for row in found[0][0] if "valid_loss" in row]
    assert len(divergences) == 3 and divergences[2] < divergences[1] < divergences[0]
    swapped = Distillation(1.0, None, [states.flip(0) for states in kept[0]], kept[1])
    history, _ = distil(folder, samples, swapped, tmp_path / "swapped", valid, **changes)
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (history, found[0][0])]
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)
