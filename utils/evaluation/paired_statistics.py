"""Standard errors, paired differences and shares of a gap, from per-row values.

A row is what one sample contributes to a metric: a number, or a pair (log-likelihood, weight) where the metric is a
weighted perplexity. Every standard error is the delete-one jackknife's, which for a mean is exactly s/√n and for a
perplexity agrees with the delta method to first order.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Row = float | Sequence[float]


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


AGGREGATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _mean,
    # lm_eval's: rows are log-likelihoods.
    "perplexity": lambda sums: np.exp(-_mean(sums)),
    "weighted_perplexity": lambda sums: np.exp(-_mean(sums)),
    "bits_per_byte": lambda sums: -_mean(sums) / math.log(2),
    # Rows are mean negative log-likelihoods of windows of one length.
    "exp_mean": lambda sums: np.exp(_mean(sums)),
}
"""From (sum of values, sum of weights) in the last axis to the metric: all that resampling needs to know."""


def aggregate(rows: Sequence[Row], aggregation: str) -> float:
    """The metric over all rows."""
    return float(AGGREGATIONS[aggregation](_table(rows).sum(axis=0)))


def stderr(rows: Sequence[Row], aggregation: str) -> float | None:
    """Jackknife standard error of the metric; None for fewer than two rows."""
    return _jackknife([_table(rows)], lambda left_out: AGGREGATIONS[aggregation](left_out[0]))


def score(rows: Sequence[Row], aggregation: str) -> dict[str, float | None]:
    """{"value": the metric over all rows, "stderr": its jackknife standard error}."""
    return {"value": aggregate(rows, aggregation), "stderr": stderr(rows, aggregation)}


def paired_difference(first: Sequence[Row], second: Sequence[Row], aggregation: str) -> tuple[float, float | None]:
    """Metric of `first` minus metric of `second`, and its standard error, row i answering the same question in both."""
    if len(first) != len(second):
        raise ValueError(f"paired rows differ in number: {len(first)} and {len(second)}")
    metric = AGGREGATIONS[aggregation]
    error = _jackknife([_table(first), _table(second)], lambda left_out: metric(left_out[0]) - metric(left_out[1]))
    return aggregate(first, aggregation) - aggregate(second, aggregation), error


def mcnemar_p(first: Sequence[Row], second: Sequence[Row]) -> float | None:
    """Exact two-sided McNemar p: of the rows where right and wrong differ, is either side's share beyond chance?

    None where rows are not all 0 or 1.
    """
    one, other = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or not np.isin(np.concatenate([one, other]), (0, 1)).all():
        return None
    gained, lost = int((one > other).sum()), int((one < other).sum())
    discordant = gained + lost
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    # Integers of any size divide exactly here; 2.0**discordant would overflow for a large task.
    return min(1.0, 2 * tail / 2**discordant)


def flips(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """1 for each row whose answer isn't the reference's, else 0; rows hold the log-likelihoods of the choices.

    The answer is the likeliest choice, the first of equal ones, as lm_eval's acc takes it.
    """
    return [float(np.argmax(one) != np.argmax(two)) for one, two in zip(reference, other, strict=True)]


def divergences(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """KL(reference || other) of each row, in nats: of the softmax over its choices' log-likelihoods."""
    found = []
    for one, two in zip(reference, other, strict=True):
        if len(one) != len(two):
            raise ValueError(f"rows differ in their number of choices: {len(one)} and {len(two)}")
        with np.errstate(invalid="ignore"):  # a collapsed model's NaN is a value like others
            log_p, log_q = (np.asarray(row, dtype=np.float64) - np.logaddexp.reduce(row) for row in (one, two))
        # Without those of probability 0, whose share is 0 though its logarithm isn't finite; NaN stays.
        p, counted = np.exp(log_p), np.exp(log_p) != 0
        found.append(float((p[counted] * (log_p[counted] - log_q[counted])).sum()))
    return found


def mean_of_tasks(tasks: Sequence[Sequence[Row]], aggregation: str) -> tuple[float, float | None]:
    """The mean over tasks of each one's metric, and its standard error; tasks are independent."""
    return _mean_of([(aggregate(rows, aggregation), stderr(rows, aggregation)) for rows in tasks])


def mean_difference(
    first: Sequence[Sequence[Row]], second: Sequence[Sequence[Row]], aggregation: str
) -> tuple[float, float | None]:
    """`mean_of_tasks` of `first` minus that of `second`, and its standard error, paired by the rows of each task."""
    return _mean_of([paired_difference(one, other, aggregation) for one, other in zip(first, second, strict=True)])


def share_recovered(
    dense: Sequence[Sequence[Row]],
    pruned: Sequence[Sequence[Row]],
    restored: Sequence[Sequence[Row]],
    aggregation: str,
    higher_is_better: bool,
) -> float | None:
    """(restored - pruned) / (dense - pruned) of the mean over tasks, of one as of several.

    None where the dense model is not better than the pruned one by more than two standard errors of their paired
    difference: a share of noise says nothing.
    """
    gap, error = mean_difference(dense, pruned, aggregation)
    better = gap if higher_is_better else -gap
    if error is None or not better > 2 * error:
        return None
    return mean_difference(restored, pruned, aggregation)[0] / gap


def _mean_of(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """(mean, standard error) of independent (value, standard error): √(Σ σ_i²) / n."""
    values, errors = zip(*parts, strict=True)
    spread = None if None in errors else math.hypot(*errors) / len(errors)
    return sum(values) / len(values), spread


def _table(rows: Sequence[Row]) -> np.ndarray:
    """(n, 2) float64: value and weight of each row."""
    values = np.asarray(rows, dtype=np.float64)
    return np.stack([values, np.ones(len(values))], axis=1) if values.ndim == 1 else values


def _jackknife(tables: list[np.ndarray], statistic: Callable[[list[np.ndarray]], np.ndarray]) -> float | None:
    n = len(tables[0])
    if n < 2:
        return None
    replicates = statistic([table.sum(axis=0) - table for table in tables])
    return float(np.sqrt((n - 1) / n * ((replicates - replicates.mean()) ** 2).sum()))
