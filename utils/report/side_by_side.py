"""The page of several runs: a table that sorts, paired differences, and pictures with the front; and CSV of both."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.report.charts import Point, front_picture
from utils.report.page import render
from utils.report.summary import hide_home
from utils.report.svg import Drawing
from utils.report.tables import DASH, Score, judged


@dataclass(frozen=True)
class Column:
    """A number of each line. digits: decimals, None for as many as there are. lower: whether lower is better, None
    where neither is. factor: what a value is shown as a multiple of. measured: whether it says how good a line is.
    """

    heading: str
    digits: int | None = None
    lower: bool | None = None
    factor: int = 1
    measured: bool = False


NUMBERS = {
    "trained_parameters": Column("trained parameters", 0, True),
    "zeros_kept": Column("zeros kept, %", 1, False, 100),
    "rate": Column("rate"),
    "recovered": Column("recovered of tasks, %", 1, False, 100, measured=True),
    "recovered_answers": Column("recovered of right answers, %", 1, False, 100, measured=True),
    "recovered_perplexity": Column("recovered of perplexity, %", 1, False, 100, measured=True),
    "task_mean": Column("task mean, % ↑", 1, False, 100, measured=True),
    "perplexity": Column("perplexity ↓", 2, True, measured=True),
    "forgetting": Column("forgetting ↓", 2, True, measured=True),
    "valid_loss": Column("validation loss ↓", 3, True, measured=True),
    "answer_bits": Column("answer bits per byte ↓", 3, True, measured=True),
    "flipped": Column("answers flipped, % ↓", 1, True, 100, measured=True),
    "kl": Column("KL from dense ↓", 3, True, measured=True),
    "minutes": Column("minutes", 1, True),
}
"""By the names that a sweep's table has for them."""


@dataclass
class Line:
    """A run, or the runs of one configuration with several seeds.

    pruning: the pruned model. kind: what a merge of it may touch. n: finished runs. failed: how others ended. cells:
    Column's name → number, in the unit of its heading, with an error over seeds or else over questions.
    """

    name: str
    pruning: str = ""
    kind: str = ""
    n: int = 0
    failed: Sequence[str] = ()
    cells: dict[str, Score] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether no zero was lost."""
        return self.cells.get("zeros_kept", Score(100)).value >= 100

    def text(self, name: str, column: Column) -> str:
        """A cell: large values whole; and zeros of which some were lost never look like all of them."""
        if not (score := self.cells.get(name)):
            return DASH
        digits = 0 if abs(score.value) >= 1000 else column.digits
        parts = (each for each in (score.value, score.stderr) if each is not None)
        text = " ± ".join(f"{each:g}" if digits is None else f"{each:,.{digits}f}" for each in parts)
        return "< 100" if name == "zeros_kept" and text == "100.0" and not self.kept else text


@dataclass(frozen=True)
class Difference:
    """A line's minus another's, paired over the same n rows.

    error: over rows. seeds: over the differences of each seed, None for fewer than two. lower: whether lower is better.
    """

    what: str
    value: float
    error: float | None
    seeds: float | None
    n: int
    lower: bool | None

    @property
    def text(self) -> str:
        """The difference and its errors, with as many decimals as show two digits of the first."""
        scale = self.error or abs(self.value) / 100 or 1
        digits = min(6, max(0, 1 - math.floor(math.log10(scale))))
        errors = [f" ± {error:.{digits}f}" for error in (self.error, self.seeds) if error is not None]
        return f"{self.value:{'+' * bool(self.value)}.{digits}f}".replace("-", "−") + "".join(errors)

    @property
    def verdict(self) -> str:
        """Better or worse is what lies beyond twice both errors together."""
        error = None if self.error is None else math.hypot(self.error, self.seeds or 0)
        return judged(Score(self.value, error), None if self.lower is None else not self.lower)


Pairs = dict[tuple[int, int], list[Difference]]
"""(place of a line, place of another) → differences of the first's minus the second's."""


def compared_page(lines: Sequence[Line], pairs: Pairs, notes: Sequence[str], stem: str) -> str:
    """The HTML file. stem: what the names of the files beside it begin with."""
    done, failed = sum(line.n > 0 for line in lines), sum(bool(line.failed) for line in lines)
    title = f"{done} configuration{'s' * (done > 1)} compared" if done else "No configuration is done"
    told = [[*two, [(d.what, d.text, f"{d.n:,}", d.verdict) for d in found]] for two, found in pairs.items()]
    content = {
        "title": title + (f", {failed} with failed runs" if failed else ""), "columns": columns_of(lines),
        "lines": lines, "pictures": pictures_of(lines), "notes": notes, "stem": stem,
        "data": {"names": names_of(lines), "pairs": told},
    }  # fmt: skip
    return hide_home(render("compare.html.j2", content))


def names_of(lines: Sequence[Line]) -> list[str]:
    """Each line's name, with its pruned model where there are several."""
    several = len({line.pruning for line in lines if line.n}) > 1
    return [f"{line.name} ({line.pruning})" if several and line.pruning else line.name for line in lines]


def columns_of(lines: Sequence[Line]) -> dict[str, Column]:
    """The columns that any line has a number for."""
    return {name: column for name, column in NUMBERS.items() if any(name in line.cells for line in lines)}


def pictures_of(lines: Sequence[Line]) -> dict[str, Drawing]:
    """By what they show: each measure against the trained parameters, with the front.

    The measure that most lines have is the first, a recovered share before others.
    """
    columns = columns_of(lines)
    measures = [name for name, column in columns.items() if column.measured]
    measures.sort(key=lambda name: (not name.startswith("recovered"), -sum(name in line.cells for line in lines)))
    x, drawn = "trained_parameters", []
    for y in measures if x in columns else ():
        both = [line for line in lines if x in line.cells and y in line.cells]
        points = [
            Point(name, line.cells[x].value, line.cells[y].value, line.cells[y].stderr, line.kept)
            for name, line in zip(names_of(both), both, strict=True)
        ]
        drawn.append(front_picture(points, columns[x].heading, columns[y].heading, True, columns[y].lower))
    return {picture.label: picture for picture in drawn if picture}


def table_csv(lines: Sequence[Line]) -> str:
    """A line of numbers a line of the table, each in full."""
    columns = columns_of(lines)
    rows = [
        ["name", "pruning", "class", "n", "failed", *(f"{name}{end}" for name in columns for end in ("", "_stderr"))]
    ]
    for line in lines:
        scores = [line.cells.get(name, Score(None)) for name in columns]
        values = [part for score in scores for part in (score.value, score.stderr)]
        rows.append([line.name, line.pruning, line.kind, line.n, len(line.failed), *values])
    return _csv(rows)


def pairs_csv(lines: Sequence[Line], pairs: Pairs) -> str:
    """A line a pair and measure: whose difference it is, and over how many rows."""
    rows, names = (
        [["name", "minus", "over_the_same_rows", "difference", "stderr", "stderr_seeds", "n"]],
        names_of(lines),
    )
    for (one, other), found in pairs.items():
        rows += [[names[one], names[other], each.what, each.value, each.error, each.seeds, each.n] for each in found]
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
