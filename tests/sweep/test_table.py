"""The table's numbers are those that a hand finds: means, errors over seeds, paired differences over questions."""

import gzip
import math
from dataclasses import replace

import pytest

from tests.builders import mistake
from tests.report.made import kept, make_results, task, write_run
from utils.common.names import ANSWER_BITS
from utils.evaluation.outcomes import read_outcome, spread
from utils.sweep.grid import CONTROL, SweepRow, SweepRun
from utils.sweep.sweep_files import read, write
from utils.sweep.table import build_table, markdown

OURS = {1: ([1, 0, 1, 0], [0, 1], [1.0, 3.0]), 2: ([1, 1, 1, 0], [0, 1], [2.0, 4.0])}
THEIRS = {seed: (one, [1, 1], [2.0, 2.0]) for seed, one in ((1, [1, 1, 1, 1]), (2, [0, 1, 1, 1]), (3, [1, 1, 0, 1]))}
"""Seed → rows of two tasks, and of a text's windows (nats a token)."""

LOSSES, SHARES, PERPLEXITIES = {1: 2.0, 2: 2.2, 3: 2.1}, {1: 0.5, 2: 0.7, 3: 0.3}, {1: 10.0, 2: 12.0, 3: 14.0}
SAME, OTHER = [[0.0, -1.0]] * 4, [[-3.0, 0.0]] * 2 + [[0.0, -1.0]] * 2
"""Log-likelihoods of choices as the dense model has them, and with the first two questions' answers flipped."""

TEMPLATE = {"definition": "one"}  # what else decides what was asked


def finished_run(output, name: str, seed: int, rows, asked="asked", own=None, told=None, **more) -> SweepRun:
    """A finished run, as its files tell. own: more rows of its model; told: of results.json; more: of run.json."""
    means, perplexity = [sum(values) / len(values) for values in rows[:2]], PERPLEXITIES[seed]
    one, two = (task(0.9, 0.0, mean) for mean in means)
    results = make_results(one=one, two=two, text=task(5.0, 20.0, perplexity, "token_perplexity"))
    mean = {"dense": {"value": 0.9}, "pruned": {"value": 0.0}, "restored": {"value": sum(means) / 2}}
    results |= {
        "mean": {"tasks": ["one", "two"], "scores": mean, "recovered": SHARES[seed]},
        "validation": {"pruned": 3.0, "restored": LOSSES[seed]}, "proof": {"zeros_pruned": 8, "zeros_lost": 2},
    }  # fmt: skip
    method = {"parameters": 120, "kind": "mask", "restores": True}
    run = {"method": method, "device": "cpu", "seeds": {"training": seed}, "stages": [{"seconds": 60}]} | more
    questions = {"one": {"acc": kept(rows[0], asked=asked)}, "two": {"acc": kept(rows[1])}}
    questions["text"] = {"token_perplexity": kept(rows[2], "exp_mean", False)}
    questions |= {name: questions.get(name, {}) | metrics for name, metrics in (own or {}).items()}
    dense = {"one": {"choices": kept(SAME, None, None)}}
    write_run(output / name, results | (told or {}), run, restored=questions, dense=dense)
    return SweepRun(name, None, seed, outcome=read_outcome(output / name))


def row_of(name: str, *runs: SweepRun, pruning: str = "half", searches: tuple[SweepRun, ...] = ()) -> SweepRow:
    return SweepRow(name, pruning, "", "ours", searches, runs)


@pytest.fixture
def rows(tmp_path) -> list[SweepRow]:
    return [row_of(name, *(finished_run(tmp_path, f"{name}{seed}", seed, rows) for seed, rows in each.items()))
            for name, each in {"ours": OURS, "theirs": THEIRS}.items()]  # fmt: skip


