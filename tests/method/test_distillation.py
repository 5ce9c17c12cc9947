"""Cross-entropy and distillation are exact from last states, and each sample learns from its own."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F

from models.loading import load_model
from models.modeling_llama import attach
from models.terms import Constant
from tests.builders import SAMPLES, attached, batch, learned_in, masks_of, scaled, trained
from tests.method.test_training import encoded, settings
from utils.distillation import Distillation, by_sample, teacher_states
from utils.losses import ResponseLoss, response_loss
from utils.prompts import IGNORED, Encoded
from utils.training import train


@pytest.fixture
def dense(make_tiny_llama):
    return load_model(make_tiny_llama(seed=3), torch.float32, "cpu", "-b")


def at_responses(model, samples: list[Encoded]) -> torch.Tensor:
    """Log-probabilities where response tokens are predicted (n, V), from each sample alone; of the first none is."""
    logits = [model(torch.tensor([s.ids])).logits[0, max(0, s.prompt_length - 1) : -1] for s in samples]
    return torch.cat(logits).log_softmax(-1)


@pytest.mark.parametrize(
    ("weight", "chunk", "own_head", "size"),
    [(0, 3, False, 1), (0.25, 1, False, 1), (0.5, 3, True, 1), (1.0, 256, True, 1), (0.5, 3, False, 30)],
)
def test_loss_and_gradient_are_those_of_full_logits(make_tiny_llama, dense, monkeypatch, weight, chunk, own_head, size):
    """The teacher's final norm is its own, though the student's is trained. size: of logits that overflow nothing.

    Validation is cross-entropy whatever was trained on, with the divergence beside it.
    """
    monkeypatch.setattr("utils.losses.CHUNK", chunk)
    monkeypatch.setattr("utils.distillation.CPU_TOKENS_A_BATCH", 9)
    samples = [*SAMPLES, Encoded([4, 4, 2, 1], 0)]
    pruned = load_model(make_tiny_llama(seed=3, zeros=0.5), torch.float32, "cpu", "-p")
    pruned.lm_head.weight.data.mul_(size)
    dense.lm_head.weight.data.mul_(size * (1 + own_head))
    attach(pruned, {**trained().terms, "model.norm.weight": [Constant(3 - pruned.model.norm.weight)]})
    parameters = [p for p in pruned.parameters() if p.requires_grad]
    student, teacher = (at_responses(model, samples) for model in (pruned, dense))
    targets = [sample.ids[max(1, sample.prompt_length) :] for sample in samples]
    tokens = [F.nll_loss(student, torch.tensor(list(chain(*targets))), reduction="none")]
    distillation, states, given = None, None, {}
    if weight:
        distillation = Distillation(weight, dense.lm_head.weight if own_head else None)
        tokens.append(F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1))
        states = by_sample(teacher_states(dense, samples, ""), samples)
        given["teacher"] = torch.cat(states)
    wanted = (1 - weight) * tokens[0].mean() + weight * tokens[-1].mean()
    loss, seen = ResponseLoss(pruned, distillation).train(), masks_of(pruned)
    found = loss(**batch(samples), **given)["loss"]
    assert seen == [None] * 3  # rows are padded, and need no mask
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    gradients = [torch.autograd.grad(each, parameters, retain_graph=True) for each in (found, wanted)]
    assert len(parameters) == 5
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    of_twenty = loss(**batch(samples), num_items_in_batch=20, **given)["loss"]
    assert float(of_twenty.detach()) == pytest.approx(float(wanted.detach()) * 11 / 20, rel=1e-4)
    rows = response_loss(loss.eval(), samples, 257, states=states)
    sums = [torch.stack([own.sum() for own in each.split(list(map(len, targets)))]) for each in tokens]
    sums.insert(1, torch.tensor(list(map(len, targets))))
    assert torch.allclose(rows.float(), torch.stack(sums, 1), rtol=1e-4, atol=1e-4 * size)
    monkeypatch.setattr("utils.losses.VALID_TOKENS_A_BATCH", 9)  # several, of which the two parts have not as many
    parts = [response_loss(loss.eval(), samples, 257, part, 2, states) for part in (0, 1)]
    assert torch.allclose(sum(parts), rows, rtol=1e-4, atol=1e-4 * size) and all(part.any() for part in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_dense_model_learns_nothing_from_its_own_states(make_tiny_llama, dtype):
    folder = make_tiny_llama(seed=3, dtype=dtype)
    states = teacher_states(load_model(folder, dtype, "cpu", "-b"), SAMPLES, "")
    for restoration, equal in ((scaled(trained(), 0), True), (trained(), False)):
        model = restoration.attach(load_model(folder, dtype, "cpu", "-b"))
        loss = ResponseLoss(model, Distillation(1.0)).train()(**batch(SAMPLES), teacher=states)["loss"]
        loss.backward()
        steepest = max(float(p.grad.abs().max()) for p in model.parameters() if p.requires_grad)
        # Both go forward alike, in batches of other lengths: what is left is rounding.
        assert (abs(float(loss.detach())) < 1e-5, steepest < 1e-4) == (equal, equal)


@pytest.mark.parametrize(
    "changes",
    [{"gradient_checkpointing": True}, {"random_batches": True, "batch_size": 2, "gradient_accumulation": 3}],
    ids=str,
)
def test_each_sample_learns_from_its_own_states_in_any_batches(make_tiny_llama, tmp_path, dense, monkeypatch, changes):
    folder = make_tiny_llama(seed=3, zeros=0.5)
    samples, valid = encoded(folder, 13), encoded(folder, 19)[13:]
    kept = [by_sample(teacher_states(dense, part, ""), part) for part in (samples, valid)]

    class OfTheBatch(ResponseLoss):
        """The dense model itself says what is taught."""

        def forward(self, input_ids, labels, of_text=None, **given):
            with torch.no_grad():
                states = dense.model(input_ids).last_hidden_state[:, :-1]
            named = {"teacher": states[labels[:, 1:] != IGNORED]} if of_text is None else {"of_text": states[0]}
            return super().forward(input_ids, labels, **given | named)

    def distil(name: str, distillation: Distillation):
        model = attached(folder, scaled(trained(), 0))
        how, place = settings(**changes), tmp_path / name
        return train(model, samples, valid, how, "cpu", place, distillation=distillation).history, learned_in(model)

    text = tuple(Encoded(sample.ids[:7], 0) for sample in encoded(folder, 24)[19:])
    of_text = by_sample(teacher_states(dense, list(text), ""), list(text))
    taught = Distillation(1.0, None, *kept, text, of_text)
    history, learned = distil("kept", taught)
    with monkeypatch.context() as patched:
        patched.setattr("utils.training.ResponseLoss", OfTheBatch)
        computed, other = distil("computed", taught)
    for mine, row in zip(history, computed, strict=True):
        assert mine == pytest.approx(row, rel=1e-4)
    assert all(torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in learned.items())
    # It brings the pruned model closer to the dense one, and not with the states of other tokens.
    divergences = [row["valid_kl"] for row in history if "valid_loss" in row]
    assert len(divergences) == 3 and divergences[2] < divergences[1] < divergences[0]
    changed = {
        "other samples": Distillation(1.0, None, [states.flip(0) for states in kept[0]], kept[1], text, of_text),
        "other windows": Distillation(1.0, None, *kept, text, of_text[1:] + of_text[:1]),
        "no text": Distillation(1.0, None, *kept),
    }
    losses = {name: [row["loss"] for row in distil(name, each)[0] if "loss" in row] for name, each in changed.items()}
    wanted = [row["loss"] for row in history if "loss" in row]
    for name, found in losses.items():
        assert found != pytest.approx(wanted, rel=1e-3), name
    # Before the first step nothing is restored yet: text adds the mean over a window, one a step.
    plain = ResponseLoss(load_model(folder, torch.float32, "cpu", "-p"), Distillation(1.0)).train()
    added = plain(**batch(list(text[:1])), teacher=teacher_states(dense, list(text[:1]), ""))["loss"]
    assert wanted[0] - losses["no text"][0] == pytest.approx(float(added), rel=1e-2)


def test_the_loss_of_a_window_of_text_is_its_mean_divergence(make_tiny_llama, dense):
    text = Encoded([7, 3, 3, 9, 200, 4], 0)
    pruned = attached(make_tiny_llama(seed=3, zeros=0.5))
    student, teacher = (at_responses(model, [text]) for model in (pruned, dense))
    divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean()
    loss = ResponseLoss(pruned, Distillation(0.25), processes=3).train()
    found = loss(**batch([text]), of_text=teacher_states(dense, [text], ""), num_items_in_batch=20)["loss"]
    assert float(found.detach()) == pytest.approx(float(divergence.detach()) / 3, rel=1e-4)
    parameters = [p for p in pruned.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(each, parameters) for each in (found, divergence / 3)]
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
