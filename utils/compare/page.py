"""The files of a comparison: one HTML page with a table, pairs, and pictures that its own script draws, and CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from utils.report.html import digits, render
from utils.report.sections import hide_home

TEMPLATES = Path(__file__).parent / "templates"


def page(content: dict, stem: str) -> str:
    """The HTML file. stem: what the names of the files beside it begin with."""
    done = sum(bool(line["n"]) for line in content["lines"])
    failed = sum(bool(line["failed"]) for line in content["lines"])
    text = f"{done} configuration{'s' * (done > 1)} compared" if done else "No configuration is done"
    context = {
        "title": text + (f", {failed} with failed runs" if failed else ""),
        "data": {**content, "stem": stem},
        "stem": stem,
        "shown": shown,
        "own_script": Markup((TEMPLATES / "compare.js").read_text(encoding="utf-8")),
    }
    return hide_home(render("compare.html.j2", context, TEMPLATES))


def shown(column: dict, value: float) -> str:
    """A value in the table: large ones whole; and zeros of which some were lost never look like all of them."""
    text = digits(value, 0 if abs(value) >= 1000 else column["digits"])
    return "< 100" if column["name"] == "zeros_kept" and value < 100 and text == digits(100, column["digits"]) else text


def csv_text(content: dict) -> str:
    """A line of numbers a line of the table, each in full."""
    names = [column["name"] for column in content["columns"]]
    header = ["name", "pruning", "class", "n", "failed"]
    rows = [[*header, *(f"{name}{part}" for name in names for part in ("", "_stderr")), *content["flags"]]]
    for place, line in enumerate(content["lines"]):
        found = [line["cells"][name] or {} for name in names]
        values = [each.get(part) for each in found for part in ("value", "error")]
        flags = [values_of[place] for values_of in content["flags"].values()]
        rows.append([*(line[name] for name in header[:-1]), len(line["failed"]), *values, *flags])
    return _csv(rows)


def pairs_csv(content: dict) -> str:
    """A line a pair and measure: whose difference it is, and over how many rows."""
    rows = [["name", "minus", "over_the_same_rows", "difference", "stderr", "stderr_seeds", "n"]]
    for pair in content["pairs"]:
        names = [content["lines"][pair[place]]["label"] for place in ("one", "other")]
        rows += [[*names, content["measures"][place]["what"], *numbers] for place, *numbers in pair["found"]]
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
