"""The numbers of a sweep's table, read from the runs' files alone: means over seeds, and differences over questions."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from utils.common.errors import UserError
from utils.common.names import ANSWER_BITS
from utils.evaluation.rows import CHOICES, LOSS, VALIDATION, Kept, KeptRows, pair_rows, read_rows
from utils.evaluation.statistics import divergences, flips, mean_difference, paired_difference
from utils.sweep.file import CONTROL
from utils.sweep.runs import FAILED, Member, Row, best_rate, finished, read_json, refused, valid_loss

PERPLEXITIES = ("token_perplexity", "word_perplexity")
"""Metrics that a table's perplexity may be, the first that a run has."""

SPREADS = (
    "valid_loss", "perplexity", "forgetting", "task_mean", "recovered", "recovered_perplexity", "recovered_answers",
    "answer_bits", "flipped", "kl",
)  # fmt: skip
"""What is averaged over seeds, by its name in table.json."""

COMPARED = ("valid_loss", "perplexity", "answer_bits", "kl", "flipped", "task_mean")
"""What a row is held against another one's in, by its name in table.json."""

CONTROLLED = ("valid_loss", "perplexity", "answer_bits")
"""What the share of a control is told of."""

_AGREEMENT = {"kl": divergences, "flipped": flips}


@dataclass(frozen=True)
class Outcome:
    """One finished run, as its files tell. record: its `sweep.json`."""

    folder: Path
    record: dict

    @cached_property
    def results(self) -> dict:
        """results.json."""
        return read_json(self.folder / "results.json") or {}

    @cached_property
    def run(self) -> dict:
        """run.json."""
        return read_json(self.folder / "run.json") or {}

    @property
    def questions(self) -> dict[str, Kept]:
        """Model → task → metric → rows, read anew each time, as they are large; empty where none were kept."""
        path = self.folder / "logs" / "rows.json.gz"
        return read_rows(path) if path.is_file() else {}

    @cached_property
    def metrics(self) -> dict[str, Kept]:
        """`questions` without the choices, and as arrays: a run's rows are held against those of many others."""
        return {
            model: {
                task: {
                    metric: replace(kept, values=np.asarray(kept.values))
                    for metric, kept in metrics.items()
                    if metric != CHOICES
                }
                for task, metrics in tasks.items()
            }
            for model, tasks in self.questions.items()
        }

    @property
    def perplexity(self) -> tuple[str, str] | None:
        """(task, metric) of the perplexity that stands in the table."""
        scores = (self.results.get("scores") or {}).get("restored") or {}
        found = ((task, metric) for metric in PERPLEXITIES for task, metrics in scores.items() if metric in metrics)
        return next(found, None)

    @property
    def accuracies(self) -> list[tuple[str, str]]:
        """(task, metric) of what the mean over tasks is of."""
        main = self.results.get("main_metric") or {}
        named = (self.results.get("mean") or {}).get("tasks")
        tasks = [task for task, metric in main.items() if str(metric).startswith("acc")] if named is None else named
        return [(task, main[task]) for task in tasks]

    @property
    def answers(self) -> list[tuple[str, str]]:
        """(task, metric) of what the right answers' bits a byte are the mean of."""
        return [(task, ANSWER_BITS) for task in (self.results.get("answers") or {}).get("tasks") or []]

    def rows_of(self, name: str) -> list[tuple[str, str]]:
        """(task, metric) of the rows that one of COMPARED is the mean of, but for those that `apart` has."""
        if name == "valid_loss":
            return [(VALIDATION, LOSS)] if LOSS in (self.metrics.get("restored") or {}).get(VALIDATION, {}) else []
        if name == "perplexity":
            return [self.perplexity] if self.perplexity else []
        return self.answers if name == "answer_bits" else self.accuracies

    @cached_property
    def apart(self) -> dict[str, dict[tuple[str, str], np.ndarray]]:
        """Measure → (task, digest of its rows) → how far the restored model's answers are from the dense one's, a value
        a row."""
        questions = self.questions
        dense, restored = (questions.get(model) or {} for model in ("dense", "restored"))
        found: dict[str, dict] = {measure: {} for measure in _AGREEMENT}
        for task in dense:
            if all(CHOICES in model.get(task, {}) for model in (dense, restored)):
                one, other = dense[task][CHOICES], restored[task][CHOICES]
                for measure, rows in _AGREEMENT.items():
                    found[measure][task, other.sha256] = np.asarray(rows(one.values, other.values))
        return found

    def score(self, model: str, task: str, metric: str) -> float | None:
        """A model's value of a metric."""
        return _number(self._at("scores", model, task, metric, "value"))

    def task_mean(self, model: str) -> float | None:
        """A model's mean accuracy over tasks."""
        return _mean_or_none([self.score(model, *each) for each in self.accuracies])

    def level(self, model: str) -> dict[str, float | None]:
        """What a model's level is told by, "start" for the one that training began with (the pruned one)."""
        name = "pruned" if model == "start" else model
        values = (
            _number(self._at("validation", model)),
            self.score(name, *self.perplexity) if self.perplexity else None,
            _number(self._at("answers", "scores", name, "value")),
        )
        return dict(zip(CONTROLLED, values, strict=True))

    def seed_values(self) -> dict[str, float | None]:
        """What is averaged over seeds, by its name in the table."""
        found = {"valid_loss": valid_loss(self.folder), "task_mean": self.task_mean("restored")}
        found |= {"perplexity": None, "forgetting": None, "recovered_perplexity": None}
        if self.perplexity:
            after, before = (self.score(model, *self.perplexity) for model in ("restored", "pruned"))
            found["perplexity"] = after
            found["forgetting"] = None if None in (after, before) else after - before
            found["recovered_perplexity"] = _number(self._at("recovered", *self.perplexity))
        alone = self.accuracies[0] if len(self.accuracies) == 1 else None
        place = ("recovered", *alone) if alone else ("mean", "recovered")
        found["recovered"] = _number(self._at(*place))
        found["recovered_answers"] = _number(self._at("answers", "recovered"))
        found["answer_bits"] = _number(self._at("answers", "scores", "restored", "value"))
        for measure in ("flipped", "kl"):
            found[measure] = _number(self._at("agreement", "restored", "all", measure, "value"))
        return found

    def _at(self, *names: str) -> object:
        """What results.json has at that place; None where it has nothing."""
        found: object = self.results
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def build_table(output: Path, rows: Sequence[Row], counts: Callable[[Member], bool], now: dict | None = None) -> dict:
    """The table as table.json keeps it, from what lies in `output`.

    counts: whether a finished run is one of this table's. now: the present {"versions", "code"}, to be told where runs
    of others were counted. {"rows": a row each, "models": the dense and the pruned model of each pruning, "notes"}.
    """
    notes: list[str] = []
    found = finished_runs(output, rows, counts)
    chosen = {(row.name, row.pruning): chosen_runs(output, row, found) for row in rows}
    table = [table_row(output, row, *chosen[row.name, row.pruning], found, notes) for row in rows]
    for row, entry in zip(rows, table, strict=True):
        other = chosen.get((row.compare_to, row.pruning)) if row.compare_to not in (None, row.name) else None
        if control := chosen.get((row.name, CONTROL)) if row.pruning != CONTROL else None:
            entry["control"] = _of_control(chosen[row.name, row.pruning][1], control[1])
        if other:
            entry["against"] = _against(row, chosen[row.name, row.pruning][1], other[1], notes)
    used = [outcome for _, outcomes in chosen.values() for outcome in outcomes]
    notes += _apart(used, now) + _pruned_again(chosen)
    return {"rows": table, "models": _models(rows, chosen), "notes": list(dict.fromkeys(notes))}


