"""A comparison's numbers are the sweep table's, its pairs are over the same rows, and failed runs are not left out."""

import csv
import json
import re
from dataclasses import asdict

import pytest

from tests.browser import look
from tests.sweep.test_table import OURS, THEIRS, write_run
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.compare import __main__ as command
from utils.compare.lines import flags_that_vary, read_lines
from utils.compare.page import compared, page
from utils.sweep.runs import FAILED, Row
from utils.sweep.table import build_table

HOSTILE = "</script><img src=x onerror='window.hacked=1'>"


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder: ours with two seeds, theirs with three, and one whose only run failed."""
    folder = tmp_path / "sweep"
    ours = tuple(write_run(folder, f"ours{seed}", seed, rows) for seed, rows in OURS.items())
    theirs = tuple(write_run(folder, f"theirs{seed}", seed, rows) for seed, rows in THEIRS.items())
    write_json(folder / "bad" / FAILED, {"exit_status": 1, "output": ["Traceback", HOSTILE, ""]})
    for name, lr in (("ours1", 0.01), ("theirs1", 0.02)):
        run = json.loads((folder / name / "run.json").read_text())
        write_json(folder / name / "run.json", {**run, "arguments": {"lr": lr, "train_seed": 1, "output_dir": name}})
    bad = (type(ours[0])("bad", None, 1),)
    rows = [
        Row(name, "half", None, (), members) for name, members in (("ours", ours), ("theirs", theirs), ("bad", bad))
    ]
    write_json(folder / "sweep.json", {"rows": [asdict(row) for row in rows]})
    return folder, rows


def test_a_sweeps_lines_are_its_tables(sweep):
    folder, rows = sweep
    lines, _ = read_lines([folder])
    table = build_table(folder, rows, lambda member: True)["rows"]
    assert [line.entry for line in lines[:2]] == table[:2]
    assert (lines[2].name, lines[2].entry, lines[2].failed) == ("bad", None, [f"exit status 1: {HOSTILE}"])
    content = compared(lines, [])
    found = content["lines"][0]["cells"]["task_mean"]
    assert found["n"] == 2 and found["value"] == pytest.approx(100 * table[0]["task_mean"]["value"])
    assert content["lines"][0]["cells"]["zeros_kept"]["value"] == 75


def test_pairs_are_over_the_same_rows_and_others_are_left_out(sweep):
    folder, _ = sweep
    (pair,) = compared(*read_lines([folder]))["pairs"]
    assert (pair["one"], pair["other"]) == (0, 1)
    found = {each["what"]: each["difference"] for each in pair["differences"]}
    # Means over seeds: ours 5/8 and 1/2, theirs 5/6 and 1.
    assert found["one, acc"] == pytest.approx(5 / 8 - 5 / 6) and found["two, acc"] == pytest.approx(-0.5)
    assert found["mean of tasks"] == pytest.approx((found["one, acc"] + found["two, acc"]) / 2)
    write_run(folder, "other", 1, OURS[1], asked="something else")
    (pair,) = compared(*read_lines([folder / "ours1", folder / "other"]))["pairs"]
    assert {each["what"] for each in pair["differences"]} == {"two, acc", "perplexity", "text, token_perplexity"}


def test_a_flag_that_varies_is_none_of_places_and_seeds(sweep):
    folder, _ = sweep
    lines, _ = read_lines([folder / "ours1", folder / "theirs1"])
    assert flags_that_vary(lines) == {"lr": [0.01, 0.02]}


def test_the_command_writes_a_page_and_its_numbers(sweep, tmp_path, monkeypatch, capsys):
    folder, _ = sweep
    monkeypatch.setattr("sys.argv", ["utils.compare", str(folder), "-output", str(tmp_path / "all.html")])
    command.main()
    assert capsys.readouterr().out == f"page: {tmp_path / 'all.html'}\n"
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
    assert "<img" not in text and "failed: exit status 1: &lt;/script&gt;" in text
    assert 'href="all.csv"' in text and not re.findall(r"(?:src|action)=\"|@import|url\(", text)


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


@pytest.mark.parametrize("width", [380, 1200])
def test_a_browser_filters_draws_and_pairs(sweep, tmp_path, width):
    folder, _ = sweep
    (tmp_path / "all.html").write_text(page({**compared(*read_lines([folder])), "csv": "all.csv"}), encoding="utf-8")
    more = """
      const filter = document.getElementById("filter");
      filter.value = "THEIRS half";
      filter.dispatchEvent(new Event("input"));
      const rows = [...document.getElementById("lines").tBodies[0].rows].filter((row) => !row.hidden);
      const marks = document.querySelectorAll("#pareto circle");
      const first = document.getElementById("differences").rows[0];
      const names = rows.map((row) => row.cells[0].firstChild.textContent);
      const kinds = [...marks].map((mark) => mark.getAttribute("class"));
      return [names, kinds, [...first.cells].map((cell) => cell.textContent)];
    """
    seen = look(tmp_path / "all.html", tmp_path, width, more=more)
    assert (seen["faults"], seen["console"], seen["overflow"], seen["hacked"]) == ([], [], 0, None)
    names, marks, first = seen["extra"]
    assert names == ["theirs"] and marks == ["lost", "lost"]  # a quarter of the zeros is gone in both
    assert first[0] == "mean of tasks" and first[1].startswith("+")
