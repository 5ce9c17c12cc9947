"""docs/results: tables come from the runs beside them, the documents' numbers from the tables."""

import re
from functools import cache
from pathlib import Path

import pytest

from utils.sweep.sweep_files import read
from utils.sweep.table import build_table, markdown

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@cache
def table_of(name: str) -> dict:
    """The table of these runs; beside what it has, the minutes that the first seed's training took."""
    runs = read(RESULTS / f"{name}.json.gz")
    table = build_table(runs)
    for run, row in zip(runs, table["rows"], strict=True):
        stages = run.outcomes[0].run.get("stages", []) if row["trained_parameters"] else []
        row["training_minutes"] = sum(stage["seconds"] for stage in stages if stage["name"] == "training") / 60 or None
    return table


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.yaml")))
def test_a_table_is_what_its_runs_say(name):
    assert markdown(table_of(name)) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def written(value: dict | float | None, digits: int, times: float) -> str:
    """A mean and its error as the document has them."""
    parts = (value["value"], value["stderr"]) if isinstance(value, dict) else (value,)
    return " ± ".join(f"{part * times:,.{digits}f}" for part in parts if part is not None)


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip(" *–") for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:2] == "| "]


COLUMNS = {
    "numbers": ("trained_parameters", 0, 1),
    "tokens": ("trained_tokens", 0, 1),
    "minutes": ("training_minutes", 0, 1),
    "loss ↓": ("valid_loss", 3, 1),
    "perplexity ↓": ("perplexity", 2, 1),
    "bits ↓": ("answer_bits", 3, 1),
    "accuracy, % ↑": ("task_mean", 1, 100),
}
"""Headings of the document's tables; of a table's columns, their digits and unit."""


def known_rows(names: list[str], columns: list[tuple[str, int, float]]) -> set[tuple[str, ...]]:
    """What the tables of these runs have in the columns, as the document writes it."""
    found = set()
    for table in map(table_of, names):
        for row in [*table["rows"], *table["models"]]:
            # What trained nothing was not validated by an earlier version: its loss is the pruned model's.
            if row.get("trained_parameters") == 0:
                row = row | {"valid_loss": row["valid_loss"] or table["models"][1]["valid_loss"]}
            found.add(tuple(written(row.get(column), *how) for column, *how in columns))
    return found


def test_the_document_and_the_readme_say_what_the_tables_say():
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
                assert values in known_rows(names, [COLUMNS[heading] for heading in headings]), cells
                checked += 1
    assert checked >= 50
    pairs = known_rows(["leaderboard-wanda-50"], [("perplexity", 1, 1), ("valid_loss", 3, 1)])
    means = {tuple(value.split(" ±")[0] for value in pair) for pair in pairs}
    rows = cells_of((RESULTS.parents[1] / "README.md").read_text("utf-8"))
    told = [tuple(row[3:]) for row in rows if len(row) == 5 and re.fullmatch(r"[\d.]+", row[4])]
    assert len(told) == 5 and set(told) <= means
