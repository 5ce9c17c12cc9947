"""The lines of a comparison, read from runs' files alone: one a run, or one a row of a sweep over all its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from utils.common.errors import UserError
from utils.report.summary import shown_name
from utils.sweep.runs import DONE, FAILED, PLACES, ROWS, Member, Row, read_json
from utils.sweep.table import Outcome, chosen_runs, finished_runs, row_difference, table_row

SEEDS = ("train_seed", "seed")
"""Arguments that tell the runs of one line apart, and no lines."""


@dataclass
class Line:
    """One line. entry: what a sweep's table has of it; None where no run of it is done. failed: how runs of it failed.

    outcomes: its finished runs, one a seed.
    """

    name: str
    pruning: str
    entry: dict | None
    outcomes: list[Outcome]
    failed: list[str] = field(default_factory=list)


def read_lines(folders: Sequence[Path]) -> tuple[list[Line], list[str]]:
    """(lines, notes) of runs' folders, or of sweeps' ones; UserError for a folder that is neither."""
    lines: list[Line] = []
    notes: list[str] = []
    for folder in folders:
        content = read_json(folder / ROWS)
        if content is not None and isinstance(content.get("rows"), list):
            lines += _of_sweep(folder, [Row.from_json(each) for each in content["rows"]], notes)
        else:
            lines.append(_of_run(folder, notes))
    names = [line.name for line in lines]
    for place, line in enumerate(lines):
        if names.count(line.name) > 1 and len({other.pruning for other in lines if other.name == line.name}) == 1:
            line.name = f"{line.name} ({1 + names[:place].count(line.name)})"
    return lines, list(dict.fromkeys(notes))


def _of_sweep(folder: Path, rows: list[Row], notes: list[str]) -> list[Line]:
    found = finished_runs(folder, rows)
    lines = []
    for row in rows:
        rate, outcomes = chosen_runs(folder, row, found)
        entry = table_row(folder, row, rate, outcomes, found, notes) if outcomes else None
        members = {each.id: each for each in (*row.searches, *row.at(rate))}
        failed = [text for each in members if (text := failure(folder / each))]
        if outcomes or failed:
            lines.append(Line(row.name, row.pruning, entry, outcomes, failed))
        else:
            notes.append(f"{row.name}, {row.pruning}: no run is done yet")
    return lines


def _of_run(folder: Path, notes: list[str]) -> Line:
    """A run of its own, whether a sweep made it or not."""
    name = folder.resolve().name
    whole = all(read_json(folder / part) is not None for part in ("results.json", "run.json"))
    if not whole:
        failed = failure(folder)
        if failed is None:
            raise UserError(f"RUN: {folder} holds no run (results.json, run.json) and no sweep; give an -output_dir")
        return Line(name, "", None, [], [failed])
    outcome = Outcome(folder, read_json(folder / DONE) or {})
    arguments = outcome.run.get("arguments") or {}
    if "seconds" not in outcome.record:
        seconds = sum(stage["seconds"] for stage in outcome.run.get("stages") or [])
        outcome = Outcome(folder, {**outcome.record, "seconds": seconds})
    rate = arguments.get("lr") if (outcome.run.get("method") or {}).get("parameters") else None
    seed = (outcome.run.get("seeds") or {}).get("training", outcome.run.get("seed")) or 0
    member = Member(name, rate, seed)
    row = Row(name, _pruning(outcome), None, (), (member,))
    entry = table_row(folder.parent, row, rate, [outcome], {name: outcome}, notes)
    return Line(name, row.pruning, entry, [outcome])


def _pruning(outcome: Outcome) -> str:
    """The pruned model in a word or two."""
    pruning, models = outcome.run.get("pruning") or {}, outcome.run.get("models") or {}
    if models.get("pruned"):
        return shown_name(models["pruned"])
    return f"{pruning['method']} {pruning.get('sparsity')}" if pruning.get("method") else "pruned elsewhere"


def failure(folder: Path) -> str | None:
    """How the run in `folder` failed, in a line; None if it did not."""
    record = read_json(folder / FAILED)
    if record is None:
        return None
    last = next((str(line) for line in reversed(record.get("output") or []) if str(line).strip()), "")
    return f"exit status {record.get('exit_status')}" + (f": {last.strip()[:200]}" if last else "")


def flags_that_vary(lines: Sequence[Line]) -> dict[str, list[object]]:
    """Flag → its value in each line (None where it has no run), of those that are not the same in all."""
    given = [(line.outcomes[0].run.get("arguments") or {}) if line.outcomes else {} for line in lines]
    names = dict.fromkeys(name for arguments in given for name in arguments if name not in (*PLACES, *SEEDS))
    found = {name: [arguments.get(name) for arguments in given] for name in names}
    return {
        name: values
        for name, values in found.items()
        if len({str(v) for v, g in zip(values, given, strict=True) if g}) > 1
    }


def pairs(lines: Sequence[Line]) -> list[dict]:
    """{"one", "other": places of two lines, "differences": [{"what", "difference", "stderr"}]} over the same rows.

    The first line's minus the second's, each question's answers averaged over seeds first; what was not scored on the
    same rows is left out, and a pair with nothing left.
    """
    found = []
    for (one, first), (other, second) in combinations(enumerate(lines), 2):
        differences = []
        for what, asked in _asked(first).items():
            if asked and first.outcomes and second.outcomes:
                try:
                    difference = row_difference(first.outcomes, second.outcomes, asked)
                except (UserError, ValueError):
                    continue
                if difference is not None:
                    differences.append({"what": what, **difference})
        if differences:
            found.append({"one": one, "other": other, "differences": differences})
    return found


def _asked(line: Line) -> dict[str, list[tuple[str, str]]]:
    """What two lines are held against each other on: the tasks' mean, the perplexity, and each task's main metric."""
    if not line.outcomes:
        return {}
    outcome = line.outcomes[0]
    asked = {}
    if len(outcome.accuracies) > 1:
        asked["mean of tasks"] = outcome.accuracies
    if outcome.perplexity:
        asked["perplexity"] = [outcome.perplexity]
    main = outcome.results.get("main_metric") or {}
    return asked | {f"{task}, {metric}": [(task, metric)] for task, metric in main.items()}
