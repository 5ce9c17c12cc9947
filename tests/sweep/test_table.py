"""The table's numbers are those that a hand finds: means, errors over seeds, paired differences over questions."""

import csv
import gzip
import io
import json
import math

import pytest
import torch

from models.restoration import Restoration
from models.terms import Constant, LowRank, MaskedChange
from utils.common.files import write_json
from utils.common.names import ANSWER_BITS
from utils.stages.results import kind_of
from utils.sweep.collect import collect, without_paths
from utils.sweep.file import CONTROL
from utils.sweep.runs import DONE, Member, Row
from utils.sweep.shown import csv_text, markdown
from utils.sweep.table import build_table

OURS = {1: ([1, 0, 1, 0], [0, 1], [1.0, 3.0]), 2: ([1, 1, 1, 0], [0, 1], [2.0, 4.0])}
THEIRS = {
    1: ([1, 1, 1, 1], [1, 1], [2.0, 2.0]),
    2: ([0, 1, 1, 1], [1, 1], [2.0, 2.0]),
    3: ([1, 1, 0, 1], [1, 1], [2.0, 2.0]),
}
"""Seed → rows of two tasks, and of a text's windows (nats a token)."""

LOSSES, SHARES, PERPLEXITIES = {1: 2.0, 2: 2.2, 3: 2.1}, {1: 0.5, 2: 0.7, 3: 0.3}, {1: 10.0, 2: 12.0, 3: 14.0}


def kept(values, aggregation="mean", higher=True, asked="asked"):
    return {"values": values, "aggregation": aggregation, "higher_is_better": higher, "sha256": asked}


def write_run(output, name: str, seed: int, rows, asked="asked", **record) -> Member:
    """A finished run, as its files tell."""
    folder = output / name
    values = {"dense": (0.9, 0.9, 5.0), "pruned": (0.0, 0.0, 20.0)}
    values["restored"] = (sum(rows[0]) / len(rows[0]), sum(rows[1]) / len(rows[1]), PERPLEXITIES[seed])
    main = {"one": "acc", "two": "acc", "text": "token_perplexity"}
    scores = {
        model: {task: {main[task]: {"value": value}} for task, value in zip(main, found, strict=True)}
        for model, found in values.items()
    }
    results = {"scores": scores, "main_metric": main, "mean": {"tasks": ["one", "two"], "recovered": SHARES[seed]}}
    write_json(folder / "results.json", {**results, "proof": {"zeros_pruned": 8, "zeros_lost": 2}})
    method = {"parameters": 120, "kind": "mask", "restores": True}
    write_json(folder / "run.json", {"method": method, "device": "cpu", "seeds": {"training": seed}})
    (folder / "logs").mkdir()
    (folder / "logs" / "history.jsonl").write_text(
        f'{{"valid_loss": 9}}\n{{"loss": 1}}\n{{"valid_loss": {LOSSES[seed]}}}\n'
    )
    questions = {
        "restored": {"one": {"acc": kept(rows[0], asked=asked)}, "two": {"acc": kept(rows[1])}},
        "pruned": {"one": {"acc": kept([0] * len(rows[0]), asked=asked)}, "two": {"acc": kept([0] * len(rows[1]))}},
    }
    for model, losses in (("restored", rows[2]), ("pruned", [3.0, 3.5])):
        questions[model]["text"] = {"token_perplexity": kept(losses, "exp_mean", False)}
    (folder / "logs" / "rows.json.gz").write_bytes(gzip.compress(json.dumps(questions).encode()))
    write_json(folder / DONE, {"seconds": 60, "code": "code", "versions": {"torch": "1"}, **record})
    return Member(name, None, seed)


@pytest.fixture
def rows(tmp_path) -> list[Row]:
    ours = tuple(write_run(tmp_path, f"ours{seed}", seed, values) for seed, values in OURS.items())
    theirs = tuple(write_run(tmp_path, f"theirs{seed}", seed, values) for seed, values in THEIRS.items())
    return [Row("ours", "wanda", "ours", (), ours), Row("theirs", "wanda", "ours", (), theirs)]


def built(tmp_path, rows) -> dict:
    return build_table(tmp_path, rows, lambda member: True)


