"""Distillation is exact from the dense model's last states, and each sample learns from its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.loading import load_model
from models.modeling_llama import attach
from models.terms import Constant
from tests.builders import SAMPLES, batch, learned_in, trained, zeroed
from tests.method.test_training import attached, encoded, settings
from utils.distillation import Distillation, by_sample, last_states, teacher_states
from utils.losses import ResponseLoss
from utils.prompts import IGNORED, Encoded
from utils.training import response_loss, train

HIDDEN, VOCABULARY = 24, 300


@pytest.fixture
def dense(make_tiny_llama):
    return load_model(make_tiny_llama(seed=3), torch.float32, "cpu", "-b")


@pytest.fixture
def pruned(make_tiny_llama):
    """Of other random weights, but the dense model's head."""
    return load_model(make_tiny_llama(seed=3, zeros=0.5), torch.float32, "cpu", "-p")


class Bare(torch.nn.Module):
    """As much of a Llama as the loss asks for: its `input_ids` are the last hidden states."""

    _no_split_modules = ()

    def __init__(self, hidden: Tensor, head: Tensor):
        super().__init__()
        self.lm_head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=head.dtype)
        self.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
        self.hidden = torch.nn.Parameter(hidden)

    def model(self, input_ids, use_cache):
        return type("Output", (), {"last_hidden_state": self.hidden})


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(hidden: Tensor, head: Tensor, taught: Tensor, teachers_head: Tensor, labels: Tensor, weight: float):
    """(loss, gradient of `hidden`) through all logits at once, in fp64 by torch's own losses."""
    hidden = hidden.double().requires_grad_()
    labelled = labels[:, 1:] != IGNORED
    student = (hidden[:, :-1][labelled] @ head.double().T).log_softmax(-1)
    teacher = (taught.double() @ teachers_head.double().T).log_softmax(-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    loss = (1 - weight) * F.nll_loss(student, labels[:, 1:][labelled]) + weight * divergence
    (gradient,) = torch.autograd.grad(loss, hidden)
    return loss.detach(), gradient


@pytest.mark.parametrize(
    ("weight", "chunk", "other_head", "size"),
    [(0.25, 1, False, 1), (0.5, 3, True, 1), (1.0, 8, True, 1), (0.25, 256, True, 1), (0.5, 3, False, 30)],
)
def test_loss_and_gradient_are_those_of_full_logits(monkeypatch, weight, chunk, other_head, size):
    """size: of the states; logits that are far apart overflow nothing."""
    monkeypatch.setattr("utils.losses.CHUNK", chunk)
    hidden, head = size * drawn(3, 7, HIDDEN, seed=0), drawn(VOCABULARY, HIDDEN, seed=1)
    labels = batch(SAMPLES)["labels"]
    taught = size * drawn(int((labels[:, 1:] != IGNORED).sum()), HIDDEN, seed=2)
    own = drawn(VOCABULARY, HIDDEN, seed=3) if other_head else None
    model = Bare(hidden.clone(), head)
    loss = ResponseLoss(model, Distillation(weight, own)).train()(labels, labels, teacher=taught)["loss"]
    loss.backward()
    wanted, gradient = reference(hidden, head, taught, head if own is None else own, labels, weight)
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.allclose(model.hidden.grad.double(), gradient, rtol=1e-4, atol=1e-6 if size == 1 else 1e-5)


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


def test_the_teachers_final_norm_is_its_own_though_the_students_is_trained(dense, pruned):
    attach(pruned, {"model.norm.weight": [Constant(3 - pruned.model.norm.weight)]})
    inputs, states = batch(SAMPLES), teacher_states(dense, SAMPLES, "")
    found = float(ResponseLoss(pruned, Distillation(1.0)).train()(**inputs, teacher=states)["loss"])
    labelled = inputs["labels"][:, 1:] != IGNORED
    student, teacher = (
        other(inputs["input_ids"]).logits[:, :-1][labelled].log_softmax(-1) for other in (pruned.train(), dense)
    )
    assert found == pytest.approx(float(F.kl_div(student, teacher, log_target=True, reduction="batchmean")), rel=1e-4)


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