def test_means_are_over_seeds_and_differences_over_the_questions_and_seeds_that_both_have(rows):
    table = build_table(rows)
    ours = table["rows"][0]
    assert ours["valid_loss"] == {"value": pytest.approx(2.1), "stderr": pytest.approx(0.1), "n": 2}
    collapsed = spread([2.1, math.nan])
    assert math.isnan(collapsed["value"]) and math.isnan(collapsed["stderr"])
    assert ours["task_mean"] == {"value": pytest.approx(0.5625), "stderr": pytest.approx(0.0625), "n": 2}
    assert (ours["perplexity"]["value"], ours["forgetting"]["value"]) == (11, -9)
    assert ours["recovered"]["value"] == pytest.approx(0.6) and ours["recovered"]["stderr"] == pytest.approx(0.1)
    assert (ours["zeros_kept"], ours["trained_parameters"], ours["class"], ours["minutes"]) == (0.75, 120, "mask", 1)
    assert [(each["model"], each["perplexity"]) for each in table["models"]] == [("dense", 5), ("pruned", 20)]
    # Of `one`: 1/2-1, 1-1/2, 1-1, 1-0; of `two`: 1, 0. The seed that only theirs have is left out.
    first, middle = [-1 / 2, 1 / 2, 0, 1], 1 / 4
    error = math.sqrt(sum((value - middle) ** 2 for value in first) / 3 / 4)
    against = table["rows"][1]["against"]
    assert against["name"] == "ours" and table["rows"][0]["against"] is None
    assert against["task_mean"]["difference"] == pytest.approx((middle + 0.5) / 2)
    assert against["task_mean"]["stderr"] == pytest.approx(math.hypot(error, 0.5) / 2)
    assert against["perplexity"]["difference"] == pytest.approx(math.exp(2) - math.exp(2.5))
    # Seed 1: 1 - 1/2, seed 2: 7/8 - 5/8. Perplexities, e^2 each, of e^((1+3)/2) and e^3.
    assert against["task_mean"]["stderr_seeds"] == pytest.approx(0.125)
    assert against["perplexity"]["stderr_seeds"] == pytest.approx((math.e**3 - math.e**2) / 2)
    assert f"+37.5 ± {100 * against['task_mean']['stderr']:.1f} ± 12.5" in markdown(table)
    table = build_table([row_of("ours", rows[0].finals[0])])
    assert "| n=1 | 2.000 |" in markdown(table) and "Δ |" not in markdown(table)
    assert table["rows"][0]["recovered"]["stderr"] is None
    # One shared seed is compared alone; all are where none is shared.
    apart = [((0, 1), (1, 2), 7 / 8 - 5 / 8), ((0,), (0, 1, 2), 1 - 1 / 2), ((0, 1), (2,), 7 / 8 - (1 / 2 + 5 / 8) / 2)]
    for *pair, difference in apart:
        some = [row_of(row.name, *(row.finals[n] for n in seeds)) for row, seeds in zip(rows, pair, strict=True)]
        against = build_table(some)["rows"][1]["against"]["task_mean"]
        assert (against["difference"], against["stderr_seeds"]) == (pytest.approx(difference), None)
    # What draws nothing was run once, with whatever seed, and is held against each; a reconstruction draws.
    cases = (0, "eora", 1 - 9 / 16, 1 / 16), (2, None, 7 / 8 - 9 / 16, 1 / 16), (0, "reconstruct", 1 / 2, None)
    for n, first, *wanted in cases:
        run = rows[1].finals[n].outcome.run
        run |= {"method": {"parameters": 0}, "arguments": {"method": "none", "first": first}}
        against = build_table([rows[0], row_of("theirs", rows[1].finals[n])])["rows"][1]["against"]["task_mean"]
        assert [against["difference"], against["stderr_seeds"]] == [each and pytest.approx(each) for each in wanted]


def test_validation_losses_and_answers_are_held_against_each_other_row_by_row(tmp_path):
    told = {"answers": {"tasks": ["one"], "recovered": 0.5, "scores": {"restored": {"value": 0.75}}}}
    told["agreement"] = {"restored": {"all": {"flipped": {"value": 0.125}}}}
    rows = []
    for name, first, nats, bits, choices in (
        ("ours", OURS[1], (6.0, 1.0, 2.0), [[-1.0, 2.0]] * 4, SAME),
        ("theirs", THEIRS[1], (8.0, 2.0, 2.0), [[-2.0, 2.0]] * 2 + [[-1.0, 2.0]] * 2, OTHER),
    ):
        losses = kept([[each, tokens] for each, tokens in zip(nats, (3.0, 1.0, 2.0), strict=True)], "mean", False)
        answers = {ANSWER_BITS: kept(bits, "bits_per_byte", False), "choices": kept(choices, None, None) | TEMPLATE}
        own = {"validation": {"loss": losses}, "one": answers}
        rows.append(row_of(name, finished_run(tmp_path, name, 1, first, own=own, told=told)))
    table = build_table(rows)
    write(rows, tmp_path / "runs.json.gz")
    assert build_table(read(tmp_path / "runs.json.gz")) == table
    against = table["rows"][1]["against"]
    left_out = [(4 - 3) / 3, (10 - 8) / 5, (10 - 7) / 4]
    error = math.sqrt(2 / 3 * sum((value - sum(left_out) / 3) ** 2 for value in left_out))
    loss = {"difference": pytest.approx(3 / 6), "stderr": pytest.approx(error), "stderr_seeds": None, "n": 3}
    assert against["valid_loss"] == loss
    assert against["answer_bits"]["difference"] == pytest.approx((6 - 4) / 8 / math.log(2))  # nats over bytes
    assert (against["flipped"]["difference"], against["flipped"]["n"]) == (0.5, 4)
    odds, others = math.log1p(math.exp(-1)), math.log1p(math.exp(-3))
    divergence = math.exp(-odds) * (3 + others - odds) + math.exp(-1 - odds) * (others - 1 - odds)
    assert against["kl"]["difference"] == pytest.approx(0.5 * divergence)
    assert "| 12.5 | – |" in markdown(table)
    own = {"one": {"choices": kept(OTHER, None, None) | {"definition": "another"}}}
    table = build_table([rows[0], row_of("other", finished_run(tmp_path, "other", 1, THEIRS[1], own=own, told=told))])
    assert "kl" not in table["rows"][1]["against"]
    assert sum("kl: the two runs were scored by other templates" in note for note in table["notes"]) == 1


