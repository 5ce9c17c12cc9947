"""LoFiT: scales of all heads are trained and penalised, and b is trained where they grew most."""

import signal
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from baselines.lofit import HeadScale, scale_norms
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.modeling_llama import attach, max_rounding_error
from models.restoration import Restoration
from tests.builders import SAMPLES, batch, mistake, orthonormal
from tests.method.test_training import forward_passes, settings
from utils.common.files import read_manifest
from utils.common.flags import parse_arguments
from utils.common.methods import Options, needs_of
from utils.common.processes import Processes
from utils.losses import ResponseLoss
from utils.prompts import Encoded
from utils.stages.context import Run
from utils.stages.rank import head_norms

NAMES = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)]


@pytest.fixture
def model(make_tiny_llama):
    loaded = load_model(make_tiny_llama(zeros=0.5, attention_bias=True), torch.float32, "cpu", "-p")
    return loaded.requires_grad_(True)  # so that what must not be trained would be


def drawn(seed: int = 2, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(seed))


def scale(model, start: torch.Tensor) -> list[HeadScale]:
    """Have the model scale all heads, from A = start (L, H, d)."""
    scales = [HeadScale(own) for own in start]
    attach(model, {name: [own] for name, own in zip(NAMES, scales, strict=True)})
    return scales


def penalised(model, scaled: list[HeadScale], l1: float) -> ResponseLoss:
    return ResponseLoss(model, penalty=lambda: l1 * sum(heads.size for heads in scaled)).train()


def test_each_query_head_is_scaled_by_its_own_row_with_autograds_gradient(model):
    ids, scales = torch.tensor([[5, 9, 77, 30, 8, 1]]), drawn().requires_grad_()
    by_hand = {name: model.get_parameter(name) * (1 + own.flatten()) for name, own in zip(NAMES, scales, strict=True)}
    wanted, before = torch.func.functional_call(model, by_hand, (ids,)).logits, model(ids).logits
    wanted.square().sum().backward()
    scaled = scale(model, scales.detach())
    found = model(ids).logits
    assert 0 < max_rounding_error(model) <= 1
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, before, atol=1e-2)
    found.square().sum().backward()
    for heads, wanted in zip(scaled, scales.grad, strict=True):
        assert torch.allclose(heads.scales.grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_where_the_loss_is_flat_the_penalty_alone_pulls(model):
    torch.nn.init.zeros_(model.lm_head.weight)
    scaled = scale(model, drawn())
    penalised(model, scaled, 0.03)(**batch(SAMPLES))["loss"].backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None]
    assert moved == [f"{name.replace('.weight', '.terms.weight')}.0.scales" for name in NAMES]
    for heads in scaled:
        assert torch.allclose(heads.scales.grad, 0.03 * heads.scales.detach().sign())


def test_batches_of_one_step_share_one_penalty(model):
    model.activation_checkpointing_enable()
    scaled, gradients = scale(model, drawn(size=0.1)), []
    loss, labelled = penalised(model, scaled, 0.03), sum(len(s.ids) - s.prompt_length for s in SAMPLES)
    for parts in ([SAMPLES], [SAMPLES[:1], SAMPLES[1:]]):
        model.zero_grad()
        for part in parts:
            loss(**batch(part), num_items_in_batch=labelled)["loss"].backward()
        gradients.append(torch.stack([heads.scales.grad for heads in scaled]))
    assert torch.allclose(*gradients, atol=1e-6)


