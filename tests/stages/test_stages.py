"""What each stage makes of what it is given, what it keeps, and what it refuses: stages called one by one."""

import copy
import json
import math
import re
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from models.checkpoint import LINEARS, Checkpoint
from models.compact import write_compact
from tests.builders import byte_tokenizer, mistake, orthonormal, rewrite
from tests.method.test_distillation import at_responses
from tests.models.test_merge import mask_units
from tests.runs import flags, prepared, ranked
from utils.common import methods
from utils.common.errors import OutOfRoom, UserError
from utils.common.files import as_bytes
from utils.common.flags import build_parser
from utils.common.record import STAGES
from utils.components import lost_components, random_basis
from utils.prompts import IGNORED, Encoded, collate
from utils.report.summary import verdict
from utils.stages import measure, train
from utils.stages.context import LazyModel
from utils.stages.prepare import check_heads, pruned_checkpoint
from utils.stages.rank import Ranked, find_components, rank
from utils.stages.results import method_record, trained_tokens

CALIBRATED = {"calib_samples": 6, "calib_length": 32}


@pytest.fixture
def begin(world, tmp_path):
    """The first stage of a run of one epoch without evaluation, with changes to its flags."""
    plain = {"eval_tasks": "none", "num_epoch": 1, "ppl_window": 999}  # beyond the model, where no text is read
    return lambda **changes: prepared(flags(world, tmp_path / "out", **plain | changes))


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr("utils.stages.context.load_model", lambda *_: pytest.fail("a model was loaded"))


def test_the_head_that_pruning_silenced_is_found(world, tmp_path, begin):
    silenced = shutil.copytree(world / "dense", tmp_path / "silenced")
    rewrite(silenced, lambda tensors: tensors["model.layers.2.self_attn.q_proj.weight"][4 * 8 : 5 * 8].zero_())
    found = ranked(*begin(head_selection="gap", use_topk_heads=1, pruned_model_path=silenced))
    assert found.heads == [(2, 4)] and found.scores[2, 4] > 0 and int((found.scores != 0).sum()) == 1


def test_the_dense_model_reads_each_probes_question_right_and_wrong_answer(begin, monkeypatch):
    run, models, samples, _ = begin()
    trees = measure.probe_trees(run, models, samples)
    assert [len(tree.continuations) for tree in trees] == [3] * 20 + [1] * 10
    for row, tree in enumerate(trees):
        question, *answers = ([*tree.prompt, *ids] for ids in tree.continuations)
        assert question == samples.prompt_ids[row]
        assert not answers or answers[0] == samples.train[row].ids != answers[1]
    near = {"near": [1.0, 0.0], "far": [0.0, 1.0]}
    monkeypatch.setattr(measure, "embedded", lambda run, texts: torch.tensor([near.get(t, [1.0, 0.1]) for t in texts]))
    wrong = [("far", "near"), ("near", "far"), *[("far", "near")] * 28]
    asked = [replace(text, negatives=each) for text, each in zip(samples.texts, wrong, strict=True)]
    assert measure.wrong_answers(run, replace(samples, texts=asked)) == ["near"] * 20
    stretched = "rope_parameters", {"rope_type": "linear", "factor": 1.2}
    for name, value, most in (("max_length", 50, 50), ("max_position_embeddings", 40, 40), (*stretched, 48)):
        place = run.args if name == "max_length" else models.config
        object.__setattr__(place, name, value)
        trees = measure.probe_trees(run, models, samples)[:20]
        assert max(len(tree.prompt) + len(tree.continuations[2]) for tree in trees) == most


def test_probes_read_what_is_left_with_c_beside_the_dense_models_right_and_wrong_answers(monkeypatch):
    draw, seen = torch.Generator().manual_seed(0), []
    z = [torch.randn(c, 2, 3, n, 4, generator=draw).bfloat16() for c, n in ((3, 8), (1, 4), (1, 12))]
    monkeypatch.setattr("utils.probing.probe_heads", lambda *given, **_: seen.extend(given) or {})
    kept = [lambda each=each: {"z": each} for each in z]
    found, (dense, more, pruned) = find_components.__wrapped__(kept[:2], kept[2:], 1, 7), map(torch.Tensor.float, z)
    gap = torch.cat([dense[0], more[0]], dim=2) - pruned[0]
    assert torch.equal(found["gap"], gap.square().mean((2, 3)))
    c = lost_components(gap, 1).component.unsqueeze(2)
    assert all(map(torch.equal, seen[:3], (pruned[0, :, :, :8] + c, dense[1], dense[2]))) and seen[3] == 7