def test_means_and_standard_errors_over_seeds(tmp_path, rows):
    ours, theirs = built(tmp_path, rows)["rows"]
    assert ours["valid_loss"] == {"value": pytest.approx(2.1), "stderr": pytest.approx(0.1), "n": 2}
    assert ours["task_mean"] == {"value": pytest.approx(0.5625), "stderr": pytest.approx(0.0625), "n": 2}
    assert ours["perplexity"] == {"value": 11, "stderr": pytest.approx(1), "n": 2}
    assert (ours["forgetting"]["value"], ours["forgetting"]["stderr"]) == (-9, pytest.approx(1))
    assert (ours["zeros_kept"], ours["trained_parameters"], ours["class"]) == (0.75, 120, "mask")
    one = theirs["scores"]["one"]["acc"]  # 1, 0.75, 0.75
    assert one == {"value": pytest.approx(2.5 / 3), "stderr": pytest.approx(1 / 12), "n": 3}


def test_differences_are_paired_over_questions_with_seeds_averaged_first(tmp_path, rows):
    ours, theirs = built(tmp_path, rows)["rows"]
    # Of `one`: 1/2-1, 1-1/2, 1-1, 1-0; of `two`: 1, 0. The seed that only theirs have is left out.
    first = [-1 / 2, 1 / 2, 0, 1]
    middle = sum(first) / 4
    error = math.sqrt(sum((value - middle) ** 2 for value in first) / 3 / 4)
    against = theirs["against"]
    assert against["name"] == "ours" and ours["against"] is None
    assert against["task_mean"]["difference"] == pytest.approx((middle + 0.5) / 2) == pytest.approx(0.375)
    assert against["task_mean"]["stderr"] == pytest.approx(math.hypot(error, 0.5) / 2)
    assert against["perplexity"]["difference"] == pytest.approx(math.exp(2) - math.exp(2.5))


def test_differences_have_an_error_over_the_seeds_that_both_have(tmp_path, rows):
    table = built(tmp_path, rows)
    against = table["rows"][1]["against"]
    # Seed 1: 1 - 1/2, seed 2: 7/8 - 5/8; only theirs has a third. Perplexities, e^2 each, of e^((1+3)/2) and e^3.
    assert against["task_mean"]["stderr_seeds"] == pytest.approx(0.125)
    assert against["perplexity"]["stderr_seeds"] == pytest.approx((math.e**3 - math.e**2) / 2)
    assert f"+37.5 ± {100 * against['task_mean']['stderr']:.1f} ± 12.5" in markdown(table)
    line = list(csv.DictReader(io.StringIO(csv_text(table))))[1]
    assert float(line["task_mean_difference_stderr_seeds"]) == pytest.approx(0.125)
    assert float(line["task_mean_difference_stderr"]) == against["task_mean"]["stderr"]


def test_differences_are_of_one_shared_seed_alone_and_of_all_where_none_is_shared(tmp_path, rows):
    def over(first: slice, second: slice) -> tuple[float, float | None]:
        two = [
            Row(row.name, "wanda", "ours", (), row.finals[part])
            for row, part in zip(rows, (first, second), strict=True)
        ]
        against = built(tmp_path, two)["rows"][1]["against"]["task_mean"]
        return against["difference"], against["stderr_seeds"]

    everything = slice(None)
    assert over(everything, slice(1, 3)) == (pytest.approx(7 / 8 - 5 / 8), None)  # seed 2
    assert over(slice(0, 1), everything) == (pytest.approx(1 - 1 / 2), None)  # seed 1
    assert over(everything, slice(2, 3)) == (pytest.approx(7 / 8 - (1 / 2 + 5 / 8) / 2), None)  # 3 against 1 and 2


def test_a_recovered_share_has_an_error_over_seeds_and_one_over_questions(tmp_path, rows):
    ours = built(tmp_path, rows)["rows"][0]
    assert ours["recovered"]["value"] == pytest.approx(0.6) and ours["recovered"]["stderr"] == pytest.approx(0.1)
    # Rows are 1, 1/2, 1, 0 and 0, 1 above a pruned model that is always wrong; the gap is 0.9.
    assert ours["recovered"]["stderr_questions"] == pytest.approx(math.hypot(math.sqrt(0.6875 / 3 / 4), 0.5) / 2 / 0.9)


