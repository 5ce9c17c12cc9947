"""LoFiT: scales of all heads are trained and penalised, and b is trained where they grew most."""

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import baselines.lofit
import RestoreLCC_train
import utils.stages.measure
import utils.stages.rank
from baselines.lofit import HeadScale, scale_norms
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.merge import probe_logits
from models.modeling_llama import attach, max_rounding_error
from models.restoration import Restoration, load_restoration
from tests.builders import SAMPLES, batch, orthonormal
from tests.method.test_processes import flags as of_a_run
from tests.method.test_processes import launch
from tests.method.test_training import settings
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.methods import Options, needs_of
from utils.common.processes import Processes
from utils.losses import IGNORED, ResponseLoss
from utils.prompts import Encoded
from utils.stages.context import Run
from utils.stages.rank import head_norms
from utils.training import response_loss, train

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
        for layer in range(3):
            weight = by_hand.model.layers[layer].self_attn.o_proj.weight
            for head in range(6):
                for channel in range(8):
                    weight[:, head * 8 + channel] *= 1 + scales[layer, head, channel]
    before = probe_logits(model, IDS)
    with scaled_heads(model, scales):
        found = probe_logits(model, IDS)
    for logits, wanted, unscaled in zip(found, probe_logits(by_hand, IDS), before, strict=True):
        assert torch.allclose(logits, wanted, atol=1e-5)
        assert not torch.allclose(logits, unscaled, atol=1e-2)


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


def test_a_step_computes_the_scaled_weight(model):
    with scaled_heads(model, drawn(size=0.1)):
        assert 0 < max_rounding_error(model) <= 1


def test_where_the_loss_is_flat_the_penalty_alone_pulls(model):
    torch.nn.init.zeros_(model.lm_head.weight)
    with scaled_heads(model, drawn()) as scaled:
        penalised(model, scaled, 0.03)(**batch(SAMPLES))["loss"].backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == {
            f"model.layers.{layer}.self_attn.o_proj.weight_terms.0.scales" for layer in range(3)
        }
        for heads in scaled:
            assert torch.allclose(heads.scales.grad, 0.03 * heads.scales.detach().sign())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_batches_of_one_step_share_one_penalty(model, checkpointing):
    if checkpointing:
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


def test_accumulated_steps_report_the_same_loss(model):
    losses = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        with scaled_heads(model, drawn()) as scaled:
            result = train(
                model,
                SAMPLES * 4,
                SAMPLES,
                settings(batch_size=size, accumulation=accumulation, epochs=1),
                "cpu",
                Path("unused"),
                False,
                sharded=True,
                penalty=lambda scaled=scaled: 0.03 * sum(heads.size for heads in scaled),
            )
        losses.append([row["loss"] for row in result.history if "loss" in row])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) == losses[2]


def test_validation_has_no_penalty(model):
    with scaled_heads(model, drawn()) as scaled:
        judged = [response_loss(m.eval(), SAMPLES, 0, "") for m in (ResponseLoss(model), penalised(model, scaled, 9.0))]
        assert torch.equal(*judged)


def told_by(model, count: int = 48) -> list[Encoded]:
    """Samples whose answers are what the model itself says."""
    ids = torch.randint(300, (count, 3), generator=torch.Generator().manual_seed(5))
    for _ in range(9):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return [Encoded(row.tolist(), 3) for row in ids]


@pytest.mark.parametrize("planted", [(0, 4), (1, 1), (2, 5)])
def test_the_head_that_must_be_scaled_is_found(make_tiny_llama, planted):
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-p")
    samples = told_by(model)
    layer, head = planted
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # sure of what it says, so that the loss is low until a head is damaged
        model.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : (head + 1) * 8] *= 0.2
    norms = scale_norms(model, samples, settings(lr=5e-2, epochs=8, batch_size=8), 5e-4, "cpu")
    assert norms.shape == (3, 6)
    assert divmod(int(norms.argmax()), 6) == planted


