"""Many runs on one page, with its first picture as SVG and all numbers as CSV beside it.

python -m utils.compare RUN… -output FILE.html
python -m utils.compare SWEEP -output FILE.html       a sweep's folder, or its runs.json.gz
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError, first_line
from utils.common.files import write_text
from utils.evaluation.compared_runs import COMPARED, Measure, Outcome, difference, read_outcome
from utils.report.charts import Point, front_picture
from utils.report.page import render
from utils.report.summary import hide_home, hide_path, shown_name
from utils.report.svg import Drawing
from utils.report.tables import ARROWS, DASH, SHARES, Score, judged
from utils.sweep.grid import SweepRow, SweepRun
from utils.sweep.sweep_files import FILE, read
from utils.sweep.table import CLASSES, table_row

OURS = {
    ".csv": "name,pruning,class,n,failed",
    "-pairs.csv": "name,minus,over_the_same_rows",
    ".svg": 'class="chart alone"',
    ".html": "<title>RestoreLCC, runs compared</title>",
}
"""Ends of the names of the files that this command writes, and what stands at the beginning of each. The page is the
last: what it links to is there."""


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


def main() -> None:
    """Read, then write the page and its numbers."""
    parser = Parser(
        prog="utils.compare",
        usage="python -m utils.compare RUN… | SWEEP -output FILE.html",
        description="Compare runs, or the rows of a sweep, on one page: a table, paired differences, and pictures.",
    )
    parser.add_argument("folders", nargs="+", type=folder_path, metavar="RUN", help="folders of runs, or of sweeps")
    beside = "the page; FILE.csv, FILE-pairs.csv and FILE.svg are beside it"
    parser.flag("output", type=folder_path, required=True, metavar="FILE.html", help=beside)
    args = parser.parse_args()
    if args.output.suffix != ".html":
        raise UserError(f"-output: {args.output} is no page's name; give one that ends in .html")
    files = {end: args.output.with_name(f"{args.output.stem}{end}") for end in OURS}
    for end, path in files.items():
        if path.exists() and not (path.is_file() and OURS[end].encode() in path.read_bytes()[:2000]):
            raise UserError(f"-output: {path} is no earlier page or file of this command; give another name")
    rows, notes = read_runs(args.folders)
    if not rows:
        raise UserError(f"RUN: no run in {args.folders[0]} is done; wait for one, or give other folders")
    lines, pairs = lines_of(rows), pairs_of(rows)
    pictures = [picture.svg(alone=True) for picture in pictures_of(lines).values()]
    page = compared_page(lines, pairs, notes, args.output.stem)
    texts = [table_csv(lines), pairs_csv(lines, pairs), "".join(pictures[:1]), page]
    try:
        for path, text in zip(files.values(), texts, strict=True):
            if text:
                write_text(path, text)
    except OSError as error:
        raise UserError(f"-output: {args.output} cannot be written ({error.strerror}); name another file") from error
    print(f"page: {args.output}")


def read_runs(folders: Sequence[Path]) -> tuple[list[SweepRow], list[str]]:
    """(rows, notes) of runs' folders, or of sweeps' ones; UserError for a folder that is neither."""
    found: list[SweepRow] = []
    notes: list[str] = []
    given = {folder.resolve(): folder for folder in folders}
    if len(given) < len(folders):
        notes.append(f"{len(folders) - len(given)} of the folders were given more than once; each is shown once")
    for whole, folder in given.items():
        if not folder.is_dir() and folder.suffix != ".gz":
            raise UserError(f"RUN: {folder} is not a folder; give the -output_dir of runs or of a sweep, or its {FILE}")
        # A run's own name, with as many of those above it as tell it from the others.
        ends = (whole.parts[-n:] for n in range(1, len(whole.parts) + 1))
        own = next(end for end in ends if all(o == whole or o.parts[-len(end) :] != end for o in given))
        kept = folder / FILE if folder.is_dir() else folder
        try:
            rows = read(kept) if kept.is_file() else [_of_run(folder, "/".join(own))]
            lines_of(rows)  # whether they hold what they should
            pairs_of([row for row in rows if row.outcomes][:1] * 2)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            said = f"RUN: {folder}: its files hold what no run writes ({first_line(error)})"
            raise UserError(f"{said}; copy the folder again") from error
        for row in rows:
            if row.outcomes or failed(row):
                found.append(row)
            else:
                notes.append(f"{row.name}, {row.pruning}: no run is done yet")
    return found, list(dict.fromkeys(notes))


def failed(row: SweepRow) -> list[str]:
    """What the runs that ended without a result said, each once."""
    return list({run.id: run.said for run in (*row.searches, *row.chosen) if run.said is not None}.values())


def _of_run(folder: Path, name: str) -> SweepRow:
    """A run of its own, whether a sweep made it or not."""
    if not all((folder / part).is_file() for part in ("results.json", "run.json")):
        raise UserError(f"RUN: {folder} holds no run (results.json, run.json) and no sweep; give an -output_dir")
    outcome = read_outcome(folder)
    pruning, models = outcome.run.get("pruning") or {}, outcome.run.get("models") or {}
    how = f"{pruning['method']} {pruning.get('sparsity')}" if pruning.get("method") else "pruned elsewhere"
    how = shown_name(models["pruned"]) if models.get("pruned") else how
    trained = outcome.run.get("method", {}).get("parameters")
    rate = outcome.run.get("arguments", {}).get("lr") if trained else None
    return SweepRow(name, how, "", "", (), (SweepRun(folder.name, rate, outcome.seed, outcome=outcome),))


def lines_of(rows: Sequence[SweepRow]) -> list[Line]:
    """The page's lines; those of the same name and pruned model are numbered."""
    lines, names = [], [(row.name, row.pruning) for row in rows]
    for place, row in enumerate(rows, start=1):
        own = row.name, row.pruning
        name = row.name + f" ({names[:place].count(own)})" * (names.count(own) > 1)
        entry = table_row(row) if row.outcomes else {}
        cells = {name: _score(entry[name], NUMBERS[name].factor) for name in NUMBERS if entry.get(name) is not None}
        kind = "changes nothing" if entry.get("class") == "nothing" else CLASSES.get(entry.get("class"), "")
        lines.append(Line(name, row.pruning, kind, len(row.outcomes), [hide_path(text) for text in failed(row)], cells))
    return lines


