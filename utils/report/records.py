"""The numbers behind the pictures of heads and of the spectrum, as results.json keeps them."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor


def heads_record(
    scores: Tensor, heads: Sequence[tuple[int, int]], sizes: Tensor | None, learned: Callable[[str], Tensor | None]
) -> dict:
    """The heads' scores and sizes as JSON.

    scores: (L, H), not finite where a head cannot be restored. heads: the n trained ones. sizes: (L, H), ‖c‖ of Eq. 4,
    if known. learned: `magnitudes` and `component` (n, d) of `heads`, if any; ‖β‖ and ‖b‖ of Eq. 8 are kept.
    """
    found = {"scores": scores, "component_sizes": sizes}
    for name, key in (("magnitudes", "magnitude_sizes"), ("component", "bias_sizes")):
        found[key] = None if (values := learned(name)) is None else values.norm(dim=-1)
    record = {"count": scores.numel(), "trained": [list(pair) for pair in heads]}
    return record | {key: numbers(values) for key, values in found.items() if values is not None}


def spectrum_record(explained: Tensor) -> dict | None:
    """How much of the gap's energy the first K directions hold, each list K = 1 … d; None if no head has a gap.

    explained: (L, H, d), share per direction, largest first. {"mean": over all heads that have a gap (finite, and not
    all zero), "layers": the mean over each layer's, None without any}.
    """
    shares = explained.detach().double().cpu().cumsum(dim=-1)
    known = shares.isfinite().all(dim=-1) & (shares[..., -1] > 0)
    if not known.any():
        return None
    pairs = zip(shares, known, strict=True)
    layers = [numbers(layer[some].mean(dim=0)) if some.any() else None for layer, some in pairs]
    return {"mean": numbers(shares[known].mean(dim=0)), "layers": layers}


def numbers(values: Tensor) -> list:
    """The values as nested lists, each number to 5 significant digits; NaN and infinity stay."""
    shorten = np.vectorize(lambda value: float(f"{value:.5g}"), otypes=[float])
    return shorten(values.detach().double().cpu().numpy()).tolist()
