"""The page of a comparison: one HTML file with a table, pairs, and pictures that its own script draws; and its CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from utils.common.files import without_nan
from utils.compare.lines import Line, flags_that_vary, pairs
from utils.report.html import render
from utils.report.sections import hide_home
from utils.report.summary import hide_path
from utils.sweep.shown import CLASSES

TEMPLATES = Path(__file__).parent / "templates"

COLUMNS = {
    "trained_parameters": ("trained numbers", 1, 0),
    "zeros_kept": ("zeros kept, %", 100, 1),
    "rate": ("rate", 1, None),
    "recovered": ("recovered of tasks, %", 100, 1),
    "recovered_perplexity": ("recovered of perplexity, %", 100, 1),
    "task_mean": ("task mean, % ↑", 100, 1),
    "perplexity": ("perplexity ↓", 1, 2),
    "forgetting": ("forgetting ↓", 1, 2),
    "valid_loss": ("validation loss ↓", 1, 3),
    "answer_bits": ("answer bits a byte ↓", 1, 3),
    "flipped": ("answers unlike dense, % ↓", 100, 1),
    "kl": ("KL from dense ↓", 1, 3),
    "minutes": ("minutes", 1, 1),
}
"""Name in a sweep's table → (heading, factor, decimals; None for as many as it has)."""


def cell(entry: dict | None, name: str) -> dict | None:
    """{"value", "error", "n"} of a column in its own unit; error over seeds, else over questions; None if unknown."""
    found = (entry or {}).get(name)
    if found is None:
        return None
    _, factor, _ = COLUMNS[name]
    if not isinstance(found, dict):
        return {"value": factor * found, "error": None, "n": None}
    error = found["stderr"] if found["stderr"] is not None else found.get("stderr_questions")
    return {"value": factor * found["value"], "error": None if error is None else factor * error, "n": found["n"]}


def compared(lines: Sequence[Line], notes: Sequence[str]) -> dict:
    """All that the page shows, as JSON."""
    cells = [{name: cell(line.entry, name) for name in COLUMNS} for line in lines]
    columns = [name for name in COLUMNS if any(each[name] for each in cells)]
    shown = []
    for line, found in zip(lines, cells, strict=True):
        kind = (line.entry or {}).get("class")
        shown.append(
            {
                "name": line.name,
                "pruning": line.pruning,
                "method": _method(line),
                "class": CLASSES.get(kind, ""),
                "n": len(line.outcomes),
                "failed": [hide_path(text) for text in line.failed],
                "cells": {name: found[name] for name in columns},
            }
        )
    flags = {
        name: [hide_path(value) if isinstance(value, str) else value for value in values]
        for name, values in flags_that_vary(lines).items()
    }
    headings = [{"name": name, "heading": COLUMNS[name][0], "digits": COLUMNS[name][2]} for name in columns]
    found = {"columns": headings, "lines": shown, "pairs": pairs(lines), "flags": flags, "notes": list(notes)}
    return without_nan(found)


def _method(line: Line) -> str | None:
    return ((line.outcomes[0].run.get("method") or {}).get("name")) if line.outcomes else None


def page(content: dict) -> str:
    """The HTML file."""
    done = sum(bool(line["n"]) for line in content["lines"])
    failed = sum(bool(line["failed"]) for line in content["lines"])
    text = f"{done} configuration{'s' * (done != 1)} compared"
    context = {
        "title": text + (f", {failed} with failed runs" if failed else ""),
        "data": content,
        "own_script": Markup((TEMPLATES / "compare.js").read_text(encoding="utf-8")),
    }
    return hide_home(render("compare.html.j2", context, TEMPLATES))


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
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