def _score(found: dict | float, factor: int) -> Score:
    """A number of a sweep's table, its error over seeds or else over questions."""
    if not isinstance(found, dict):
        return Score(factor * found)
    error = found["stderr"] if found["stderr"] is not None else found.get("stderr_questions")
    return Score(factor * found["value"], None if error is None else factor * error)


def pairs_of(rows: Sequence[SweepRow]) -> Pairs:
    """The differences of each two rows in what was scored on the same questions; no pair without any."""
    pairs: Pairs = {}
    for (one, first), (other, second) in combinations(enumerate(rows), 2):
        for measure in _measures(first.outcomes[0]) if first.outcomes and second.outcomes else ():
            try:
                apart = difference(first.outcomes, second.outcomes, measure)
            except (UserError, ValueError):
                continue
            if apart is not None:
                what, factor, lower = _heading(first.outcomes[0], measure)
                parts = (apart[part] for part in ("difference", "stderr", "stderr_seeds"))
                numbers = [part if part is None else float(f"{factor * part:.7g}") for part in parts]
                pairs.setdefault((one, other), []).append(Difference(what, *numbers, apart["n"], lower))
    return pairs


def _measures(outcome: Outcome) -> list[Measure]:
    """COMPARED, and each task's main metric; a perplexity stands once, and no single task is a mean of tasks."""
    named = [name for name in COMPARED if name != "task_mean" or len(outcome.accuracies) > 1]
    main = (outcome.results.get("main_metric") or {}).items()
    return [*named, *(each for each in main if each != outcome.perplexity)]


def _heading(outcome: Outcome, measure: Measure) -> tuple[str, int, bool | None]:
    """(heading, factor, whether lower is better)."""
    if isinstance(measure, str):
        return NUMBERS[measure].heading, NUMBERS[measure].factor, NUMBERS[measure].lower
    task, metric = measure
    known = (outcome.results.get("metrics") or {}).get(task, {}).get(metric) or {}
    higher, percent = known.get("higher_is_better"), metric.startswith(SHARES)
    what = f"{task}, {metric}{', %' if percent else ''}{ARROWS[higher]}"
    return what, 100 if percent else 1, None if higher is None else not higher


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


if __name__ == "__main__":
    run(main)
