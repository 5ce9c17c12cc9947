"""Many runs on one page, with its first picture as SVG and all numbers as CSV beside it.

python -m utils.compare RUN… -output FILE.html
python -m utils.compare SWEEP -output FILE.html       a sweep's folder, or its runs.json.gz
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from itertools import combinations
from pathlib import Path

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import DAMAGED, UserError, explain
from utils.common.files import write_text
from utils.common.names import counted
from utils.evaluation.outcomes import COMPARED, Measure, Outcome, difference, read_outcome
from utils.report.charts import Point, front_picture
from utils.report.page import render
from utils.report.summary import shown_name
from utils.report.svg import Drawing
from utils.report.tables import ARROWS, DASH, SHARES, Score, judged
from utils.sweep.grid import SweepRow, SweepRun
from utils.sweep.sweep_files import FILE, read
from utils.sweep.table import CLASSES, apart, table_row

# Name endings of the files that this command writes, the page last, and the text by which each is recognized.
OURS = {
    ".csv": "name,pruning,class,n,failed",
    "-pairs.csv": "name,minus,over_the_same_rows",
    ".svg": 'class="chart alone"',
    ".html": "<title>RestoreLCC, runs compared</title>",
}


@dataclass(frozen=True)
class Column:
    """A column of the table: one number per line."""

    heading: str
    form: str = ",.1f"
    lower: bool | None = False  # whether lower is better, None where neither is
    factor: int = 1  # 100 where a share is shown in per cent


NUMBERS = {  # by the names that a sweep's table has for them
    "trained_parameters": Column("trained parameters", ",.0f", True),
    "trained_tokens": Column("trained tokens", ",.0f", True),
    "zeros_kept": Column("zeros kept, %", factor=100),
    "rate": Column("rate", "g", None),
    "recovered": Column("recovered of tasks, %", factor=100),
    "recovered_answers": Column("recovered of right answers, %", factor=100),
    "recovered_perplexity": Column("recovered of perplexity, %", factor=100),
    "task_mean": Column("task mean, % ↑", factor=100),
    "perplexity": Column("perplexity ↓", ",.2f", True),
    "forgetting": Column("forgetting ↓", ",.2f", True),
    "valid_loss": Column("validation loss ↓", ",.3f", True),
    "answer_bits": Column("answer bits per byte ↓", ",.3f", True),
    "flipped": Column("answers flipped, % ↓", ",.1f", True, 100),
    "kl": Column("KL from dense ↓", ",.3f", True),
    "minutes": Column("minutes", lower=True),
}

COSTS = ("trained_parameters", "trained_tokens", "minutes")
"""The columns that pictures may have on their x-axis."""


@dataclass
class Line:
    """A run, or the runs of one configuration with several seeds."""

    name: str
    label: str  # the name, with the pruned model where there are several
    pruning: str = ""
    kind: str = ""  # its class: what a merge may change
    n: int = 0  # finished runs
    failed: Sequence[str] = ()  # last lines of the runs without a result
    cells: dict[str, Score] = field(default_factory=dict)  # by column; errors are over seeds

    @property
    def kept(self) -> bool:
        """Whether no zero was lost."""
        return self.cells.get("zeros_kept", Score(100)).value >= 100

    def text(self, name: str) -> str:
        """The text of a cell. If any zero was lost, zeros_kept is never rounded up to 100."""
        if not (score := self.cells.get(name)):
            return DASH
        text = " ± ".join(format(number, f"z{NUMBERS[name].form}") for number in score.numbers())
        return "< 100" if name == "zeros_kept" and text == "100.0" and not self.kept else text


@dataclass(frozen=True)
class Difference:
    """One line minus another, over the same n rows. error: over rows; seeds: over seeds; lower: if lower is better."""

    what: str
    value: float
    error: float | None
    seeds: float | None
    n: int
    lower: bool | None

    @property
    def text(self) -> str:
        """The difference and its errors, with as many decimals as show two digits of the first error."""
        scale = self.error or abs(self.value) / 100 or 1
        digits = min(6, max(0, 1 - math.floor(math.log10(scale)))) if math.isfinite(scale) else 3
        errors = [f" ± {error:.{digits}f}" for error in (self.error, self.seeds) if error is not None]
        return f"{self.value:{'+' * bool(self.value)}.{digits}f}".replace("-", "−") + "".join(errors)

    @property
    def verdict(self) -> str:
        """`judged` by both errors together: better or worse only beyond twice √(error² + seeds²)."""
        error = None if self.error is None else math.hypot(self.error, self.seeds or 0)
        return judged(Score(self.value, error), None if self.lower is None else not self.lower)


UNLIKE = "not all were scored on the same questions: means over tasks compare only where a pair's difference is shown"

Pairs = dict[tuple[int, int], list[Difference]]  # by the indices (i, j) of two lines; line i minus line j


def main() -> None:
    """Read, then write the page and its numbers."""
    usage = "python -m utils.compare RUN… | SWEEP -output FILE.html"
    what = "Compare runs, or the rows of a sweep, on one page: a table, paired differences, and pictures."
    parser = Parser(prog="utils.compare", usage=usage, description=what)
    parser.add_argument(
        "folders", nargs="+", type=folder_path, metavar="RUN", help="folders of runs or sweeps, or runs.json.gz"
    )
    beside = "the page; FILE.csv, FILE-pairs.csv and FILE.svg are beside it"
    parser.flag("output", type=folder_path, required=True, metavar="FILE.html", help=beside)
    parser.flag("against", choices=COSTS, default=COSTS[0], help="x-axis of the pictures")
    args = parser.parse_args()
    if args.output.suffix != ".html":
        raise UserError(f"-output: {args.output} does not end in .html; give a name that does")
    files = {end: args.output.with_name(f"{args.output.stem}{end}") for end in OURS}
    for end, path in files.items():
        if path.exists() and not (path.is_file() and OURS[end].encode() in path.read_bytes()[:2000]):
            raise UserError(f"-output: {path} exists, and this command did not write it; give another name")
    rows, notes = read_runs(args.folders)
    if not rows:
        raise UserError(f"RUN: no run in {args.folders[0]} is done; wait for one, or give other folders")
    lines, pairs = lines_of(rows), pairs_of(rows)
    pictures = pictures_of(lines, args.against)
    first = next((picture.svg(alone=True) for picture in pictures.values()), "")
    page = compared_page(lines, pairs, pictures, notes, args.output.stem)
    texts = [table_csv(lines), pairs_csv(lines, pairs), first, page]
    with explain(f"-output: {args.output} cannot be written", "name another file", OSError):
        for path, text in zip(files.values(), texts, strict=True):
            if text:
                write_text(path, text)
            else:
                path.unlink(missing_ok=True)  # an earlier comparison's
    print(*(f"note: {note}\n" for note in notes), f"page: {args.output}", sep="")


def read_runs(folders: Sequence[Path]) -> tuple[list[SweepRow], list[str]]:
    """(rows, notes) of runs' folders, or of sweeps' ones; UserError for a folder that is neither."""
    found, notes = [], []
    given = {folder.resolve(): folder for folder in folders}  # what is named twice is shown once
    for whole, folder in given.items():
        if not folder.is_dir() and folder.suffix != ".gz":
            raise UserError(f"RUN: {folder} is not a folder; give the -output_dir of runs or of a sweep, or its {FILE}")
        kept = folder / FILE if folder.is_dir() else folder
        # The folder's name, with as many parent folders as distinguish it from the others.
        ends = (whole.parts[-n:] for n in range(1, len(whole.parts) + 1))
        own = next(end for end in ends if all(o == whole or o.parts[-len(end) :] != end for o in given))
        with explain(f"RUN: {folder}: its files are not a run's, or are damaged", "copy the folder again", DAMAGED):
            rows = read(kept) if kept.is_file() else [_of_run(folder, "/".join(own))]
            lines_of(rows), apart(rows)  # raise if the files do not hold what they should
            pairs_of([row for row in rows if row.outcomes][:1] * 2)
        found += [row for row in rows if row.outcomes or failed(row)]
        notes += [f"{row.name}, {row.pruning}: no run is done yet" for row in rows if not row.outcomes + failed(row)]
    asked = [(one.rows, one.accuracies) for one in (row.outcomes[0] for row in found if row.outcomes)]
    compared = [[rows[task][metric] for task, metric in of if metric in rows.get(task, {})] for rows, of in asked]
    digests = {frozenset(each.sha256 for each in of_run) for of_run in compared}
    if len(digests - {frozenset()}) > 1:
        notes.append(UNLIKE)
    return found, list(dict.fromkeys(notes + apart(found)))


def failed(row: SweepRow) -> list[str]:
    """The last line that each run without a result printed, one per run."""
    return list({run.id: run.said for run in (*row.searches, *row.chosen) if run.said is not None}.values())


def _of_run(folder: Path, name: str) -> SweepRow:
    """A run of its own, whether a sweep made it or not."""
    if not all((folder / part).is_file() for part in ("results.json", "run.json")):
        raise UserError(f"RUN: {folder} holds no run (results.json, run.json) and no sweep; give an -output_dir")
    outcome = read_outcome(folder)
    pruned, pruning = outcome.run["models"].get("pruned"), outcome.run.get("pruning")
    how = shown_name(pruned) if pruned else f"{pruning['method']} {pruning['sparsity']}"
    rate = outcome.run["arguments"].get("lr") if outcome.run["method"]["parameters"] else None
    return SweepRow(name, how, "", "", (), (SweepRun(folder.name, rate, outcome.seed, outcome=outcome),))


def lines_of(rows: Sequence[SweepRow]) -> list[Line]:
    """The page's lines; those of the same name and pruned model are numbered."""
    lines, names = [], [(row.name, row.pruning) for row in rows]
    several = len({row.pruning for row in rows if row.outcomes}) > 1
    for place, row in enumerate(rows, start=1):
        own = row.name, row.pruning
        name = row.name + f" ({names[:place].count(own)})" * (names.count(own) > 1)
        entry = table_row(row) if row.outcomes else {}
        cells = {name: _score(entry[name], NUMBERS[name].factor) for name in NUMBERS if entry.get(name) is not None}
        kind = "changes nothing" if entry.get("class") == "nothing" else CLASSES.get(entry.get("class"), "")
        label = f"{name} ({row.pruning})" if several and row.pruning else name
        lines.append(Line(name, label, row.pruning, kind, len(row.outcomes), failed(row), cells))
    return lines


