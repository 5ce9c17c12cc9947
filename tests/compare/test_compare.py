"""A comparison's numbers are the sweep table's, its pairs are over the same rows, and failed runs are not left out."""

import csv
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.browser import A4_ACROSS, brightness, look
from tests.sweep.test_table import OTHER, OURS, SAME, THEIRS, read_again, with_answers, with_validation, write_run
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.compare import __main__ as command
from utils.compare.content import compared, curves_of
from utils.compare.lines import flags_that_vary, read_lines
from utils.compare.page import page, shown
from utils.compare.pictures import Point, curve_picture, front, labels, pareto_picture
from utils.evaluation.outcome import COMPARED
from utils.sweep.grid import SweepRow, SweepRun
from utils.sweep.table import build_table

HOSTILE = "</script><img src=x onerror='window.hacked=1'>"


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder: ours with two seeds, theirs with three, and one whose only run failed."""
    folder = tmp_path / "sweep"
    ours = tuple(write_run(folder, f"ours{seed}", seed, rows) for seed, rows in OURS.items())
    theirs = tuple(write_run(folder, f"theirs{seed}", seed, rows) for seed, rows in THEIRS.items())
    for name, rank in (("ours1", 4), ("theirs1", 8)):
        run = json.loads((folder / name / "run.json").read_text())
        arguments = {"lr": rank / 100, "lora_rank": rank, "train_seed": 1, "output_dir": name}
        write_json(folder / name / "run.json", {**run, "arguments": arguments})
    bad = (SweepRun("bad", None, 1, said=HOSTILE),)
    named = (("ours", ours), ("theirs", theirs), ("bad", bad))
    return folder, read_again(folder, [SweepRow(name, "half", "", None, (), runs) for name, runs in named])


@pytest.fixture
def answered(sweep):
    """The same sweep, whose runs say what right answers came to, each with a seed's."""
    folder, rows = sweep
    for seed in OURS:
        with_answers(folder, f"ours{seed}", [[-1.0, 2.0]] * 4, SAME)
        with_validation(folder, f"ours{seed}", [[2.0, 2.0], [3.0, 1.0]])
    for seed in THEIRS:
        with_answers(folder, f"theirs{seed}", [[-2.0, 2.0], [-2.0, 2.0], [-1.0, 2.0], [-1.0, 2.0]], OTHER)
        with_validation(folder, f"theirs{seed}", [[4.0, 2.0], [4.0, 1.0]])
    return folder, read_again(folder, rows)


def content_of(*folders) -> dict:
    return compared(*read_lines(folders))


def differences(content: dict, place: int = 0) -> dict[str, list]:
    """What → [difference, standard error, rows] of a pair."""
    return {content["measures"][what]["what"]: numbers for what, *numbers in content["pairs"][place]["found"]}


def one_run(folder, name: str, parameters: int = 120, share: float | None = None, **arguments):
    """A run's folder with trained numbers, a recovered share of tasks, and arguments."""
    write_run(folder, name, 1, OURS[1])
    run = json.loads((folder / name / "run.json").read_text())
    method = {**run["method"], "parameters": parameters}
    write_json(folder / name / "run.json", {**run, "method": method, "arguments": arguments})
    if share is not None:
        results = json.loads((folder / name / "results.json").read_text())
        write_json(folder / name / "results.json", {**results, "mean": {**results["mean"], "recovered": share}})
    return folder / name


@pytest.fixture
def grid(tmp_path):
    """Content of four runs over ranks, one that trains nothing, and one close to the second, which lost no zero."""
    runs = [
        one_run(tmp_path, f"rank{rank}", 100 * rank, share, lora_rank=rank, lora_alpha=2 * rank, sparsity=of, lr=0.1)
        for rank, share, of in ((2, 0.2, "0.5"), (4, 0.4, "0.5"), (8, 0.3, "0.5"), (16, 0.1, "0.6"))
    ]
    runs.append(one_run(tmp_path, "none", 0, 0.0, lora_rank=2, lora_alpha=4, sparsity="0.5", lr=0.2))
    runs.append(one_run(tmp_path, "near", 400, 0.39, lora_rank=4, lora_alpha=8, sparsity="0.5", lr=0.1))
    results = json.loads((runs[1] / "results.json").read_text())
    write_json(runs[1] / "results.json", {**results, "proof": {"zeros_pruned": 8, "zeros_lost": 0}})
    return content_of(*runs)


