"""The tables say what was measured, the sentences claim no more, and the pictures mark the right heads."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.common.files import without_nan
from utils.report import figures
from utils.report.card import model_card
from utils.report.records import cumulative_share, heads_record, score_map, smooth, spectrum_record
from utils.report.summary import findings, hide_path, hide_paths, shown_name, summary
from utils.report.tables import (
    Score,
    ScoreRow,
    answer_table_markdown,
    mean_row,
    proof_table,
    proof_table_markdown,
    score_rows,
    score_table,
    score_table_markdown,
    stage_table,
)
from utils.report.write import Record
from utils.report.write import write_report as write_pages

LAYERS, HEADS, DIM = 5, 3, 8


def task(dense, pruned, restored, metric="acc", stderr=0.02, paired_stderr=0.01, higher=None) -> dict:
    """What one task measured: value by model, the paired difference's standard error, and the better direction.

    higher: whether higher is better; unless given, it is so for all but a perplexity.
    """
    higher = metric != "token_perplexity" if higher is None else higher
    values = dense, pruned, restored
    return {"values": values, "metric": metric, "stderr": stderr, "paired_stderr": paired_stderr, "higher": higher}


def make_results(**tasks: dict) -> dict:
    results = {"scores": {}, "metrics": {}, "paired": {}, "recovered": {}, "main_metric": {}}
    for name, t in tasks.items():
        dense, pruned, restored = t["values"]
        for model, value in zip(("dense", "pruned", "restored"), t["values"], strict=True):
            results["scores"].setdefault(model, {})[name] = {t["metric"]: {"value": value, "stderr": t["stderr"]}}
        difference = {"difference": restored - pruned, "stderr": t["paired_stderr"], "mcnemar_p": None}
        results["paired"][name] = {t["metric"]: difference}
        results["recovered"][name] = {t["metric"]: (restored - pruned) / (dense - pruned) if dense != pruned else None}
        results["main_metric"][name] = t["metric"]
        results["metrics"][name] = {t["metric"]: {"higher_is_better": t["higher"], "aggregation": None}}
    return results


PROOF = {
    "passed": True,
    "tensors_compared": 38,
    "tensors_identical": 38,
    "changed_tensors": [],
    "new_tensors": [f"model.layers.{i}.self_attn.{x}_proj.bias" for i in range(LAYERS) for x in "qkvo"],
    "nonzero_new_tensors": ["model.layers.2.self_attn.o_proj.bias"],
    "tensors_recomputed": 1,
    "tensors_touched": 1,
    "unexplained_tensors": [],
    "zeros": "kept",
    "zeros_lost": 0,
    "zeros_pruned": 12345,
    "zeros_restored": 12345,
    "weights": 24690,
    "sparsity_pruned": [0.5] * LAYERS,
    "sparsity_restored": [0.5] * LAYERS,
    "logits_relative_difference": 3.1e-6,
    "logits_tolerance": 1e-4,
    "top1_agreement": 1.0,
    "dtype": "float32",
    "loaded_with": "AutoModelForCausalLM",
}
RUN = {
    "command": "/home/ann/venv/bin/python /home/ann/code/RestoreLCC_train.py -pruned_model_path /data/ann/wanda-50",
    "arguments": {
        "num_epoch": 3,
        "num_train_samples": 2000,
        "data_path": "/home/ann/alpaca.jsonl",
        "num_components": 4,
    },
    "versions": {"torch": "2.13.0"},
    "inputs": {"/home/ann/alpaca.jsonl": "173c87a5"},
    "seed": 42,
    "stages": [
        {"name": "probing", "seconds": 4.7, "peak_memory_bytes": 2**30, "peak_gpu_memory_bytes": None},
        {"name": "training", "seconds": 100.25, "peak_memory_bytes": 3 * 2**30, "peak_gpu_memory_bytes": None},
    ],
    "device": "cpu",
    "models": {"dense": "embedded", "pruned": "/data/ann/wanda-50"},
    "pruning": None,
    "started": "2026-01-02T03:04:05",
}
HISTORY = [
    {"step": 0, "epoch": 0.0, "valid_loss": 2.75},
    {"step": 1, "epoch": 0.5, "loss": 2.9, "learning_rate": 1e-3},
    {"step": 2, "epoch": 1.0, "loss": 2.5, "learning_rate": 5e-4},
    {"step": 2, "epoch": 1.0, "valid_loss": 2.50},
]
RESULTS = {
    **make_results(facts=task(0.65, 0.51, 0.58), wikitext2=task(24.2, 54.0, 45.0, "token_perplexity", 0.3, 0.2)),
    "proof": PROOF,
    "heads": {
        "selection": "random",
        "score_name": "mean squared activation gap",
        "count": 15,
        "trained": [[4, 0], [2, 2]],
    },
}


TRAINED = [(4, 0), (2, 2)]


def write_report(folder: Path, results: dict, run: dict, history: list[dict]) -> Path:
    """report.md in the folder; both pages are written."""
    html, page, *_ = write_pages(folder, Record(results, run, history, None))
    assert html.is_file()
    return page


@pytest.fixture
def scores() -> torch.Tensor:
    """Scores of a model with more layers than heads."""
    return torch.rand(LAYERS, HEADS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shares() -> torch.Tensor:
    """How much of each head's gap each direction carries."""
    shares = torch.linspace(1, 0.1, DIM).expand(LAYERS, HEADS, DIM)
    return shares / shares.sum(-1, keepdim=True)