def _score(found: dict | float, factor: int) -> Score:
    """The `Score` of an entry of a sweep's table; its error is over seeds."""
    if not isinstance(found, dict):
        return Score(factor * found)
    return Score(factor * found["value"], found["stderr"] and factor * found["stderr"])


def pairs_of(rows: Sequence[SweepRow]) -> Pairs:
    """Differences of every two rows in all measures scored on the same questions; pairs without any are left out."""
    pairs: Pairs = {}
    for (one, first), (other, second) in combinations(enumerate(rows), 2):
        for measure, column in _measures(first.outcomes[0]).items() if first.outcomes and second.outcomes else ():
            try:
                apart = difference(first.outcomes, second.outcomes, measure)
            except (UserError, ValueError):
                continue
            if apart is not None:
                parts = (apart[part] for part in ("difference", "stderr", "stderr_seeds"))
                numbers = [part if part is None else float(f"{column.factor * part:.7g}") for part in parts]
                found = Difference(column.heading, *numbers, apart["n"], column.lower)
                pairs.setdefault((one, other), []).append(found)
    return pairs


def _measures(outcome: Outcome) -> dict[Measure, Column]:
    """COMPARED, and each task's main metric. The perplexity is there once, the task mean only over several tasks."""
    found = {name: NUMBERS[name] for name in COMPARED if name != "task_mean" or len(outcome.accuracies) > 1}
    for task, metric in outcome.results.get("main_metric", {}).items():
        if (task, metric) != outcome.perplexity:
            percent = metric.startswith(SHARES)
            higher = outcome.results["metrics"][task][metric]["higher_is_better"]
            heading = f"{task}, {metric}{', %' * percent}{ARROWS[higher]}"
            found[task, metric] = Column(heading, "", None if higher is None else not higher, 100 if percent else 1)
    return found


