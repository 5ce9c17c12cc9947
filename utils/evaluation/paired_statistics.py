"""Standard errors, paired differences and shares of a gap, from per-row values.

A row is what one sample contributes to a metric: a number, or a pair (log-likelihood, weight) where the metric is a
weighted perplexity. Every standard error is the delete-one jackknife's, which for a mean is exactly s/√n; but
windows of a text are left out in blocks, because neighbours are alike.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Row = float | Sequence[float]

AGGREGATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda mean: mean,
    # lm_eval's: rows are log-likelihoods.
    "perplexity": lambda mean: np.exp(-mean),
    "weighted_perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / math.log(2),
    # Rows are mean negative log-likelihoods of windows of one length.
    "exp_mean": lambda mean: np.exp(mean),
}
"""Maps the weighted mean of the rows to the metric; resampling needs no more."""

BLOCK, BLOCKS = 5, 8  # consecutive windows that are left out together: about 5, fewer if there were not 8 such blocks


def aggregate(rows: Sequence[Row], aggregation: str) -> float:
    """The metric over all rows."""
    value, weight = _table(rows).sum(axis=0)
    return float(AGGREGATIONS[aggregation](value / weight))


def score(tasks: Sequence[Sequence[Row]], aggregation: str) -> dict[str, float | None]:
    """{"value", "stderr"}: the mean over one or more tasks of the metric over each task's rows."""
    parts = [(aggregate(rows, aggregation), _jackknife(_without_each(rows, aggregation))) for rows in tasks]
    return dict(zip(("value", "stderr"), _mean_of(parts), strict=True))


def mean_difference(
    first: Sequence[Sequence[Row]], second: Sequence[Sequence[Row]], aggregation: str
) -> dict[str, float | None]:
    """{"difference", "stderr"}: the mean over tasks of `first` minus `second`. Row i is one question in both."""
    parts = []
    for one, other in zip(first, second, strict=True):
        value = aggregate(one, aggregation) - aggregate(other, aggregation)
        parts.append((value, _jackknife(_without_each(one, aggregation) - _without_each(other, aggregation))))
    return dict(zip(("difference", "stderr"), _mean_of(parts), strict=True))


def share_recovered(models: Sequence[Sequence[Sequence[Row]]], aggregation: str, higher: bool) -> float | None:
    """(restored - pruned) / (dense - pruned) of the mean over tasks. models: dense, pruned, restored, by task.

    None where the dense model is not better by more than two standard errors: a share of noise says nothing.
    """
    dense, pruned, restored = models
    gap, error = mean_difference(dense, pruned, aggregation).values()
    if error is None or not (gap if higher else -gap) > 2 * error:
        return None
    return mean_difference(restored, pruned, aggregation)["difference"] / gap


def mcnemar_p(first: Sequence[Row], second: Sequence[Row]) -> float | None:
    """Exact two-sided McNemar p of the rows that only one of both has right; None where rows are not all 0 or 1."""
    one, other = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or not np.isin(np.concatenate([one, other]), (0, 1)).all():
        return None
    gained, lost = int((one > other).sum()), int((one < other).sum())
    discordant = gained + lost
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    # Integers of any size divide exactly here; 2.0**discordant would overflow for a large task.
    return min(1.0, 2 * tail / 2**discordant)


def flips(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """1 for each row whose likeliest choice (the first, if several are equal) is not the reference's, else 0.

    NaN where a log-likelihood is NaN.
    """
    pairs = [(np.asarray(one), np.asarray(two)) for one, two in zip(reference, other, strict=True)]
    return [math.nan if np.isnan(one + two).any() else float(one.argmax() != two.argmax()) for one, two in pairs]


def divergences(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """KL(reference || other) of each row, in nats: of the softmax over its choices' log-likelihoods."""
    found = []
    for rows in zip(reference, other, strict=True):
        with np.errstate(invalid="ignore"):  # NaN of a collapsed model is passed on
            log_p, log_q = (np.asarray(row, dtype=np.float64) - np.logaddexp.reduce(row) for row in rows)
        # Skip choices of probability 0: they contribute 0, but their logarithm is not finite. NaN stays.
        p, counted = np.exp(log_p), np.exp(log_p) != 0
        found.append(float((p[counted] * (log_p[counted] - log_q[counted])).sum()))
    return found


AGREEMENT = {"flipped": flips, "kl": divergences}  # from the dense model's choices and another's, by question


def _mean_of(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """(mean, standard error) of independent (value, standard error): √(Σ σ_i²) / n."""
    values, errors = zip(*parts, strict=True)
    return sum(values) / len(values), None if None in errors else math.hypot(*errors) / len(errors)


def _table(rows: Sequence[Row]) -> np.ndarray:
    """(n, 2) float64: value and weight of each row."""
    values = np.asarray(rows, dtype=np.float64)
    return np.stack([values, np.ones(len(values))], axis=1) if values.ndim == 1 else values


def _without_each(rows: Sequence[Row], aggregation: str) -> np.ndarray:
    """(n,): the metric over all rows but one, or but one block of windows, each left out in turn."""
    table = _table(rows)
    if aggregation == "exp_mean":
        blocks = np.array_split(table, max(min(len(table), BLOCKS), len(table) // BLOCK))
        table = np.stack([block.sum(axis=0) for block in blocks])
    with np.errstate(invalid="ignore"):  # a single row leaves none
        values, weights = (table.sum(axis=0) - table).T
        return AGGREGATIONS[aggregation](values / weights)


@np.errstate(invalid="ignore")  # where one is infinite
def _jackknife(replicates: np.ndarray) -> float | None:
    """Standard error from a statistic without each row or block in turn; None for fewer than two of them."""
    n = len(replicates)
    return float(np.sqrt((n - 1) / n * ((replicates - replicates.mean()) ** 2).sum())) if n > 1 else None
