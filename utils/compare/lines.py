"""The lines of a comparison, read from runs' files alone: one a run, or one a row of a sweep over all its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from utils.common.errors import UserError, first_line
from utils.report.summary import shown_name
from utils.sweep.differences import COMPARED, Measure, difference
from utils.sweep.outcome import Outcome
from utils.sweep.runs import DONE, FAILED, PLACES, ROWS, Member, Row, read_json
from utils.sweep.table import chosen_runs, finished_runs, table_row

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
    given = {folder.resolve(): folder for folder in folders}
    if len(given) < len(folders):
        notes.append(f"{len(folders) - len(given)} of the folders were given more than once; each is shown once")
    names = _told_apart(list(given))
    for place, folder in given.items():
        content = read_json(folder / ROWS)
        if content is not None and isinstance(content.get("rows"), list):
            lines += _of_sweep(folder, content["rows"], notes)
        else:
            lines.append(_of_run(folder, names[place], notes))
    shown = [(line.name, line.pruning) for line in lines]
    for place, line in enumerate(lines):
        if shown.count(shown[place]) > 1:
            line.name = f"{line.name} ({1 + shown[:place].count(shown[place])})"
    return lines, list(dict.fromkeys(notes))


def _told_apart(folders: Sequence[Path]) -> dict[Path, str]:
    """A name of each folder: its own, with as many of those above it as tell it from the others."""
    found = {}
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        count = next(n for n in range(1, len(folder.parts) + 1) if all(o[-n:] != folder.parts[-n:] for o in others))
        found[folder] = "/".join(folder.parts[-count:])
    return found


def _of_sweep(folder: Path, content: list, notes: list[str]) -> list[Line]:
    try:
        rows = [Row.from_json(each) for each in content]
    except (TypeError, KeyError) as error:
        said = f"RUN: {folder / ROWS} is no list of a sweep's rows ({first_line(error)})"
        raise UserError(f"{said}; copy the sweep's folder again") from error
    found = finished_runs(folder, rows)
    lines = []
    for outcome in found.values():
        check_record(outcome)
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


def _of_run(folder: Path, name: str, notes: list[str]) -> Line:
    """A run of its own, whether a sweep made it or not."""
    whole = all(read_json(folder / part) is not None for part in ("results.json", "run.json"))
    if not whole:
        failed = failure(folder)
        if failed is None:
            raise UserError(f"RUN: {folder} holds no run (results.json, run.json) and no sweep; give an -output_dir")
        return Line(name, "", None, [], [failed])
    outcome = Outcome(folder, read_json(folder / DONE) or {})
    check_record(outcome)
    arguments = outcome.run.get("arguments") or {}
    if "seconds" not in outcome.record:
        seconds = sum(stage["seconds"] for stage in outcome.run.get("stages") or [])
        outcome = Outcome(folder, {**outcome.record, "seconds": seconds})
    rate = arguments.get("lr") if (outcome.run.get("method") or {}).get("parameters") else None
    member = Member(folder.name, rate, outcome.seed)
    row = Row(name, _pruning(outcome), None, (), (member,))
    entry = table_row(folder.parent, row, rate, [outcome], {member.id: outcome}, notes)
    return Line(name, row.pruning, entry, [outcome])


PARTS = {
    "results.json": (
        "scores", "metrics", "main_metric", "mean", "answers", "agreement", "recovered", "validation", "proof",
    ),
    "run.json": ("arguments", "method", "models", "pruning", "seeds"),
}  # fmt: skip
"""What a comparison reads of a run's files, where they have it: objects all."""


def check_record(outcome: Outcome) -> None:
    """UserError if a part of the run's files is not what a run writes there."""
    for (file, parts), content in zip(PARTS.items(), (outcome.results, outcome.run), strict=True):
        wrong = next((name for name in parts if not isinstance(content.get(name) or {}, dict)), None)
        if wrong:
            raise UserError(f"RUN: {outcome.folder / file}: {wrong} is no object; copy the run's folder again")


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
    status = record.get("exit_status")
    how = "exit status unknown" if status is None else f"exit status {status}"
    return how + (f": {last.strip()[:200]}" if last else "")


def flags_that_vary(lines: Sequence[Line]) -> dict[str, list[object]]:
    """Flag → its value in each line (None where it has no run), of those that are not the same in all.

    -lr is the rate that the line's runs were trained at: None where nothing was trained.
    """
    given = [(line.outcomes[0].run.get("arguments") or {}) if line.outcomes else {} for line in lines]
    given = [
        {**arguments, "lr": line.entry["rate"]} if arguments else {}
        for line, arguments in zip(lines, given, strict=True)
    ]
    names = dict.fromkeys(name for arguments in given for name in arguments if name not in (*PLACES, *SEEDS))
    found = {name: [arguments.get(name) for arguments in given] for name in names}
    return {
        name: values
        for name, values in found.items()
        if len({str(v) for v, g in zip(values, given, strict=True) if g}) > 1
    }


def pairs(lines: Sequence[Line]) -> list[tuple[int, int, dict[Measure, dict]]]:
    """(place of a line, place of another, measure → `difference` of the first's minus the second's).

    What was not scored on the same rows is left out, and a pair with nothing left.
    """
    found = []
    for (one, first), (other, second) in combinations(enumerate(lines), 2):
        differences = {}
        for measure in _measures(first) if second.outcomes else ():
            try:
                apart = difference(first.outcomes, second.outcomes, measure)
            except (UserError, ValueError):
                continue
            if apart is not None:
                differences[measure] = apart
        if differences:
            found.append((one, other, differences))
    return found


def _measures(line: Line) -> list[Measure]:
    """COMPARED, and each task's main metric; a perplexity stands once, and no single task is a mean of tasks."""
    if not line.outcomes:
        return []
    outcome = line.outcomes[0]
    named = [name for name in COMPARED if name != "task_mean" or len(outcome.accuracies) > 1]
    main = (outcome.results.get("main_metric") or {}).items()
    return [*named, *(each for each in main if each != outcome.perplexity)]