def test_a_larger_penalty_leaves_less(model):
    sizes = [float(scale_norms(model, SAMPLES * 4, settings(lr=1e-2), l1, "cpu").sum()) for l1 in (0, 1)]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_rate_that_is_too_high_is_named_by_its_flag(model):
    with pytest.raises(UserError, match=r"^-lofit_lr: the (loss|gradient) is no finite number"):
        scale_norms(model, SAMPLES * 8, settings(lr=1e37, lr_flag="-lofit_lr", epochs=9), 0, "cpu")


def test_a_method_has_its_own_selection_and_a_given_one_wins():
    assert parse_arguments([]).head_selection == "contrastive"
    assert parse_arguments(["-method", "lofit"]).head_selection == "lofit"
    assert parse_arguments(["-method", "lofit", "-head_selection", "gap"]).head_selection == "gap"
    assert parse_arguments(["-head_selection", "lofit"]).head_selection == "lofit"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-lofit_lr", "0"], "-lofit_lr: must be a number above 0, not 0"),
        (["-lofit_l1", "-1"], "-lofit_l1: must be a number, 0 or above, not -1"),
        (["-lofit_l1", "nan"], "-lofit_l1: must be a number, 0 or above, not nan"),
        (["-head_selection", "lofti"], "-head_selection"),
    ],
)
def test_wrong_flags_are_one_line(words, line):
    with pytest.raises(UserError) as found:
        parse_arguments(words)
    assert line in str(found.value) and "\n" not in str(found.value)


@pytest.fixture
def common(tmp_path, make_tiny_llama) -> list[str]:
    words = of_a_run(tmp_path, make_tiny_llama)
    place = words.index("-head_selection")
    return [*words[:place], *words[place + 2 :], "-use_topk_heads", "4", "-lofit_lr", "5e-2"]


def run(monkeypatch, common: list[str], output: Path, *more) -> dict:
    monkeypatch.setattr(sys, "argv", ["RestoreLCC_train.py", *common, "-output_dir", str(output), *map(str, more)])
    RestoreLCC_train.main()
    return json.loads((output / "results.json").read_text())


def test_lofit_runs_to_a_proved_checkpoint_and_reads_no_activations(common, tmp_path, monkeypatch, capsys):
    for module, name in ((utils.stages.measure, "activations"), (utils.stages.rank, "components")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("not needed"))
    norms, original = [], baselines.lofit.scale_norms
    monkeypatch.setattr(baselines.lofit, "scale_norms", lambda *a: norms.append(original(*a)) or norms[-1])
    output = tmp_path / "out"
    results = run(monkeypatch, common, output, "-method", "lofit", "-num_epoch", 1)
    best = sorted(divmod(int(place), 6) for place in norms[0].flatten().argsort(descending=True)[:4])
    assert results["proof"]["passed"] and results["heads"]["trained"] == [list(head) for head in best]
    assert results["heads"]["selection"] == "lofit" and "LoFiT" in results["heads"]["score_name"]
    assert "chosen by LoFiT&#39;s first step" in (output / "report.html").read_text()
    pruned = Path(common[common.index("-pruned_model_path") + 1])
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, output / "model"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    touched = {f"model.layers.{layer}.self_attn.o_proj.bias" for layer, _ in best}
    assert {name for name in after.keys() - before.keys() if after[name].any()} == touched
    saved = load_file(output / "restoration" / "restoration.safetensors")
    assert {name.rpartition(".")[2] for name in saved} == {"heads", "basis", "component"}
    assert AutoModelForCausalLM.from_pretrained(output / "model").config.attention_bias

    # The same again, from the cache.
    monkeypatch.setattr(baselines.lofit, "scale_norms", lambda *_: pytest.fail("trained again"))
    assert (
        run(monkeypatch, common, tmp_path / "again", "-method", "lofit", "-num_epoch", 1)["heads"] == results["heads"]
    )
    again = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in after.items())


