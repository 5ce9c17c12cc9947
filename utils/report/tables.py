"""Scores, proof and stages as tables, for the terminal (at most 100 columns) and for Markdown."""

import math
import textwrap
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

from utils.common.commands import WIDTH
from utils.common.names import ANSWER_BITS

MODELS = ("dense", "pruned", "restored")
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


@dataclass(frozen=True)
class ScoreRow:
    """One task and metric. All numbers are in the metric's own unit (an accuracy is a share of 1)."""

    task: str
    metric: str
    scores: dict[str, Score] = field(default_factory=dict)
    """By model, those that were measured: dense, pruned, restored."""
    difference: Score | None = None
    """restored − pruned, with the standard error of the paired difference where it is known."""
    mcnemar_p: float | None = None
    recovered: float | None = None
    """Share of the gap between dense and pruned that restoring closed."""
    higher_is_better: bool | None = None
    """None where it was not recorded: it is never guessed from the name."""
    is_mean: bool = False
    """Over several tasks; `task` is then a phrase, not a task's name."""

    @property
    def percent(self) -> bool:
        return self.metric.startswith(SHARES)

    @property
    def label(self) -> str:
        """The metric with the direction that is better, if that is known."""
        return self.metric + ARROWS[self.higher_is_better]

    @property
    def verdict(self) -> str:
        """What the difference says about the restored model: "better" or "worse" only beyond 2 standard errors.

        Otherwise "differs" (beyond them, but nobody recorded which direction is better), "within noise", "equal", "no
        stderr" (a difference that nothing can be said about) or "" (unknown).
        """
        if self.difference is None or math.isnan(self.difference.value):
            return ""
        value, stderr = self.difference.value, self.difference.stderr
        if value == 0:
            return "equal"
        if stderr is None or math.isnan(stderr):
            return "no stderr"
        if abs(value) <= 2 * stderr:
            return "within noise"
        if self.higher_is_better is None:
            return "differs"
        return "better" if (value > 0) == self.higher_is_better else "worse"

    def texts(self) -> tuple[dict[str, str], str, str]:
        """The scores by model, the difference and the recovered share, ready to print; a dash where one is missing."""
        show = _formatter(self)
        scores = {name: show(self.scores[name], "") if name in self.scores else DASH for name in MODELS}
        difference = show(self.difference, "+") if self.difference else DASH
        recovered = DASH if self.recovered is None else f"{100 * self.recovered:.0f} %"
        return scores, difference, recovered


def score_rows(results: dict, main: bool = True) -> list[ScoreRow]:
    """The rows of `results` (as results.json keeps it) for each task's main metric, or for all its others.

    A task without an entry in `main_metric` has its first metric as the main one.
    """
    scores = results.get("scores") or {}
    rows = []
    for task, metrics in _tasks(scores).items():
        chosen = (results.get("main_metric") or {}).get(task)
        chosen = chosen if chosen in metrics else metrics[0]
        rows += [_row(results, task, metric) for metric in metrics if (metric == chosen) == main]
    return rows


def mean_row(results: dict) -> ScoreRow | None:
    """The mean of the tasks' accuracies, the headline of the papers, as `results` has it; None where it has none."""
    return _mean_row(results.get("mean"), "accuracy")


def answers_row(results: dict) -> ScoreRow | None:
    """The mean over tasks of the right answers' bits a byte, as `results` has it; None where it has none."""
    return _mean_row(results.get("answers"), "answer bits/byte")


def answer_rows(results: dict) -> list[ScoreRow]:
    """The right answers' bits a byte of each task that has them, and their mean."""
    tasks = _tasks(results.get("scores") or {})
    rows = [_row(results, task, ANSWER_BITS) for task, metrics in tasks.items() if ANSWER_BITS in metrics]
    mean = answers_row(results)
    return [*rows, mean] if mean else rows


def agreement_rows(results: dict, measure: str) -> list[ScoreRow]:
    """One of AGREEMENT's measures for each task, and for all their questions where there are several tasks."""
    rows, agreement = [], results.get("agreement") or {"paired": {}}
    for task in agreement["paired"]:
        if task == "all" and len(rows) == 1:
            continue
        scores = {name: score for name in MODELS[1:] if (score := _score(agreement[name][task][measure]))}
        paired = agreement["paired"][task][measure]
        rows.append(
            ScoreRow(
                "all questions" if task == "all" else task,
                AGREEMENT[measure],
                scores,
                _score({"value": paired["difference"], "stderr": paired["stderr"]}),
                higher_is_better=False,
                is_mean=task == "all",
            )
        )
    return rows


