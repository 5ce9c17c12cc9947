"""docs/results: tables come from the runs beside them, runs from the files, the documents' numbers from the tables."""

import re
from functools import cache
from pathlib import Path

import pytest

from utils.common.plain_yaml import read_yaml
from utils.sweep.grid import CONTROL
from utils.sweep.sweep_files import read
from utils.sweep.table import build_table
from utils.sweep.table_text import markdown

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
NAMES = sorted(path.stem for path in RESULTS.glob("*.yaml"))

rows_of = cache(lambda name: read(RESULTS / f"{name}.json.gz"))
table_of = cache(lambda name: build_table(rows_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_runs_say(name):
    assert markdown(table_of(name)) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_asks_for_what_was_run(name):
    """Every row, at its rates and seeds; and every run there is with the flags that it had then."""
    asked = read_yaml(RESULTS / f"{name}.yaml", "a sweep")
    for entry, row in zip(asked["configurations"], rows_of(name), strict=True):
        rates = [float(rate) for rate in entry.get("lr", asked["lr"])]
        seeds = [int(seed) for seed in asked["seeds"]]
        trained = row.finals[0].rate is not None
        wanted = [(rate, seed) for rate in rates for seed in seeds] if trained else [(None, seeds[0])]
        assert [(run.rate, run.seed) for run in row.finals] == wanted
        assert [run.rate for run in row.searches] == (rates if trained and len(rates) > 1 else [])
        assert (entry["name"], row.compare_to) == (row.name, asked["compare_to"])
        for runs, more in ((row.searches, asked.get("search", {})), (row.finals, {})):
            flags = {**asked["flags"], **entry, **more}
            if runs is row.searches and row.pruning == CONTROL:  # its namesake's
                flags = {key: flags[key] for key in flags if key not in ("pruned_model_path", "allow_dense")}
            for run in (run for run in runs if run.outcome):
                had = {**run.outcome.run["arguments"], "name": entry["name"]}
                flags |= {"lr": str(had["lr"]), "sparsity": had["sparsity"]}
                assert {key: plain(had[key]) for key in flags} == {key: plain(flags[key]) for key in flags}
                assert (run.rate, run.seed) == (had["lr"] if trained else None, had["train_seed"])


def plain(value: object) -> object:
    """A value as the file or a record has it; of a path its last name."""
    try:
        return float(str(value))
    except ValueError:
        return str(value).rpartition("/")[2].replace("FOLDER", "data").lower()


def written(value: dict | float | None, digits: int, times: float) -> str:
    """A mean and its error as the document has them."""
    found = value if isinstance(value, dict) else {"value": value, "stderr": None}
    error = "" if found["stderr"] is None else f" ± {found['stderr'] * times:.{digits}f}"
    return "" if found["value"] is None else f"{found['value'] * times:.{digits}f}{error}"


def cells_of(text: str) -> list[list[str]]:
    """The cells of Markdown table lines."""
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:2] == "| "]


COLUMNS = {"valid_loss": (3, 1), "perplexity": (2, 1), "answer_bits": (3, 1), "kl": (3, 1), "task_mean": (1, 100)}


@pytest.mark.parametrize("name", NAMES)
def test_the_document_says_what_the_table_says(name):
    known = {tuple(written(row[key], *how) for key, how in COLUMNS.items()): row for row in table_of(name)["rows"]}
    models = [{key: written(each.get(key), *how) for key, how in COLUMNS.items()} for each in table_of(name)["models"]]
    (section,) = [each for each in re.split(r"\n## ", (RESULTS.parent / "results.md").read_text("utf-8"))
                  if f"(results/{name}.json.gz)" in each]  # fmt: skip
    rows = [row for row in cells_of(section) if len(row) > 6 and row[0] != "trained"]
    assert len(rows) >= 4
    for label, numbers, zeros, rate, *rest in rows:
        cells = tuple(rest[-5:])
        if label == "dense model":
            assert cells == tuple(models[0].values())
            continue
        if label.startswith("nothing") and ("", *cells[1:]) in known:  # of a version that did not validate it
            assert cells[0] == models[1]["valid_loss"]
            cells = ("", *cells[1:])
        assert cells in known, (label, cells)
        row = known[cells]
        assert numbers.replace(",", "") == str(row["trained_parameters"])
        assert rate == ("–" if row["rate"] is None else f"{row['rate']:.0e}".replace("e-0", "e-"))
        assert len(rest) == 5 or rest[0] == str(row["done"])
        if "kept" in zeros or "lost" in zeros:
            assert ("kept" in zeros) == (row["zeros_kept"] == 1)


def test_the_readme_says_what_the_tables_say():
    text = (RESULTS.parents[1] / "README.md").read_text("utf-8").partition("| [measured]")[2].partition("\n\n")[0]
    columns = {**COLUMNS, "perplexity": (1, 1)}
    del columns["kl"]
    for label, _, *cells in cells_of(text)[2:]:
        for name, four in (("wanda-50", cells[:4]), ("sparsegpt-2-4", cells[4:])):
            rows = [
                {key: {**(row[key] or {"value": None}), "stderr": None} for key in columns}
                for row in table_of(name)["rows"]
            ]
            known = [tuple(written(row[key], *how) for key, how in columns.items()) for row in rows]
            for one in zip(*(cell.split(" / ") for cell in four), strict=True):
                assert one in known, (label, name, one)
