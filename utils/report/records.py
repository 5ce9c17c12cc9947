"""What results.json keeps of the heads and of the gap's spectrum: the numbers behind the report's pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

DIGITS = 5
"""Significant digits of a recorded score or share; pictures show fewer."""


def heads_record(
    scores: Tensor, heads: Sequence[tuple[int, int]], sizes: Tensor | None, learned: Mapping[str, Tensor]
) -> dict:
    """The heads' scores and sizes as JSON.

    scores: (L, H), what ranked the heads; not finite where a head cannot be restored. heads: the n trained ones.
    sizes: (L, H), ‖c‖ of Eq. 4, if it was computed. learned: a method's state; of its `magnitudes` (n, d) and
    `component` (n, d) the norms are kept, ‖β‖ and ‖b‖ of Eq. 8 in the order of `heads`.
    """
    record = {"count": scores.numel(), "trained": [list(pair) for pair in heads], "scores": numbers(scores)}
    if sizes is not None:
        record["component_sizes"] = numbers(sizes)
    for name, key in (("magnitudes", "magnitude_sizes"), ("component", "bias_sizes")):
        if name in learned and len(learned[name]) == len(heads):
            record[key] = numbers(learned[name].norm(dim=-1))
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


def numbers(values: Tensor | np.ndarray) -> list:
    """The same as nested lists, each number to DIGITS; what is not finite stays so."""
    nested = values.detach().double().cpu().tolist() if isinstance(values, Tensor) else values.tolist()
    return _rounded(nested)


def _rounded(nested: list | float) -> list | float:
    return [_rounded(each) for each in nested] if isinstance(nested, list) else float(f"{nested:.{DIGITS}g}")
