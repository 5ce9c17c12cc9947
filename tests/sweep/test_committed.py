"""docs/results: tables come from the runs beside them, runs from the files, the documents' numbers from the tables."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from utils.common.files import without_nan
from utils.sweep.file import read_sweep
from utils.sweep.runs import ROWS, Row, planned
from utils.sweep.table import build_table

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
NAMES = sorted(path.parent.name for path in RESULTS.glob(f"*/{ROWS}"))


def rows_of(name: str) -> list[Row]:
    return [Row.from_json(each) for each in json.loads((RESULTS / name / ROWS).read_text())["rows"]]


def without_ids(rows: list[Row]) -> list[tuple]:
    """What a table is made of: an id has the place of files in it, which is another one on each machine."""
    return [
        (
            row.name,
            row.pruning,
            row.compare_to,
            [[(m.rate, m.seed) for m in some] for some in (row.searches, row.finals)],
        )
        for row in rows
    ]


def cells_of(lines: list[str]) -> list[list[str]]:
    """The cells of Markdown table lines."""
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


@cache
def table_of(name: str) -> dict:
    return json.loads((RESULTS / name / "table.json").read_text())


def rounded(content: object) -> object:
    """Floats to ten digits: another processor adds up in another order."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.10g}") if abs(content) > 1e-12 else 0.0
    return content


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_runs_say(name):
    found = without_nan(build_table(RESULTS / name, rows_of(name), lambda member: True))
    assert rounded(json.loads(json.dumps(found))) == rounded(table_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_asks_for_what_was_run(name):
    """Every row, at its rates and seeds; and every run there is with the flags that it had."""
    if name == "wanda-50-methods":
        pytest.skip("its IA3, SHiRA and HiRA are methods that an earlier version had")
    asked, commands = planned(read_sweep(RESULTS / f"{name}.yaml"))
    ran = rows_of(name)
    assert without_ids(asked) == without_ids(ran)
    seen = set()
    for mine, theirs in zip(asked, ran, strict=True):
        for one, other in zip((*mine.searches, *mine.finals), (*theirs.searches, *theirs.finals), strict=True):
            record = RESULTS / name / other.id / ROWS
            if not record.is_file():  # a rate that was not the best
                continue
            had = json.loads(record.read_text())["arguments"]
            wanted = commands[one.id].arguments
            places = {key for key, value in had.items() if str(value).startswith("sha256:")}
            assert {key: value for key, value in wanted.items() if key not in places} == {
                key: value for key, value in had.items() if key not in places
            }
            assert all(str(wanted[key]).startswith("FOLDER") for key in places)
            seen.add(other.id)
    assert seen == {path.parent.name for path in (RESULTS / name).glob(f"*/{ROWS}")}


def written(value: dict | None, digits: int, times: float = 1) -> str:
    """A mean and its error as the document has them."""
    if value is None or value["value"] is None:
        return ""
    error = "" if value["stderr"] is None else f" ± {value['stderr'] * times:.{digits}f}"
    return f"{value['value'] * times:.{digits}f}{error}"


COLUMNS = {"valid_loss": (3, 1), "perplexity": (2, 1), "answer_bits": (3, 1), "kl": (3, 1), "task_mean": (1, 100)}

README_COLUMNS = {"valid_loss": (3, 1), "perplexity": (1, 1), "answer_bits": (3, 1), "task_mean": (1, 100)}


def lines_of(table: dict) -> dict[tuple[str, ...], dict]:
    """Rows of a table by what the document says of them."""
    return {tuple(written(row[name], *how) for name, how in COLUMNS.items()): row for row in table["rows"]}


def sections() -> dict[str, list[list[str]]]:
    """By folder of docs/results: the rows of the document's tables of models that a section shows it by."""
    found: dict[str, list[list[str]]] = {}
    for section in re.split(r"\n## ", (RESULTS.parent / "results.md").read_text()):
        named = re.search(r"\(results/([\w-]+)\)", section.partition("\n|")[0])
        if named and not section.startswith("#"):
            rows = cells_of(section.split("\n"))
            found[named[1]] = [row for row in rows if len(row) > 6 and row[0] != "trained"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_document_says_what_the_table_says(name):
    known = lines_of(table_of(name))
    dense, pruned = (
        {
            key: "" if each[key] is None else f"{each[key] * COLUMNS[key][1]:.{COLUMNS[key][0]}f}"
            for key in ("valid_loss", "perplexity", "answer_bits", "task_mean")
        }
        for each in table_of(name)["models"]
    )
    rows = sections()[name]
    assert len(rows) >= 4
    for label, numbers, zeros, rate, *rest in rows:
        cells = tuple(rest[-5:])
        if label == "dense model":
            assert (*cells[:3], cells[4]) == tuple(dense.values())
            continue
        if label.startswith("nothing") and ("", *cells[1:]) in known:  # of a version that did not validate it
            assert cells[0] == pruned["valid_loss"]
            cells = ("", *cells[1:])
        assert cells in known, (label, cells)
        row = known[cells]
        assert numbers.replace(",", "") == str(row["trained_parameters"])
        assert rate == ("–" if row["rate"] is None else f"{row['rate']:.0e}".replace("e-0", "e-"))
        assert len(rest) == 5 or rest[0] == str(len(row["seeds"]))
        if "kept" in zeros or "lost" in zeros:
            assert ("kept" in zeros) == (row["zeros_kept"] == 1)


def test_the_readme_says_what_the_tables_say():
    lines = (RESULTS.parents[1] / "README.md").read_text().partition("| [measured]")[2].partition("\n\n")[0].split("\n")
    assert len(lines) == 7
    for label, _, *cells in cells_of(lines[2:]):
        for name, four in (("wanda-50", cells[:4]), ("sparsegpt-2-4", cells[4:])):
            known = [
                tuple(written({**row[key], "stderr": None}, *how) for key, how in README_COLUMNS.items() if row[key])
                for row in table_of(name)["rows"]
                if row["valid_loss"]
            ]
            for one in zip(*(cell.split(" / ") for cell in four), strict=True):
                assert one in known, (label, name, one)