def test_heads_are_ranked_and_drawn_as_the_flags_say(begin, monkeypatch):
    asked, worst = [], torch.arange(18.0).view(3, 6)
    found = {"accuracy": torch.full((3, 6), 0.5), "loss": worst.flip(0), "gap": worst, "size": worst}
    found |= {"basis": orthonormal(), "explained": torch.rand(3, 6, 8)}
    monkeypatch.setattr("utils.stages.rank.find_components", lambda _, *given: asked.append(given[2:]) or found)

    def ranks(**changes) -> Ranked:
        return rank(*begin(use_topk_heads=1, **changes)[:3], [], [])

    assert ranks(num_components=3, data_seed=5).heads == [(2, 0)] and asked == [(3, 5)]
    assert ranks(head_selection="gap").heads == [(2, 5)] and torch.equal(ranks().basis, found["basis"])
    assert len({str(ranks(head_selection="random", train_seed=seed).heads) for seed in range(4)}) > 1
    for seed in (1, 2):
        assert torch.equal(ranks(basis="random", train_seed=seed).basis, random_basis(found["basis"], seed))


def test_an_ablation_reuses_everything_but_training(world, finished, tmp_path, no_model):
    run, *rest = prepared(flags(world, tmp_path / "out", lr=1e-3, method="bias_only", train_seed=7))
    heads = ranked(run, *rest).heads
    assert run.cache.reused == ["embeddings", *("activations", "activations", "scores", "examples"),
                                *("activations", "scores", "examples"), "components"]  # fmt: skip
    kept = json.loads((finished / "restoration" / "restoration.json").read_text())
    assert [list(pair) for pair in heads] == kept["heads"]
    models, samples, plan = rest
    (record,) = plan.planned[0].records.values()
    record["source"] = "elsewhere"  # the same rows, of which the kept scores don't know that
    found = measure.measure(LazyModel(run, "dense", models.dense), models, samples, plan, []).evaluation
    assert [told["source"] for told in found.provenance["tasks"].values()] == ["elsewhere"]


def begin_with_bos(folder) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save_pretrained(folder)


def test_what_is_kept_is_made_again_for_just_what_it_depends_on(world, finished, tmp_path):
    cache = shutil.copytree(world / "cache", tmp_path / "cache")
    dense, other = (shutil.copytree(world / name, tmp_path / name) for name in ("dense", "pruned"))
    begin_with_bos(dense)
    rewrite(other, lambda tensors: tensors["model.layers.0.self_attn.v_proj.weight"][:8].zero_())
    read = {"activations", "components", "scores", "examples"}
    for changes, made in (
        ({"data_seed": 7}, {"components"}),
        ({"num_train_samples": 29}, {"embeddings", "activations", "components", "examples"}),
        ({"dtype": "bfloat16"}, read),
        ({"ppl_window": 32}, {"scores"}),
        ({"pruned_model_path": other}, read),
        ({"base_model_name": dense}, read),
    ):
        before = set(cache.glob("*/*"))
        ranked(*prepared(flags(world, tmp_path / "out", cache_dir=cache, **changes)))
        assert {entry.parent.name for entry in set(cache.glob("*/*")) - before} == made, changes
    run, *rest = prepared(flags(world, tmp_path / "out", cache_dir=cache))
    before, run.kind_of_device = set(cache.glob("*/*")), "cuda"
    ranked(run, *rest)
    assert {entry.parent.name for entry in set(cache.glob("*/*")) - before} == {"embeddings", "scores", "examples"}


