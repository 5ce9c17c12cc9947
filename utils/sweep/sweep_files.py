"""Look up runs in a sweep's folder, and write and read the one file that keeps all data of its table."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from utils.common.errors import DAMAGED, explain
from utils.common.files import read_json
from utils.common.names import DIVERGED
from utils.evaluation.outcomes import Outcome, kept_rows, read_compressed, read_outcome, write_compressed
from utils.report.summary import hide_path
from utils.sweep.grid import SweepRow, SweepRun

FILE = "runs.json.gz"  # in a sweep's folder: its rows, as `write` writes them
_read_once = cache(read_outcome)  # nothing changes a run that is done


def look(rows: list[SweepRow], output: Path) -> list[SweepRow]:
    """The rows updated from `output`, which has each run's result in the folder ID, and what it printed in ID.log."""
    return [each_run(row, lambda run: _looked_up(run, output / run.id, output / f"{run.id}.log")) for row in rows]


def _looked_up(run: SweepRun, folder: Path, log: Path) -> SweepRun:
    try:  # done if there are results of the same arguments
        had = read_json(folder / "run.json")["arguments"].items()
        done = (folder / "results.json").is_file() and run.arguments.items() <= had
    except DAMAGED:
        done = False
    if done or not log.is_file():
        with explain(f"-output_dir: {folder}: a file is damaged", "rename it, and the run is made again", DAMAGED):
            return replace(run, outcome=_read_once(folder) if done else None, said=None, diverged=False)
    lines = printed(log)
    diverged = any(line.startswith("error: -lr: ") and DIVERGED in line for line in lines)
    return replace(run, said=lines[-1], diverged=diverged)


def printed(log: Path) -> list[str]:
    """The lines that a run printed; each state of a progress bar is one."""
    return re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())


def write(rows: list[SweepRow], path: Path) -> None:
    """Write the rows, whole, without the folders of this machine; the same ones always give the same bytes."""
    write_compressed(path, [each_run(row, _moved) for row in rows])


def read(path: Path) -> list[SweepRow]:
    """Read the rows that `write` wrote; UserError if the file is not one of those."""
    return read_compressed(path, lambda rows: [each_run(SweepRow(**row), _read) for row in rows], f"a sweep's {FILE}")


def each_run(row: SweepRow, change: Callable) -> SweepRow:
    """The row with each of its runs changed."""
    return replace(row, searches=tuple(map(change, row.searches)), finals=tuple(map(change, row.finals)))


def _moved(run: SweepRun) -> SweepRun:
    """The run without what only this machine knows."""
    outcome = run.outcome and replace(run.outcome, run=_named(run.outcome.run))
    said = run.said and " ".join(_named(run.said.split(" ")))
    return replace(run, words=(), arguments={}, outcome=outcome, said=said)


def _named(value: object) -> object:
    """The value with each path in it cut to its last name."""
    if isinstance(value, dict):
        return {name: _named(each) for name, each in value.items()}
    if isinstance(value, list):
        return list(map(_named, value))
    # A path that begins with ../ is cut as an absolute one is.
    return hide_path(value if value[:3] != "../" else f"/{value}") if isinstance(value, str) else value


def _read(run: dict) -> SweepRun:
    if outcome := run["outcome"]:
        outcome = Outcome(outcome["results"], outcome["run"], kept_rows(outcome["rows"]))
    return SweepRun(**{**run, "outcome": outcome})