def test_one_seed_has_no_error(tmp_path, rows):
    alone = [Row("ours", "wanda", "ours", (), rows[0].finals[:1])]
    table = built(tmp_path, alone)
    assert table["rows"][0]["valid_loss"] == {"value": 2.0, "stderr": None, "n": 1}
    assert "| n=1 | 2.000 |" in markdown(table)


def test_other_questions_are_not_compared_and_the_table_says_so(tmp_path, rows):
    other = write_run(tmp_path, "other", 1, THEIRS[1], asked="others")
    table = built(tmp_path, [rows[0], Row("other", "wanda", "ours", (), (other,))])
    assert table["rows"][1]["against"]["task_mean"] is None
    assert any("not held against ours" in note and "different rows" in note for note in table["notes"])


def test_the_rate_is_that_of_the_lowest_validation_loss_and_an_edge_is_told(tmp_path, rows):
    searches = tuple(Member(f"theirs{seed}", rate, 1) for seed, rate in ((1, 0.1), (2, 0.2), (3, 0.3)))
    finals = tuple(Member("ours1", rate, 1) for rate in (0.1, 0.2, 0.3))
    table = built(tmp_path, [Row("searched", "wanda", None, searches, finals)])
    assert table["rows"][0]["rate"] == 0.1
    assert [each["valid_loss"] for each in table["rows"][0]["rates"]] == [2.0, 2.2, 2.1]
    assert any("lowest that was tried" in note for note in table["notes"])


def test_a_search_that_was_smaller_is_told_and_by_how_much(tmp_path, rows):
    few = {"num_train_samples": 128, "num_epoch": 1.0, "lr": 0.1, "train_seed": 1, "eval_tasks": "none"}
    many = {**few, "num_train_samples": 256, "lr": 0.2, "train_seed": 2, "eval_tasks": "paper"}
    for name, arguments in (("ours1", many), ("ours2", many), ("theirs1", many)):
        path = tmp_path / name / DONE
        write_json(path, {**json.loads(path.read_text()), "arguments": arguments})
    searches = [write_run(tmp_path, f"search{seed}", seed, OURS[seed], arguments=few) for seed in (1, 2)]
    alike = write_run(tmp_path, "alike", 1, OURS[1], arguments=many)

    def noted(*searched) -> list[str]:
        made = [Row(row.name, "wanda", "ours", own, row.finals) for row, own in zip(rows, searched, strict=True)]
        return [note for note in built(tmp_path, made)["notes"] if note.startswith("rates were chosen")]

    assert noted((searches[0],), ()) == ["rates were chosen by runs with num_train_samples 128 (reported: 256)"]
    assert noted((alike,), ()) == noted((), ()) == []
    control = Row("ours", CONTROL, None, (searches[0],), rows[0].finals)
    assert not [note for note in built(tmp_path, [control])["notes"] if note.startswith("rates were chosen")]
    longer = write_run(tmp_path, "longer", 1, OURS[1], arguments={**many, "num_epoch": 2.0})
    first, second = noted((searches[0],), (longer,))
    assert first.endswith("128 (reported: 256): ours") and second.endswith("num_epoch 2.0 (reported: 1.0): theirs")


def test_a_rate_is_not_chosen_before_all_searches_are_done(tmp_path, rows):
    searches = (Member("theirs1", 0.1, 1), Member("missing", 0.2, 1))
    finals = (Member("ours1", 0.1, 1), Member("ours2", 0.2, 1))
    entry = built(tmp_path, [Row("searched", "wanda", None, searches, finals)])["rows"][0]
    assert (entry["rate"], entry["seeds"]) == (None, [])


def test_runs_of_other_code_or_versions_are_told(tmp_path, rows):
    other = write_run(tmp_path, "other", 1, THEIRS[1], code="else", versions={"torch": "2"})
    notes = " ".join(built(tmp_path, [rows[0], Row("other", "wanda", "ours", (), (other,))])["notes"])
    assert "code (2 runs), else (1 runs)" in notes and "torch differs: 1, 2" in notes
    now = {"code": "code", "versions": {"torch": "1"}}
    assert build_table(tmp_path, rows, lambda member: True, now)["notes"] == []