def test_the_rate_is_that_of_the_lowest_validation_loss_and_an_edge_is_told(rows):
    searches = tuple(replace(run, rate=rate) for run, rate in zip(rows[1].finals, (0.1, 0.2, 0.3), strict=True))
    finals = [replace(rows[0].finals[0], rate=rate) for rate in (0.1, 0.2, 0.3)]
    table = build_table([row_of("searched", *finals, searches=searches)])
    assert table["rows"][0]["rate"] == 0.1 and "lowest that was tried" in table["notes"][0]
    entry = build_table([row_of("searched", *finals, searches=(*searches[:2], SweepRun("to do", 0.3, 1)))])["rows"][0]
    assert (entry["rate"], entry["done"]) == (None, 0)


def test_a_control_is_the_dense_model_after_the_same_training(tmp_path, rows):
    first = finished_run(tmp_path, "control", 1, THEIRS[1], told={"validation": {"pruned": 1.0, "restored": 1.5}})
    table = build_table([row_of("ours", rows[0].finals[0]), row_of("ours", first, rows[1].finals[1], pruning=CONTROL)])
    # Losses (3 - 2) / (3 - 1.5), perplexities both from 20 to 10: of the seed that both have.
    assert table["rows"][0]["control"] == {"valid_loss": pytest.approx(1 / 1.5), "perplexity": 1.0, "answer_bits": None}
    assert table["rows"][1]["control"] is None and "67 % / 100 % / –" in markdown(table)
    assert [(each["of"], each["valid_loss"]) for each in table["models"]] == [("half", 1.0), ("half", 3.0)]
    same, other = (replace(rows[0].finals[0], rate=rate) for rate in (0.1, 0.2))
    control = row_of("ours", replace(first, rate=0.1), pruning=CONTROL)
    assert build_table([row_of("ours", same), control])["rows"][0]["control"]["perplexity"] == 1.0
    apart = build_table([row_of("ours", other), control])
    assert apart["rows"][0]["control"] is None and "at another rate, 0.1" in apart["notes"][0]


def test_other_questions_are_not_compared_and_runs_that_are_not_alike_are_told(tmp_path, rows):
    fewer = {"mean": {"tasks": ["one"], "scores": {}}, "proof": {"zeros_pruned": 9999, "zeros_lost": 1}}
    other = row_of("fewer", finished_run(tmp_path, "fewer", 1, THEIRS[1], told=fewer))
    for some in ([rows[0], other], [replace(other, compare_to="fewer"), replace(rows[0], compare_to="fewer")]):
        table = build_table(some)
        assert table["rows"][1]["against"]["task_mean"] is None and "| < 100 % |" in markdown(table)
    table = build_table([rows[0], row_of("other", finished_run(tmp_path, "other", 1, THEIRS[1], asked="others"))])
    assert "task_mean" not in table["rows"][1]["against"]
    assert any("not compared with ours" in note and "different rows" in note for note in table["notes"])
    told = [{"versions": {"torch": version}, "inputs": {"pruned model": version * 64}} for version in ("1", "2")]
    told = [each | {"arguments": {"ppl_window": 10 ** (12 * n)}} for n, each in enumerate(told)]
    runs = [finished_run(tmp_path, f"run{place}", 1, OURS[1], **more) for place, more in enumerate(told)]
    text = "text token_perplexity over 2 windows of"
    assert build_table([row_of(run.id, run) for run in runs])["notes"] == [
        f"the runs are of several texts of perplexity: {text} 1 tokens (1 run), {text} {10**12:,} tokens (1 run)",
        "the runs are of several weights of half: 11111111 (1 run), 22222222 (1 run)",
        "the runs are of several versions of torch: 1 (1 run), 2 (1 run)",
    ]
    assert build_table(rows)["notes"] == []


@pytest.mark.parametrize("content", [b"", *map(gzip.compress, [b"[1]", b'[{"name": 1}]', b"[" * 10**5])], ids=range(4))
def test_a_file_that_no_sweep_wrote_is_one_line(tmp_path, content):
    (tmp_path / "runs.json.gz").write_bytes(content)
    mistake(r"runs\.json\.gz: cannot be read as a sweep's", read, tmp_path / "runs.json.gz")
