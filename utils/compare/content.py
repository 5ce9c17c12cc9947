"""What a comparison's page and files show, as JSON: columns, lines, pairs, and curves over flags."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from utils.common.files import without_nan
from utils.compare.lines import Line, Measure, flags_that_vary, pairs
from utils.report.summary import hide_path
from utils.report.tables import ARROWS, SHARES
from utils.sweep.table_text import CLASSES


@dataclass(frozen=True)
class Column:
    """A column of the table, and an axis of a picture.

    digits: decimals, None for as many as there are. lower: whether lower is better, None where neither is. percent:
    whether it is shown as a hundred times what a sweep's table has. log: whether an axis is logarithmic.
    """

    heading: str
    digits: int | None
    lower: bool | None
    percent: bool = False
    log: bool = False

    @property
    def factor(self) -> int:
        return 100 if self.percent else 1


COLUMNS = {
    "trained_parameters": Column("trained numbers", 0, lower=True, log=True),
    "zeros_kept": Column("zeros kept, %", 1, lower=False, percent=True),
    "rate": Column("rate", None, lower=None, log=True),
    "recovered": Column("recovered of tasks, %", 1, lower=False, percent=True),
    "recovered_answers": Column("recovered of right answers, %", 1, lower=False, percent=True),
    "recovered_perplexity": Column("recovered of perplexity, %", 1, lower=False, percent=True),
    "task_mean": Column("task mean, % ↑", 1, lower=False, percent=True),
    "perplexity": Column("perplexity ↓", 2, lower=True),
    "forgetting": Column("forgetting ↓", 2, lower=True),
    "valid_loss": Column("validation loss ↓", 3, lower=True),
    "answer_bits": Column("answer bits a byte ↓", 3, lower=True),
    "flipped": Column("answers unlike dense, % ↓", 1, lower=True, percent=True),
    "kl": Column("KL from dense ↓", 3, lower=True),
    "minutes": Column("minutes", 1, lower=True),
}
"""By name in a sweep's table."""

RECOVERED = ("recovered", "recovered_answers", "recovered_perplexity")
"""What stands for a line, what most lines have first; then OTHERS, the first that any line has."""
OTHERS = ("task_mean", "perplexity", "answer_bits", "valid_loss", "minutes")


def cell(entry: dict | None, name: str) -> dict | None:
    """{"value", "error", "n"} of a column in its own unit; error over seeds, else over questions; None if unknown."""
    found = (entry or {}).get(name)
    if found is None:
        return None
    factor = COLUMNS[name].factor
    if not isinstance(found, dict):
        return {"value": factor * found, "error": None, "n": None}
    error = found["stderr"] if found["stderr"] is not None else found.get("stderr_questions")
    return {"value": factor * found["value"], "error": None if error is None else factor * error, "n": found["n"]}


def compared(lines: Sequence[Line], notes: Sequence[str]) -> dict:
    """All that the page and its files show, as JSON."""
    cells = [{name: cell(line.entry, name) for name in COLUMNS} for line in lines]
    columns = [name for name in COLUMNS if any(each[name] for each in cells)]
    several = len({line.pruning for line in lines if line.outcomes}) > 1
    shown = []
    for line, found in zip(lines, cells, strict=True):
        shown.append(
            {
                "name": line.name,
                "pruning": line.pruning,
                "label": f"{line.name} ({line.pruning})" if several and line.pruning else line.name,
                "class": _class(line),
                "n": len(line.outcomes),
                "failed": [hide_path(text) for text in line.failed],
                "kept": found["zeros_kept"] is None or found["zeros_kept"]["value"] >= 100,
                "cells": {name: found[name] for name in columns},
            }
        )
    flags = {
        name: [hide_path(value) if isinstance(value, str) else value for value in values]
        for name, values in flags_that_vary(lines).items()
    }
    curves = curves_of(flags)
    return without_nan(
        {
            "columns": [{"name": name, **asdict(COLUMNS[name])} for name in columns],
            "lines": shown,
            **_pairs(lines),
            "flags": flags,
            "curves": curves,
            "flag": next(iter(curves), None),
            "notes": list(notes),
            **chosen_axes(columns, cells),
        }
    )