def test_pruned_models_of_other_weights_are_told(tmp_path, rows):
    """The same command on another processor rounds otherwise, and prunes a few other weights."""
    for row, first in zip(rows, ("a" * 64, "b" * 64), strict=True):
        for member in row.finals:
            run = json.loads((tmp_path / member.id / "run.json").read_text())
            write_json(tmp_path / member.id / "run.json", {**run, "inputs": {"pruned model": first}})
    assert "wanda: the weights of the pruned model differ" in " ".join(built(tmp_path, rows)["notes"])
    assert built(tmp_path, rows[:1])["notes"] == []


def with_answers(tmp_path, name: str, bits: list[list[float]], choices: list[list[float]], asked="asked", **more):
    """A run that says of `one` what answers came to as well; `more`: values of results.json."""
    results = json.loads((tmp_path / name / "results.json").read_text())
    results["answers"] = {"tasks": ["one"], "recovered": 0.5, "scores": {"restored": {"value": 0.75}}}
    results["agreement"] = {"restored": {"all": {"flipped": {"value": 0.125}}}}
    write_json(tmp_path / name / "results.json", {**results, **more})
    path = tmp_path / name / "logs" / "rows.json.gz"
    questions = json.loads(gzip.decompress(path.read_bytes()))
    dense = [[0.0, -1.0], [0.0, -1.0], [0.0, -1.0], [0.0, -1.0]]
    questions["dense"] = {"one": {"choices": kept(dense, None, None, asked)}}
    questions["restored"]["one"] |= {"choices": kept(choices, None, None, asked)}
    for model, rows in (("restored", bits), ("pruned", [[-4.0, 1.0]] * 4)):
        questions[model]["one"][ANSWER_BITS] = kept(rows, "bits_per_byte", False, asked)
    path.write_bytes(gzip.compress(json.dumps(questions).encode()))


SAME, OTHER = [[0.0, -1.0]] * 4, [[-1.0, 0.0]] * 2 + [[0.0, -1.0]] * 2
"""Log-likelihoods of choices as the dense model has them, and with the first two questions' answers flipped."""


def test_what_other_versions_measure_is_shown_where_it_is_there(tmp_path, rows):
    with_answers(tmp_path, "ours1", [[-1.0, 2.0]] * 4, SAME)
    alone = [Row("ours", "wanda", "ours", (), rows[0].finals[:1])]
    table = built(tmp_path, alone)
    assert (table["rows"][0]["answer_bits"]["value"], table["rows"][0]["flipped"]["value"]) == (0.75, 0.125)
    assert "bits a byte" in markdown(table) and "| 0.750 | 12.5 |" in markdown(table)
    assert "unlike dense ↓" not in markdown(built(tmp_path, rows))


def with_validation(tmp_path, name: str, rows: list[list[float]]) -> None:
    """A run that kept each validation sample's [nats, tokens]."""
    path = tmp_path / name / "logs" / "rows.json.gz"
    questions = json.loads(gzip.decompress(path.read_bytes()))
    questions["restored"]["validation"] = {"loss": kept(rows, "mean", False)}
    path.write_bytes(gzip.compress(json.dumps(questions).encode()))


def test_validation_losses_are_held_against_each_other_sample_by_sample(tmp_path, rows):
    for seed in OURS:
        with_validation(tmp_path, f"ours{seed}", [[6.0, 3.0], [1.0, 1.0], [2.0, 2.0]])
    with_validation(tmp_path, "theirs1", [[5.0, 3.0], [2.0, 1.0], [2.0, 2.0]])
    table = built(tmp_path, rows)  # theirs2 is of a version that kept none
    assert table["rows"][1]["against"]["valid_loss"] is None and table["notes"] == []
    with_validation(tmp_path, "theirs2", [[11.0, 3.0], [2.0, 1.0], [2.0, 2.0]])
    table = built(tmp_path, rows)
    # Their mean over seeds: 8, 2 and 2 nats of 3, 1 and 2 tokens; ours 6, 1 and 2.
    left_out = [(4 - 3) / 3, (10 - 8) / 5, (10 - 7) / 4]
    middle = sum(left_out) / 3
    error = math.sqrt(2 / 3 * sum((value - middle) ** 2 for value in left_out))
    against = table["rows"][1]["against"]["valid_loss"]
    assert (against["difference"], against["stderr"]) == (pytest.approx(3 / 6), pytest.approx(error))
    assert against["n"] == 3 and against["stderr_seeds"] == pytest.approx(6 / 6 / 2)  # 0 and 6 nats of 6 tokens
    assert "+0.500 ± 0.2" in markdown(table)
    collect(tmp_path, rows, tmp_path / "kept")
    assert built(tmp_path / "kept", rows) == table


