"""The lines of a comparison, read from runs' files alone: one a run, or one a row of a sweep over all its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from utils.common.errors import UserError, first_line
from utils.evaluation.outcome import COMPARED, Measure, Outcome, difference, read_outcome
from utils.report.summary import shown_name
from utils.sweep.grid import PLACES, SweepRow, SweepRun
from utils.sweep.sweep_files import FILE, read
from utils.sweep.table import table_row

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
        kept = folder / FILE if folder.is_dir() else folder
        if kept.is_file():
            lines += _of_sweep(read(kept), notes)
        else:
            lines.append(_of_run(folder, names[place]))
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


def _of_sweep(rows: list[SweepRow], notes: list[str]) -> list[Line]:
    lines = []
    for row in rows:
        entry = table_row(row, row.rate, row.outcomes) if row.outcomes else None
        ended = {run.id: run.said for run in (*row.searches, *row.chosen) if run.said is not None}
        if entry or ended:
            lines.append(Line(row.name, row.pruning, entry, row.outcomes, list(ended.values())))
        else:
            notes.append(f"{row.name}, {row.pruning}: no run is done yet")
    return lines


def _of_run(folder: Path, name: str) -> Line:
    """A run of its own, whether a sweep made it or not."""
    if not all((folder / part).is_file() for part in PARTS):
        raise UserError(f"RUN: {folder} holds no run (results.json, run.json) and no sweep; give an -output_dir")
    try:
        outcome = read_outcome(folder)
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"RUN: {folder} cannot be read as a run ({first_line(error)}); copy it again") from error
    check_record(folder, outcome)
    rate = outcome.run.get("arguments", {}).get("lr") if outcome.run.get("method", {}).get("parameters") else None
    run = SweepRun(folder.name, rate, outcome.seed, outcome=outcome)
    row = SweepRow(name, _pruning(outcome), "", None, (), (run,))
    return Line(name, row.pruning, table_row(row, rate, [outcome]), [outcome])


PARTS = {
    "results.json": (
        "scores", "metrics", "main_metric", "mean", "answers", "agreement", "recovered", "validation", "proof",
    ),
    "run.json": ("arguments", "method", "models", "pruning", "seeds"),
}  # fmt: skip
"""What a comparison reads of a run's files, where they have it: objects all."""


def check_record(folder: Path, outcome: Outcome) -> None:
    """UserError if a part of the run's files is not what a run writes there."""
    for (file, parts), content in zip(PARTS.items(), (outcome.results, outcome.run), strict=True):
        wrong = next((name for name in parts if not isinstance(content.get(name) or {}, dict)), None)
        if wrong:
            raise UserError(f"RUN: {folder / file}: {wrong} is no object; copy the run's folder again")


def _pruning(outcome: Outcome) -> str:
    """The pruned model in a word or two."""
    pruning, models = outcome.run.get("pruning") or {}, outcome.run.get("models") or {}
    if models.get("pruned"):
        return shown_name(models["pruned"])
    return f"{pruning['method']} {pruning.get('sparsity')}" if pruning.get("method") else "pruned elsewhere"


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