def compared_page(lines: Sequence[Line], pairs: Pairs, pictures: dict, notes: Sequence[str], stem: str) -> str:
    """The page as HTML. stem: the beginning of the names of the files beside it."""
    done, failed = sum(line.n > 0 for line in lines), sum(bool(line.failed) for line in lines)
    title = f"{counted(done, 'configuration')} compared" if done else "No configuration is done"
    title += f", {failed} with failed runs" if failed else ""
    told = [[*two, [(d.what, d.text, f"{d.n:,}", d.verdict) for d in found]] for two, found in pairs.items()]
    content = {"title": title, "lines": lines, "columns": columns_of(lines), "pictures": pictures}
    content["data"] = {"names": [line.label for line in lines], "pairs": told}
    return render("compare.html.j2", {**content, "notes": notes, "stem": stem})


def columns_of(lines: Sequence[Line]) -> dict[str, Column]:
    """The columns that any line has a number for."""
    return {name: column for name, column in NUMBERS.items() if any(name in line.cells for line in lines)}


def pictures_of(lines: Sequence[Line], x: str) -> dict[str, Drawing]:
    """Pictures by label: each measure against x, one of COSTS; recovered shares first, then what most lines have."""
    columns, drawn = columns_of(lines), []
    measures = [name for name in columns if name not in (*COSTS, "zeros_kept", "rate")]
    for y in sorted(measures, key=lambda y: (not y.startswith("recovered"), -sum(y in line.cells for line in lines))):
        points, both = [], [line for line in lines if {x, y} <= set(line.cells)]
        for line in both:
            name = line.label if len({each.pruning for each in both}) > 1 else line.name
            points.append(Point(name, line.cells[x].value, *line.cells[y].numbers(), kept=line.kept))
        if points:
            drawn.append(front_picture(points, columns[x].heading, columns[y].heading, columns[y].lower))
    return {picture.label: picture for picture in drawn}


def table_csv(lines: Sequence[Line]) -> str:
    """The table as CSV, with one row per line and numbers that are not rounded."""
    columns = columns_of(lines)
    numbers = [f"{name}{end}" for name in columns for end in ("", "_stderr")]
    rows = [["name", "pruning", "class", "n", "failed", *numbers]]
    for line in lines:
        scores = [line.cells.get(name, Score(None)) for name in columns]
        values = [part for score in scores for part in (score.value, score.stderr)]
        rows.append([line.name, line.pruning, line.kind, line.n, len(line.failed), *values])
    return _csv(rows)


def pairs_csv(lines: Sequence[Line], pairs: Pairs) -> str:
    """The differences as CSV, one row per pair and measure: names, difference, errors, and the number of rows."""
    rows = [["name", "minus", "over_the_same_rows", "difference", "stderr", "stderr_seeds", "n"]]
    for (one, other), found in pairs.items():
        rows += [[lines[one].label, lines[other].label, *astuple(each)[:5]] for each in found]
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    run(main)
