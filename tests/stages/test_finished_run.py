"""What one whole run leaves: made once, looked at from all sides."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import Checkpoint
from tests.runs import HEADS
from utils.common.flags import parse_arguments
from utils.common.record import STAGES
from utils.evaluation.outcomes import LOSS, VALIDATION, read_rows
from utils.evaluation.paired_statistics import aggregate
from utils.examples import ends_of, greedy
from utils.report.page import write_report
from utils.report.summary import verdict

MODELS = {"dense", "pruned", "restored"}


@pytest.fixture
def results(finished) -> dict:
    return json.loads((finished / "results.json").read_text())


def test_a_run_leaves_the_whole_result_and_nothing_beside_it(world, finished, results):
    names = {path.name for path in finished.iterdir()} - {"figures"}
    assert names == {"model", "restoration", "results.json", "run.json", "report.html", "logs"}
    assert not list(world.glob("out.*")) and set(results["scores"]) == MODELS and results["proof"]["passed"]
    for scores in results["scores"].values():
        perplexity = scores["wikitext2"]["token_perplexity"]
        assert perplexity["value"] > 1 and perplexity["stderr"] > 0
        assert set(scores["wikitext2"]) == set(results["metrics"]["wikitext2"])
    assert results["answers"] is None and results["agreement"] is None  # nothing of multiple choice was asked


def test_stages_and_arguments_are_recorded_and_the_result_and_what_to_run_next_end_the_output(world, finished, results):
    record, names = json.loads((finished / "run.json").read_text()), [stage.name for stage in STAGES]
    inputs = record["inputs"]
    assert inputs["pruned model"] == Checkpoint(world / "pruned").fingerprint != inputs["dense model"]
    assert record["arguments"]["lr"] == 1e-2 and "RestoreLCC_train.py" in record["command"]
    again = parse_arguments(["-config", str(finished / "run.json"), "--output_dir", "elsewhere"])
    assert again.as_json() == {**record["arguments"], "output_dir": "elsewhere"}
    assert all(stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 0 for stage in record["stages"])
    assert [stage["name"] for stage in record["stages"]] == names
    assert record["stages"][6]["detail"] == f"β and b of {HEADS} heads"
    lines = (world / "stdout.txt").read_text().strip().splitlines()
    told = [f"[{number}/{len(names)}] {name}" for number, name in enumerate(names, start=1)]
    assert [line for line in lines if line.startswith("[")] == told
    assert lines[-1].startswith("next:") and "lm_eval" in lines[-1]
    assert str(finished / "model") in lines[-2] and "report.html" in lines[-3]
    assert " ".join(lines[-7:-4]).strip().endswith(verdict(results, record))


def test_losses_rows_and_their_means_agree(finished, results):
    rows = read_rows(finished / "logs" / "rows.json.gz")
    assert set(rows) == MODELS and rows["dense"]["wikitext2"]["token_perplexity"].values
    history = [json.loads(line) for line in (finished / "logs" / "history.jsonl").read_text().splitlines()]
    losses = [row["valid_loss"] for row in history if "valid_loss" in row]
    assert len(losses) == 3 and losses[0] != losses[-1]
    pruned, start, restored, tokens = results["validation"].values()
    assert (start, restored) == (losses[0], losses[-1]) and tokens > 0
    assert start == pytest.approx(pruned, rel=1e-4) and start != pruned  # b is not 0
    validated = rows["restored"][VALIDATION][LOSS]
    assert aggregate(validated.values, validated.aggregation) == pytest.approx(restored, rel=1e-12)
    assert sum(count for _, count in validated.values) == tokens


def test_the_report_is_drawn_from_the_files_alone_and_shows_what_each_model_answers(finished, results):
    examples = json.loads((finished / "logs" / "examples.json").read_text())["prompts"]
    assert len(examples) == 5 and "Count to 30" in examples[0]["prompt"]
    for each in examples:
        losses = {answer["loss"] for answer in each["answers"].values()}
        assert set(each["answers"]) == MODELS and each["response"] and len(losses) == 3 and min(losses) > 0
    model, tokenizer = (kind.from_pretrained(finished / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    made, _ = greedy(model, tokenizer(examples[0]["prompt"]).input_ids, 48, ends_of(model))
    assert tokenizer.decode(made, skip_special_tokens=True) == examples[0]["answers"]["restored"]["text"]
    page, heads, spectrum = (finished / "report.html").read_bytes(), results["heads"], results["spectrum"]
    assert len(heads["scores"]) == 3 and len(heads["scores"][0]) == 6
    assert len(heads["magnitude_sizes"]) == len(heads["bias_sizes"]) == HEADS
    assert len(spectrum["layers"]) == 3 and spectrum["mean"][-1] == pytest.approx(1)
    write_report(finished)
    assert (finished / "report.html").read_bytes() == page and b"Count to 30" in page


def test_the_result_is_the_pruned_model_plus_o_proj_bias_of_the_heads_in_the_record(world, finished, results):
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "pruned", finished / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.rsplit(".", 2)[-1] for name in set(after) - set(before)} == {"bias"}
    counts = [Checkpoint(folder).survey().counts() for folder in (world / "pruned", finished / "model")]
    assert counts[0] == counts[1]
    heads = json.loads((finished / "restoration" / "restoration.json").read_text())["heads"]
    assert results["heads"]["trained"] == heads and len(heads) == HEADS and results["heads"]["count"] == 3 * 6
    touched = {f"model.layers.{layer}.self_attn.o_proj.bias" for layer, _ in heads}
    assert set(results["proof"]["nonzero_new_tensors"]) == touched
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert touched == {name for name, own in model.named_parameters() if name not in before and own.any()}
