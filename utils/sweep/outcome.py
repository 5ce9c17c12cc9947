"""One finished run, and the numbers that a table takes from its files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from utils.common.names import ANSWER_BITS
from utils.evaluation.outcomes import CHOICES, LOSS, VALIDATION, Kept, read_rows
from utils.evaluation.paired_statistics import divergences, flips
from utils.sweep.runs import read_json, valid_loss

PERPLEXITIES = ("token_perplexity", "word_perplexity")
"""Metrics that a table's perplexity may be, the first that a run has."""

CONTROLLED = ("valid_loss", "perplexity", "answer_bits")
"""What the share of a control is told of."""

AGREEMENT = {"kl": divergences, "flipped": flips}
"""What is told of answers held against the dense model's, row by row."""


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
    def seed(self) -> int:
        """The seed of its training."""
        return (self.run.get("seeds") or {}).get("training", self.run.get("seed")) or 0

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
        found: dict[str, dict] = {measure: {} for measure in AGREEMENT}
        for task in dense:
            if all(CHOICES in model.get(task, {}) for model in (dense, restored)):
                one, other = dense[task][CHOICES], restored[task][CHOICES]
                for measure, rows in AGREEMENT.items():
                    found[measure][task, other.sha256] = np.asarray(rows(one.values, other.values))
        return found

    def score(self, model: str, task: str, metric: str) -> float | None:
        """A model's value of a metric."""
        return number(self._at("scores", model, task, metric, "value"))

    def task_mean(self, model: str) -> float | None:
        """A model's mean accuracy over tasks."""
        return mean_or_none([self.score(model, *each) for each in self.accuracies])

    def level(self, model: str) -> dict[str, float | None]:
        """What a model's level is told by."""
        values = (
            self._validation(model),
            self.score(model, *self.perplexity) if self.perplexity else None,
            number(self._at("answers", "scores", model, "value")),
        )
        return dict(zip(CONTROLLED, values, strict=True))

    def validated(self, model: str) -> tuple:
        """What its validation loss of the pruned or the dense model is known by: weights, dtype, how many tokens."""
        weights = (self.run.get("inputs") or {}).get(f"{model} model")
        return weights, (self.run.get("arguments") or {}).get("dtype"), self._at("validation", "tokens")

    def _validation(self, model: str) -> float | None:
        """A model's validation loss. Older runs kept the pruned model's only as that which training began with.

        That is another one after a closed form, and a little off where heads are restored: their b begins near zero.
        """
        args = self.run.get("arguments") or {}
        elsewhere = args.get("first") or args.get("bias_start", "zero") != "zero" or "heads" in self.results
        older = model == "pruned" and "pruned" not in (self.results.get("validation") or {}) and not elsewhere
        return number(self._at("validation", "start" if older else model))

    def seed_values(self) -> dict[str, float | None]:
        """What is averaged over seeds, by its name in the table."""
        found = {"valid_loss": valid_loss(self.folder), "task_mean": self.task_mean("restored")}
        found |= {"perplexity": None, "forgetting": None, "recovered_perplexity": None}
        if self.perplexity:
            after, before = (self.score(model, *self.perplexity) for model in ("restored", "pruned"))
            found["perplexity"] = after
            found["forgetting"] = None if None in (after, before) else after - before
            found["recovered_perplexity"] = number(self._at("recovered", *self.perplexity))
        alone = self.accuracies[0] if len(self.accuracies) == 1 else None
        place = ("recovered", *alone) if alone else ("mean", "recovered")
        found["recovered"] = number(self._at(*place))
        found["recovered_answers"] = number(self._at("answers", "recovered"))
        found["answer_bits"] = number(self._at("answers", "scores", "restored", "value"))
        for measure in ("flipped", "kl"):
            found[measure] = number(self._at("agreement", "restored", "all", measure, "value"))
        return found

    def _at(self, *names: str) -> object:
        """What results.json has at that place; None where it has nothing."""
        found: object = self.results
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Their mean; None where there are none, or one is unknown."""
    return mean(values) if values and None not in values else None


def spread(values: Iterable[float | None]) -> dict | None:
    """{"value": mean, "stderr": standard error of the mean, None for a single value, "n"}; None if one is missing."""
    known = list(values)
    if not known or None in known:
        return None
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"value": mean(known), "stderr": error, "n": len(known)}


def number(value: object) -> float | None:
    """What a file has there as a number; None if it has no finite one."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
