"""Scores, proof and stages as rows of texts, and rows as a table for the terminal (100 columns) or in Markdown."""

import math
import textwrap
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from utils.common.commands import WIDTH

MODELS = ("dense", "pruned", "restored")
COLUMNS = (*MODELS, "difference", "recovered")
"""What a row of scores tells, by the names of its `texts`."""
DASH = "–"
AGREEMENT = {"flipped": "answers flipped", "kl": "KL from dense"}
"""How the two measures of agreement with the dense model are shown, by their names in results.json."""
SHARES = ("acc", "exact_match", "f1", AGREEMENT["flipped"])
"""Beginnings of the names of metrics that are shares of 1 and are shown in per cent."""
ARROWS = {True: " ↑", False: " ↓", None: ""}
"""After a metric's name, by whether higher is better; nothing where nobody recorded it."""


@dataclass(frozen=True)
class Score:
    """A value with its standard error (None where there is none), in the metric's own unit."""

    value: float
    stderr: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """One standard error below and above."""
        return self.value - (self.stderr or 0), self.value + (self.stderr or 0)


@dataclass(frozen=True)
class ScoreRow:
    """One task and metric. All numbers are in the metric's own unit (an accuracy is a share of 1).

    scores: by model, those that were measured. difference: restored − pruned, with the standard error of the paired
    difference where it is known. recovered: share of the gap between dense and pruned that restoring closed.
    higher_is_better: None where it was not recorded; it is never guessed from the name. is_mean: over several tasks;
    `task` is then a phrase, not a task's name.
    """

    task: str
    metric: str
    scores: dict[str, Score] = field(default_factory=dict)
    difference: Score | None = None
    mcnemar_p: float | None = None
    recovered: float | None = None
    higher_is_better: bool | None = None
    is_mean: bool = False

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
        return judged(self.difference, self.higher_is_better)

    @property
    def texts(self) -> dict[str, str]:
        """Each of COLUMNS, ready to print; a dash where there is nothing.

        One precision for the whole row, high enough to show each standard error, and to keep different values apart
        where there is none.
        """
        scale, found = 100 if self.percent else 1, [*(self.scores.get(name) for name in MODELS), self.difference]
        known = [Score(scale * s.value, s.stderr and scale * s.stderr) for s in found if s]
        largest = max((abs(score.value) for score in known if math.isfinite(score.value)), default=0.0)
        huge = largest >= 1e6
        decimals = 2 if self.percent or huge else 3 if largest < 10 else 2 if largest < 1000 else int(largest < 10000)
        errors = [] if huge else [score.stderr for score in known if score.stderr]
        bare = {score.value for score in known if score.stderr is None}
        while decimals < 6 and (
            any(error < 0.5 * 10**-decimals for error in errors)
            or len({_written(value, decimals, huge) for value in bare}) < len(bare)
        ):
            decimals += 1
        texts = []
        for score, sign in zip(found, ("", "", "", "+"), strict=True):
            numbers = [] if score is None else [_written(scale * score.value, decimals, huge, sign)]
            if score and score.stderr is not None:
                numbers.append(_written(scale * score.stderr, decimals, huge))
            texts.append(" ± ".join(numbers) or DASH)
        texts.append(DASH if self.recovered is None else f"{100 * self.recovered:.0f} %")
        return dict(zip(COLUMNS, texts, strict=True))

    @property
    def values(self) -> dict[str, float | None]:
        """Each of COLUMNS as a number, None where there is none."""
        found = [self.scores.get(name) for name in MODELS] + [self.difference]
        return dict(zip(COLUMNS, [*(each and each.value for each in found), self.recovered], strict=True))