@pytest.fixture
def found(scores, shares) -> dict:
    """RESULTS with what the pictures of heads and spectrum are drawn from."""
    return {
        **RESULTS,
        "heads": {**RESULTS["heads"], **heads_record(scores, TRAINED, None, {})},
        "spectrum": spectrum_record(shares),
    }


def test_score_table_shows_the_values_given():
    table = score_table(make_results(facts=task(0.6512, 0.5134, 0.58, stderr=0.0213, paired_stderr=0.0101)))
    line = next(line for line in table.splitlines() if line.startswith("facts"))
    assert re.split(r"\s{2,}", line) == [
        "facts acc ↑",
        "65.12 ± 2.13",
        "51.34 ± 2.13",
        "58.00 ± 2.13",
        "+6.66 ± 1.01",
        "48 %",
    ]


def test_values_without_stderr_that_differ_are_never_printed_equal():
    row = ScoreRow("t", "token_perplexity", {"pruned": Score(54.00012), "restored": Score(54.00013)})
    scores, _, _ = row.texts()
    assert scores["pruned"] != scores["restored"]


def test_a_small_stderr_is_never_printed_as_zero():
    row = ScoreRow("t", "token_perplexity", {"dense": Score(123.456, 0.0004)})
    assert row.texts()[0]["dense"] == "123.4560 ± 0.0004"


def test_a_collapsed_models_perplexity_is_short_and_keeps_its_stderr():
    row = ScoreRow("t", "word_perplexity", {"dense": Score(45.0, 1.5), "pruned": Score(2.455e6, 771160.0)})
    assert row.texts()[0] == {"dense": "45.00 ± 1.50", "pruned": "2.46e6 ± 7.71e5", "restored": "–"}


def test_perplexity_is_marked_lower_and_accuracy_higher_is_better():
    rows = {row.task: row.label for row in score_rows(RESULTS)}
    assert rows == {"facts": "acc ↑", "wikitext2": "token_perplexity ↓"}


def test_score_table_stays_within_100_columns_and_keeps_long_names_whole():
    name = "choose_the_right_response_among_several_rather_similar_ones"
    results = make_results(**{name: task(0.8, 0.6, 0.7), "w": task(5e3, 9e7, 4e5, "token_perplexity", 12.5, 1e5)})
    table = score_table(results)
    assert max(map(len, table.splitlines())) <= 100
    assert name in table


def test_missing_parts_become_dashes():
    results = make_results(facts=task(0.65, 0.51, 0.58))
    del results["scores"]["restored"], results["paired"], results["recovered"], results["main_metric"]
    line = next(line for line in score_table(results).splitlines() if line.startswith("facts"))
    assert re.split(r"\s{2,}", line)[3:] == ["–", "–", "–"]
    assert score_table({}) == "No task was evaluated."
    assert proof_table({}).startswith("No proof")
    assert stage_table({}) == "No stage was recorded."


def test_difference_without_paired_data_is_shown_but_not_judged():
    results = make_results(facts=task(0.65, 0.51, 0.58))
    del results["paired"]
    (row,) = score_rows(results)
    assert row.difference.value == pytest.approx(0.07)
    assert row.verdict == "no stderr"
    assert "not claimed" in findings(results)[0]


def test_stderr_that_is_no_number_counts_as_missing():
    results = make_results(facts=task(0.65, 0.51, 0.58, stderr="N/A"))
    assert score_rows(results)[0].scores["dense"] == Score(0.65, None)


