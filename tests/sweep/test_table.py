"""The table's numbers are those that a hand finds: means, errors over seeds, paired differences over questions."""

import gzip
import json
import math

import pytest

from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.names import ANSWER_BITS
from utils.evaluation.outcome import read_outcome
from utils.sweep.grid import CONTROL, SweepRow, SweepRun
from utils.sweep.sweep_files import read, write
from utils.sweep.table import build_table
from utils.sweep.table_text import markdown

OURS = {1: ([1, 0, 1, 0], [0, 1], [1.0, 3.0]), 2: ([1, 1, 1, 0], [0, 1], [2.0, 4.0])}
THEIRS = {
    1: ([1, 1, 1, 1], [1, 1], [2.0, 2.0]),
    2: ([0, 1, 1, 1], [1, 1], [2.0, 2.0]),
    3: ([1, 1, 0, 1], [1, 1], [2.0, 2.0]),
}
"""Seed → rows of two tasks, and of a text's windows (nats a token)."""

LOSSES, SHARES, PERPLEXITIES = {1: 2.0, 2: 2.2, 3: 2.1}, {1: 0.5, 2: 0.7, 3: 0.3}, {1: 10.0, 2: 12.0, 3: 14.0}
SAME, OTHER = [[0.0, -1.0]] * 4, [[-1.0, 0.0]] * 2 + [[0.0, -1.0]] * 2
"""Log-likelihoods of choices as the dense model has them, and with the first two questions' answers flipped."""


def kept(values, aggregation="mean", higher=True, asked="asked"):
    return {"values": values, "aggregation": aggregation, "higher_is_better": higher, "sha256": asked}


def write_run(output, name: str, seed: int, rows, asked="asked", **more) -> SweepRun:
    """A finished run, as its files tell. more: of run.json."""
    means = [sum(values) / len(values) for values in rows[:2]]
    values = {"dense": (0.9, 0.9, 5.0), "pruned": (0.0, 0.0, 20.0), "restored": (*means, PERPLEXITIES[seed])}
    main = {"one": "acc", "two": "acc", "text": "token_perplexity"}
    results = {
        "scores": {
            model: {task: {main[task]: {"value": value}} for task, value in zip(main, found, strict=True)}
            for model, found in values.items()
        },
        "main_metric": main,
        "mean": {
            "tasks": ["one", "two"],
            "scores": {model: {"value": sum(found[:2]) / 2} for model, found in values.items()},
            "paired": {"stderr": 0.09},
            "recovered": SHARES[seed],
        },
        "validation": {"pruned": 3.0, "restored": LOSSES[seed]},
        "proof": {"zeros_pruned": 8, "zeros_lost": 2},
    }
    write_json(output / name / "results.json", results)
    method = {"parameters": 120, "kind": "mask", "restores": True}
    run = {"method": method, "device": "cpu", "seeds": {"training": seed}, "stages": [{"seconds": 60}]}
    write_json(output / name / "run.json", run | more)
    (output / name / "logs").mkdir()
    one, two, text = kept(rows[0], asked=asked), kept(rows[1]), kept(rows[2], "exp_mean", False)
    write_rows(output, name, {"restored": {"one": {"acc": one}, "two": {"acc": two}, "text": {main["text"]: text}}})
    return SweepRun(name, None, seed)


def write_rows(output, name: str, questions: dict) -> None:
    path = output / name / "logs" / "rows.json.gz"
    path.write_bytes(gzip.compress(json.dumps(questions).encode()))


def change(output, name: str, rows: dict | None = None, **more) -> None:
    """Change results.json of a run, and add to the restored model's rows."""
    path = output / name / "results.json"
    write_json(path, json.loads(path.read_text()) | more)
    questions = json.loads(gzip.decompress((output / name / "logs" / "rows.json.gz").read_bytes()))
    for task, metrics in (rows or {}).items():
        questions["restored"].setdefault(task, {}).update(metrics)
    write_rows(output, name, {**questions, "dense": {"one": {"choices": kept(SAME, None, None)}}})


def with_answers(output, name: str, bits: list[list[float]], choices: list[list[float]], asked="asked") -> None:
    """Let a run say of `one` what answers came to as well."""
    answers = {"tasks": ["one"], "recovered": 0.5, "scores": {"restored": {"value": 0.75}}}
    agreement = {"restored": {"all": {"flipped": {"value": 0.125}}}}
    told = {ANSWER_BITS: kept(bits, "bits_per_byte", False, asked), "choices": kept(choices, None, None, asked)}
    change(output, name, {"one": told}, answers=answers, agreement=agreement)


def with_validation(output, name: str, rows: list[list[float]]) -> None:
    """Let a run keep each validation sample's [nats, tokens]."""
    change(output, name, {"validation": {"loss": kept(rows, "mean", False)}})


@pytest.fixture
def rows(tmp_path) -> list[SweepRow]:
    ours = tuple(write_run(tmp_path, f"ours{seed}", seed, values) for seed, values in OURS.items())
    theirs = tuple(write_run(tmp_path, f"theirs{seed}", seed, values) for seed, values in THEIRS.items())
    return [SweepRow("ours", "half", "", "ours", (), ours), SweepRow("theirs", "half", "", "ours", (), theirs)]