def test_a_sweeps_lines_are_its_tables(sweep):
    folder, rows = sweep
    lines, _ = read_lines([folder])
    table = [{**row, "against": None} for row in build_table(rows)["rows"]]
    assert [{**line.entry, "against": None, "control": None} for line in lines[:2]] == table[:2]
    assert (lines[2].name, lines[2].entry, lines[2].failed) == ("bad", None, [HOSTILE])
    content = compared(lines, [])
    found = content["lines"][0]["cells"]["task_mean"]
    assert found["n"] == 2 and found["value"] == pytest.approx(100 * table[0]["task_mean"]["value"])
    assert content["lines"][0]["cells"]["zeros_kept"]["value"] == 75


def test_pairs_are_over_the_same_rows_and_others_are_left_out(sweep):
    folder, _ = sweep
    content = content_of(folder)
    (pair,) = content["pairs"]
    assert (pair["one"], pair["other"]) == (0, 1)
    found = differences(content)
    # Means over the seeds that both have: ours 5/8 and 1/2, theirs 7/8 and 1; in %.
    assert found["one, acc, %"][0] == pytest.approx(100 * (5 / 8 - 7 / 8), rel=1e-6)
    assert found["two, acc, %"][0] == pytest.approx(-50) and found["two, acc, %"][3] == 2
    assert found["task mean, % ↑"][0] == pytest.approx((found["one, acc, %"][0] - 50) / 2, rel=1e-6)
    assert found["task mean, % ↑"][2:] == [pytest.approx(12.5), 6]
    write_run(folder, "other", 1, OURS[1], asked="something else")
    found = differences(content_of(folder / "ours1", folder / "other"))
    assert set(found) == {"two, acc, %", "perplexity ↓"}


def test_pairs_are_the_sweeps_own_differences(answered):
    folder, rows = answered
    table = build_table([replace(row, compare_to="theirs") for row in rows])
    against = table["rows"][0]["against"]
    content = content_of(folder)
    found = differences(content)
    headings = {"answer_bits": "answer bits a byte ↓", "kl": "KL from dense ↓", "perplexity": "perplexity ↓"}
    headings |= {"flipped": "answers unlike dense, % ↓", "task_mean": "task mean, % ↑"}
    headings |= {"valid_loss": "validation loss ↓"}
    assert set(headings) == set(COMPARED)
    for name, what in headings.items():
        factor = 100 if "%" in what else 1
        parts = ("difference", "stderr", "stderr_seeds")
        expected = [*(factor * against[name][part] for part in parts), against[name]["n"]]
        assert found[what] == pytest.approx(expected, rel=1e-6), name
    assert content["lines"][0]["cells"]["recovered_answers"]["value"] == 50


def test_no_mean_is_told_of_a_single_task(sweep):
    folder, _ = sweep
    for name in ("ours1", "theirs1"):
        results = json.loads((folder / name / "results.json").read_text())
        write_json(folder / name / "results.json", {**results, "mean": {"tasks": ["two"]}})
    found = differences(content_of(folder / "ours1", folder / "theirs1"))
    assert "two, acc, %" in found and not any("mean" in what for what in found)


def test_a_flag_that_varies_is_none_of_places_and_seeds(sweep):
    folder, _ = sweep
    lines, _ = read_lines([folder / "ours1", folder / "theirs1"])
    assert flags_that_vary(lines) == {"lr": [0.04, 0.08], "lora_rank": [4, 8]}
    lines, _ = read_lines([folder])
    assert flags_that_vary(lines) == {"lora_rank": [4, 8, None]}  # the sweep has no rate here


def test_the_command_writes_a_page_and_its_numbers(sweep, tmp_path, monkeypatch, capsys):
    folder, _ = sweep
    monkeypatch.setattr("sys.argv", ["utils.compare", str(folder), "-output", str(tmp_path / "all.html")])
    command.main()
    assert capsys.readouterr().out == f"page: {tmp_path / 'all.html'}\n"
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    beside = {f"all-{name}.{kind}" for name in ("pareto", "lora_rank") for kind in ("svg", "csv")}
    assert files == {"all.html", "all.csv", "all-pairs.csv"} | beside
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [(row["name"], row["n"], row["failed"]) for row in rows] == [
        ("ours", "2", "0"),
        ("theirs", "3", "0"),
        ("bad", "0", "1"),
    ]
    assert float(rows[0]["valid_loss"]) == pytest.approx(2.1) and float(rows[0]["valid_loss_stderr"]) == pytest.approx(
        0.1
    )
    text = (tmp_path / "all.html").read_text()
    assert "<img" not in text and "failed: &lt;/script&gt;" in text
    pairs = list(csv.DictReader((tmp_path / "all-pairs.csv").read_text().splitlines()))
    assert {(row["name"], row["minus"]) for row in pairs} == {("ours", "theirs")}
    assert [row["n"] for row in pairs if row["over_the_same_rows"] == "perplexity ↓"] == ["2"]
    assert 'href="all.csv"' in text and 'href="all-pairs.csv"' in text
    assert not re.findall(r"(?:src|action)=\"|@import|url\(", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["NONE", "-output", "a.html"], "not a folder"), (["EMPTY", "-output", "a.html"], "holds no run"),
     (["EMPTY", "-output", "a.txt"], "ends in .html")],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path, monkeypatch, words, said):
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["utils.compare", *words])
    with pytest.raises(UserError, match=said):
        command.main()