def _mean_row(mean: dict | None, metric: str) -> ScoreRow | None:
    if not mean:
        return None
    scores = {name: score for name in MODELS if (score := _score(mean["scores"].get(name)))}
    return ScoreRow(
        f"mean of {len(mean['tasks'])} tasks",
        metric,
        scores,
        _score({"value": mean["paired"]["difference"], "stderr": mean["paired"]["stderr"]}),
        recovered=_number(mean["recovered"]),
        higher_is_better=mean["higher_is_better"],
        is_mean=True,
    )


def score_table(results: dict) -> str:
    """Terminal table: a row a task with its main metric in the dense, pruned and restored model."""
    rows = score_rows(results)
    if not rows:
        return "No task was evaluated."
    rows += [mean for mean in (mean_row(results), answers_row(results)) if mean]
    cells = []
    for row in rows:
        scores, difference, recovered = row.texts()
        cells.append([*scores.values(), difference, recovered])
    header = [*MODELS, "difference", "recovered"]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    room = WIDTH - sum(width + 2 for width in widths)
    names = [f"{row.task} {row.label}" for row in rows]
    first = max([len("task"), *(min(len(name), room) for name in names)])

    def line(name: str, values: list[str]) -> str:
        return name.ljust(first) + "".join("  " + v.rjust(w) for v, w in zip(values, widths, strict=True))

    lines = [line("task", header), "-" * len(line("", header))]
    for row, name, values in zip(rows, names, cells, strict=True):
        if len(name) <= first:
            lines.append(line(name, values))
        else:
            lines += [_cut(row.task, WIDTH), line(_cut("  " + row.label, first), values)]
    note = (
        "Accuracies in %, ± one standard error. difference: restored - pruned on the same questions. "
        "recovered: share of the gap between dense and pruned. ↑ higher is better, ↓ lower is better."
    )
    return "\n".join([*lines, *textwrap.wrap(note, WIDTH)])


def score_table_markdown(rows: list[ScoreRow]) -> str:
    """The same as a Markdown table, with a verdict on each difference and McNemar's p where there is one."""
    lines = []
    for row in rows:
        scores, difference, recovered = row.texts()
        # The metric shares the task's cell: with a column more, a page cuts the last ones off.
        task = f"{row.task if row.is_mean else f'`{row.task}`'}<br>{row.label}"
        verdict = "**worse**" if row.verdict == "worse" else row.verdict or DASH
        p = "" if row.mcnemar_p is None else f"<br>p {_p_value(row.mcnemar_p)}"
        # A narrow column may break before the ±, not after it.
        numbers = [text.replace("± ", "±\u00a0") for text in (*scores.values(), difference)]
        lines.append([task, *numbers, recovered, verdict + p])
    header = ["task", *MODELS, "restored - pruned", "gap recovered", "verdict"]
    return markdown_table(header, lines, right=range(1, 6))


def answer_table_markdown(results: dict) -> str:
    """A row a task: its right answers' bits a byte, flips and KL, verdicts with them; empty without such tasks."""
    bits, *others = answer_rows(results), *(agreement_rows(results, measure) for measure in AGREEMENT)
    found = [{row.task: row for row in rows} for rows in (bits, *others)]
    tasks = {row.task: row.is_mean for rows in (bits, *others) for row in rows}
    lines = []
    for task in sorted(tasks, key=tasks.get):  # means last
        name = task if tasks[task] else f"`{task}`"
        answers, *agreements = (rows.get(task) for rows in found)
        lines.append([name, *_answer_cells(answers), *map(_agreement_cell, agreements)])
    header = ["task", *MODELS, "restored - pruned", "gap recovered", *AGREEMENT.values()]
    return markdown_table(header, lines, right=range(1, len(header))) if lines else ""


def _answer_cells(row: ScoreRow | None) -> list[str]:
    if row is None:
        return [DASH] * 5
    scores, difference, recovered = row.texts()
    # Narrow, since there are many columns.
    numbers = [text.replace(" ± ", "<br>±\u00a0") for text in scores.values()]
    return [*numbers, _judged(difference, row), recovered]


def _agreement_cell(row: ScoreRow | None) -> str:
    """Pruned → restored, and below it their difference."""
    if row is None:
        return DASH
    scores, difference, _ = row.texts()
    before, after = (scores[name].split(" ±")[0] for name in MODELS[1:])
    return f"{before} → {after}{' %' if row.percent else ''}<br>{_judged(difference, row)}"