def test_answers_are_held_against_another_rows_question_by_question(tmp_path, rows):
    with_answers(tmp_path, "ours1", [[-1.0, 2.0]] * 4, SAME)
    with_answers(tmp_path, "theirs1", [[-2.0, 2.0], [-2.0, 2.0], [-1.0, 2.0], [-1.0, 2.0]], OTHER)
    two = [Row(row.name, "wanda", "ours", (), row.finals[:1]) for row in rows]
    against = built(tmp_path, two)["rows"][1]["against"]
    # 6 nats over 8 bytes against 4 over 8; leaving a question out moves both sums.
    assert against["answer_bits"]["difference"] == pytest.approx((6 - 4) / 8 / math.log(2))
    error = pytest.approx(math.sqrt(4 * 0.25 / 3 / 4))
    assert against["flipped"] == {"difference": 0.5, "stderr": error, "stderr_seeds": None, "n": 4}
    odds = math.log1p(math.exp(-1))
    assert against["kl"]["difference"] == pytest.approx(0.5 * (math.exp(-odds) - math.exp(-1 - odds)))
    with_answers(tmp_path, "theirs1", [[-2.0, 2.0]] * 4, OTHER, asked="others")
    table = built(tmp_path, two)
    assert table["rows"][1]["against"]["kl"] is None and any("different questions" in each for each in table["notes"])


def test_a_control_is_the_dense_model_after_the_same_training(tmp_path, rows):
    before = {"pruned": {"value": 1.5}, "dense": {"value": 1.0}}
    for name, restored, loss in (("ours1", 1.2, 2.0), ("theirs1", 0.9, 1.5)):
        answers = {"tasks": ["one"], "scores": {**before, "restored": {"value": restored}}}
        found = {"answers": answers, "validation": {"start": 3.0, "restored": loss}}
        with_answers(tmp_path, name, [[-1.0, 2.0]] * 4, SAME, **found)
    control = Row("ours", CONTROL, "ours", (), rows[1].finals[:1])
    table = built(tmp_path, [Row("ours", "wanda", "ours", (), rows[0].finals[:1]), control])
    # Perplexities: pruned 20, both restored ones 10.
    of_control = {"valid_loss": pytest.approx(1 / 1.5), "perplexity": 1.0, "answer_bits": pytest.approx(0.3 / 0.6)}
    assert [row["control"] for row in table["rows"]] == [of_control, None]
    assert "67 % / 100 % / 50 %" in markdown(table)
    both = Row("ours", "wanda", "ours", (), rows[0].finals)  # a second seed, which has no control
    assert built(tmp_path, [both, control])["rows"][0]["control"] == of_control
    assert [each["pruning"] for each in table["models"]] == ["wanda", "wanda"]