def finished_runs(
    output: Path, rows: Sequence[Row], counts: Callable[[Member], bool] = lambda member: True
) -> dict[str, Outcome]:
    """Every finished run of the rows that counts, by its id."""
    found = {}
    for row in rows:
        for member in (*row.searches, *row.finals):
            record = finished(output / member.id)
            if record is not None and counts(member):
                found[member.id] = Outcome(output / member.id, record)
    return found


def spread(values: Iterable[float | None]) -> dict | None:
    """{"value": mean, "stderr": standard error of the mean, None for a single value, "n"}; None if one is missing."""
    known = list(values)
    if not known or None in known:
        return None
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"value": mean(known), "stderr": error, "n": len(known)}


def mean_rows(kept: Sequence[KeptRows]) -> KeptRows:
    """Each question's mean over the runs of several seeds; ValueError if they were asked different ones."""
    first = kept[0]
    if any(
        (each.sha256, each.aggregation, len(each.values)) != (first.sha256, first.aggregation, len(first.values))
        for each in kept
    ):
        raise ValueError("runs of one configuration were scored on different rows")
    values = np.mean([each.values for each in kept], axis=0)
    return replace(first, values=values)


def chosen_runs(output: Path, row: Row, found: dict[str, Outcome]) -> tuple[float | None, list[Outcome]]:
    """(rate, the finished runs of the seeds at it); no rate and no runs until every rate was tried."""
    if any(each.id not in found and not refused(output / each.id) for each in row.searches):
        return None, []
    rate = best_rate(row, {each.id: valid_loss(found[each.id].folder) for each in row.searches if each.id in found})
    if row.searches and rate is None:
        return None, []
    return rate, [found[each.id] for each in row.at(rate) if each.id in found]