def _judged(difference: str, row: ScoreRow) -> str:
    verdict = "**worse**" if row.verdict == "worse" else row.verdict
    return "<br>".join(filter(None, [difference.replace("± ", "±\u00a0"), verdict]))


def proof_rows(proof: dict) -> list[tuple[str, str, bool]]:
    """(promise, its numbers, whether it was kept) for each part of the proof that was made."""
    rows = []
    if "tensors_compared" in proof:
        same, compared = proof["tensors_identical"], proof["tensors_compared"]
        rows.append(("weights bit-identical to the pruned ones", f"{same:,} of {compared:,} tensors", same == compared))
    if "tensors_touched" in proof:
        same, touched = proof["tensors_recomputed"], proof["tensors_touched"]
        rows.append(("restored tensors as saved, bit for bit", f"{same:,} of {touched:,} tensors", same == touched))
    if "zeros_pruned" in proof:
        rows.append(_zeros_row(proof))
    if "sparsity_pruned" in proof and proof.get("zeros", "kept") == "kept":
        pairs = list(zip(proof["sparsity_pruned"], proof["sparsity_restored"], strict=True))
        same = sum(before <= after for before, after in pairs)
        rows.append(("no layer has fewer zeros", f"{same} of {len(pairs)} layers", same == len(pairs)))
    if "new_tensors" in proof:
        new, nonzero = proof["new_tensors"], proof.get("nonzero_new_tensors", [])
        numbers = f"{len(new)} new, all zero but {len(nonzero)}; {len(proof.get('changed_tensors', []))} changed"
        rows.append(("nothing else is new or changed", numbers, not proof.get("unexplained_tensors")))
    if "logits_tolerance" in proof:
        rows.append(_logits_row(proof))
    return rows


def _zeros_row(proof: dict) -> tuple[str, str, bool]:
    before, after, weights = (proof[name] for name in ("zeros_pruned", "zeros_restored", "weights"))
    if proof.get("zeros", "kept") != "kept":
        return "zeros, a finding and no promise", f"{before / weights:.1%} before, {after / weights:.1%} after", True
    numbers = f"{before:,} of {weights:,}" if before == after else f"{before:,} before, {after:,} after"
    return "every zero still a zero", numbers, before <= after and not proof.get("zeros_lost")


def _logits_row(proof: dict) -> tuple[str, str, bool]:
    found, allowed = proof["logits_relative_difference"], proof["logits_tolerance"]
    finite = proof.get("logits_finite", True) and found is not None
    numbers = f"apart {found:.1e}, allowed {allowed:.1e}" if finite else "NaN or infinity"
    if "top1_agreement" in proof:
        numbers += f"; top token {100 * proof['top1_agreement']:.1f} %"
    return f"same logits as while trained, {proof.get('dtype', 'relative')}", numbers, finite and found <= allowed


def proof_table(proof: dict) -> str:
    """Terminal table of the proof: each promise with its numbers and yes or NO."""
    if not proof:
        return "No proof: nothing was merged."
    rows = [(promise, numbers, _yes(kept)) for promise, numbers, kept in proof_rows(proof)]
    rows.append(("proof passed", _loaded(proof), _yes(proof.get("passed", False))))
    first, second = (max(len(row[i]) for row in rows) for i in range(2))
    return "\n".join(f"{promise:<{first}}  {numbers:<{second}}  {kept}" for promise, numbers, kept in rows)


def proof_table_markdown(proof: dict) -> str:
    """The same as a Markdown table."""
    rows = [[promise, numbers, _yes(kept)] for promise, numbers, kept in proof_rows(proof)]
    passed = proof.get("passed", False)
    rows.append(["**proof passed**", _loaded(proof), f"**{_yes(passed)}**"])
    return markdown_table(["promise", "measured", "kept"], rows)