def test_other_metrics_are_the_ones_that_are_not_main():
    results = copy.deepcopy(RESULTS)
    for model in results["scores"].values():
        model["facts"] = {"acc_norm": {"value": 0.4, "stderr": None}, **model["facts"]}
    assert [(row.task, row.metric) for row in score_rows(results, main=False)] == [("facts", "acc_norm")]
    assert [row.metric for row in score_rows(results)] == ["acc", "token_perplexity"]


def test_a_metrics_direction_is_what_was_recorded_not_what_its_name_suggests():
    results = make_results(
        avoided=task(3.0, 1.0, 2.0, "loss_avoided", higher=True), gap=task(0.1, 0.4, 0.5, "acc_gap", higher=False)
    )
    rows = {row.task: row for row in score_rows(results)}
    assert {name: (row.label, row.verdict) for name, row in rows.items()} == {
        "avoided": ("loss_avoided ↑", "better"),
        "gap": ("acc_gap ↓", "worse"),
    }
    figure = figures.draw_scores(list(rows.values()))
    assert {panel.get_xlabel() for panel in figure.axes} == {
        "loss_avoided (higher is better)",
        "% (lower is better)",
    }
    assert "**worse** on `gap`" in findings(results)[0]


def test_a_metric_without_a_recorded_direction_is_shown_without_an_arrow_and_not_judged():
    results = make_results(facts=task(0.65, 0.51, 0.58))
    del results["metrics"]
    (row,) = score_rows(results)
    assert (row.label, row.verdict) == ("acc", "differs")
    (sentence,) = findings(results)
    assert "not judged: `facts`" in sentence and "helped" not in sentence
    assert figures.draw_scores([row]).axes[0].get_xlabel() == "%"


MEAN = {
    "tasks": ["a", "b"],
    "higher_is_better": True,
    "scores": {name: {"value": v, "stderr": 0.025} for name, v in (("dense", 0.7), ("pruned", 0.5), ("restored", 0.6))},
    "paired": {"difference": 0.1, "stderr": 0.011},
    "recovered": 0.5,
}


def test_the_mean_over_tasks_is_the_one_that_results_hold():
    results = {**make_results(a=task(0.8, 0.6, 0.7), b=task(0.6, 0.4, 0.5)), "mean": MEAN}
    row = mean_row(results)
    assert (row.task, row.label, row.verdict) == ("mean of 2 tasks", "accuracy ↑", "better")
    assert row.texts() == (
        {"dense": "70.00 ± 2.50", "pruned": "50.00 ± 2.50", "restored": "60.00 ± 2.50"},
        "+10.00 ± 1.10",
        "50 %",
    )
    assert row.texts()[1] in score_table(results)
    assert "Accuracy, mean of 2 tasks: 70.00 % dense, 50.00 % pruned, 60.00 % restored" in findings(results)[-1]
    # A mean whose errors cannot be paired any more is left out, not made up from the single tasks'.
    assert mean_row({**results, "mean": None}) is None and "mean of" not in score_table({**results, "mean": None})


def with_answers() -> dict:
    """Results of two multiple-choice tasks: bits a byte fall by 0.1, answers are nearer to the dense model's in one."""
    results = make_results(
        a=task(1.5, 1.9, 1.8, "answer_bits_per_byte", higher=False),
        b=task(1.3, 1.5, 1.4, "answer_bits_per_byte", higher=False),
        c=task(24.2, 54.0, 45.0, "token_perplexity", 0.3, 0.2),
    )
    for name in "ab":
        for model, value in zip(("dense", "pruned", "restored"), (0.7, 0.5, 0.55), strict=True):
            results["scores"][model][name]["acc"] = {"value": value, "stderr": 0.06}
        results["main_metric"][name] = "acc"
    values = {"dense": 1.4, "pruned": 1.7, "restored": 1.6}
    results["answers"] = {
        "tasks": ["a", "b"],
        "higher_is_better": False,
        "scores": {name: {"value": value, "stderr": 0.02} for name, value in values.items()},
        "paired": {"difference": -0.1, "stderr": 0.007},
        "recovered": 1 / 3,
    }
    flips = {"a": (0.3, 0.2, 0.02), "b": (0.2, 0.25, 0.02), "all": (0.25, 0.22, 0.02)}
    results["agreement"] = {"pruned": {}, "restored": {}, "paired": {}}
    for name, (pruned, restored, error) in flips.items():
        for measure, scale in (("flipped", 1), ("kl", 2)):
            for model, value in (("pruned", pruned), ("restored", restored)):
                score = {"value": scale * value, "stderr": 0.03}
                results["agreement"][model].setdefault(name, {})[measure] = score
            difference = {"difference": scale * (restored - pruned), "stderr": error}
            results["agreement"]["paired"].setdefault(name, {})[measure] = difference
    return results


