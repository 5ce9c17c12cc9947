"""LoFiT: scales of all heads are trained and penalised, and b is trained where they grew most."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import baselines.lofit
from baselines.lofit import HeadScale, scale_norms
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.merge import probe_logits
from models.modeling_llama import attach, max_rounding_error
from models.restoration import Restoration
from tests.builders import SAMPLES, batch, orthonormal
from tests.method.test_training import settings
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.methods import Options, needs_of
from utils.common.processes import Processes
from utils.losses import ResponseLoss
from utils.prompts import IGNORED, Encoded
from utils.stages.context import Run
from utils.stages.rank import head_norms
from utils.training import response_loss

IDS = [[5, 9, 77, 30, 8, 1], [60, 61, 3]]


@pytest.fixture
def model(make_tiny_llama):
    loaded = load_model(make_tiny_llama(zeros=0.5, attention_bias=True), torch.float32, "cpu", "-p")
    return loaded.requires_grad_(True)  # so that what must not be trained would be


def drawn(seed: int = 2, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(seed))


@contextmanager
def scaled_heads(model, start: torch.Tensor) -> Iterator[list[HeadScale]]:
    """Within it, the model scales all heads, from A = start (L, H, d)."""
    stocks, scales = [layer.self_attn.o_proj for layer in model.model.layers], [HeadScale(own) for own in start]
    attach(model, {f"model.layers.{n}.self_attn.o_proj.weight": [own] for n, own in enumerate(scales)})
    yield scales
    for layer, stock in zip(model.model.layers, stocks, strict=True):
        layer.self_attn.o_proj = stock


def penalised(model, scaled: list[HeadScale], l1: float) -> ResponseLoss:
    return ResponseLoss(model, penalty=lambda: l1 * sum(heads.size for heads in scaled)).train()


def test_each_query_head_is_scaled_by_its_own_row(model):
    scales, by_hand = drawn(), copy.deepcopy(model)
    with torch.no_grad():
        for layer, own in zip(by_hand.model.layers, scales, strict=True):
            for head in range(6):
                layer.self_attn.o_proj.weight[:, head * 8 : (head + 1) * 8] *= 1 + own[head]
    before = probe_logits(model, IDS)
    with scaled_heads(model, scales):
        found = probe_logits(model, IDS)
        assert 0 < max_rounding_error(model) <= 1
    for logits, wanted, unscaled in zip(found, probe_logits(by_hand, IDS), before, strict=True):
        assert torch.allclose(logits, wanted, atol=1e-5) and not torch.allclose(logits, unscaled, atol=1e-2)


def test_the_gradient_of_the_scales_is_autograds(model):
    scales = drawn().flatten(1)[0].requires_grad_()
    z = torch.randn(2, 5, 48, requires_grad=True)
    linear, term = model.model.layers[0].self_attn.o_proj.requires_grad_(False), HeadScale(scales.detach().view(6, 8))
    (term.through(z, linear.weight) + linear.bias).square().sum().backward()
    wanted = torch.autograd.grad(
        torch.nn.functional.linear((1 + scales) * z, linear.weight, linear.bias).square().sum(), (scales, z)
    )
    assert torch.allclose(term.scales.grad.flatten(), wanted[0], rtol=1e-4)
    assert torch.allclose(z.grad, wanted[1], rtol=1e-4)


def test_where_the_loss_is_flat_the_penalty_alone_pulls_and_validation_has_none(model):
    torch.nn.init.zeros_(model.lm_head.weight)
    with scaled_heads(model, drawn()) as scaled:
        penalised(model, scaled, 0.03)(**batch(SAMPLES))["loss"].backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == {
            f"model.layers.{layer}.self_attn.o_proj.weight_terms.0.scales" for layer in range(3)
        }
        for heads in scaled:
            assert torch.allclose(heads.scales.grad, 0.03 * heads.scales.detach().sign())
        judged = [response_loss(m.eval(), SAMPLES, 0, "") for m in (ResponseLoss(model), penalised(model, scaled, 9.0))]
        assert torch.equal(*judged)


def test_batches_of_one_step_share_one_penalty(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for parts in ([SAMPLES], [SAMPLES[:1], SAMPLES[1:]]):
        with scaled_heads(model, drawn(size=0.1)) as scaled:
            loss, batches = penalised(model, scaled, 0.03), [batch(part) for part in parts]
            labelled = sum(int((b["labels"] != IGNORED).sum()) for b in batches)
            for b in batches:
                loss(**b, num_items_in_batch=labelled)["loss"].backward()
            gradients.append(torch.stack([heads.scales.grad for heads in scaled]))
    assert torch.allclose(*gradients, atol=1e-6)


def told_by(model, count: int = 48) -> list[Encoded]:
    """Samples whose answers are what the model itself says."""
    ids = torch.randint(300, (count, 3), generator=torch.Generator().manual_seed(5))
    for _ in range(9):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return [Encoded(row.tolist(), 3) for row in ids]


def test_the_head_that_must_be_scaled_is_found(make_tiny_llama):
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-p")
    samples = told_by(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # sure of what it says, so that the loss is low until a head is damaged
        model.model.layers[1].self_attn.o_proj.weight[:, 4 * 8 : 5 * 8] *= 0.2
    norms = scale_norms(model, samples, settings(lr=5e-2, epochs=8, batch_size=8), 5e-4, "cpu")
    assert norms.shape == (3, 6) and divmod(int(norms.argmax()), 6) == (1, 4)


def test_a_larger_penalty_leaves_less_and_no_epochs_train_nothing(model, monkeypatch):
    sizes = [float(scale_norms(model, SAMPLES * 4, settings(lr=1e-2), l1, "cpu").sum()) for l1 in (0, 1)]
    assert sizes[1] < 0.7 * sizes[0]
    monkeypatch.setattr(baselines.lofit, "train", lambda *_, **__: pytest.fail("trained"))
    start = scale_norms(model, SAMPLES, settings(epochs=0), 0, "cpu")
    assert torch.equal(start, (1e-3 * torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(42))).norm(dim=-1))


def test_a_scaling_that_diverges_names_what_asked_for_it(model):
    how = settings(lr=1e37, flag="-head_selection", epochs=9)
    with pytest.raises(
        UserError, match=r"^-head_selection: the (loss|gradient) is no finite number.*; choose another,"
    ):
        scale_norms(model, SAMPLES * 8, how, 0, "cpu")


def test_v_of_a_head_that_lofit_chose_is_not_asked_of_b_alone(make_tiny_llama):
    given = MethodInputs(load_config(make_tiny_llama(), "-p"), seed=1, heads=[(2, 5), (0, 1)])
    start = Restoration.start("lofit", Options(), given)
    assert torch.equal(start.of_heads("basis"), torch.eye(8).expand(2, 8, 8))
    with_v = Restoration.start("lofit", Options(), replace(given, basis=orthonormal()))
    assert torch.equal(start.of_heads("component"), with_v.of_heads("component"))
    needs = {method: needs_of(method, Options()).basis for method in ("lofit", "restorelcc", "magnitudes_only")}
    assert needs == {"lofit": False, "restorelcc": True, "magnitudes_only": True}


def selecting(folder: Path, *words) -> Run:
    """The context of a run that asks for the selection."""
    words = ["-method", "lofit", "-dtype", "float32", "-num_epoch", 1, "-cache_dir", folder, *words]
    return Run(parse_arguments(list(map(str, words))), Processes("cpu"), None, "cpu")


def test_norms_are_kept_for_what_they_depend_on_and_for_nothing_else(make_tiny_llama, tmp_path, monkeypatch):
    models, samples = SimpleNamespace(pruned=Checkpoint(make_tiny_llama(zeros=0.5))), SimpleNamespace(train=SAMPLES * 4)
    trained, original = [], baselines.lofit.scale_norms
    monkeypatch.setattr(baselines.lofit, "scale_norms", lambda *a: trained.append(original(*a)) or trained[-1])
    first = head_norms(selecting(tmp_path), models, samples)
    for same in (("-lr", 0.5), ("-use_topk_heads", 3), ("-method", "restorelcc")):
        words = (*same, "-head_selection", "lofit")
        assert torch.equal(head_norms(selecting(tmp_path, *words), models, samples), first)
    assert len(trained) == 1
    elsewhere = SimpleNamespace(pruned=Checkpoint(make_tiny_llama(zeros=0.5, seed=3)))
    more = SimpleNamespace(train=SAMPLES * 5)
    others = [(("-train_seed", 1), models, samples), (("-dtype", "bfloat16"), models, samples)]
    for count, (words, *given) in enumerate([*others, ((), elsewhere, samples), ((), models, more)], start=2):
        assert not torch.equal(head_norms(selecting(tmp_path, *words), *given), first) and len(trained) == count