def judged(difference: Score | None, higher_is_better: bool | None) -> str:
    """ "better" or "worse" only beyond 2 standard errors; "differs" where nobody recorded which direction is better.

    Otherwise "within noise", "equal", "no standard error" (nothing can be said) or "" (unknown).
    """
    if difference is None or math.isnan(difference.value):
        return ""
    if difference.value == 0:
        return "equal"
    if difference.stderr is None or math.isnan(difference.stderr):
        return "no standard error"
    if abs(difference.value) <= 2 * difference.stderr:
        return "within noise"
    if higher_is_better is None:
        return "differs"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def score_rows(results: dict, main: bool = True) -> list[ScoreRow]:
    """The rows of `results` (as results.json keeps it) for each task's main metric, or for all its others.

    A task without an entry in `main_metric` has its first metric as the main one.
    """
    tasks: dict[str, list[str]] = {}
    for model in MODELS:
        for task, metrics in ((results.get("scores") or {}).get(model) or {}).items():
            known = tasks.setdefault(task, [])
            known += [metric for metric in metrics if metric not in known and _score(metrics[metric])]
    rows = []
    for task, metrics in tasks.items():
        named = (results.get("main_metric") or {}).get(task)
        chosen = named if named in metrics else next(iter(metrics), None)
        for metric in (each for each in metrics if (each == chosen) == main):
            parts = (
                ((results.get(part) or {}).get(task) or {}).get(metric) for part in ("paired", "recovered", "metrics")
            )
            paired, recovered, about = parts
            measured = {model: (results["scores"].get(model) or {}).get(task, {}).get(metric) for model in MODELS}
            rows.append(_row(task, metric, measured, paired or {}, recovered, (about or {}).get("higher_is_better")))
    return rows


def mean_rows(results: dict) -> list[ScoreRow]:
    """The means over tasks that `results` holds: of accuracies, the papers' headline, and of right answers' bits."""
    rows = []
    for name, metric in (("mean", "accuracy"), ("answers", "answer bits/byte")):
        if mean := results.get(name):
            told = mean["scores"], mean["paired"], mean["recovered"], mean["higher_is_better"]
            rows.append(_row(f"mean of {len(mean['tasks'])} tasks", metric, *told, is_mean=True))
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
    task: str, metric: str, measured: dict, paired: dict, recovered: object, higher: bool | None, **more: bool
) -> ScoreRow:
    scores = {name: score for name in MODELS if (score := _score(measured.get(name)))}
    difference = _score({"value": paired.get("difference"), "stderr": paired.get("stderr")})
    if difference is None and {"pruned", "restored"} <= set(scores):
        difference = Score(scores["restored"].value - scores["pruned"].value)
    return ScoreRow(
        task, metric, scores, difference, _number(paired.get("mcnemar_p")), _number(recovered), higher, **more
    )


def _score(entry: dict | None) -> Score | None:
    value = _number((entry or {}).get("value"))
    return None if value is None else Score(value, _number(entry.get("stderr")))