def test_what_folders_hold_is_shown_as_it_is(sweep, tmp_path):
    folder, _ = sweep
    once = content_of(folder / "ours1")
    assert (once["pairs"], once["flags"], once["curves"]) == ([], {}, {})
    twice = content_of(folder / "ours1", folder / "." / "ours1", folder / ".." / "sweep" / "ours1")
    assert twice["lines"] == once["lines"] and "2 of the folders were given more than once" in twice["notes"][0]
    one_run(tmp_path / "a", "out")
    one_run(tmp_path / "b", "out")
    lines, _ = read_lines([tmp_path / "a" / "out", tmp_path / "b" / "out", folder / "ours1"])
    assert [line.name for line in lines] == ["a/out", "b/out", "ours1"]


def test_runs_without_evaluation_are_told_by_their_loss(sweep):
    folder, _ = sweep
    for name in ("ours1", "theirs2"):
        write_json(folder / name / "results.json", {"scores": {}, "validation": {"restored": 2.0}})
    content = content_of(folder / "ours1", folder / "theirs2")
    assert (content["across"], content["up"], content["pairs"]) == ("trained_parameters", "valid_loss", [])
    assert "No two of these were scored" in page(content, "all") and pareto_picture(content, "p").rows[1][3] == 2.0


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", {"scores": [1]}, "results.json: scores is no object"),
        ("run.json", {"arguments": 3}, "run.json: arguments is no object"),
        ("results.json", [1], "cannot be read as a run"),
    ],
)
def test_what_no_run_writes_is_one_line(sweep, file, content, said):
    folder, _ = sweep
    write_json(folder / "ours1" / file, content)
    with pytest.raises(UserError, match=said):
        read_lines([folder / "ours1"])


def test_a_column_says_what_no_rounding_hides():
    zeros = {"name": "zeros_kept", "digits": 1}
    assert [shown(zeros, value) for value in (100, 99.99, 99.9)] == ["100.0", "< 100", "99.9"]
    assert shown({"name": "perplexity", "digits": 2}, 12345.678) == "12,346"


def test_the_front_is_what_nothing_beats_in_both():
    places = {"a": (1, 1), "b": (2, 3), "c": (3, 3), "d": (3, 5), "e": (1, 0)}
    points = [Point(name, x, y, None, True) for name, (x, y) in places.items()]
    assert [point.name for point in front(points, lower_x=True, lower_y=False)] == ["a", "b", "d"]
    assert [point.name for point in front(points, lower_x=True, lower_y=True)] == ["e"]
    assert [point.name for point in front([*points, points[4]], True, True)] == ["e", "e"]  # equals both stand
    assert front(points, lower_x=None, lower_y=True) == []


def test_a_curve_joins_what_is_alike_in_all_else(grid):
    assert grid["flag"] == "lora_rank" and set(grid["curves"]) == {"lora_rank", "lora_alpha", "sparsity"}
    ranks = grid["curves"]["lora_rank"]
    assert ranks["values"] == [2, 4, 8, 16, 2, 4] and ranks["groups"] == [0, 0, 0, 1, 0, 0]  # 16: other sparsity
    assert grid["curves"]["sparsity"]["values"][3] == 0.6
    drawn = curve_picture(grid, "lora_rank", "all-lora_rank")
    header, *rows = (row[2:4] for row in drawn.rows)
    assert header == ["lora_rank", "recovered"] and rows == [[2, 20], [4, 40], [8, 30], [16, 10], [2, 0], [4, 39]]
    curve = ElementTree.fromstring(drawn.draw(800).alone()).find(".//*[@class='curve']")
    assert curve.get("d").count("L") == 2  # 2 and 4 (means of two), and 8
    assert curves_of({"a": [1, 2], "b": ["x", "y"]})["a"]["groups"] == [0, 1]
    assert curves_of({"data_seed": [1, 2], "../up": [1, 2], "on": [True, False], "word": ["p", "q"]}) == {}
    assert curves_of({"lr": [0.1, 0.2], "n": [1, "nan"]})["lr"]["values"] == [0.1, 0.2]