def cells(table: str) -> dict[str, list[str]]:
    """The cells of a Markdown table's rows, by the first."""
    lines = [line.strip("| ").split(" | ") for line in table.replace("\u00a0", " ").splitlines()[2:]]
    return {name: rest for name, *rest in lines}


def test_answers_and_agreement_stand_in_one_table_with_their_verdicts():
    lines = cells(answer_table_markdown(with_answers()))
    assert list(lines) == ["`a`", "`b`", "mean of 2 tasks", "all questions"]
    assert lines["`a`"] == [
        "1.500<br>± 0.020", "1.900<br>± 0.020", "1.800<br>± 0.020", "-0.100 ± 0.010<br>better", "25 %",
        "30.00 → 20.00 %<br>-10.00 ± 2.00<br>better", "0.600 → 0.400<br>-0.200 ± 0.020<br>better",
    ]  # fmt: skip
    assert lines["`b`"][5:] == [
        "20.00 → 25.00 %<br>+5.00 ± 2.00<br>**worse**",
        "0.400 → 0.500<br>+0.100 ± 0.020<br>**worse**",
    ]
    assert lines["mean of 2 tasks"][3:] == ["-0.100 ± 0.007<br>better", "33 %", "–", "–"]
    assert lines["all questions"][:5] == ["–"] * 5
    assert lines["all questions"][5] == "25.00 → 22.00 %<br>-3.00 ± 2.00<br>within noise"


def test_one_tasks_questions_are_not_told_twice_and_no_task_makes_no_table():
    results = with_answers()
    for part in results["agreement"].values():
        del part["b"]
    assert "all questions" not in cells(answer_table_markdown(results))
    assert answer_table_markdown(RESULTS) == answer_table_markdown({}) == ""
    assert answer_table_markdown({**RESULTS, "answers": None, "agreement": None}) == ""


def test_page_and_card_show_the_answers_once_and_their_mean_in_words(tmp_path):
    results = with_answers()
    page = write_report(tmp_path, results, RUN, []).read_text(encoding="utf-8")
    read_by_people = model_card(results, RUN).partition("\n---\n")[2]
    for text in (page, read_by_people):
        assert answer_table_markdown(results) in text
        assert "answer_bits_per_byte" not in text  # nor among the other metrics
    assert (
        "Bits a byte of the right answers, mean of 2 tasks: 1.400 dense, 1.700 pruned, 1.600 restored "
        "(-0.100 ± 0.007, better). Answers that are not the dense model's, all questions: 25.00 % pruned, "
        "22.00 % restored (-3.00 ± 2.00, within noise)."
    ) in page
    (line,) = (line for line in score_table(results).splitlines() if "answer bits/byte" in line)
    assert line.endswith(" 33 %") and "-0.100 ± 0.007" in line
    assert [row.metric for row in score_rows(results)] == ["acc", "acc", "token_perplexity"]


@pytest.mark.parametrize(
    ("measured", "verdict", "words"),
    [
        (task(0.65, 0.50, 0.60), "better", "Restoring helped on `t` (acc 50.00 → 60.00 %, 67 % of the gap recovered)"),
        (task(0.65, 0.50, 0.40), "worse", "Restoring made the model **worse** on `t` (acc 50.00 → 40.00 %)"),
        (task(0.65, 0.50, 0.515), "within noise", "no measurable effect"),
        (task(0.65, 0.50, 0.50), "equal", "no measurable effect"),
        (task(24, 54, 45, "token_perplexity", 0.3, 0.2), "better", "Restoring helped"),
        (task(24, 54, 60, "token_perplexity", 0.3, 0.2), "worse", "**worse**"),
        (task(24, 54, 53.7, "token_perplexity", 0.3, 0.2), "within noise", "no measurable effect"),
    ],
)
def test_wording_follows_the_paired_difference(measured, verdict, words):
    results = make_results(t=measured)
    assert score_rows(results)[0].verdict == verdict
    sentences = " ".join(findings(results))
    assert words in sentences
    assert ("helped" in sentences) == (verdict == "better")
    assert ("gap recovered" in sentences) == (verdict == "better")


