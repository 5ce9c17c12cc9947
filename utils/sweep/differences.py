"""Rows of a sweep held against each other, question by question with their seeds averaged first, and seed by seed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from utils.evaluation.outcomes import Kept, KeptRows, pair_rows
from utils.evaluation.paired_statistics import mean_difference, paired_difference
from utils.sweep.outcome import AGREEMENT, Outcome, spread

COMPARED = ("valid_loss", "perplexity", "answer_bits", "kl", "flipped", "task_mean")
"""What a row is held against another one's in, by its name in table.json."""

Measure = str | tuple[str, str]
"""What is held against another: one of COMPARED, or (task, metric)."""


def difference(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> dict | None:
    """{"difference", "stderr", "stderr_seeds", "n"} of `outcomes` minus `others`, over the same n rows.

    Of the seeds that both have, if they share any: what a seed does to both is no difference between them. stderr: over
    the rows, each one's values averaged over seeds. stderr_seeds: of the mean of each seed's own difference; None for
    fewer than two. What one draw of rows and one draw of trainings leave unknown are two things: neither error holds
    the other. None where no rows were kept; UserError or ValueError where they are not the same ones.
    """
    outcomes, others = of_shared_seeds(outcomes, others)
    found = _over_rows(outcomes, others, measure)
    return None if found is None else found | {"stderr_seeds": _over_seeds(outcomes, others, measure)}


def of_shared_seeds(outcomes: list[Outcome], others: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Of both the runs of the seeds that both have, by seed; all runs of both where they share none."""
    one, other = ({outcome.seed: outcome for outcome in each} for each in (outcomes, others))
    shared = sorted(one.keys() & other.keys())
    return ([one[seed] for seed in shared], [other[seed] for seed in shared]) if shared else (outcomes, others)


def _over_seeds(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> float | None:
    """The standard error of the mean of each seed's own difference; None where fewer than two seeds are in both."""
    if len(outcomes) < 2 or [each.seed for each in outcomes] != [each.seed for each in others]:
        return None
    each = (_over_rows([one], [other], measure) for one, other in zip(outcomes, others, strict=True))
    found = spread(apart and apart["difference"] for apart in each)
    return found and found["stderr"]


def _over_rows(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> dict | None:
    if measure in AGREEMENT:
        return _apart_more(outcomes, others, measure)
    if measure == "valid_loss" and not all(outcome.rows_of(measure) for outcome in (*outcomes, *others)):
        return None  # of runs before these rows were kept
    return row_difference(outcomes, others, outcomes[0].rows_of(measure) if isinstance(measure, str) else [measure])


def _apart_more(outcomes: list[Outcome], others: list[Outcome], measure: str) -> dict | None:
    """`_over_rows` in how far from the dense model each answer is; a question's seeds averaged first."""
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