def stage_rows(run: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of seconds and peak memory per stage; the last row is the sum of seconds and the highest peak."""
    stages = run.get("stages") or []
    with_gpu = any(stage.get("peak_gpu_memory_bytes") for stage in stages)
    memories = ["peak_memory_bytes", *(["peak_gpu_memory_bytes"] if with_gpu else [])]
    header = ["stage", "seconds", "peak memory", *(["peak GPU memory"] if with_gpu else [])]
    rows = [[s["name"], f"{s['seconds']:.1f}", *(_gib(s.get(m)) for m in memories)] for s in stages]
    peaks = [max((s.get(m) or 0 for s in stages), default=0) for m in memories]
    rows.append(["total", f"{sum(s['seconds'] for s in stages):.1f}", *map(_gib, peaks)])
    return header, rows


def stage_table(run: dict) -> str:
    """Terminal table of seconds and peak memory per stage."""
    if not run.get("stages"):
        return "No stage was recorded."
    header, rows = stage_rows(run)
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    widths[0] = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))

    def line(cells: list[str]) -> str:
        numbers = "".join("  " + c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
        return _cut(cells[0], widths[0]).ljust(widths[0]) + numbers

    rule = "-" * len(line(header))
    return "\n".join([line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])])


def markdown_table(header: list[str], rows: Iterable[list[str]], right: Container[int] = ()) -> str:
    """A Markdown table; the columns whose numbers are in `right` are aligned to the right."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])


def _tasks(scores: dict) -> dict[str, list[str]]:
    """The metrics of each task that at least one model has a number for, in the order of first appearance."""
    tasks: dict[str, list[str]] = {}
    for name in MODELS:
        for task, metrics in (scores.get(name) or {}).items():
            known = tasks.setdefault(task, [])
            known += [metric for metric in metrics if metric not in known and _score(metrics[metric])]
    return {task: metrics for task, metrics in tasks.items() if metrics}


def _row(results: dict, task: str, metric: str) -> ScoreRow:
    measured = {name: (results["scores"].get(name) or {}).get(task, {}).get(metric) for name in MODELS}
    scores = {name: score for name, entry in measured.items() if (score := _score(entry))}
    paired = _entry(results, "paired", task, metric) or {}
    difference = _score({"value": paired.get("difference"), "stderr": paired.get("stderr")})
    if difference is None and {"pruned", "restored"} <= set(scores):
        difference = Score(scores["restored"].value - scores["pruned"].value)
    recovered = _number(_entry(results, "recovered", task, metric))
    higher = (_entry(results, "metrics", task, metric) or {}).get("higher_is_better")
    return ScoreRow(task, metric, scores, difference, _number(paired.get("mcnemar_p")), recovered, higher)


def _entry(results: dict, part: str, task: str, metric: str) -> object:
    return ((results.get(part) or {}).get(task) or {}).get(metric)


def _score(entry: dict | None) -> Score | None:
    value = _number((entry or {}).get("value"))
    return None if value is None else Score(value, _number(entry.get("stderr")))


def _number(value: object) -> float | None:
    """A number as a float; None for what lm_eval writes where it has none ("N/A")."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _formatter(row: ScoreRow) -> Callable[[Score, str], str]:
    """One precision for a whole row: (score, sign flag) -> text.

    It is high enough to show each standard error, and to keep different values apart where there is none.
    """
    scale = 100 if row.percent else 1
    scores = [*row.scores.values(), *([row.difference] if row.difference else [])]
    values = [scale * score.value for score in scores if math.isfinite(score.value)]
    largest = max(map(abs, values), default=0.0)
    huge = largest >= 1e6
    write = _scientific if huge else _fixed
    decimals = 2 if row.percent or huge else 3 if largest < 10 else 2 if largest < 1000 else int(largest < 10000)
    errors = [scale * score.stderr for score in scores if score.stderr]
    bare = {scale * score.value for score in scores if score.stderr is None}
    while decimals < 6 and (
        (not huge and any(error < 0.5 * 10**-decimals for error in errors))
        or len({write(value, decimals) for value in bare}) < len(bare)
    ):
        decimals += 1

    def show(score: Score, sign: str) -> str:
        text = write(scale * score.value, decimals, sign)
        return text if score.stderr is None else f"{text} ± {write(scale * score.stderr, decimals)}"

    return show


def _fixed(value: float, decimals: int, sign: str = "") -> str:
    return f"{value:{sign}.{decimals}f}"


def _scientific(value: float, decimals: int, sign: str = "") -> str:
    """2.23e6, not 2.23e+06: a row of four such numbers must fit a terminal. What is short anyway stays as it is."""
    if abs(value) < 1e4:
        return _fixed(value, decimals, sign)
    mantissa, _, exponent = f"{value:{sign}.{decimals}e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _loaded(proof: dict) -> str:
    return f"read back with {proof['loaded_with']}" if "loaded_with" in proof else ""


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _gib(size: int | None) -> str:
    return f"{size / 2**30:.2f} GiB" if size else DASH


def _yes(kept: bool) -> str:
    return "yes" if kept else "NO"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