def table_row(
    output: Path, row: Row, rate: float | None, outcomes: list[Outcome], found: dict[str, Outcome], notes: list[str]
) -> dict:
    """A row of the table, of the runs of all seeds at its rate; found: every finished run, by id."""
    place = f"{row.name}, {row.pruning}"
    searched = {each.rate: valid_loss(found[each.id].folder) if each.id in found else None for each in row.searches}
    known = [rate for rate, loss in searched.items() if loss is not None]
    if rate is not None and len(known) > 1 and rate in (min(searched), max(searched)):
        end = "lowest" if rate == min(searched) else "highest"
        notes.append(f"{place}: the best rate is the {end} that was tried; a better one may lie beyond")
    failed = sum((output / each.id / FAILED).is_file() for each in {*row.searches, *row.at(rate)})
    if failed:
        notes.append(f"{place}: {failed} run{'s' * (failed > 1)} failed")
    values = [outcome.seed_values() for outcome in outcomes]
    entry = {
        "name": row.name,
        "pruning": row.pruning,
        "class": _single(_kind(outcome) for outcome in outcomes),
        "trained_parameters": _single((outcome.run.get("method") or {}).get("parameters") for outcome in outcomes),
        "zeros_kept": _mean_or_none([_zeros_kept(outcome.results.get("proof") or {}) for outcome in outcomes]),
        "rate": rate,
        "rates": [{"rate": rate, "valid_loss": loss} for rate, loss in searched.items()],
        "seeds": [each.seed for each in row.at(rate) if each.id in found] if outcomes else [],
        "wanted": len(row.at(row.finals[0].rate)),
        "failed": failed,
        "minutes": _mean_or_none([outcome.record.get("seconds", 0) / 60 for outcome in outcomes]),
        **{name: spread(each[name] for each in values) for name in SPREADS},
        "tasks": [task for task, _ in outcomes[0].accuracies] if outcomes else [],
        "perplexity_of": outcomes[0].perplexity if outcomes else None,
        "scores": _scores(outcomes),
        "against": None,
        "control": None,
    }
    for name, error in _over_questions(place, outcomes, notes).items():
        if entry[name] is not None:
            entry[name]["stderr_questions"] = error
    return entry


def _scores(outcomes: list[Outcome]) -> dict[str, dict[str, dict | None]]:
    """task → metric → spread over seeds of the restored models."""
    scores = (outcomes[0].results.get("scores") or {}).get("restored") or {} if outcomes else {}
    return {
        task: {metric: spread(each.score("restored", task, metric) for each in outcomes) for metric in metrics}
        for task, metrics in scores.items()
    }