def test_pruning_is_kept_by_its_text_and_tokenizer_wherever_they_lie(world, tmp_path, begin, monkeypatch):
    common = {"pruned_model_path": None, "calib_data": tmp_path / "text.txt", "cache_dir": tmp_path / "cache"}
    pruning = Mock(side_effect=lambda dense, folder, *_, **__: shutil.copytree(dense, folder, dirs_exist_ok=True))
    monkeypatch.setattr("pruning.prune_model.prune_into", pruning)

    def place(**changes) -> str:
        run, models, *_ = begin(**CALIBRATED | common | changes)
        return pruned_checkpoint(run, models).pruned.folder.name

    shutil.copy(world / "text.txt", tmp_path)
    dense = shutil.copytree(world / "dense", tmp_path / "dense")
    first = place()
    (dense / "note.txt").write_text("no part of the tokenizer")
    assert first == place(base_model_name=dense, calib_data=world / "text.txt", train_seed=3, data_seed=5)
    changes = [{"calib_seed": 7}, {"calib_samples": 5}, {"calib_length": 33}, {"sparsity": "2:4"}]
    changes += [{"dtype": "bfloat16"}, {"prune_method": "magnitude"}]
    found = {first, *(place(**other) for other in changes)}
    assert [call.kwargs["seed"] for call in pruning.call_args_list] == [42, 7, *[42] * 5]
    (tmp_path / "text.txt").write_text("Another text. " * 90)
    found.add(place())
    other = (tmp_path / "text.txt").rename(tmp_path / "text.jsonl")  # it is read another way
    found.add(place(calib_data=other))
    begin_with_bos(dense)
    found.add(place(base_model_name=dense, calib_data=world / "text.txt"))
    monkeypatch.setattr("utils.common.cache.version", lambda name: "0")
    found.add(place(calib_data=other))
    assert len(found) == 5 + len(changes)


EORA = {"first": "eora", "method": "lora"}