def test_the_picture_of_two_columns_marks_zeros_and_names_who_has_no_place(grid):
    picture = pareto_picture(grid, "all-pareto")
    header, *rows = picture.rows
    assert header[2:] == ["trained_parameters", "recovered", "recovered_stderr", "every_zero_kept", "on_front"]
    assert [(row[0], row[2], row[5], row[6]) for row in rows] == [
        ("rank2", 200, False, True), ("rank4", 400, True, True), ("rank8", 800, False, False),
        ("rank16", 1600, False, False), ("none", 0, False, False), ("near", 400, False, False),
    ]  # fmt: skip
    for width in (800, 344):
        root = ElementTree.fromstring(picture.draw(width).alone())
        space = "{http://www.w3.org/2000/svg}"
        kinds = [mark.get("class") for mark in root.iter(f"{space}circle") if mark.find(f"{space}title") is not None]
        assert kinds == ["lost", "restored", "lost", "lost", "lost"]
        texts = [text.text for text in root.iter(f"{space}text")]
        assert "Not drawn, since a number is missing or 0: none" in texts and "zeros lost" in texts


def test_names_are_beside_their_marks_and_over_nothing_else():
    spots = [(50.0, 100.0, "first"), (52.0, 100.0, "second"), (780.0, 60.0, "x" * 40)]
    marks = [[(x - 6, y - 6, x + 6, y + 6)] for x, y, _ in spots]
    found = {text[0]: (x, y, anchor) for x, y, anchor, text in labels(spots, marks, [], 800, 336)}
    assert found == {"f": (59, 93, "start"), "s": (43, 93, "end"), "x": (771, 53, "end")}
    wall = [(0.0, 0.0, 800.0, 110.0)]
    assert [text for *_, text in labels(spots[:1], marks[:1], wall, 800, 336)] == []


@pytest.mark.parametrize("width", [380, 1200])
def test_a_browser_filters_draws_and_pairs(sweep, tmp_path, width):
    folder, _ = sweep
    (tmp_path / "all.html").write_text(page(content_of(folder), "all"), encoding="utf-8")
    more = """
      const filter = document.getElementById("filter");
      filter.value = "THEIRS half";
      filter.dispatchEvent(new Event("input"));
      const rows = [...document.getElementById("lines").tBodies[0].rows].filter((row) => !row.hidden);
      const marks = document.querySelectorAll("#pareto circle");
      const differences = [...document.getElementById("differences").rows];
      const cells = differences.map((row) => [...row.cells].map((cell) => cell.textContent));
      const names = rows.map((row) => row.cells[0].firstChild.textContent);
      const kinds = [...marks].map((mark) => mark.getAttribute("class"));
      return [names, kinds, cells];
    """
    seen = look(tmp_path / "all.html", tmp_path, width, more=more)
    assert (seen["faults"], seen["console"], seen["overflow"], seen["hacked"]) == ([], [], 0, None)
    names, marks, cells = seen["extra"]
    assert names == ["theirs"] and marks == ["lost", "lost"]  # a quarter of the zeros is gone in both
    # Theirs minus ours: exp of 2 and of 2.5.
    assert cells[0] == ["perplexity ↓", "−5 ± 14 ± 6", "2", "within noise"]
    assert ["two, acc, %", "+50 ± 50 ± 0", "2", "within noise"] in cells


def test_a_difference_must_be_beyond_both_of_its_errors(sweep, tmp_path):
    content = content_of(sweep[0])
    measures = [{"what": what, "lower": False} for what in ("one seed", "steady", "unsteady")]
    content |= {"measures": measures}
    content["pairs"][0]["found"] = [[0, 3.0, 1.0, None, 4], [1, 3.0, 1.0, 1.0, 4], [2, 3.0, 1.0, 1.2, 4]]
    (tmp_path / "all.html").write_text(page(content, "all"), encoding="utf-8")
    more = """return [...document.getElementById("differences").rows].map((row) => row.cells[3].textContent);"""
    seen = look(tmp_path / "all.html", tmp_path, 1200, more=more)
    assert seen["extra"] == ["worse", "worse", "within noise"]  # theirs minus ours: 3 less, of what should be high