def _number(value: object) -> float | None:
    """A number as a float; None for what lm_eval writes where it has none ("N/A")."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _written(value: float, decimals: int, huge: bool, sign: str = "") -> str:
    """2.23e6, not 2.23e+06: a row of four such numbers must fit a terminal."""
    if not huge or abs(value) < 1e4 or not math.isfinite(value):
        return f"{value:{sign}.{decimals}f}"
    mantissa, _, exponent = f"{value:{sign}.{decimals}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def proof_rows(proof: dict) -> list[tuple[str, str, bool]]:
    """(promise, its numbers, whether it was kept) for each part of the proof that was made."""
    rows = []
    promised = proof.get("zeros", "kept") == "kept"
    for same, of, what in (
        ("tensors_identical", "tensors_compared", "weights bit-identical to the pruned ones"),
        ("tensors_recomputed", "tensors_touched", "restored tensors as saved, bit for bit"),
    ):
        if of in proof:
            rows.append((what, f"{proof[same]:,} of {proof[of]:,} tensors", proof[same] == proof[of]))
    if "zeros_pruned" in proof:
        before, after, weights = (proof[name] for name in ("zeros_pruned", "zeros_restored", "weights"))
        if promised:
            numbers = f"{before:,} of {weights:,}" if before == after else f"{before:,} before, {after:,} after"
            rows.append(("every zero still a zero", numbers, before <= after and not proof.get("zeros_lost")))
        else:
            shares = f"{before / weights:.1%} before, {after / weights:.1%} after"
            rows.append(("zeros (reported, not promised)", shares, True))
    if "sparsity_pruned" in proof and promised:
        pairs = list(zip(proof["sparsity_pruned"], proof["sparsity_restored"], strict=True))
        same = sum(before <= after for before, after in pairs)
        rows.append(("no layer has fewer zeros", f"{same} of {len(pairs)} layers", same == len(pairs)))
    if "new_tensors" in proof:
        new, nonzero, changed = (proof.get(f"{name}_tensors", []) for name in ("new", "nonzero_new", "changed"))
        numbers = f"{len(new)} new, all zero but {len(nonzero)}; {len(changed)} changed"
        rows.append(("nothing else is new or changed", numbers, not proof.get("unexplained_tensors")))
    if "logits_tolerance" in proof:
        found, allowed = proof["logits_relative_difference"], proof["logits_tolerance"]
        finite = proof.get("logits_finite", True) and found is not None
        numbers = f"error {found:.1e}, allowed {allowed:.1e}" if finite else "NaN or infinity"
        if "top1_agreement" in proof:
            numbers += f"; top token {100 * proof['top1_agreement']:.1f} %"
        what = f"same logits as while trained, {proof.get('dtype', 'relative')}"
        rows.append((what, numbers, finite and found <= allowed))
    loaded = f"read back with {proof['loaded_with']}" if "loaded_with" in proof else ""
    return [*rows, ("proof passed", loaded, bool(proof.get("passed")))] if proof else []


def stage_rows(run: dict) -> tuple[list[str], list[dict]]:
    """(header, rows) of the stages; the last row is the sum of seconds and the highest peaks; no rows without any.

    A row's cells: its name, seconds and peak memories; share: of the longest stage's seconds; said: what it did.
    """
    stages = run.get("stages") or []
    memories = {"peak memory": "peak_memory_bytes", "peak GPU memory": "peak_gpu_memory_bytes"}
    memories = {shown: name for shown, name in memories.items() if any(stage.get(name) for stage in stages)}
    peaks = {name: max(stage.get(name) or 0 for stage in stages) for name in memories.values()}
    total = {"name": "total", "seconds": sum(stage["seconds"] for stage in stages), **peaks}
    longest, rows = max((stage["seconds"] for stage in stages), default=0) or 1, []
    for stage in [*stages, total] if stages else []:
        gib = [f"{stage[name] / 2**30:.2f} GiB" if stage.get(name) else DASH for name in memories.values()]
        cached = ", ".join(dict.fromkeys(stage.get("reused") or ()))
        said = "; ".join(filter(None, [stage.get("detail"), cached and f"from the cache: {cached}"]))
        cells = [stage["name"], f"{stage['seconds']:.1f}", *gib]
        rows.append({"cells": cells, "share": stage["seconds"] / longest, "said": said})
    return ["stage", "seconds", *memories], rows


def score_table(results: dict) -> str:
    """For the terminal: each task's main metric in the three models, and the means over tasks."""
    rows = [*score_rows(results), *mean_rows(results)]
    if not rows:
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
    return text_table(["promise", "measured", "kept"], rows, right=()) if rows else "No proof: nothing was merged."


def stage_table(run: dict) -> str:
    """For the terminal: seconds and peak memory of each stage."""
    header, rows = stage_rows(run)
    return text_table(header, [row["cells"] for row in rows]) if rows else "No stage was recorded."


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = range(1, 99)) -> str:
    """At most 100 columns, where the numbers let it; a first cell that is too long has a line of its own."""
    widths = [max(len(line[place]) for line in [header, *rows]) for place in range(len(header))]
    widths[0] = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))
    lines = []
    for cells in [header, *rows]:
        first, rest = textwrap.shorten(cells[0], WIDTH, placeholder="…"), ""
        for place, (cell, width) in list(enumerate(zip(cells, widths, strict=True)))[1:]:
            rest += "  " + (cell.rjust(width) if place in right else cell.ljust(width))
        if len(first) > widths[0]:
            lines.append(first)
            first = ""
        lines.append((first.ljust(widths[0]) + rest).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines[:1])), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()) -> str:
    """A Markdown table; the columns whose numbers are in `right` are aligned to the right."""
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])