@pytest.mark.slow
def test_a_method_with_v_reads_activations_for_it(common, tmp_path, monkeypatch):
    norms, original = [], baselines.lofit.scale_norms
    monkeypatch.setattr(baselines.lofit, "scale_norms", lambda *a: norms.append(original(*a)) or norms[-1])
    results = run(monkeypatch, common, tmp_path / "out", "-head_selection", "lofit", "-num_epoch", 1)
    best = sorted(divmod(int(place), 6) for place in norms[0].flatten().argsort(descending=True)[:4])
    assert results["proof"]["passed"] and results["heads"]["trained"] == [list(head) for head in best]
    basis = load_restoration(tmp_path / "out" / "restoration")[0].of_heads("basis")
    assert torch.allclose(basis @ basis.mT, torch.eye(8).expand(4, 8, 8), atol=1e-5)
    assert not torch.allclose(basis, torch.eye(8).expand(4, 8, 8), atol=0.1)


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


OTHERWISE = {
    "lofit_l1": 1e-2,
    "lofit_lr": 1e-3,
    "train_seed": 1,
    "batch_size": 4,
    "num_epoch": 2,
    "gradient_accumulation": 2,
    "max_grad_norm": 1e-6,
    "dtype": "bfloat16",
}


def test_norms_are_kept_for_what_they_depend_on_and_for_nothing_else(make_tiny_llama, tmp_path, monkeypatch):
    models, samples = SimpleNamespace(pruned=Checkpoint(make_tiny_llama(zeros=0.5))), SimpleNamespace(train=SAMPLES * 4)
    trained, original = [], baselines.lofit.scale_norms
    monkeypatch.setattr(baselines.lofit, "scale_norms", lambda *a: trained.append(original(*a)) or trained[-1])
    first = head_norms(selecting(tmp_path), models, samples)
    for same in (("-lr", 0.5), ("-use_topk_heads", 3), ("-calib_seed", 1), ("-method", "restorelcc")):
        words = (*same, "-head_selection", "lofit")
        assert torch.equal(head_norms(selecting(tmp_path, *words), models, samples), first)
    assert len(trained) == 1
    assert torch.equal(head_norms(selecting(tmp_path, "-resume"), models, samples), first)
    for count, (flag, value) in enumerate(OTHERWISE.items(), start=2):
        other = head_norms(selecting(tmp_path, f"-{flag}", value), models, samples)
        assert len(trained) == count and not torch.equal(other, first)
    elsewhere = SimpleNamespace(pruned=Checkpoint(make_tiny_llama(zeros=0.5, seed=3)))
    more = SimpleNamespace(train=SAMPLES * 5)
    assert not torch.equal(head_norms(selecting(tmp_path), elsewhere, samples), first)
    assert not torch.equal(head_norms(selecting(tmp_path), models, more), first)
    assert len(trained) == 1 + len(OTHERWISE) + 2


def test_other_selections_and_methods_without_heads_train_nothing(tmp_path):
    for words in (("-head_selection", "gap"), ("-method", "output_bias", "-head_selection", "lofit")):
        assert head_norms(selecting(tmp_path, *words), None, None) is None


@pytest.mark.slow
def test_no_epochs_train_no_scales_either(common, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines.lofit, "train", lambda *_, **__: pytest.fail("trained"))
    results = run(monkeypatch, common, tmp_path / "out", "-method", "lofit", "-num_epoch", 0)
    assert results["proof"]["passed"] and not results["proof"]["nonzero_new_tensors"]


@pytest.mark.slow
def test_two_processes_choose_the_heads_that_one_does(common, tmp_path, monkeypatch):
    entry = Path(RestoreLCC_train.__file__)
    words = [entry, *common, "-method", "lofit", "-num_epoch", 1, "-batch_size", 4, "-output_dir"]
    done = launch(*words, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    one = run(monkeypatch, common, tmp_path / "one", "-method", "lofit", "-num_epoch", 1)
    assert two["heads"] == one["heads"]
    kept = [load_file(file)["norms"] for file in (tmp_path / "cache" / "lofit").rglob("*.safetensors")]
    assert len(kept) == 2 and torch.allclose(*kept, atol=1e-5)