def _over_questions(place: str, outcomes: list[Outcome], notes: list[str]) -> dict[str, float]:
    """Standard errors over questions of the recovered shares: that of the paired gain over the gap, taken as it is."""
    found: dict[str, float] = {}
    if not outcomes:
        return found
    first = outcomes[0]
    gaps = {"recovered": (first.accuracies, [first.task_mean(model) for model in ("dense", "pruned")])}
    if first.perplexity:
        scores = [first.score(model, *first.perplexity) for model in ("dense", "pruned")]
        gaps["recovered_perplexity"] = ([first.perplexity], scores)
    if first.answers:
        gaps["recovered_answers"] = (
            first.answers,
            [first.level(model)["answer_bits"] for model in ("dense", "pruned")],
        )
    for name, (asked, (dense, pruned)) in gaps.items():
        try:
            gain = row_difference(outcomes, None, asked)
        except (UserError, ValueError) as error:
            notes.append(f"{place}: no error over questions of what was recovered: {error}")
            continue
        if gain and gain["stderr"] is not None and None not in (dense, pruned) and dense != pruned:
            found[name] = gain["stderr"] / abs(dense - pruned)
    return found


def _against(row: Row, outcomes: list[Outcome], others: list[Outcome], notes: list[str]) -> dict | None:
    """What the row has over the one it is held against: {"name", COMPARED: {"difference", "stderr"}}, by questions."""
    if not outcomes or not others:
        return None
    found: dict = {"name": row.compare_to}
    for name in COMPARED:
        try:
            found[name] = difference(outcomes, others, name)
        except (UserError, ValueError) as error:
            found[name] = None
            notes.append(f"{row.name}, {row.pruning}: not held against {row.compare_to}: {error}")
    return found


def difference(outcomes: list[Outcome], others: list[Outcome], name: str) -> dict | None:
    """{"difference", "stderr", "n"} of `outcomes` minus `others` in one of COMPARED, over the same n rows.

    None where no rows were kept; UserError or ValueError where they are not the same ones.
    """
    if name in _AGREEMENT:
        return _apart_more(outcomes, others, name)
    if name == "valid_loss" and not all(outcome.rows_of(name) for outcome in (*outcomes, *others)):
        return None  # of runs before these rows were kept
    return row_difference(outcomes, others, outcomes[0].rows_of(name))


def _apart_more(outcomes: list[Outcome], others: list[Outcome], measure: str) -> dict | None:
    """`difference` in how far from the dense model each answer is; a question's seeds averaged first."""
    found = [[outcome.apart[measure] for outcome in each] for each in (outcomes, others)]
    asked = {frozenset(each) for group in found for each in group}
    if frozenset() in asked:
        return None
    if len(asked) > 1:
        raise ValueError("the answers that are held against the dense model's are to different questions")
    order = sorted(asked.pop())
    rows = [np.mean([np.concatenate([each[task] for task in order]) for each in group], axis=0) for group in found]
    value, error = paired_difference(*rows, "mean")
    return {"difference": value, "stderr": error, "n": len(rows[0])}


def _of_control(outcomes: list[Outcome], controls: list[Outcome]) -> dict | None:
    """(pruned - restored) / (pruned - control) in each that `Outcome.level` tells, means over seeds first.

    control: the dense model after the same method on the same samples, so what training would have given without any
    pruning. None where that is no better than the pruned model, or where one of them was not measured.
    """
    if not outcomes or not controls:
        return None
    before, after, best = (
        [outcome.level(model) for outcome in each]
        for model, each in (("start", outcomes), ("restored", outcomes), ("restored", controls))
    )
    found = {}
    for name in before[0]:
        pruned, restored, control = (_mean_or_none([each[name] for each in level]) for level in (before, after, best))
        known = None not in (pruned, restored, control) and control < pruned
        found[name] = (pruned - restored) / (pruned - control) if known else None
    return found