def test_a_closed_form_is_kept_by_all_that_it_depends_on(world, tmp_path, begin, monkeypatch):
    """Each change is held against all starts before it: what is new makes another one, what isn't makes none."""
    common = {"method": "masked_lora", "lora_rank": 2, "first": "flap_bias", "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr("baselines.reconstruct.EPOCHS", 1)

    def starts(device: str = "cpu", heads: list | None = None, **changes) -> set[str]:
        run, models, *_ = begin(calib_data=world / "text.txt", **CALIBRATED | common | changes)
        run.kind_of_device = device
        train.starting(run, models, heads and Ranked(heads, torch.zeros(3, 6)))
        return {path.name for path in (tmp_path / "cache" / "starts").iterdir()}

    other = shutil.copytree(world / "dense", tmp_path / "other")
    rewrite(other, lambda tensors: tensors["model.layers.0.self_attn.v_proj.weight"][:8].zero_())
    kept = starts()
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr("utils.stages.context.load_model", lambda *_: pytest.fail("a model was read again"))
        assert starts() == kept
    with monkeypatch.context() as patch:  # one that also needs heads
        spec = replace(methods.METHODS["flap_bias"], needs=methods.Needs(heads=True, calibration=True))
        patch.setitem(methods.METHODS, "flap_bias", spec)
        for heads, another in (([(0, 1)], True), ([(0, 1)], False), ([(2, 5)], True)):
            found = starts(heads=heads, head_selection="gap")
            assert len(found - kept) == another
            kept |= found
    for changes, another in (
        ({"calib_seed": 5}, True), ({"calib_samples": 5}, True), ({"dtype": "bfloat16"}, True),
        ({"pruned_model_path": other}, True),
        ({"base_model_name": other, "pruned_model_path": other, "allow_dense": True}, True),
        (EORA | {"lora_rank": 3}, True), (EORA | {"lora_rank": 4}, True),
        (EORA | {"lora_rank": 4, "apply_to": "all"}, False), (EORA | {"lora_rank": 3}, False),
        ({"apply_to": "ffn"}, True), ({"train_seed": 7}, False),
        ({"first": "reconstruct"}, True), ({"first": "reconstruct", "train_seed": 7}, True),
        (EORA | {"method": "flap_bias", "lora_rank": 3}, True),
        ({"method": "eora", "lora_rank": 3, "first": "reconstruct"}, True),
        ({"lora_rank": 3}, False), ({"method": "output_bias", "apply_to": "both"}, False), ({"num_epoch": 0}, False),
    ):  # fmt: skip
        found = starts(**changes)
        assert len(found - kept) == another, changes
        kept |= found
    assert len(starts("cuda") - kept) == 1


@pytest.mark.parametrize("method", ["bias_only", "lora"])
def test_training_begins_from_its_own_seed_and_each_layer_differs(begin, method):
    def start(**seeds) -> torch.Tensor:
        run, models, *_ = begin(method=method, lora_rank=2, **seeds)
        tensors = train.starting(run, models, Ranked([(0, 4), (1, 2), (2, 2)], torch.zeros(3, 6))).tensors()
        return torch.cat([t.flatten() for name, t in tensors.items() if name.endswith((".component", ".down"))])

    one = start(train_seed=3)
    assert torch.equal(one, start(seed=3)) and not (one == start(seed=3, train_seed=4)).any()
    assert len(one.unique()) == one.numel()


NORM = "model.norm.weight"
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight", NORM}
BOTH = {"self_attn.o_proj.bias", "mlp.down_proj.bias"}
ALL, BIASES = ({f"{name}.{kind}" for name in LINEARS} for kind in ("weight", "bias"))
EVERYWHERE = {"method": "output_bias", "apply_to": "all", "train_norms": True}
AFTER_FLAP = {"method": "masked_lora", "lora_rank": 2, "first": "flap_bias", **CALIBRATED}
METHODS = {
    "RestoreLCC (b alone)": ({"method": "bias_only", "head_selection": "random"}, {"self_attn.o_proj.bias"}, set()),
    "RestoreLCC, biases, norm scales": ({"apply_to": "both", "train_norms": True}, BOTH, NORMS),
    "a bias of whole projections": ({"method": "output_bias", "apply_to": "ffn"}, {"mlp.down_proj.bias"}, set()),
    "FLAP's bias, masked LoRA": (AFTER_FLAP, BOTH, ALL),
    "FLAP's bias, a bias of whole projections, norm scales": (AFTER_FLAP | EVERYWHERE, BIASES, NORMS),
    "FLAP's bias": (AFTER_FLAP | {"num_epoch": 0}, BOTH, set()),
    "EoRA": ({"method": "eora", "lora_rank": 2, **CALIBRATED}, set(), ALL),
    "LoRA": ({"method": "lora", "lora_rank": 2}, set(), ALL),
    "nothing": ({"method": "none"}, set(), set()),
    "nothing, for no epochs": ({"num_epoch": 0}, set(), set()),
}
"""By their titles."""
NOTHING = ("nothing", "nothing, for no epochs")
UNTRAINED = (*NOTHING, "EoRA", "FLAP's bias")


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_comes_to_a_proved_checkpoint(world, begin, name):
    changes, added, changed = METHODS[name]
    run, models, samples, plan = begin(calib_data=world / "text.txt", **changes)
    with run.stage("train"):
        trained = train.train_restoration(run, models, samples, ranked(run, models, samples, plan))
    _, (proof,) = train.merge(run, models, trained)
    assert proof["passed"] and proof["zeros_pruned"] > 0
    assert proof["zeros"] == ("reported" if name in ("LoRA", "EoRA") else "kept")
    left = proof["zeros_restored"] / proof["zeros_pruned"]
    assert left == 1 if proof["zeros"] == "kept" else left < 0.1
    for names, expected in ((proof["nonzero_new_tensors"], added), (proof["changed_tensors"], changed)):
        assert {re.sub(r"^model\.layers\.\d+\.", "", each) for each in names} == expected
    assert (trained.parameters > 0) == (name not in UNTRAINED)
    history = trained.training.history
    assert any("loss" in row for row in history) == (name not in UNTRAINED) and "valid_loss" in history[-1]
    pruned, start, restored, _ = trained.validation.values()
    assert (start == pruned == history[0]["valid_loss"]) == (name in (*NOTHING, "LoRA", "a bias of whole projections"))
    assert (start == restored) == (name in UNTRAINED)
    bases = [part.basis for terms in trained.restoration.terms.values() for part in terms if hasattr(part, "basis")]
    assert all(torch.equal(each, torch.eye(8).expand_as(each)) for each in bases) == (name[:11] != "RestoreLCC,")
    record = method_record(run, trained)
    assert record["title"] == name.partition(", for")[0] and record["restores"] == (name not in NOTHING)
    assert bool(record["about"]) == (name == "RestoreLCC (b alone)"), "what it says of all weights is of heads alone"


def test_no_heads_are_looked_for_by_a_method_that_has_none(tmp_path, begin, no_model):
    changes = {"method": "output_bias", "head_selection": "lofit", "num_valid_samples": 0}
    assert ranked(*begin(cache_dir=tmp_path / "cache", **changes)) is None


def test_a_compact_checkpoint_is_restored_and_stays_compact(world, tmp_path, begin):
    small = tmp_path / "small"
    write_compact(rewrite(shutil.copytree(world / "pruned", tmp_path / "masked"), mask_units), small)
    run, models, samples, plan = begin(pruned_model_path=small, use_topk_heads=1.0)  # all that are left
    found = ranked(run, models, samples, plan)
    assert sorted(head for layer, head in found.heads if layer == 1) == [0, 1, 2]
    assert found.scores.isfinite().tolist() == [[True] * 6, [True] * 3 + [False] * 3, [True] * 6]
    _, proofs = train.merge(run, models, train.train_restoration(run, models, samples, found))
    assert [proof["passed"] for proof in proofs] == [True, True]
    says = "^-use_topk_heads: asks for 18 heads, but 15 can be restored"
    mistake(says, check_heads, *begin(pruned_model_path=small, use_topk_heads=18)[:2])
    plain = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    restored = run.load(Checkpoint(run.folder / "compact"))
    assert restored.model.layers[1].self_attn.o_proj.in_features == 24
    ids = torch.tensor([[5, 9, 77, 30]])
    assert torch.allclose(plain(ids).logits, restored(ids).logits, atol=1e-4)


def test_distillation_is_from_the_dense_models_own_logits(world, tmp_path, begin, monkeypatch):
    given = shutil.copytree(world / "pruned", tmp_path / "pruned")
    rewrite(given, lambda t: {**t, "lm_head.weight": t["lm_head.weight"].flip(0), NORM: 2 * t[NORM]})
    changes = {"loss": "distill", "method": "output_bias", "pruned_model_path": given}
    changes |= {"calib_data": "bundled", "batch_size": 2, "gradient_accumulation": 3, **CALIBRATED}
    run, models, samples, _ = begin(cache_dir=tmp_path / "cache", **changes)
    with run.stage("train"):
        trained = train.train_restoration(run, models, samples, None)
    assert "teacher" not in run.record.stages[0]["reused"]
    known = train.load_teacher(run, models, samples)
    size = as_bytes(sum(states.nbytes for states in (*known.train, *known.valid, *known.of_text)))
    told = f"teacher: the dense model's hidden states for responses and calibration text, {size}; "
    assert told in run.record.stages[0]["detail"]
    assert known.head is not None and run.cache.reused[-3:] == ["teacher"] * 3
    assert known.weight == train.WEIGHT == 0.5
    windows = run.calibration_windows(models.tokenizer)
    assert [window.ids for window in known.text] == windows.tolist() and len(windows) == run.args.calib_samples
    both = map(AutoModelForCausalLM.from_pretrained, (given, world / "dense"))
    with torch.no_grad():
        mine, other = (at_responses(model, samples.valid).double() for model in both)
    rows = [row for row in trained.training.history if "valid_kl" in row]
    assert len(rows) == 2 and all("valid_loss" in row for row in rows)
    assert rows[0]["valid_kl"] == pytest.approx(float((other.exp() * (other - mine)).sum(-1).mean()), rel=1e-4)
    said = "0.5 cross-entropy + 0.5 KL to the dense model, + KL on calibration text"
    assert method_record(run, trained)["loss"] == said
    own, steps = sum(len(sample.ids) for sample in samples.train), math.ceil(len(samples.train) / 6)
    assert trained_tokens(run, samples) == run.args.num_epoch * (own + steps * run.args.calib_length)
    assert [trained_tokens(begin(method=name)[0], samples) for name in ("none", "lofit")] == [0, 2 * own]
    start = train.starting(run, models, None)
    given = {"run": run, "models": models, "samples": samples, "start": start, "teacher": known}
    changes = [{"models": replace(models, pruned=models.dense)}, {"models": replace(models, dense=models.pruned)}]
    changes += [{"samples": replace(samples, **{name: getattr(samples, name)[1:]})} for name in ("train", "valid")]
    first, *others = samples.train
    others = replace(samples, train=[replace(first, prompt_length=first.prompt_length + 1), *others])
    changes += [{"samples": others}, {"start": start.untrained()}, {"teacher": replace(known, text=known.text[1:])}]
    args = [replace(run.args, **{name: value}) for name, value in (("lr", 0.5), ("dtype", "x"), ("loss", "response"))]
    for name, value in [("version", "other"), ("processes", Mock(count=2)), *(("args", each) for each in args)]:
        changes.append({"run": copy.copy(run)})
        setattr(changes[-1]["run"], name, value)
    found = {train.belongs(**given | change) for change in ({}, *changes)}
    assert len(found) == 1 + len(changes)
    monkeypatch.setattr(train, "versions", lambda: {"torch": "0"})
    assert train.belongs(**given) not in found
    run.kind_of_device, known = "cuda", run.cache.reused.count("teacher")
    train.load_teacher(run, models, samples)
    assert run.cache.reused.count("teacher") == known


def test_the_validation_record_counts_the_tokens_of_the_loss_and_a_loss_that_rose_is_told_in_the_verdicts_words():
    history = [{"step": 0, "valid_loss": 2.5}, {"step": 1, "loss": 9.0}, {"step": 1, "valid_loss": 2.6}]
    samples = [Encoded([5, 9, 77, 30], 1), Encoded([8, 1, 2], 2), Encoded([7, 7, 9], 0)]
    labelled = int((collate(samples, 0)["labels"][:, 1:] != IGNORED).sum())
    record = train.validation_record([{"valid_loss": 2.4}], history, samples)
    assert record == {"pruned": 2.4, "start": 2.5, "restored": 2.6, "tokens": labelled} and labelled == 3 + 1 + 2
    assert train.validation_record([], history, samples) == {**record, "pruned": None}
    assert train.validation_record([], history[1:2], samples) is None
    said = "warning: the validation loss rose from 2.500 to 2.600; try a smaller -lr or fewer epochs"
    harm = "warning: the validation loss rose from 2.400 to 2.500 by the closed form, before training; "
    assert train.warnings_of(record, False) == train.warnings_of({**record, "pruned": 2.5}, True) == [said]
    assert train.warnings_of(record, True) == [said, harm + "try another -first or -method"]
    assert train.warnings_of({**record, "pruned": None, "restored": 2.4}, True) == train.warnings_of(None, True) == []
    assert verdict({"validation": record}, {}).endswith("; the validation loss rose from 2.500 to 2.600.")


def test_memory_that_runs_out_names_the_stage_and_its_flags(begin):
    run, *_ = begin()
    says = r"^out of memory in 'training' \(MemoryError\); lower -batch_size .* \(-plan here tells what fits\)$"
    with pytest.raises(OutOfRoom, match=says), run.stage("train"):
        raise UserError("copy it again") from MemoryError()
    with pytest.raises(UserError, match=r"^copy it again$"), run.stage("train"):
        raise UserError("copy it again")
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert set(re.findall(r"-\w+", " ".join(stage.lighter for stage in STAGES))) <= known


def test_little_room_and_a_dense_or_another_model_are_warnings(world, tmp_path, begin, monkeypatch, capsys):
    other = rewrite(shutil.copytree(world / "dense", tmp_path / "it"), lambda t: t["model.embed_tokens.weight"].neg_())
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    monkeypatch.setattr("utils.stages.prepare.free_bytes", lambda folder: 10_000)
    begin(pruned_model_path=other, allow_dense=True)
    settings, unlike, dense, room = capsys.readouterr().err.splitlines()
    says = "its config.json has other rope_parameters, rms_norm_eps than -base_model_name's"
    assert settings == f"      warning: -pruned_model_path: {says}"
    assert unlike == "      warning: -pruned_model_path: its embeddings differ from -base_model_name's: another model?"
    assert dense == "      warning: the pruned model has no zeros; going on because of -allow_dense"
    assert re.fullmatch(r" +warning: -output_dir: 10.0kB are free, and the restored model takes 1\d\dkB", room)
    with pytest.raises(UserError, match=r"^-pruned_model_path: \S+ is -base_model_name's model itself; give"):
        begin(base_model_name=other, pruned_model_path=other)


def test_no_minilm_and_closed_forms_on_a_compact_checkpoint_are_refused(world, tmp_path, begin, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_compact(world / "pruned", tmp_path / "small")
    small, refused = {"pruned_model_path": tmp_path / "small"}, ".* compact .*; prune with -mode masked"
    for wrong, says in (
        (small, f"^-method: flap_bias {refused}"),
        ({**small, "first": "none"}, "^-method: flap_bias .* it kept; prune with -mode masked$"),
        ({**small, "method": "lora", "first": "flap_bias"}, f"^-method: lora with -first flap_bias {refused}"),
        ({**small, "method": "dora"}, "^-method: dora would fill .* a compact checkpoint .*; give masked_lora or"),
        ({"calib_data": tmp_path / "none.txt"}, r"^-calib_data: \S+none.txt does not exist"),
        ({"calib_length": 257}, r"^-calib_length: 257 tokens; give 2 to 256"),
        ({"method": "restorelcc"}, r"^-head_selection: contrastive probing needs MiniLM; run: pip install"),
    ):
        mistake(says, begin, **{"method": "flap_bias", "calib_data": world / "text.txt", **CALIBRATED, **wrong})


def test_a_model_that_has_to_be_spread_is_read_and_not_trained(begin, monkeypatch):
    run, models, *_ = begin(device="auto")
    monkeypatch.setattr("utils.stages.context.placement", lambda *_: "auto")
    assert run.reading_device(models.pruned) == run.training_device(models.pruned, False) == "auto"
    mistake("^-device: the model does not fit into", run.training_device, models.pruned, True)