def chosen_axes(columns: Sequence[str], cells: Sequence[dict]) -> dict[str, str | None]:
    """{"across", "up"}: the columns that pictures have at first; trained numbers and a recovered share if known."""
    across = "trained_parameters" if "trained_parameters" in columns else next(iter(columns), None)
    known = {name: sum(each[name] is not None for each in cells) for name in RECOVERED}
    shares = sorted((name for name in RECOVERED if known[name]), key=lambda name: -known[name])
    return {"across": across, "up": next((name for name in (*shares, *OTHERS) if name in columns), across)}


def _class(line: Line) -> str:
    """What a merge of the line's runs may touch."""
    kind = (line.entry or {}).get("class")
    return "changes nothing" if kind == "nothing" else CLASSES.get(kind, "")


def _pairs(lines: Sequence[Line]) -> dict:
    """{"measures": [{"what", "lower"}], "pairs": [{"one", "other", "found": [numbers, …]}]}.

    numbers: [place of the measure, difference, stderr, stderr_seeds, n], in the unit of the table. lower: whether lower
    is better, None where that is not known.
    """
    places: dict[Measure, int] = {}
    measures, found = [], []
    for one, other, differences in pairs(lines):
        rows = []
        for measure, apart in differences.items():
            what, factor, lower = _measure(lines[one], measure)
            if measure not in places:
                places[measure] = len(measures)
                measures.append({"what": what, "lower": lower})
            numbers = [apart[name] for name in ("difference", "stderr", "stderr_seeds")]
            numbers = [None if number is None else _short(factor * number) for number in numbers]
            rows.append([places[measure], *numbers, apart["n"]])
        found.append({"one": one, "other": other, "found": rows})
    return {"measures": measures, "pairs": found}


def _measure(line: Line, measure: Measure) -> tuple[str, int, bool | None]:
    """(heading, factor, whether lower is better)."""
    if isinstance(measure, str):
        column = COLUMNS[measure]
        return column.heading, column.factor, column.lower
    task, metric = measure
    known = (line.outcomes[0].results.get("metrics") or {}).get(task, {}).get(metric) or {}
    higher, percent = known.get("higher_is_better"), metric.startswith(SHARES)
    what = f"{task}, {metric}{', %' if percent else ''}{ARROWS[higher]}"
    return what, 100 if percent else 1, None if higher is None else not higher


def _short(value: float) -> float:
    """To 7 digits: sixty runs have 1770 pairs."""
    return float(f"{value:.7g}")


def curves_of(flags: dict[str, list[object]]) -> dict[str, dict]:
    """Flag → {"values": a number a line or None, "groups": a number a line}, of flags that have two numbers; no seeds.

    flags: a value a line of each that varies. A curve joins the lines of a group: alike in all other flags but -lr,
    which is found anew, and numbers that go one to one with the flag's, as -lora_alpha may with -lora_rank. The flag
    with the longest curves is the first.
    """
    numbers = {name: [_number(value) for value in given] for name, given in flags.items()}
    found = {}
    for flag, values in numbers.items():
        known = {value for value in values if value is not None}
        if len(known) < 2 or flag.endswith("seed") or not re.fullmatch(r"\w+", flag, re.ASCII):
            continue
        others = [name for name in flags if name not in (flag, "lr") and not _tied(values, numbers[name])]
        alike = [tuple(str(flags[name][place]) for name in others) for place in range(len(values))]
        places = {each: place for place, each in enumerate(dict.fromkeys(alike))}
        found[flag] = {"values": values, "groups": [places[each] for each in alike]}
    return dict(sorted(found.items(), key=lambda item: -_joined(**item[1])))


def _tied(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    """Whether each number of one has a single number of the other, and the other way round."""
    both = {pair for pair in zip(one, other, strict=True) if pair[0] is not None}
    firsts, seconds = ({pair[place] for pair in both} for place in (0, 1))
    return None not in seconds and len(both) == len(firsts) == len(seconds)


def _joined(values: Sequence[float | None], groups: Sequence[int]) -> int:
    """Between how many places of a picture its curves lead."""
    places = {(group, value) for group, value in zip(groups, values, strict=True) if value is not None}
    return len(places) - len({group for group, _ in places})


def _number(value: object) -> float | None:
    """A flag's number, "0.5" too; None for a word, a switch and what is not finite."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