def test_a_file_shows_what_the_page_shows_and_is_linked_while_it_does(grid, tmp_path):
    (tmp_path / "a b.html").write_text(page(grid, "a b"), encoding="utf-8")
    more = """
      const places = (id) => [...document.querySelectorAll(`#${id} circle`)].map((mark) =>
        [mark.getAttribute("class"), Number(mark.getAttribute("cx")), Number(mark.getAttribute("cy"))]);
      const place = (text) => ["x", "y"].map((name) => Number(text.getAttribute(name)));
      const texts = [...document.querySelectorAll("#pareto text.key")].map((text) =>
        [text.textContent, text.getAttribute("text-anchor"), ...place(text)]);
      const paths = [...document.querySelectorAll("#pareto path, #curve path")].map((path) => path.getAttribute("d"));
      const links = (id) => {
        const at = document.getElementById(id);
        return at.hidden ? null : [...at.querySelectorAll("a")].map((link) => link.getAttribute("href"));
      };
      const found = [places("pareto"), places("curve"), texts, paths, links("paretoFiles"), links("curveFiles")];
      const choose = (id, value) => {
        const select = document.getElementById(id);
        select.value = value;
        select.dispatchEvent(new Event("change"));
      };
      choose("up", "perplexity");
      choose("flag", "sparsity");
      return [...found, links("paretoFiles"), links("curveFiles")];
    """
    found = look(tmp_path / "a b.html", tmp_path, 1200, more=more)["extra"]
    *drawn, texts, paths, pareto, curve, other, another = found
    space = "{http://www.w3.org/2000/svg}"
    lines = []
    for places, picture in zip(drawn, (pareto_picture(grid, "a"), curve_picture(grid, "lora_rank", "b")), strict=True):
        root = ElementTree.fromstring(picture.draw(800).alone())
        marks = [mark for mark in root.iter(f"{space}circle") if mark.find(f"{space}title") is not None]
        assert [kind for kind, *_ in places] == [mark.get("class") for mark in marks]
        expected = [float(mark.get(name)) for mark in marks for name in ("cx", "cy")]
        assert [number for _, *at in places for number in at] == pytest.approx(expected, abs=0.06)
        lines += [path.get("d") for path in root.iter(f"{space}path")]
        if picture.name == "a":
            named = [text for text in root.iter(f"{space}text") if text.get("class") == "key halo"]
            assert [each[:2] for each in texts] == [[text.text, text.get("text-anchor")] for text in named]
            assert {anchor for _, anchor, *_ in texts} == {"start", "end"}
            expected = [float(text.get(name)) for text in named for name in ("x", "y")]
            assert [number for _, _, *at in texts for number in at] == pytest.approx(expected, abs=0.06)
    ends, expected = ([float(x) for line in each for x in re.findall(r"[\d.]+", line)] for each in (paths, lines))
    assert ends == pytest.approx(expected, abs=0.06)
    assert pareto == ["a%20b-pareto.svg", "a%20b-pareto.csv"]
    assert curve == ["a%20b-lora_rank.svg", "a%20b-lora_rank.csv"]
    assert other is None and another == ["a%20b-sparsity.svg", "a%20b-sparsity.csv"]


@pytest.mark.parametrize("dark", [False, True])
def test_paper_says_what_was_chosen_and_cuts_nothing_off(answered, tmp_path, dark):
    folder, _ = answered
    lines, notes = read_lines([folder])
    (tmp_path / "all.html").write_text(page(compared(lines, [*notes, "a note"]), "all"), encoding="utf-8")
    more = """
      const display = (node) => getComputedStyle(node).display;
      const filter = document.getElementById("filter"), tools = filter.closest(".tools");
      const unused = display(tools);
      filter.value = "ours";
      const told = [...document.querySelectorAll(".tools.told")].map(display);
      return [unused, display(tools), told, getComputedStyle(document.getElementById("one")).borderTopWidth,
        display(document.querySelector(".links")), document.querySelector("details li").checkVisibility()];
    """
    seen = look(tmp_path / "all.html", tmp_path, A4_ACROSS, dark, more, printed=True)
    assert brightness(seen["paper"]) > 250 and brightness(seen["ink"]) < 10
    assert (seen["width"], seen["overflow"], seen["outside"], seen["faults"]) == (A4_ACROSS, 0, [], [])
    assert seen["extra"] == ["none", "flex", ["flex"] * 3, "0px", "none", True]
