"""docs/results: tables come from the runs beside them, the documents' numbers from the tables."""

import re
from functools import cache
from pathlib import Path

import pytest

from utils.sweep.sweep_files import read
from utils.sweep.table import build_table, markdown

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
NAMES = sorted(path.stem for path in RESULTS.glob("*.yaml"))

table_of = cache(lambda name: build_table(read(RESULTS / f"{name}.json.gz")))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_runs_say(name):
    assert markdown(table_of(name)) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def written(value: dict | float | None, digits: int, times: float) -> str:
    """A mean and its error as the document has them."""
    found = value if isinstance(value, dict) else {"value": value, "stderr": None}
    error = "" if found["stderr"] is None else f" ± {found['stderr'] * times:.{digits}f}"
    return "" if found["value"] is None else f"{found['value'] * times:.{digits}f}{error}"


def cells_of(text: str) -> list[list[str]]:
    """The cells of Markdown table lines."""
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:2] == "| "]


COLUMNS = {
    "loss ↓": ("valid_loss", 3, 1),
    "perplexity ↓": ("perplexity", 2, 1),
    "bits ↓": ("answer_bits", 3, 1),
    "accuracy, % ↑": ("task_mean", 1, 100),
}
"""Headings of the document's tables; of a table's columns, their digits and unit."""


def known_rows(names: list[str], headings: list[str]) -> set[tuple[str, ...]]:
    """What the tables of these runs have under the headings, as the document writes it, with and without errors."""
    found = set()
    for name in names:
        table = table_of(name)
        for row in [*table["rows"], *table["models"]]:
            values = [row.get(COLUMNS[heading][0]) for heading in headings]
            how = [COLUMNS[heading][1:] for heading in headings]
            found.add(tuple(written(value, *each) for value, each in zip(values, how, strict=True)))
            # What trained nothing was not validated by an earlier version: its loss is the pruned model's.
            if values[0] is None and len(table["models"]) > 1:
                first = written(table["models"][1].get("valid_loss"), *how[0])
                found.add((first, *(written(v, *each) for v, each in zip(values[1:], how[1:], strict=True))))
    return found


def test_the_document_says_what_the_tables_say():
    checked = 0
    for section in re.split(r"\n## ", (RESULTS.parent / "results.md").read_text("utf-8")):
        names = re.findall(r"\(results/([\w-]+)\.json\.gz\)", section)
        head, *rows = [*cells_of(section), []]
        for cells in rows:
            if "loss ↓" in cells:
                head = cells
            elif "loss ↓" in head and len(cells) == len(head) and set(cells) != {"---"}:
                headings = [heading for heading in head if heading in COLUMNS]
                values = tuple(cells[head.index(heading)] for heading in headings)
                assert values in known_rows(names, headings), cells
                checked += 1
    assert checked >= 40


def test_the_readme_says_what_the_table_says():
    text = (RESULTS.parents[1] / "README.md").read_text("utf-8")
    rows = [row for row in cells_of(text) if len(row) == 5 and re.fullmatch(r"[\d.]+", row[4])]
    assert len(rows) == 5
    pairs = set()
    for row in [*table_of("wanda-50")["rows"], *table_of("wanda-50")["models"]]:
        values = [row.get("perplexity"), row.get("valid_loss") or table_of("wanda-50")["models"][1]["valid_loss"]]
        perplexity, loss = (value["value"] if isinstance(value, dict) else value for value in values)
        pairs.add((written(perplexity, 1, 1), written(loss, 3, 1)))
    assert [row for row in rows if (row[3], row[4]) not in pairs] == []
