"""Scores and proof as rows of texts, and rows as a table for the terminal (100 columns) or in Markdown."""

import textwrap
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from utils.common.commands import WIDTH
from utils.common.names import MODELS

COLUMNS = (*MODELS, "difference", "recovered")  # the columns of a row of scores: keys of its `texts`
DASH = "–"
AGREEMENT = {"flipped": "answers flipped", "kl": "KL from dense"}  # their titles, by their names in results.json
SHARES = ("acc", "exact_match", AGREEMENT["flipped"])  # begin the names of metrics shown in per cent
ARROWS = {True: " ↑", False: " ↓", None: ""}  # by whether higher is better, if that was recorded


@dataclass(frozen=True)
class Score:
    """A value with its standard error (None where there is none), in the metric's own unit."""

    value: float
    stderr: float | None = None

    def numbers(self, scale: float = 1) -> list[float]:
        """The value, and the error if there is one, in `scale` times the unit."""
        return [scale * number for number in (self.value, self.stderr) if number is not None]

    def ends(self, scale: float = 1) -> tuple[float, float]:
        """One standard error below and above the value, in `scale` times the unit."""
        return scale * (self.value - (self.stderr or 0)), scale * (self.value + (self.stderr or 0))


@dataclass(frozen=True)
class ScoreRow:
    """One task and metric, in the metric's own unit (an accuracy is a share of 1)."""

    task: str
    metric: str
    scores: dict[str, Score] = field(default_factory=dict)  # by model, those that were measured
    difference: Score | None = None  # restored − pruned, with the error of the paired difference where it is known
    mcnemar_p: float | None = None
    recovered: float | None = None  # share of the gap between dense and pruned that restoring closed
    higher_is_better: bool | None = None  # None where it was not recorded; it is never guessed from the name
    is_mean: bool = False  # over several tasks; `task` is then a phrase, not a task's name

    @property
    def percent(self) -> bool:
        return self.metric.startswith(SHARES)

    @property
    def label(self) -> str:
        """The metric with the direction that is better, if that is known."""
        return self.metric + ARROWS[self.higher_is_better]

    @property
    def verdict(self) -> str:
        """What the difference says about the restored model; see `judged`."""
        return judged(self.difference, self.higher_is_better, self.mcnemar_p)

    @property
    def texts(self) -> dict[str, str]:
        """Each of COLUMNS, ready to print. One precision for the whole row: it shows each standard error, and keeps
        different values apart where there is none."""
        scale, found = 100 if self.percent else 1, [*(self.scores.get(name) for name in MODELS), self.difference]
        cells = [score.numbers(scale) if score else [] for score in found]
        largest = max((abs(cell[0]) for cell in cells if cell), default=0)
        huge = largest >= 1e6
        decimals = 2 if self.percent or huge else sum(largest < bound for bound in (10, 1000, 10000))
        errors = [] if huge else [error for cell in cells for error in cell[1:] if error]
        bare = {cell[0] for cell in cells if len(cell) == 1}

        def written(value: float) -> str:
            return f"{value:.{decimals}{'e' if huge and abs(value) >= 1e4 else 'f'}}"

        while decimals < 6 and (
            any(error < 0.5 * 10**-decimals for error in errors) or len(set(map(written, bare))) < len(bare)
        ):
            decimals += 1
        texts = [" ± ".join(map(written, cell)) or DASH for cell in cells]
        if cells[3] and not texts[3].startswith("-"):
            texts[3] = f"+{texts[3]}"
        texts.append(DASH if self.recovered is None else f"{100 * self.recovered:z.0f} %")
        return dict(zip(COLUMNS, texts, strict=True))


JUDGED = ("better", "worse", "equal", "within noise")  # verdicts that say something


def judged(difference: Score | None, higher_is_better: bool | None, p: float | None = None) -> str:
    """ "better" or "worse" only beyond 2 standard errors and, if p is given, p ≤ 0.05; "differs": direction unknown."""
    if difference is None:
        return ""
    if difference.value == 0:
        return "equal"
    if difference.stderr is None:
        return "no standard error"
    if not abs(difference.value) > 2 * difference.stderr or (p is not None and p > 0.05):  # also if it is NaN
        return "within noise"
    if higher_is_better is None:
        return "differs"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def score_rows(results: dict, main: bool = True) -> list[ScoreRow]:
    """The rows of `results` (as results.json keeps it) for each task's main metric, or for all its others."""
    scores, rows = results.get("scores") or {}, []
    for task, metrics in scores.get("restored", {}).items():
        for metric in metrics:
            if (metric == results["main_metric"][task]) == main:
                of = {part: results[part].get(task, {}).get(metric) for part in ("paired", "recovered", "metrics")}
                measured = {model: scores.get(model, {}).get(task, {}).get(metric) for model in MODELS}
                higher = (of["metrics"] or {}).get("higher_is_better")
                rows.append(_row(task, metric, measured, of["paired"] or {}, of["recovered"], higher))
    return [row for row in rows if row.scores]