def found(tmp_path, rows: list[SweepRow]) -> list[SweepRow]:
    """The rows with what their runs' files say, written to one file and read again."""
    sides = [[_found(tmp_path, runs) for runs in (row.searches, row.finals)] for row in rows]
    whole = [SweepRow(r.name, r.pruning, r.search, r.compare_to, *side) for r, side in zip(rows, sides, strict=True)]
    write(whole, tmp_path / "runs.json.gz")
    assert build_table(read(tmp_path / "runs.json.gz")) == build_table(whole)
    return whole


def _found(tmp_path, runs: tuple[SweepRun, ...]) -> tuple[SweepRun, ...]:
    there = [run for run in runs if (tmp_path / run.id).is_dir()]
    done = {run.id: SweepRun(run.id, run.rate, run.seed, outcome=read_outcome(tmp_path / run.id)) for run in there}
    return tuple(done.get(run.id, run) for run in runs)


def built(tmp_path, rows: list[SweepRow]) -> dict:
    return build_table(found(tmp_path, rows))


def test_means_and_standard_errors_over_seeds(tmp_path, rows):
    table = built(tmp_path, rows)
    ours = table["rows"][0]
    assert ours["valid_loss"] == {"value": pytest.approx(2.1), "stderr": pytest.approx(0.1), "n": 2}
    assert ours["task_mean"] == {"value": pytest.approx(0.5625), "stderr": pytest.approx(0.0625), "n": 2}
    assert (ours["perplexity"]["value"], ours["forgetting"]["value"]) == (11, -9)
    assert ours["recovered"]["value"] == pytest.approx(0.6) and ours["recovered"]["stderr"] == pytest.approx(0.1)
    assert (ours["zeros_kept"], ours["trained_parameters"], ours["class"], ours["minutes"]) == (0.75, 120, "mask", 1)
    assert [(each["model"], each["perplexity"]) for each in table["models"]] == [("dense", 5), ("pruned", 20)]
    alone = SweepRow("ours", "half", "", None, (), rows[0].finals[:1])
    table = built(tmp_path, [alone])
    assert "| n=1 | 2.000 |" in markdown(table) and "Δ |" not in markdown(table)
    assert table["rows"][0]["recovered"]["stderr_questions"] == pytest.approx(0.09 / 0.9)


def test_differences_are_paired_over_the_questions_and_seeds_that_both_have(tmp_path, rows):
    table = built(tmp_path, rows)
    # Of `one`: 1/2-1, 1-1/2, 1-1, 1-0; of `two`: 1, 0. The seed that only theirs have is left out.
    first = [-1 / 2, 1 / 2, 0, 1]
    middle = sum(first) / 4
    error = math.sqrt(sum((value - middle) ** 2 for value in first) / 3 / 4)
    against = table["rows"][1]["against"]
    assert against["name"] == "ours" and table["rows"][0]["against"] is None
    assert against["task_mean"]["difference"] == pytest.approx((middle + 0.5) / 2) == pytest.approx(0.375)
    assert against["task_mean"]["stderr"] == pytest.approx(math.hypot(error, 0.5) / 2)
    assert against["perplexity"]["difference"] == pytest.approx(math.exp(2) - math.exp(2.5))
    # Seed 1: 1 - 1/2, seed 2: 7/8 - 5/8. Perplexities, e^2 each, of e^((1+3)/2) and e^3.
    assert against["task_mean"]["stderr_seeds"] == pytest.approx(0.125)
    assert against["perplexity"]["stderr_seeds"] == pytest.approx((math.e**3 - math.e**2) / 2)
    assert f"+37.5 ± {100 * against['task_mean']['stderr']:.1f} ± 12.5" in markdown(table)


def test_differences_are_of_one_shared_seed_alone_and_of_all_where_none_is_shared(tmp_path, rows):
    def over(first: slice, second: slice) -> tuple[float, float | None]:
        two = [
            SweepRow(row.name, "half", "", "ours", (), row.finals[part])
            for row, part in zip(rows, (first, second), strict=True)
        ]
        against = built(tmp_path, two)["rows"][1]["against"]["task_mean"]
        return against["difference"], against["stderr_seeds"]

    everything = slice(None)
    assert over(everything, slice(1, 3)) == (pytest.approx(7 / 8 - 5 / 8), None)  # seed 2
    assert over(slice(0, 1), everything) == (pytest.approx(1 - 1 / 2), None)  # seed 1
    assert over(everything, slice(2, 3)) == (pytest.approx(7 / 8 - (1 / 2 + 5 / 8) / 2), None)  # 3 against 1 and 2