def test_the_head_that_must_be_scaled_is_found_and_an_interrupted_search_goes_on(make_tiny_llama, tmp_path):
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-p")
    ids = torch.randint(300, (48, 3), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for _ in range(9):  # answers are what the model itself says
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        model.lm_head.weight.mul_(10)  # sure of what it says, so that the loss is low until a head is damaged
        model.model.layers[1].self_attn.o_proj.weight[:, 4 * 8 : 5 * 8] *= 0.2
    given = [Encoded(row, 3) for row in ids.tolist()], settings(lr=5e-2, num_epoch=8, batch_size=8), 5e-4, "cpu"
    norms = scale_norms(deepcopy(model), *given, tmp_path / "whole")
    assert norms.shape == (3, 6) and divmod(int(norms.argmax()), 6) == (1, 4)
    with forward_passes(9, lambda: signal.raise_signal(signal.SIGINT)) as passes:
        with pytest.raises(KeyboardInterrupt):
            scale_norms(deepcopy(model), *given, tmp_path / "cut", belongs="x")
        assert torch.equal(scale_norms(deepcopy(model), *given, tmp_path / "cut", belongs="x"), norms)
    assert len(passes) == 6 * 8 and {read_manifest(each)["belongs"] for each in (tmp_path / "cut").iterdir()} == {"x"}


def test_a_larger_penalty_leaves_less_and_no_epochs_train_nothing(model, tmp_path, monkeypatch):
    how = settings(lr=1e-2)
    sizes = [float(scale_norms(model, SAMPLES * 4, how, l1, "cpu", tmp_path / str(l1)).sum()) for l1 in (0, 1)]
    assert sizes[1] < 0.7 * sizes[0]
    monkeypatch.setattr("baselines.lofit.train", lambda *_, **__: pytest.fail("trained"))
    start = scale_norms(model, SAMPLES, settings(num_epoch=0, training_seed=7), 0, "cpu", tmp_path)
    assert torch.equal(start, drawn(seed=7, size=1e-3).norm(dim=-1))


def test_small_scales_are_no_ones_in_bf16():
    z, weight = (torch.ones(1, 4, 48) * torch.linspace(1.5, 1.99, 48)).bfloat16(), torch.eye(48).bfloat16()
    found = HeadScale(torch.full((6, 8), 0.003)).through(z, weight)
    assert torch.equal(found, (1.003 * z.double()).bfloat16()) and not torch.equal(found, z)


def test_a_scaling_that_diverges_names_what_asked_for_it(model, tmp_path):
    given = model, SAMPLES * 8, settings(lr=1e37, flag="-head_selection", num_epoch=9), 0, "cpu", tmp_path
    mistake(r"^-head_selection: the (loss|gradient) is not finite.*; choose another,", scale_norms, *given)


def test_v_of_a_head_that_lofit_chose_is_not_asked_of_b_alone(make_tiny_llama):
    given = MethodInputs(load_config(make_tiny_llama(), "-p"), seed=1, heads=[(2, 5), (0, 1)])
    start = Restoration.start("lofit", Options(), given)
    assert torch.equal(start.of_heads("basis"), torch.eye(8).expand(2, 8, 8))
    with_v = Restoration.start("lofit", Options(), replace(given, basis=orthonormal()))
    assert torch.equal(start.of_heads("component"), with_v.of_heads("component"))
    needs = {method: needs_of(method, Options()).basis for method in ("lofit", "restorelcc", "magnitudes_only")}
    assert needs == {"lofit": False, "restorelcc": True, "magnitudes_only": True}


def test_norms_are_kept_for_what_they_depend_on_and_for_nothing_else(make_tiny_llama, tmp_path, monkeypatch):
    scaling = Mock(side_effect=scale_norms)
    monkeypatch.setattr("baselines.lofit.scale_norms", scaling)
    models, samples = SimpleNamespace(pruned=Checkpoint(make_tiny_llama(zeros=0.5))), SimpleNamespace(train=SAMPLES * 4)

    def norms(*words: str, device: str = "cpu", count: int = 1) -> torch.Tensor:
        words = ["-method", "lofit", "-dtype", "float32", "-num_epoch", "1", "-cache_dir", str(tmp_path), *words]
        run = Run(parse_arguments(words), Processes("cpu"), tmp_path / "run", "cpu")
        run.kind_of_device, run.processes.count = device, count
        return head_norms(run, models, samples)

    first = norms()
    assert not (tmp_path / "run" / "lofit").exists()  # the cache has them, so no checkpoint binds the next run's flags
    for same in (("-lr", "0.5"), ("-use_topk_heads", "3"), ("-method", "restorelcc", "-head_selection", "lofit")):
        assert torch.equal(norms(*same), first)
    assert scaling.call_count == 1
    models.pruned = Checkpoint(make_tiny_llama(zeros=0.5, seed=3))
    others = [norms()]
    samples.train = SAMPLES * 5
    others += [norms(), norms("-train_seed", "1"), norms("-dtype", "bfloat16")]
    assert scaling.call_count == 5 and not any(torch.equal(other, first) for other in others)
    norms(device="cuda"), norms(count=2)
    rates = [(how.lr, penalty) for _, _, how, penalty, *_ in (call.args for call in scaling.call_args_list)]
    assert rates == [(5e-3, 5e-4)] * 7  # the rate and the penalty of the source