def test_a_share_of_the_control_starts_at_the_pruned_model_whatever_training_began_with(tmp_path, rows):
    """After a closed form training begins lower; what the pruned model had, another row of it knows."""

    def validated(name: str, **losses: float) -> None:
        found = json.loads((tmp_path / name / "results.json").read_text())
        write_json(tmp_path / name / "results.json", {**found, "validation": {"tokens": 70, **losses}})

    def shares() -> list:
        table = built(tmp_path, [ours, Row("theirs", "wanda", "ours", (), rows[1].finals[1:2]), control])
        assert [each["valid_loss"] for each in table["models"]] == [1.0, known or None]
        assert not known or f"| pruned | wanda | {known:.3f} |" in markdown(table)
        return [(row["control"] or {}).get("valid_loss") for row in table["rows"]]

    ours, control = (Row("ours", pruning, "ours", (), finals[:1]) for pruning, finals in
                     (("wanda", rows[0].finals), (CONTROL, rows[1].finals)))  # fmt: skip
    for name, weights in (("ours1", "some"), ("theirs1", "all"), ("theirs2", "some")):
        run = json.loads((tmp_path / name / "run.json").read_text()) | {"arguments": {"dtype": "float32"}}
        run["inputs"] = {"dense model": "all", "pruned model": weights}
        write_json(tmp_path / name / "run.json", run)
    run = json.loads((tmp_path / "ours1" / "run.json").read_text())
    run["arguments"] |= {"first": "admm_update", "bias_start": "zero"}
    write_json(tmp_path / "ours1" / "run.json", run)
    validated("ours1", start=2.5, restored=2.0)
    validated("theirs1", start=1.0, restored=1.5)
    known = False
    assert shares() == [None, None, None]
    validated("theirs2", pruned=3.0, start=2.9, restored=2.8)
    known = 3.0
    assert shares() == [pytest.approx((3 - 2) / (3 - 1.5)), None, None]
    validated("theirs2", start=2.9, restored=2.8)  # of a version before, from the first step on
    known = 2.9
    assert shares() == [pytest.approx((2.9 - 2) / (2.9 - 1.5)), None, None]
    run = json.loads((tmp_path / "theirs2" / "run.json").read_text())
    run["inputs"]["pruned model"] = "pruned again"
    write_json(tmp_path / "theirs2" / "run.json", run)
    known = False
    assert shares() == [None, None, None]
    known = 3.0
    validated("ours1", pruned=3.0, start=2.5, restored=2.0)
    assert shares() == [pytest.approx((3 - 2) / (3 - 1.5)), None, None]


def test_a_collected_folder_gives_the_same_table(tmp_path, rows):
    for seed in OURS:
        with_answers(tmp_path, f"ours{seed}", [[-1.0, 2.0]] * 4, SAME)
    for seed in THEIRS:
        with_answers(tmp_path, f"theirs{seed}", [[-2.0, 2.0]] * 4, OTHER)
    assert collect(tmp_path, rows, tmp_path / "kept") == 5
    assert built(tmp_path / "kept", rows) == built(tmp_path, rows)
    assert built(tmp_path, rows)["rows"][1]["against"]["flipped"]["difference"] == 0.5


def test_csv_has_every_number_of_the_table(tmp_path, rows):
    table = built(tmp_path, rows)
    lines = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [line["name"] for line in lines] == ["ours", "theirs"]
    assert float(lines[0]["valid_loss"]) == table["rows"][0]["valid_loss"]["value"]
    assert float(lines[1]["one:acc_stderr"]) == pytest.approx(1 / 12)
    assert float(lines[1]["task_mean_difference"]) == table["rows"][1]["against"]["task_mean"]["difference"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b/c.json", "c.json"),
        ("python /x/y.py -d=/p/q -e ~/h/i", "python y.py -d=q -e i"),
        ("read '/a/b c' and (/d/e)", "read 'b c' and (e)"),
        ("1/2 of acc/acc_norm, owner/name, https://a.b/c", "1/2 of acc/acc_norm, owner/name, https://a.b/c"),
        (r"C:\Users\me\x.txt", "x.txt"),
        ("+ 1 / 2, ~5 min", "+ 1 / 2, ~5 min"),
    ],
)
def test_paths_are_cut_to_their_last_name_and_nothing_else_is(text, expected):
    assert without_paths({"a": [text], text: 1}) == {"a": [expected], expected: 1}


def test_a_known_path_may_hold_spaces():
    assert without_paths("read /a/my data/x y.json, /b/c", ["/a/my data/x y.json"]) == "read x y.json, c"


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ({}, "nothing"),
        ({"model.layers.0.self_attn.o_proj.bias": Constant}, "constants"),
        ({"model.layers.0.self_attn.o_proj.bias": Constant, "model.norm.weight": Constant}, "norms"),
        ({"model.layers.0.mlp.up_proj.weight": MaskedChange, "model.norm.weight": Constant}, "mask"),
        ({"model.layers.0.mlp.up_proj.weight": LowRank, "model.norm.weight": Constant}, "dense"),
    ],
)
def test_a_class_follows_from_what_is_restored(terms, kind):
    assert kind_of(Restoration("m", {name: [term(torch.zeros(2))] for name, term in terms.items()})) == kind