def test_validation_losses_and_answers_are_held_against_each_other_row_by_row(tmp_path, rows):
    for name, losses in (
        ("ours1", [[6.0, 3.0], [1.0, 1.0], [2.0, 2.0]]),
        ("theirs1", [[8.0, 3.0], [2.0, 1.0], [2.0, 2.0]]),
    ):
        with_validation(tmp_path, name, losses)
    with_answers(tmp_path, "ours1", [[-1.0, 2.0]] * 4, SAME)
    with_answers(tmp_path, "theirs1", [[-2.0, 2.0], [-2.0, 2.0], [-1.0, 2.0], [-1.0, 2.0]], OTHER)
    two = [SweepRow(row.name, "half", "", "ours", (), row.finals[:1]) for row in rows]
    table = built(tmp_path, two)
    against = table["rows"][1]["against"]
    # Leaving a sample out of 8, 2 and 2 nats against 6, 1 and 2, of 3, 1 and 2 tokens.
    left_out = [(4 - 3) / 3, (10 - 8) / 5, (10 - 7) / 4]
    error = math.sqrt(2 / 3 * sum((value - sum(left_out) / 3) ** 2 for value in left_out))
    loss = {"difference": pytest.approx(3 / 6), "stderr": pytest.approx(error), "stderr_seeds": None, "n": 3}
    assert against["valid_loss"] == loss
    # 6 nats over 8 bytes against 4 over 8.
    assert against["answer_bits"]["difference"] == pytest.approx((6 - 4) / 8 / math.log(2))
    assert (against["flipped"]["difference"], against["flipped"]["n"]) == (0.5, 4)
    odds = math.log1p(math.exp(-1))
    assert against["kl"]["difference"] == pytest.approx(0.5 * (math.exp(-odds) - math.exp(-1 - odds)))
    assert "| 0.750 | – | – | 12.5 |" in markdown(built(tmp_path, two[:1])).replace(
        "| 0.750 | 12.5", "| 0.750 | – | – | 12.5"
    )


def test_other_questions_are_not_compared_and_the_table_says_so(tmp_path, rows):
    other = write_run(tmp_path, "other", 1, THEIRS[1], asked="others")
    table = built(tmp_path, [rows[0], SweepRow("other", "half", "", "ours", (), (other,))])
    assert table["rows"][1]["against"].get("task_mean") is None
    assert any("not held against ours" in note and "different rows" in note for note in table["notes"])


def test_the_rate_is_that_of_the_lowest_validation_loss_and_an_edge_is_told(tmp_path, rows):
    searches = tuple(SweepRun(f"theirs{seed}", rate, 1) for seed, rate in ((1, 0.1), (2, 0.2), (3, 0.3)))
    finals = tuple(SweepRun("ours1", rate, 1) for rate in (0.1, 0.2, 0.3))
    table = built(tmp_path, [SweepRow("searched", "half", "", None, searches, finals)])
    assert table["rows"][0]["rate"] == 0.1 and "lowest that was tried" in table["notes"][0]
    missing = (*searches[:2], SweepRun("missing", 0.3, 1))
    entry = built(tmp_path, [SweepRow("searched", "half", "", None, missing, finals)])["rows"][0]
    assert (entry["rate"], entry["done"]) == (None, 0)


def test_a_control_is_the_dense_model_after_the_same_training(tmp_path, rows):
    control = SweepRow("ours", CONTROL, "", "ours", (), rows[1].finals[:2])
    change(tmp_path, "theirs1", validation={"pruned": 1.0, "restored": 1.5})
    table = built(tmp_path, [SweepRow("ours", "half", "", "ours", (), rows[0].finals[:1]), control])
    # Losses (3 - 2) / (3 - 1.5), perplexities both from 20 to 10: of the seed that both have.
    assert table["rows"][0]["control"] == {"valid_loss": pytest.approx(1 / 1.5), "perplexity": 1.0, "answer_bits": None}
    assert table["rows"][1]["control"] is None and "67 % / 100 % / –" in markdown(table)
    assert [(each["of"], each["valid_loss"]) for each in table["models"]] == [("half", 1.0), ("half", 3.0)]


def test_runs_that_are_not_alike_are_told(tmp_path, rows):
    more = {"versions": {"torch": "2"}, "inputs": {"pruned model": "b" * 64}}
    one = write_run(tmp_path, "one", 1, OURS[1], versions={"torch": "1"}, inputs={"pruned model": "a" * 64})
    other = write_run(tmp_path, "other", 1, OURS[1], **more)
    told = [SweepRow(run.id, "half", "", None, (), (run,)) for run in (one, other)]
    assert built(tmp_path, told)["notes"] == [
        "the runs are of several weights of half: aaaaaaaa (1 runs), bbbbbbbb (1 runs)",
        "the runs are of several versions of torch: 1 (1 runs), 2 (1 runs)",
    ]
    assert built(tmp_path, rows)["notes"] == []


def test_a_file_that_no_sweep_wrote_is_one_line(tmp_path):
    for content in (b"", gzip.compress(b"[1]"), gzip.compress(b'[{"name": 1}]')):
        (tmp_path / "runs.json.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"runs\.json\.gz: cannot be read as a sweep's"):
            read(tmp_path / "runs.json.gz")