def row_difference(outcomes: list[Outcome], others: list[Outcome] | None, asked: list[tuple[str, str]]) -> dict | None:
    """{"difference", "stderr", "n"} of the restored models' mean over `asked`, row by row, seeds averaged first.

    others: what is subtracted; None for the pruned model. n: rows of all of `asked`. None where no rows were kept, or
    nothing was asked.
    """
    mine = [outcome.metrics.get("restored") for outcome in outcomes]
    if others is None:
        theirs = [outcomes[0].metrics.get("pruned")]
    else:
        theirs = [outcome.metrics.get("restored") for outcome in others]
    if not asked or not all(mine) or not all(theirs):
        return None
    pairs = []
    for task, metric in asked:
        one, other = pair_rows(_averaged(mine, task, metric), _averaged(theirs, task, metric), task, metric)
        pairs.append((one.values, other.values))
    value, error = mean_difference(*zip(*pairs, strict=True), one.aggregation)
    return {"difference": value, "stderr": error, "n": sum(len(values) for values, _ in pairs)}


def _averaged(kept: list[Kept], task: str, metric: str) -> Kept:
    rows = [each[task][metric] for each in kept if metric in each.get(task, {})]
    return {task: {metric: mean_rows(rows)}} if rows else {}


def _models(rows: Sequence[Row], chosen: dict) -> list[dict]:
    """The dense and the pruned model's perplexity, bits a byte and mean accuracy, once a pruning."""
    found = []
    for pruning in dict.fromkeys(row.pruning for row in rows):
        scored = [outcome for row in rows if row.pruning == pruning for outcome in chosen[row.name, pruning][1]]
        scored = [outcome for outcome in scored if outcome.perplexity or outcome.accuracies]
        for model in ("dense", "pruned") if scored and pruning != CONTROL else ():
            level = {name: value for name, value in scored[0].level(model).items() if name != "valid_loss"}
            found.append({"model": model, "pruning": pruning, **level, "task_mean": scored[0].task_mean(model)})
    return found


def _apart(outcomes: list[Outcome], now: dict | None) -> list[str]:
    """Notes on runs of more than one code, set of versions or device, or of other ones than the present."""
    notes = []
    codes = Counter(str(outcome.record.get("code"))[:8] for outcome in outcomes)
    present = str(now["code"])[:8] if now else None
    if len(codes) > 1 or (present and codes and present not in codes):
        notes.append(f"the code differs: {_named(codes)}" + (f"; now it is {present}" if present else ""))
    for package in sorted({name for outcome in outcomes for name in outcome.record.get("versions") or {}}):
        seen = {str((outcome.record.get("versions") or {}).get(package)) for outcome in outcomes}
        seen |= {str(now["versions"].get(package))} if now else set()
        if len(seen) > 1:
            notes.append(f"the version of {package} differs: {', '.join(sorted(seen))}")
    devices = {str(outcome.run.get("device")) for outcome in outcomes}
    if len(devices) > 1:
        notes.append(f"runs were made on different devices: {', '.join(sorted(devices))}")
    return notes


def _pruned_again(chosen: dict) -> list[str]:
    """Notes on runs of one pruned model's name that began with different weights. chosen: as `build_table` has it."""
    weights: dict[str, Counter[str]] = {}
    for (_, pruning), (_, outcomes) in chosen.items():
        found = ((outcome.run.get("inputs") or {}).get("pruned model") for outcome in outcomes)
        weights.setdefault(pruning, Counter()).update(filter(None, found))
    return [
        f"{pruning}: the weights of the pruned model differ, so it was made more than once: {_named(counts)}"
        for pruning, counts in weights.items()
        if len(counts) > 1
    ]


def _named(counts: Counter[str]) -> str:
    return ", ".join(f"{each[:8]} ({count} runs)" for each, count in counts.items())


def _kind(outcome: Outcome) -> str | None:
    method = outcome.run.get("method") or {}
    return method.get("kind") if method.get("restores", True) else "nothing"


def _zeros_kept(proof: dict) -> float | None:
    """The share of the pruned model's zeros that the restored one still has."""
    zeros = proof.get("zeros_pruned")
    return 1 - proof.get("zeros_lost", 0) / zeros if zeros else None


def _single(values: Iterable[object]) -> object:
    """What all of them are; None if they are not one."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else None


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    return mean(values) if values and None not in values else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
