"""The numbers behind the report's pictures: heads and spectrum as results.json keeps them, curves of the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

DIGITS = 5
"""Significant digits of a recorded score or share; pictures show fewer."""


def heads_record(
    scores: Tensor, heads: Sequence[tuple[int, int]], sizes: Tensor | None, learned: Callable[[str], Tensor | None]
) -> dict:
    """The heads' scores and sizes as JSON.

    scores: (L, H), what ranked the heads; not finite where a head cannot be restored. heads: the n trained ones.
    sizes: (L, H), ‖c‖ of Eq. 4, if it was computed. learned: by name, `magnitudes` and `component` (n, d) in the order
    of `heads`, None where there are none; their norms are kept, ‖β‖ and ‖b‖ of Eq. 8.
    """
    record = {"count": scores.numel(), "trained": [list(pair) for pair in heads], "scores": numbers(scores)}
    if sizes is not None:
        record["component_sizes"] = numbers(sizes)
    for name, key in (("magnitudes", "magnitude_sizes"), ("component", "bias_sizes")):
        if (values := learned(name)) is not None:
            record[key] = numbers(values.norm(dim=-1))
    return record


def spectrum_record(explained: Tensor) -> dict | None:
    """How much of the gap's energy the first K directions hold, each list K = 1 … d; None if no head has a gap.

    explained: (L, H, d), share per direction, largest first. {"mean", "low", "high": mean, 10th and 90th percentile
    over all heads, "layers": the mean over each layer's heads, None for one without a gap}.
    """
    whole = cumulative_share(explained)
    if whole is None:
        return None
    layers = [cumulative_share(layer) for layer in explained]
    record = {name: numbers(values) for name, values in zip(("mean", "low", "high"), whole, strict=True)}
    return {**record, "layers": [None if layer is None else numbers(layer[0]) for layer in layers]}


def cumulative_share(explained: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(mean, 10th, 90th percentile over heads), each (d,), of the share that the first K directions hold.

    explained: (…, d); heads without a gap (not finite, or all zero) are left out, None if no other is there.
    """
    shares = explained.detach().double().cpu().numpy()
    shares = np.cumsum(shares.reshape(-1, shares.shape[-1]), axis=1)
    shares = shares[np.isfinite(shares).all(axis=1) & (shares[:, -1] > 0)]
    return (shares.mean(axis=0), *np.percentile(shares, [10, 90], axis=0)) if len(shares) else None


def score_map(record: dict) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """((L, H) scores, NaN where a head cannot be restored; the trained pairs) of what `heads_record` made."""
    return np.array(record["scores"], dtype=float), [tuple(pair) for pair in record["trained"]]


def score_name_of(record: dict) -> str:
    """What the heads' score is."""
    return record.get("score_name") or "validation accuracy of the probe"


def spans_magnitudes(scores: np.ndarray) -> bool:
    """Whether scores need a logarithmic scale: gaps, unlike accuracies, span orders of magnitude between layers."""
    known = scores[np.isfinite(scores)]
    return bool(len(known) and known.min() > 0 and known.max() > 100 * known.min())


@dataclass(frozen=True)
class LossCurves:
    """(steps, 2) each: step and finite loss. smoothed: the training loss as a moving mean over `window` steps, None
    where there are too few. before: the validation loss before the first step. limits: of the axis of losses.
    """

    training: np.ndarray
    validation: np.ndarray
    smoothed: np.ndarray | None
    window: int
    before: float | None
    limits: tuple[float, float] | None


def loss_curves(history: list[dict]) -> LossCurves:
    """What a history's rows, with `step` and `loss` or `valid_loss`, look like."""
    training, validation = _points(history, "loss"), _points(history, "valid_loss")
    window = len(training) // 20
    smoothed = np.stack([training[:, 0], smooth(training[:, 1], window)], axis=1) if window > 1 else None
    before = validation[0, 1] if len(validation) and validation[0, 0] == 0 else None
    limits = None
    if len(training):
        # A few odd batches must not flatten everything else.
        shown = np.concatenate([np.percentile(training[:, 1], [0.5, 99.5]), validation[:, 1]])
        margin = 0.05 * (shown.max() - shown.min()) or 0.1
        limits = float(shown.min() - margin), float(shown.max() + margin)
    return LossCurves(training, validation, smoothed, window, before, limits)


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred moving mean over `window` values, narrower at both ends; same length."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.arange(len(values))
    low = np.maximum(centres - (window - 1) // 2, 0)
    high = np.minimum(centres + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _points(history: list[dict], key: str) -> np.ndarray:
    """(steps, 2): step and finite value of the rows that hold `key`."""
    found = [(row["step"], row[key]) for row in history if row.get(key) is not None]
    return np.array([point for point in found if np.isfinite(point[1])], dtype=float).reshape(-1, 2)


def numbers(values: Tensor | np.ndarray) -> list:
    """The same as nested lists, each number to DIGITS; what is not finite stays so."""
    nested = values.detach().double().cpu().tolist() if isinstance(values, Tensor) else values.tolist()
    return _rounded(nested)


def _rounded(nested: list | float) -> list | float:
    return [_rounded(each) for each in nested] if isinstance(nested, list) else float(f"{nested:.{DIGITS}g}")