def test_mixed_results_name_both_sides():
    text = " ".join(
        findings(make_results(up=task(0.65, 0.5, 0.6), down=task(0.65, 0.5, 0.4), flat=task(0.6, 0.5, 0.5)))
    )
    assert "mixed: better on `up`" in text
    assert "but **worse** on `down`" in text
    assert "Within noise" in text and "`flat`" in text.split("Within noise")[1]


def test_summary_says_what_was_not_done():
    untrained = {**RUN, "arguments": {"num_epoch": 0}}
    assert "Nothing was trained" in summary({}, untrained, [])
    measured = summary(RESULTS, untrained, HISTORY[:1])
    assert "Validation loss is 2.750." in measured and "one seed" not in measured
    after = [summary({**RESULTS, "validation": {"pruned": 2.6}}, RUN, rows) for rows in (HISTORY[:1], HISTORY)]
    assert "Validation loss is 2.750; the pruned model's is 2.600." in after[0]
    assert "from 2.750 before training to 2.500 at its end; the pruned model's is 2.600." in after[1]
    near = [summary({**RESULTS, "validation": {"pruned": 2.749}}, RUN, rows) for rows in (HISTORY[:1], HISTORY)]
    assert ["the pruned model's is 2.749" in text for text in near] == [True, False]
    assert "nothing is said about quality" in summary({}, RUN, [])
    assert "one seed (42)" in summary(RESULTS, RUN, HISTORY)
    assert "went from 2.750 before training to 2.500" in summary(RESULTS, RUN, HISTORY)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ({"tensors_identical": 37}, "weights bit-identical"),
        ({"zeros_restored": 12344}, "every zero"),
        ({"sparsity_restored": [0.5, 0.5, 0.4, 0.5, 0.5]}, "no layer has fewer"),
        ({"zeros_lost": 1}, "every zero"),
        ({"tensors_recomputed": 0}, "restored tensors as saved"),
        ({"unexplained_tensors": ["model.layers.0.self_attn.q_proj.bias"]}, "nothing else is new"),
        ({"logits_relative_difference": 2e-4}, "same logits"),
        ({"logits_relative_difference": float("nan")}, "same logits"),
        ({"logits_relative_difference": None, "logits_finite": False}, "same logits"),
    ],
)
def test_proof_table_says_no_to_the_broken_promise_alone(broken, promise):
    lines = proof_table({**PROOF, **broken, "passed": False}).splitlines()
    refused = [line for line in lines if line.endswith("NO")]
    assert len(refused) == 2
    assert refused[0].startswith(promise)
    assert refused[1].startswith("proof passed")
    assert "FAILED" in summary({"proof": {**PROOF, **broken, "passed": False}}, RUN, [])


def test_proof_table_shows_its_numbers_and_yes():
    table = proof_table(PROOF)
    assert "NO" not in table
    for part in ("38 of 38 tensors", "12,345 of 24,690", "5 of 5 layers", "apart 3.1e-06", "top token 100.0 %"):
        assert part in table
        assert part in proof_table_markdown(PROOF)
    big = {"zeros_pruned": 34_000_000_000, "zeros_restored": 33_999_999_999, "weights": 68_000_000_000}
    assert max(map(len, proof_table({**PROOF, **big}).splitlines())) <= 100


def test_an_o_proj_bias_that_was_there_before_may_change():
    proof = {
        **PROOF,
        "new_tensors": [],
        "nonzero_new_tensors": [],
        "changed_tensors": ["model.layers.0.self_attn.o_proj.bias"],
    }
    assert "NO" not in proof_table(proof)


def test_zeros_that_no_method_promised_are_a_finding():
    proof = {**PROOF, "zeros": "reported", "zeros_restored": 247, "sparsity_restored": [0.01] * LAYERS}
    table = proof_table(proof)
    assert "NO" not in table and "50.0% before, 1.0% after" in table and "no layer has fewer" not in table
    page = summary({"proof": proof}, RUN, [])
    assert "Merging it filled zeros" in page and "50 %" in page and "1 %" in page and "every zero" not in page
    inside = {**PROOF, "changed_tensors": ["model.layers.0.mlp.up_proj.weight"]}
    page = summary({"proof": inside}, RUN, [])
    assert "every zero of the pruned one is kept" in page and "every weight" not in page