def mean_rows(results: dict) -> list[ScoreRow]:
    """The means over tasks that `results` holds: of accuracies, the papers' headline, and of right answers' bits."""
    rows = []
    for name, metric in (("mean", "accuracy"), ("answers", "answer bits/byte")):
        if mean := results.get(name):
            found = mean["scores"], mean["paired"], mean["recovered"], mean["higher_is_better"]
            rows.append(_row(f"mean of {len(mean['tasks'])} tasks", metric, *found, is_mean=True))
    return rows


def agreement_rows(results: dict) -> list[ScoreRow]:
    """AGREEMENT's measures of each task, and of all their questions where there are several tasks."""
    agreement = results.get("agreement") or {"paired": {}}
    rows = []
    for measure, metric in AGREEMENT.items():
        for task in agreement["paired"]:
            if task != "all" or len(agreement["paired"]) > 2:
                measured = {name: agreement[name][task][measure] for name in MODELS[1:]}
                what, paired = "all questions" if task == "all" else task, agreement["paired"][task][measure]
                rows.append(_row(what, metric, measured, paired, None, False, is_mean=task == "all"))
    return rows


def _row(
    task: str, metric: str, measured: dict, paired: dict, recovered: float | None, higher: bool | None, **more: bool
) -> ScoreRow:
    known = {name: entry for name, entry in measured.items() if entry and entry.get("value") is not None}
    scores = {name: Score(entry["value"], entry.get("stderr")) for name, entry in known.items()}
    difference = None
    if paired.get("difference") is not None:
        difference = Score(paired["difference"], paired["stderr"])
    elif {"pruned", "restored"} <= set(scores):
        difference = Score(scores["restored"].value - scores["pruned"].value)
    return ScoreRow(task, metric, scores, difference, paired.get("mcnemar_p"), recovered, higher, **more)


def share_text(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def proof_rows(proof: dict) -> list[tuple[str, str, bool]]:
    """(promise, its numbers, whether it was kept) for each part of the proof; none where nothing was merged."""
    if not proof:
        return []
    rows = []
    for same, of, what in (
        ("tensors_identical", "tensors_compared", "untouched tensors bit-identical"),
        ("tensors_recomputed", "tensors_touched", "restored tensors as saved, bit for bit"),
    ):
        rows.append((what, f"{proof[same]:,} of {proof[of]:,} tensors", proof[same] == proof[of]))
    before, after, weights = (proof[name] for name in ("zeros_pruned", "zeros_restored", "weights"))
    if proof["zeros"] == "kept":
        numbers = f"{before:,} in {weights:,} weights" if before == after else f"{before:,} before, {after:,} after"
        rows.append(("every zero still a zero", numbers, before <= after and not proof["zeros_lost"]))
        layers = [one <= two for one, two in zip(proof["sparsity_pruned"], proof["sparsity_restored"], strict=True)]
        rows.append(("no layer has fewer zeros", f"{sum(layers)} of {len(layers)} layers", all(layers)))
    else:
        shares = f"{share_text(before / weights)} before, {share_text(after / weights)} after"
        rows.append(("zeros (reported, not promised)", shares, True))
    new, nonzero, changed = (len(proof[f"{name}_tensors"]) for name in ("new", "nonzero_new", "changed"))
    numbers = f"{new} new, {nonzero} of them not zero; {changed} changed"
    rows.append(("only what was restored is changed", numbers, not proof["unexplained_tensors"]))
    error, allowed, numbers = proof["logits_relative_difference"], proof["logits_tolerance"], "NaN or infinity"
    if error is not None:
        numbers = f"error {error:.1e}, allowed {allowed:.1e}; top token {100 * proof['top1_agreement']:.1f} %"
    kept = error is not None and error <= allowed
    rows.append((f"same logits as in training, {proof['dtype']}", numbers, kept))
    return [*rows, ("proof passed", f"read back with {proof['loaded_with']}", proof["passed"])]


def score_table(results: dict) -> str:
    """For the terminal: each task's main metric in the three models, and the means over tasks."""
    if not (rows := [*score_rows(results), *mean_rows(results)]):
        return "No task was evaluated."
    table = text_table(["task", *COLUMNS], [[f"{row.task} {row.label}", *row.texts.values()] for row in rows])
    note = (
        "Accuracies in %, ± one standard error. difference: restored - pruned on the same questions. "
        "recovered: share of the gap between dense and pruned. ↑ higher is better, ↓ lower is better."
    )
    return "\n".join([table, *textwrap.wrap(note, WIDTH)])


def proof_table(proof: dict) -> str:
    """For the terminal: each promise with its numbers and yes or NO."""
    rows = [[promise, numbers, "yes" if kept else "NO"] for promise, numbers, kept in proof_rows(proof)]
    return text_table(["promise", "measured", "kept"], rows, str.ljust)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: Callable = str.rjust) -> str:
    """A table of at most WIDTH columns, if the numbers fit; a first cell that is too long gets a line of its own."""
    first, *others = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    first, lines = min(first, WIDTH - sum(others) - 2 * len(others)), []
    for name, *cells in [header, *rows]:
        rest = "".join(f"  {align(cell, width)}" for cell, width in zip(cells, others, strict=True))
        if len(name) > first:
            lines.append(textwrap.shorten(name, WIDTH, placeholder="…"))
            name = ""
        lines.append((name.ljust(first) + rest).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()) -> str:
    """A Markdown table; the columns whose numbers are in `right` are aligned to the right."""
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])
