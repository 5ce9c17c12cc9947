"""A comparison's numbers are its runs', its pairs are over the same rows, and no file of a user is written over."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.browser import NARROW, look
from tests.builders import mistake
from tests.report.made import HOSTILE, SPACE, kept, make_results, task, write_run
from tests.runs import run
from utils import compare
from utils.common.files import read_json, write_json
from utils.common.names import ANSWER_BITS
from utils.compare import Difference, Line, compared_page, pictures_of
from utils.evaluation.outcomes import difference
from utils.report.charts import Point, front, front_picture, names_beside
from utils.report.tables import Score
from utils.sweep import sweep_files
from utils.sweep.grid import SweepRow, SweepRun
from utils.sweep.table import build_table


def finished_run(folder: Path, answers: list[float], losses: list[float], seed=1, asked="asked", **arguments) -> Path:
    """A finished run that answered one task's questions and a text's windows (nats a token)."""
    mean = sum(answers) / len(answers)
    results = make_results(one=task(0.9, 0.0, mean), text=task(2.0, 20.0, 3.5, "token_perplexity"))
    scores = {"dense": {"value": 0.9}, "pruned": {"value": 0.0}, "restored": {"value": mean}}
    results |= {"mean": {"tasks": ["one"], "scores": scores, "recovered": None}, "validation": {"restored": 2.25}}
    results |= {"proof": {"zeros_pruned": 8, "zeros_lost": 2}}
    method = {"parameters": 100 * arguments.get("lora_rank", 12), "kind": "mask", "restores": True}
    run = {"method": method, "arguments": {"lr": 0.3, **arguments}, "models": {"pruned": "/x/half"}}
    run |= {"inputs": {"pruned model": asked}}
    run |= {"seeds": {"training": seed}, "stages": [{"seconds": 60}], "training": {"tokens": 7000}}
    rows = {"acc": kept(answers, "mean", None, asked)}, {"token_perplexity": kept(losses, "exp_mean", None, asked)}
    write_run(folder, results, run, restored=dict(zip(("one", "text"), rows, strict=True)))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    ours = finished_run(tmp_path / "ours", [1, 0, 1, 0], [1.0, 3.0], lora_rank=4, lr=0.1, output_dir="a", on=True)
    theirs = finished_run(tmp_path / "theirs", [1, 1, 1, 1], [2.0, 2.0], lora_rank=8, lr=0.2, output_dir="b", on=False)
    return [ours, theirs]


def with_failed(runs: list[Path]) -> list[SweepRow]:
    run = SweepRun("bad", None, 1, said=f"exit status 1: {HOSTILE}")
    return [*compare.read_runs(runs)[0], SweepRow("bad", "", "", "", (), (run,))]


def text_of(found: list[SweepRow]) -> str:
    lines = compare.lines_of(found)
    return compared_page(lines, compare.pairs_of(found), pictures_of(lines, "trained_parameters"), [], "all")


def test_lines_hold_the_runs_numbers_and_no_rounding_hides_a_lost_zero(runs):
    ours, theirs, bad = compare.lines_of(with_failed(runs))
    wanted = {"trained_parameters": 400, "trained_tokens": 7000, "zeros_kept": 75, "task_mean": 50, "rate": 0.1}
    wanted |= {"minutes": 1, "valid_loss": 2.25}
    assert wanted.items() <= {name: score.value for name, score in ours.cells.items()}.items()
    assert (ours.pruning, ours.kind, ours.n, ours.kept) == ("half", "inside the mask", 1, False)
    assert theirs.cells["trained_parameters"] == Score(800)
    assert (bad.n, bad.cells, bad.failed) == (0, {}, [f"exit status 1: {HOSTILE}"])
    cells = ("zeros_kept", 100), ("zeros_kept", 99.99), ("forgetting", -0.001)
    assert [Line("a", "a", cells={of: Score(value)}).text(of) for of, value in cells] == ["100.0", "< 100", "0.00"]


def test_folders_are_told_apart_and_shown_once(runs, tmp_path):
    assert len(compare.read_runs([runs[0], tmp_path / "theirs" / ".." / "ours"])[0]) == 1
    folders = [finished_run(tmp_path / place / "out", [1, 0], [1.0]) for place in "ab"]
    assert [each.name for each in compare.read_runs([*folders, runs[0]])[0]] == ["a/out", "b/out", "ours"]


def test_pairs_are_over_the_same_rows_and_others_are_left_out(runs, tmp_path):
    pairs = compare.pairs_of(compare.read_runs(runs)[0])
    assert list(pairs) == [(0, 1)]
    found = {each.what: (each.value, each.error, each.seeds, each.n, each.lower) for each in pairs[0, 1]}
    error = 100 * math.sqrt(4 * 0.25 / 3 / 4)  # of 0, -1, 0, -1
    assert found["one, acc, % ↑"] == (-50, pytest.approx(error, rel=1e-6), None, 4, False)
    assert set(found) == {"one, acc, % ↑", "perplexity ↓"} and found["perplexity ↓"][3] == 2  # one task is no mean
    other = finished_run(tmp_path / "other", [1, 1, 1, 1], [1.0, 1.0], asked="something else")
    rows, notes = compare.read_runs([runs[0], other])
    assert compare.pairs_of(rows) == {} and compare.read_runs(runs)[1] == []
    assert notes == [compare.UNLIKE, "the runs are of several weights of half: asked (1 run), something else (1 run)"]
    results = make_results(one=task(0.9, 0.0, 0.5, "acc_norm")) | {"answers": {"tasks": ["one"]}}
    write_run(other, results, read_json(other / "run.json"), restored={"one": {ANSWER_BITS: kept([1.8])}})
    assert len(compare.read_runs([runs[0], other])[0]) == 2  # acc_norm has no rows, as no mean over rows
    nothing = {name: {} for name in ("scores", "metrics", "main_metric")} | {"validation": {"restored": 2.0}}
    write_json(other / "results.json", nothing)  # of a run with -eval_tasks none
    assert compare.lines_of(compare.read_runs([runs[0], other])[0])[1].cells["valid_loss"] == Score(2.0)


def test_a_sweeps_lines_are_its_tables_over_the_seeds_that_both_have(tmp_path):
    rows, answers = [], {"ours": [[1, 0, 1, 0], [1, 1, 1, 0]], "theirs": [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1]]}
    for name, seeds in (answers | {"waiting": []}).items():
        for seed, given in enumerate(seeds, start=1):
            finished_run(tmp_path / f"{name}{seed}", given, [1.0, 2.0], seed)
        members = tuple(SweepRun(f"{name}{seed}", None, seed) for seed in range(1, max(2, len(seeds) + 1)))
        rows.append(SweepRow(name, "half", "", "theirs", (), members))
    rows = sweep_files.look(rows, tmp_path)
    sweep_files.write(rows, tmp_path / sweep_files.FILE)
    found, notes = compare.read_runs([tmp_path])
    assert notes == compare.read_runs([tmp_path / sweep_files.FILE])[1] == ["waiting, half: no run is done yet"]
    lines, table = compare.lines_of(found), build_table(rows)["rows"][:2]
    assert [line.cells["task_mean"].value for line in lines] == [100 * row["task_mean"]["value"] for row in table]
    assert (lines[0].n, lines[0].cells["task_mean"]) == (2, Score(62.5, pytest.approx(12.5)))
    (apart,) = (each for each in compare.pairs_of(found)[0, 1] if each.what.startswith("one"))
    assert (apart.value, apart.seeds) == (-25, pytest.approx(25))  # seeds 1 and 2: -1/2 and 0
    ours, theirs = found[0].outcomes, [replace(each, run={"seeds": {"training": 9}}) for each in found[1].outcomes]
    both = [np.std(means, ddof=1) / math.sqrt(len(means)) for means in ([0.5, 0.75], [1, 0.75, 0.75])]
    assert difference(ours, theirs, ("one", "acc"))["stderr_seeds"] == pytest.approx(math.hypot(*both))
    broken = replace(ours[0], rows={"one": {"acc": replace(ours[0].rows["one"]["acc"], values=[1, 0, 1, math.nan])}})
    assert difference([broken], theirs, ("one", "acc")) is None
    of_text = {name: replace(rows, values=[900, 900]) for name, rows in ours[0].rows["text"].items()}
    lost = replace(ours[0], rows={"text": of_text})  # a perplexity that is infinite, of one seed alone
    apart = difference([lost, ours[1]], found[1].outcomes, ("text", "token_perplexity"))
    assert apart["stderr_seeds"] is None and apart["difference"] > 1e100


def test_a_difference_must_be_beyond_both_of_its_errors():
    for numbers, lower, shown in (
        ((3.0, 1.0, None), False, "+3.0 ± 1.0: better"),
        ((3.0, 1.0, 1.0), True, "+3.0 ± 1.0 ± 1.0: worse"),
        ((3.0, 1.0, 1.2), True, "+3.0 ± 1.0 ± 1.2: within noise"),  # beyond either error, but not both together
        ((-0.0123, 0.0011, None), None, "−0.0123 ± 0.0011: differs"),
        ((2.0, None, None), True, "+2.000: no standard error"),
        ((2.0, float("nan"), None), True, "+2.000 ± nan: within noise"),
    ):
        found = Difference("what", *numbers, 4, lower)
        assert f"{found.text}: {found.verdict}" == shown


def test_the_page_is_one_file_of_the_lines_numbers_and_hostile_text_is_text(runs):
    found = with_failed(runs)
    text = text_of(found)
    assert all(f'data-value="{value}' in text for value in ("50.0", "2.25", "3.5", "400"))
    assert "2 configurations compared, 1 with failed runs" in text and "No two of these" not in text
    assert "<img" not in text and text.count("<script") == text.count("</script>") == 2
    assert "failed: exit status 1: &lt;/script&gt;" in text
    assert not re.search(r"(?:src|action)=\"|@import|url\(", text)
    assert "No two of these were scored on the same questions" in text_of(found[:1])
    assert "No configuration is done, 1 with failed runs" in text_of(found[2:])


def test_the_command_writes_its_files_again_over_its_own_and_never_over_a_users(runs, tmp_path, monkeypatch, capsys):
    def files() -> dict[str, str]:
        return {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}

    words = [*map(str, runs), "-output", str(tmp_path / "all.html")]
    for _ in range(2):
        run(monkeypatch, words, compare.main)
        assert capsys.readouterr().out == f"page: {tmp_path / 'all.html'}\n"
    written = files()
    assert set(written) == {"all.html", "all.csv", "all-pairs.csv", "all.svg"}
    assert all(f'href="{name}"' in written["all.html"] for name in ("all.csv", "all-pairs.csv", "all.svg"))
    rows = [(row["name"], row["n"], row["task_mean"]) for row in csv.DictReader(written["all.csv"].splitlines())]
    assert rows == [("ours", "1", "50.0"), ("theirs", "1", "100.0")]
    pairs = csv.DictReader(written["all-pairs.csv"].splitlines())
    (pair,) = (row for row in pairs if "acc" in row["over_the_same_rows"])
    assert (pair["name"], pair["minus"], pair["difference"], pair["n"]) == ("ours", "theirs", "-50.0", "4")
    for name in written:
        (tmp_path / name).write_text("mine")
        mistake(f"-output: .*{name} exists, and this command did not write it", run, monkeypatch, words, compare.main)
        assert files() == {**written, name: "mine"}
        (tmp_path / name).write_text(written[name])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["NONE", "-output", "a.html"], "not a folder"),
        (["EMPTY", "-output", "a.html"], "holds no run"),
        (["ours", "-output", "results.json"], "results.json does not end in .html; give a name that does"),
        (["strange", "-output", "a.html"], "RUN: strange: its files are not a run's, or are damaged"),
    ],
)
def test_a_mistake_is_one_line(runs, tmp_path, monkeypatch, words, said):
    (tmp_path / "EMPTY").mkdir()
    for name in ("results.json", "run.json"):
        write_json(tmp_path / "strange" / name, {"method": 3, "scores": 3})
    monkeypatch.chdir(tmp_path)
    mistake(said, run, monkeypatch, words, compare.main)
    assert not (tmp_path / "a.html").exists()


def test_the_front_is_what_nothing_beats_in_both_and_the_picture_has_every_point_and_marks_lost_zeros():
    places = {"a": (1, 1), "b": (2, 3), "c": (3, 3), "d": (3, 5), "e": (1, 0)}
    points = [Point(name, x, y) for name, (x, y) in places.items()]
    assert [point.name for point in front(points, lower_y=False)] == ["a", "b", "d"]
    assert [point.name for point in front(points, lower_y=True)] == ["e"]
    assert [point.name for point in front([*points, points[4]], True)] == ["e", "e"]  # equals both stand
    points = [Point("none", 0, 1.0), Point("few", 100, 3.0, 0.5), Point("many", 90_000, 2.0, None, kept=False)]
    root = ElementTree.fromstring(front_picture(points, "trained parameters", "share", False).svg(alone=True))
    marks = [mark for mark in root.iter(f"{SPACE}circle") if len(mark)]
    told = [(mark.get("class"), mark[0].text) for mark in marks]
    assert told == [("restored", "none: 1 at 0"), ("restored", "few: 3 ± 0.5 at 100"), ("lost", "many: 2 at 90,000")]
    across, up = ([float(mark.get(name)) for mark in marks] for name in ("cx", "cy"))
    assert across == sorted(across) and up[1] < up[2] < up[0]
    (joined,) = root.iterfind(f".//{SPACE}path[@class='front']")
    assert joined.get("d") == f"M{across[0]:g},{up[0]:g}L{across[1]:g},{up[1]:g}"


def test_the_first_picture_is_of_what_most_lines_have_and_a_recovered_share_before_others():
    names = {"trained_parameters", "valid_loss", "kl", "recovered", "recovered_answers", "rate", "minutes"}
    some = names - {"recovered", "valid_loss"}
    lines = [Line("n", "n", n=1, cells=dict.fromkeys(each, Score(1))) for each in (names, some)]
    shown = [label.removesuffix(" against minutes") for label in pictures_of(lines, "minutes")]
    assert list(pictures_of(lines, "trained_parameters")) == [f"{what} against trained parameters" for what in shown]
    assert shown == ["recovered of right answers, %", "recovered of tasks, %", "KL from dense ↓", "validation loss ↓"]


def test_names_are_beside_their_marks_and_over_nothing_else():
    spots = [(50.0, 100.0, "first"), (52.0, 100.0, "second"), (780.0, 60.0, "x" * 40), (51.0, 101.0, "no room")]
    found = {text[0]: (x, y, anchor) for x, y, anchor, text in names_beside(spots, 30, 336)}
    assert found["f"] == (59, 93, "start") and found["s"] == (43, 93, "end") and found["x"] == (771, 53, "end")
    assert [text for *_, text in names_beside([(5.0, 101.0, "x" * 999)], 300, 336)] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [NARROW, 1200])
def test_a_browser_filters_sorts_and_turns_pairs_and_pictures(runs, tmp_path, width):
    (tmp_path / "all.html").write_text(text_of(with_failed(runs)), encoding="utf-8")
    more = """
      const byId = (id) => document.getElementById(id), body = byId("lines").tBodies[0];
      const names = () => [...body.rows].filter((row) => !row.hidden).map((row) => row.cells[0].firstChild.textContent);
      const set = (id, value, event) => { byId(id).value = value; byId(id).dispatchEvent(new Event(event)); };
      const pair = () => [...byId("differences").rows].map((row) => [...row.cells].map((cell) => cell.textContent));
      const found = [pair()];
      set("one", "0", "change"); set("other", "1", "change"); found.push(pair());
      const sort = byId("lines").tHead.rows[0].cells[2].querySelector("button");
      sort.click(); sort.click(); found.push(names());
      set("filter", "THEIRS half", "input"); found.push(names());
      const shown = () => [...byId("pictures").children].map((figure) => !figure.hidden);
      found.push(shown()); byId("shown").selectedIndex = 1; byId("shown").dispatchEvent(new Event("change"));
      return [...found, shown()];
    """
    seen = look(tmp_path / "all.html", tmp_path, width, more=more)
    assert (seen["faults"], seen["console"], seen["overflow"], seen["hacked"]) == ([], [], 0, None)
    first, turned, names, filtered, pictures, others = seen["extra"]
    assert ["one, acc, % ↑", "+50 ± 29", "4", "within noise"] in first  # theirs minus ours
    assert ["one, acc, % ↑", "−50 ± 29", "4", "within noise"] in turned
    assert names == ["theirs", "ours", "bad"] and filtered == ["theirs"]
    assert pictures.index(True) == 0 and others.index(True) == 1 and sum(pictures) == sum(others) == 1