def test_stage_table_adds_seconds_and_takes_the_highest_peak():
    lines = stage_table(RUN).splitlines()
    assert re.split(r"\s{2,}", lines[-1]) == ["total", "105.0", "3.00 GiB"]
    assert "GPU" not in lines[0]
    with_gpu = {"stages": [{**RUN["stages"][0], "peak_gpu_memory_bytes": 2**31}, RUN["stages"][1]]}
    assert stage_table(with_gpu).splitlines()[-1].endswith("2.00 GiB")


def test_marks_stand_at_layer_to_the_right_and_head_upwards(scores):
    assert figures.head_marks(TRAINED, LAYERS, HEADS) == ([4, 2], [0, 2])
    figure = figures.draw_heads(scores.numpy(), TRAINED, "accuracy")
    panel = figure.axes[0]
    marks = panel.lines[0]
    drawn = panel.images[0].get_array()
    for (layer, head), x, y in zip(TRAINED, marks.get_xdata(), marks.get_ydata(), strict=True):
        assert float(drawn[y, x]) == pytest.approx(float(scores[layer, head]))


def test_a_mark_outside_the_model_is_refused():
    # (0, 4) is a head only if layers and heads are swapped.
    with pytest.raises(ValueError, match="outside"):
        figures.head_marks([(0, 4)], LAYERS, HEADS)


def test_a_head_that_cannot_be_restored_is_left_out_of_the_colors(scores):
    scores[1, 2] = -torch.inf
    drawn = figures.draw_heads(scores.numpy(), TRAINED, "accuracy").axes[0].images[0].get_array()
    assert np.ma.getmaskarray(drawn).sum() == 1
    assert np.ma.getmaskarray(drawn)[2, 1]


def test_smoothing_keeps_constants_and_length():
    assert smooth([3.0] * 7, 4) == pytest.approx([3.0] * 7)
    assert smooth([0.0, 3.0, 6.0, 0.0], 3) == pytest.approx([1.5, 3.0, 3.0, 3.0])


def test_cumulative_share_leaves_out_heads_without_a_gap(shares):
    shares = shares.clone()
    shares[0, 0], shares[0, 1] = torch.nan, 0
    mean, low, high = cumulative_share(shares)
    assert mean[0] == pytest.approx(float(shares[1, 1, 0]))
    assert mean[-1] == pytest.approx(1) and low[-1] == pytest.approx(1) and high[-1] == pytest.approx(1)


def test_the_record_of_heads_keeps_each_number_at_its_layer_and_head(scores):
    scores[1, 2] = -torch.inf
    learned = {
        "magnitudes": torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
        "component": torch.tensor([[0.0, 2.0], [6.0, 8.0]]),
    }
    record = heads_record(scores, TRAINED, 2 * scores, learned)
    assert record["scores"][4][1] == pytest.approx(float(scores[4, 1]), rel=1e-4)
    assert record["component_sizes"][4][1] == pytest.approx(2 * float(scores[4, 1]), rel=1e-4)
    assert (record["magnitude_sizes"], record["bias_sizes"]) == ([5, 1], [2, 10])
    drawn, heads = score_map(without_nan(record))
    assert heads == TRAINED and np.isnan(drawn[1, 2]) and np.isfinite(drawn).sum() == LAYERS * HEADS - 1


def test_the_record_of_the_spectrum_has_a_mean_a_layer_and_says_where_there_is_no_gap(shares):
    shares = shares.clone()
    shares[1] = torch.nn.functional.one_hot(torch.tensor(0), DIM)
    shares[3] = 0
    record = spectrum_record(shares)
    assert record["layers"][1] == [1] * DIM and record["layers"][3] is None
    assert record["layers"][0][0] == pytest.approx(float(shares[0, 0, 0]), rel=1e-4)
    assert record["low"][0] < record["mean"][0] < record["high"][0] == 1
    assert spectrum_record(torch.zeros(LAYERS, HEADS, DIM)) is None


