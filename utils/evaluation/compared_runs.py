"""One finished run, read from its files, and runs held against other runs: question by question, and seed by seed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from utils.common.files import digest, read_json
from utils.common.names import ANSWER_BITS
from utils.evaluation.outcomes import CHOICES, LOSS, VALIDATION, Kept, KeptRows, pair_rows, read_rows
from utils.evaluation.paired_statistics import AGREEMENT, mean_difference

COMPARED = ("valid_loss", "perplexity", "answer_bits", "kl", "flipped", "task_mean")
"""What a run is told by, and held against others in; the share of a control is told of the first three."""

Measure = str | tuple[str, str]
"""One of COMPARED, or (task, metric)."""

RESULTS = (
    "scores", "metrics", "main_metric", "paired", "recovered", "mean", "answers", "agreement", "validation", "proof",
)  # fmt: skip
RUN = ("arguments", "method", "models", "pruning", "seeds", "device", "versions", "inputs", "stages")
"""What is kept of results.json and of run.json."""


@dataclass(frozen=True)
class Outcome:
    """One finished run: results.json, run.json, and the rows that the restored model is compared in."""

    results: dict
    run: dict
    rows: Kept

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.run.get("seeds", {}).get("training", 0)

    @property
    def minutes(self) -> float:
        """How long its stages took."""
        return sum(stage["seconds"] for stage in self.run.get("stages", [])) / 60

    @property
    def perplexity(self) -> tuple[str, str] | None:
        """(task, metric) of the perplexity that stands in the table."""
        scores = (self._at("scores", "restored") or {}).items()
        names = ("token_perplexity", "word_perplexity")
        return next(((task, name) for name in names for task, metrics in scores if name in metrics), None)

    @property
    def accuracies(self) -> list[tuple[str, str]]:
        """(task, metric) of what the mean over tasks is of."""
        main = self.results.get("main_metric") or {}
        named = self._at("mean", "tasks") or [task for task, metric in main.items() if str(metric).startswith("acc")]
        return [(task, main[task]) for task in named]

    def asked(self, measure: Measure) -> list[tuple[str, str]]:
        """(task, metric) of the rows that a measure is the mean of."""
        if isinstance(measure, tuple):
            return [measure]
        return {
            "valid_loss": [(VALIDATION, LOSS)],
            "perplexity": [self.perplexity] if self.perplexity else [],
            "answer_bits": [(task, ANSWER_BITS) for task in self._at("answers", "tasks") or []],
            "task_mean": self.accuracies,
        }.get(measure, [("agreement", measure)])

    def value(self, measure: str, model: str = "restored") -> float | None:
        """A model's value of one of COMPARED; None where it was not measured, or is no finite number."""
        if measure == "valid_loss":
            return self._at("validation", model)
        if measure in AGREEMENT:
            return self._at("agreement", model, "all", measure, "value")
        return self._at(*self._place("scores", measure, model), "value")

    def recovered(self, measure: str) -> tuple[float | None, float | None]:
        """The closed share of the gap between the dense and the pruned model, and its standard error over questions.

        That is the error of the paired gain over the gap, taken as it is.
        """
        error = self._at(*self._place("paired", measure), "stderr")
        dense, pruned = (self.value(measure, model) for model in ("dense", "pruned"))
        known = None not in (error, dense, pruned) and dense != pruned
        return self._at(*self._place("recovered", measure)), error / abs(dense - pruned) if known else None

    @property
    def forgetting(self) -> float | None:
        """The perplexity minus the pruned model's."""
        after, before = (self.value("perplexity", model) for model in ("restored", "pruned"))
        return None if None in (after, before) else after - before

    @property
    def zeros_kept(self) -> float | None:
        """The share of the pruned model's zeros that the restored one still has."""
        zeros = self._at("proof", "zeros_pruned")
        return 1 - (self._at("proof", "zeros_lost") or 0) / zeros if zeros else None

    def _place(self, part: str, measure: str, *model: str) -> tuple[str, ...]:
        """Where results.json has a part (scores, paired, recovered) of a measure."""
        whole = {"answer_bits": "answers", "task_mean": "mean"}.get(measure, "")
        asked = self.asked(measure)
        return (whole, part, *model) if self.results.get(whole) else (part, *model, *asked[0]) if asked else ("",)

    def _at(self, *names: str) -> object:
        """What results.json has at that place; None where it has nothing."""
        found: object = self.results
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def read_outcome(folder: Path) -> Outcome:
    """The finished run in `folder`."""
    results, run = (
        {name: whole[name] for name in kept if whole.get(name)}
        for whole, kept in ((read_json(folder / "results.json"), RESULTS), (read_json(folder / "run.json"), RUN))
    )
    outcome, path = Outcome(results, run, {}), folder / "logs" / "rows.json.gz"
    questions = read_rows(path) if path.is_file() else {}
    dense, restored = (questions.get(model, {}) for model in ("dense", "restored"))
    main = (results.get("main_metric") or {}).items()
    for task, metric in sorted({*main, *(pair for measure in COMPARED for pair in outcome.asked(measure))}):
        if rows := restored.get(task, {}).get(metric):
            outcome.rows.setdefault(task, {})[metric] = replace(rows, values=np.asarray(rows.values))
    if tasks := [task for task in sorted(dense) if CHOICES in dense[task] and CHOICES in restored.get(task, {})]:
        asked = digest([[task, restored[task][CHOICES].sha256] for task in tasks])
        sides = [(dense[task][CHOICES].values, restored[task][CHOICES].values) for task in tasks]
        for measure, rows_of in AGREEMENT.items():
            rows = KeptRows(np.concatenate([rows_of(*side) for side in sides]), "mean", False, asked)
            outcome.rows.setdefault("agreement", {})[measure] = rows
    return outcome


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Their mean; None where there are none, or one is unknown."""
    found = spread(values)
    return found and found["value"]


def spread(values: Iterable[float | None]) -> dict | None:
    """{"value": mean, "stderr": standard error of the mean, None for a single value, "n"}; None if one is missing."""
    known = list(values)
    if not known or None in known:
        return None
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"value": mean(known), "stderr": error, "n": len(known)}


def difference(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> dict | None:
    """{"difference", "stderr", "stderr_seeds", "n"} of `outcomes` minus `others`, over the same n rows.

    Of the seeds that both have, if they share any: what a seed does to both is no difference between them. stderr: over
    the rows, each one's values averaged over seeds. stderr_seeds: of the mean of each seed's own difference; None for
    fewer than two. Neither error holds the other. None where no rows were kept; UserError where they are other ones.
    """
    outcomes, others = of_shared_seeds(outcomes, others)
    found = _paired(outcomes, others, measure)
    if found and [each.seed for each in outcomes] == [each.seed for each in others]:
        pairs = [_paired([one], [other], measure) for one, other in zip(outcomes, others, strict=True)]
        found["stderr_seeds"] = spread(each["difference"] for each in pairs)["stderr"]
    return found


def of_shared_seeds(outcomes: list[Outcome], others: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Of both the runs of the seeds that both have, by seed; all runs of both where they share none."""
    one, other = ({outcome.seed: outcome for outcome in each} for each in (outcomes, others))
    shared = sorted(one.keys() & other.keys())
    return ([one[seed] for seed in shared], [other[seed] for seed in shared]) if shared else (outcomes, others)


def _paired(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> dict | None:
    """`difference` without its error over seeds: the mean over tasks, each one's rows averaged over the runs first."""
    pairs, aggregation = [], ""
    for task, metric in outcomes[0].asked(measure):
        sides = [[each.rows.get(task, {}).get(metric) for each in side] for side in (outcomes, others)]
        if None in sides[0] or None in sides[1]:
            return None
        for each in (*outcomes, *others):
            pair_rows(outcomes[0].rows, each.rows, task, metric)
        pairs.append([np.mean([rows.values for rows in side], axis=0) for side in sides])
        aggregation = sides[0][0].aggregation
    if not pairs:
        return None
    found = mean_difference(*zip(*pairs, strict=True), aggregation)
    return {**found, "stderr_seeds": None, "n": sum(len(one) for one, _ in pairs)}