def test_report_links_to_every_picture_it_made_and_to_no_other(tmp_path, found):
    page = write_report(tmp_path, found, RUN, HISTORY)
    text = page.read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(figures/(\w+)\.png\)", text))
    assert linked == {"scores", "loss", "heads", "spectrum"}
    written = {f"{name}.{kind}" for name in linked for kind in ("png", "svg", "csv")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == written
    assert "2 of its 15 attention heads (chosen at random)" in text
    assert "50 %, the same before and after restoring" in text
    assert "score (mean squared activation gap)" in text


def test_report_draws_the_sparsity_only_where_it_changed(tmp_path):
    results = {"proof": {**PROOF, "passed": False, "sparsity_restored": [0.5, 0.5, 0.4, 0.5, 0.5]}}
    text = write_report(tmp_path, results, RUN, []).read_text(encoding="utf-8")
    assert "figures/sparsity.png" in text and "**not the same after restoring**" in text


def test_report_of_a_run_that_did_nothing_is_still_a_page(tmp_path):
    text = write_report(tmp_path, {}, {}, []).read_text(encoding="utf-8")
    assert "No task was evaluated." in text
    assert "figures/" not in text and not (tmp_path / "figures").exists()


def test_report_survives_a_collapsed_model(tmp_path, found):
    bad = float("inf")
    results = make_results(w=task(24.0, bad, float("nan"), "token_perplexity", None, None))
    history = [*HISTORY, {"step": 3, "epoch": 1.5, "loss": float("nan")}]
    text = write_report(tmp_path, {**found, **results}, RUN, history).read_text(encoding="utf-8")
    assert "inf" in text and "helped" not in text


def test_nothing_partial_is_left_when_drawing_fails(tmp_path, found, monkeypatch):

    def fail(*_):
        raise RuntimeError("no canvas")

    monkeypatch.setattr(figures, "draw_spectrum", fail)
    with pytest.raises(RuntimeError, match="no canvas"):
        write_report(tmp_path, found, RUN, HISTORY)
    assert list(tmp_path.iterdir()) == []


def test_report_and_card_name_no_private_folder(tmp_path, found):
    home = str(Path.home())
    run = {**RUN, "arguments": {**RUN["arguments"], "note": f"see {home}/notes"}}
    page = write_report(tmp_path, found, run, HISTORY).read_text(encoding="utf-8")
    for text in (page, model_card(RESULTS, run)):
        assert "/home/ann" not in text and "/data/ann" not in text and f"{home}/" not in text
        assert "python RestoreLCC_train.py -pruned_model_path wanda-50" in text
        assert "alpaca.jsonl" in text and "173c87a5" in text


def test_paths_in_commands_become_names_and_everything_else_stays():
    command = (
        "/usr/bin/python -data_path '/home/a b/x.jsonl' -output_dir=/tmp/out -lr 1e-3 -base_model_name me/model ../d"
    )
    assert hide_paths(command) == "python -data_path x.jsonl -output_dir=out -lr 1e-3 -base_model_name me/model ../d"
    assert hide_path("~/models/llama") == "llama"
    assert shown_name("../models/llama") == shown_name("some/deep/llama") == "llama"
    assert shown_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert hide_path("C:\\Users\\ann\\llama") == "llama"
    assert hide_path("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"


@pytest.mark.parametrize(
    ("models", "base", "license"),
    [
        ({"dense": "embedded", "pruned": "/x/wanda"}, "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ({"dense": "llama2_7B", "pruned": None}, "meta-llama/Llama-2-7b-hf", "llama2"),
        ({"dense": "llama2_7B", "pruned": "someone/llama2-wanda"}, "someone/llama2-wanda", "llama2"),
        ({"dense": "/home/ann/llama", "pruned": "/x/wanda"}, None, None),
        ({"dense": "owner/unknown"}, "owner/unknown", None),
    ],
)
def test_card_names_a_base_model_only_by_its_hub_id(models, base, license):
    front = model_card(RESULTS, {**RUN, "models": models}).split("---")[1]
    found = dict(line.split(": ", 1) for line in front.strip().splitlines() if ": " in line)
    assert found.get("base_model") == base
    assert found.get("license") == license
    assert found["library_name"] == "transformers" and found["pipeline_tag"] == "text-generation"


def test_card_takes_a_relative_folder_for_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in model_card(RESULTS, {**RUN, "models": {"dense": "models/llama"}})


def test_card_holds_table_proof_and_way_of_use():
    card = model_card(RESULTS, RUN)
    assert score_table_markdown(score_rows(RESULTS)).splitlines()[2] in card
    assert proof_table_markdown(PROOF) in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "2 of its 15 attention heads" in card
    assert "not restored" not in card
    assert "learns one constant vector" not in model_card(RESULTS, {**RUN, "arguments": {"method": "lora"}})
