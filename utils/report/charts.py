"""The pictures of a run's page as SVG, each with the numbers that it shows: from records to a Drawing and CSV rows."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.report.records import loss_curves, score_map, score_name_of, spans_magnitudes
from utils.report.svg import Drawing, Scale, legend, powers, short, ticks, x_axis, y_axis
from utils.report.tables import DASH, MODELS, ScoreRow

WIDE, NARROW = 800, 344
"""Pixels of a picture on a page, and on a phone of 380; each is drawn for both, so that no text shrinks."""

SHAPES = {"dense": "diamond", "pruned": "square", "restored": "circle"}
"""Marks are told apart without any colour, as on paper."""


@dataclass(frozen=True)
class Picture:
    """name: of its files. draw: a width in pixels -> the picture. rows: its numbers, a header first."""

    name: str
    label: str
    draw: Callable[[int], Drawing]
    rows: list[list[object]]

    def csv(self) -> str:
        """The numbers in full; nothing where there is none."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows)
        return text.getvalue()


def scores_picture(rows: Sequence[ScoreRow]) -> Picture | None:
    """Dense, pruned and restored of each row with one standard error, and the share of the gap recovered."""
    rows = [row for row in rows if any(math.isfinite(score.value) for score in row.scores.values())]
    if not rows:
        return None
    label = "Scores of the dense, pruned and restored model"
    header = ["task", "metric", "higher_is_better", *(f"{name}{part}" for name in MODELS for part in ("", "_stderr"))]
    numbers: list[list[object]] = [[*header, "difference", "difference_stderr", "recovered"]]
    for row in rows:
        scores: list[object] = []
        for name in MODELS:
            score = row.scores.get(name)
            scores += [None, None] if score is None else [score.value, score.stderr]
        difference = [row.difference.value, row.difference.stderr] if row.difference else [None, None]
        numbers.append([row.task, row.metric, row.higher_is_better, *scores, *difference, row.recovered])
    return Picture("scores", label, lambda width: _draw_scores(rows, width, label), numbers)


def _draw_scores(rows: Sequence[ScoreRow], width: int, label: str) -> Drawing:
    narrow = width < 600
    shares, others = [row for row in rows if row.percent], [row for row in rows if not row.percent]
    row_height, axis, head = (64, 34, 46) if narrow else (46, 34, 34)
    panels = ([shares] if shares else []) + [[row] for row in others]
    height = head + sum(row_height * len(panel) + axis for panel in panels)
    drawing = Drawing(width, height, label)
    left, right = (2, width - 10) if narrow else (214, width - 150)
    legend(drawing, left, 12, [(SHAPES[name], name, name) for name in MODELS], right - left)
    if not narrow:
        drawing.text(width, 16, "gap recovered", "axis", "end")
    top = head
    for panel in panels:
        top = _panel(drawing, panel, top, row_height, left, right, narrow) + axis
    return drawing


def _panel(
    drawing: Drawing, rows: Sequence[ScoreRow], top: float, tall: float, left: float, right: float, narrow: bool
) -> float:
    """One axis that its rows share; returns where it ends."""
    factor = 100 if rows[0].percent else 1
    reached = [
        factor * (score.value + sign * (score.stderr or 0))
        for row in rows
        for score in row.scores.values()
        if math.isfinite(score.value)
        for sign in (-1, 1)
    ]
    margin = 0.06 * (max(reached) - min(reached)) or 0.05 * abs(reached[0]) or 1
    low, high = min(reached) - margin, max(reached) + margin
    scale = Scale(low, high, left + 8, right - 8)
    bottom = top + tall * len(rows)
    for place in range(0, len(rows), 2):
        drawing.rect(0, top + place * tall, drawing.width, tall, "stripe")
    x_axis(drawing, scale, top, bottom, ticks(low, high, 4 if narrow else 6))
    better = {row.higher_is_better for row in rows}
    direction = {True: "higher is better", False: "lower is better"}.get(better.pop() if len(better) == 1 else None, "")
    unit = "%" if factor == 100 else rows[0].metric
    drawing.text(right, bottom + 29, f"{unit}, {direction}" if direction else unit, "axis", "end")
    for place, row in enumerate(rows):
        _score_row(drawing, row, top + place * tall, tall, scale, factor, narrow)
    return bottom


def _score_row(
    drawing: Drawing, row: ScoreRow, top: float, tall: float, scale: Scale, factor: int, narrow: bool
) -> None:
    middle = top + (tall + 18) / 2 if narrow else top + tall / 2
    texts, difference, recovered = row.texts()
    share = row.recovered if row.recovered is not None and math.isfinite(row.recovered) else None
    recovered = DASH if share is None else recovered
    kind = "name strong" if row.is_mean else "name"
    if narrow:
        drawing.text(8, top + 16, _fit(f"{row.task}, {row.metric}", 36), kind)
        _recovered(drawing, recovered, drawing.width - 8, top + 16)
    else:
        drawing.text(10, middle - 2, _fit(row.task, 28), kind)
        drawing.text(10, middle + 13, row.metric, "unit")
        if share is not None:
            drawing.rect(drawing.width - 126, middle - 3, 70, 6, "track")
            drawing.rect(drawing.width - 126, middle - 3, 70 * min(max(share, 0), 1), 6, "filled")
        _recovered(drawing, recovered, drawing.width - 10, middle + 4)
    for name, offset in zip(MODELS, (-11, 0, 11), strict=True):
        score = row.scores.get(name)
        if score is None or not math.isfinite(score.value):
            continue
        x, y, error = scale(factor * score.value), middle + offset, factor * (score.stderr or 0)
        if error:
            drawing.line(scale(factor * score.value - error), y, scale(factor * score.value + error), y, name)
        more = f"; {difference} to pruned, {row.verdict}" if name == "restored" and row.verdict else ""
        drawing.mark(SHAPES[name], x, y, 4.5, name, {"tip": f"{row.task}, {name}: {texts[name]}{more}"})


def _recovered(drawing: Drawing, text: str, x: float, y: float) -> None:
    drawing.text(x, y, text, "share" if "%" in text else "none", "end")


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def loss_picture(history: list[dict]) -> Picture | None:
    """Training and validation loss by step."""
    curves = loss_curves(history)
    if not len(curves.training) and len(curves.validation) < 2:
        return None  # nothing was trained
    names = ("step", "epoch", "loss", "valid_loss", "learning_rate")
    rows: list[list[object]] = [list(names), *([row.get(name) for name in names] for row in history)]
    label = "Training and validation loss by step"

    def draw(width: int) -> Drawing:
        narrow = width < 600
        entries = []
        if len(curves.training):
            entries.append(("line", "faint" if curves.smoothed is not None else "curve", "training"))
        if curves.smoothed is not None:
            entries.append(("line", "curve", f"mean of {curves.window} steps"))
        if len(curves.validation):
            entries.append(("circle", "restored", "validation"))
        if curves.before is not None:
            entries.append(("line", "dashed", "before training"))
        drawing = Drawing(width, 250 if narrow else 300, label)
        top = 32 + legend(drawing, 2, 12, entries, width - 4)
        left, right, bottom = 44, width - 14, drawing.height - 38
        shown = np.concatenate([curves.training, curves.validation])
        low, high = curves.limits or (shown[:, 1].min() - 0.1, shown[:, 1].max() + 0.1)
        x, y = Scale(0, max(shown[:, 0].max(), 1), left, right), Scale(low, high, bottom, top)
        y_axis(drawing, y, left, right, ticks(low, high, 5))
        for value in ticks(0, x.high, 4 if narrow else 8):
            drawing.text(x(value), bottom + 16, short(value), "tick", "middle")
        drawing.text(right, bottom + 32, "optimiser step", "axis", "end")
        drawing.text(0, top - 12, "nats a token", "axis")

        def line(points: np.ndarray) -> list[tuple[float, float]]:
            return [(x(step), y(min(max(loss, low), high))) for step, loss in points]

        if curves.before is not None:
            drawing.line(left, y(curves.before), right, y(curves.before), "dashed")
        if len(curves.training):
            drawing.path(line(curves.training), "faint" if curves.smoothed is not None else "curve")
        if curves.smoothed is not None:
            drawing.path(line(curves.smoothed), "curve")
        if len(curves.validation):
            drawing.path(line(curves.validation), "curve restored")
            for (step, loss), place in zip(curves.validation, line(curves.validation), strict=True):
                drawing.mark("circle", *place, 4, "restored", {"tip": f"step {step:.0f}: validation {loss:.4f}"})
            last = line(curves.validation)[-1]
            drawing.text(last[0] - 2, last[1] - 10, f"{curves.validation[-1, 1]:.3f}", "share halo", "end")
        return drawing

    return Picture("loss", label, draw, rows)


def heads_picture(record: dict) -> Picture | None:
    """Heat map of the heads' scores, layers to the right and heads upwards; trained ones ringed.

    record: what `utils.report.records.heads_record` made; sizes are shown on hovering.
    """
    if not record.get("scores"):
        return None
    scores, trained = score_map(record)
    name = score_name_of(record)
    sizes = record.get("component_sizes")
    learned = {
        key: dict(zip(trained, record.get(key) or [], strict=False)) for key in ("magnitude_sizes", "bias_sizes")
    }
    rows: list[list[object]] = [["layer", "head", "score", "trained", "c_norm", "beta_norm", "b_norm"]]
    tips = {}
    for layer, head in np.ndindex(*scores.shape):
        pair, score = (layer, head), scores[layer, head]
        size = sizes[layer][head] if sizes else None
        betas = [learned[key].get(pair) for key in ("magnitude_sizes", "bias_sizes")]
        finite = float(score) if np.isfinite(score) else None
        rows.append([layer, head, finite, pair in trained, size, *betas])
        parts = [f"layer {layer}, head {head}", "cannot be restored" if finite is None else f"score {short(finite)}"]
        shown = zip(("‖c‖", "‖β‖", "‖b‖"), (size, *betas), strict=True)
        parts += [f"{symbol} {short(value)}" for symbol, value in shown if value is not None]
        tips[pair] = " · ".join([*parts, *(["trained"] if pair in trained else [])])
    label = f"Score of each head ({name}) by layer; trained heads are ringed"
    return Picture("heads", label, lambda width: _draw_heads(scores, trained, tips, name, width, label), rows)


def _draw_heads(
    scores: np.ndarray, trained: list[tuple[int, int]], tips: dict, name: str, width: int, label: str
) -> Drawing:
    layers, heads = scores.shape
    left, top = 30, 58
    cell = min(26, (width - left - 2) / layers, (420 if width > 600 else 300) / heads)
    bottom = top + cell * heads
    drawing = Drawing(width, bottom + 34, label)
    known = scores[np.isfinite(scores)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    shade = Scale(low, high, 0.08, 1, log=spans_magnitudes(scores))
    _shades(drawing, low, high, name, len(trained), layers * heads, len(known) < scores.size)
    gap = 1 if cell > 6 else 0.4
    for (layer, head), tip in tips.items():
        score = scores[layer, head]
        place = left + cell * layer, bottom - cell * (head + 1), cell - gap, cell - gap
        if np.isfinite(score):
            drawing.rect(*place, "cell", {"fill-opacity": f"{shade(float(score)):.2f}", "tip": tip})
        else:
            drawing.rect(*place, "cell none", {"tip": tip})
    for layer, head in trained:
        middle = left + cell * (layer + 0.5) - gap / 2, bottom - cell * (head + 0.5) - gap / 2
        drawing.mark("circle", *middle, min(max(0.2 * cell, 1.2), 4), "trained")
    for layer in _indices(layers, cell, 26):
        drawing.text(left + cell * (layer + 0.5), bottom + 15, str(layer), "tick", "middle")
    for head in _indices(heads, cell, 14):
        drawing.text(left - 7, bottom - cell * (head + 0.5) + 4, str(head), "tick", "end")
    drawing.text(left + cell * layers, bottom + 30, "layer", "axis", "end")
    drawing.text(0, top - 8, "head", "axis")
    return drawing


def _shades(drawing: Drawing, low: float, high: float, name: str, trained: int, count: int, some_lost: bool) -> None:
    """What the shades and the rings of the heat map mean."""
    drawing.text(0, 12, _fit(name, 60), "key")
    x = 0 if drawing.width < 600 else min(8 + 6.4 * len(_fit(name, 60)), 360)
    y = 30 if drawing.width < 600 else 12
    drawing.text(x, y, short(low), "tick")
    start = x + 8 + 6.5 * len(short(low))
    for step in range(12):
        opacity = f"{0.08 + 0.92 * step / 11:.2f}"
        drawing.rect(start + 7 * step, y - 9, 7, 10, "cell", {"fill-opacity": opacity})
    drawing.text(start + 90, y, short(high), "tick")
    end = start + 90 + 7 * len(short(high)) + 18
    drawing.mark("circle", end, y - 4, 4, "trained")
    drawing.text(end + 10, y, f"trained ({trained} of {count})", "key")
    if some_lost and drawing.width >= 600:
        drawing.rect(end + 150, y - 9, 10, 10, "cell none")
        drawing.text(end + 166, y, "cannot be restored", "key")


def _indices(count: int, cell: float, room: float) -> range:
    """Indices in round steps, so far apart that a label has `room` pixels."""
    return range(0, count, next(step for step in (1, 2, 5, 10, 20, 50, 10**6) if step * cell >= room))


def spectrum_picture(spectrum: dict | None, num_components: int | None) -> Picture | None:
    """How much of the gap's energy the first K directions hold: a line a layer, and the mean over all heads.

    spectrum: what `utils.report.records.spectrum_record` made.
    """
    if not spectrum:
        return None
    layers = [(number, shares) for number, shares in enumerate(spectrum["layers"]) if shares]
    mean = spectrum["mean"]
    rows: list[list[object]] = [["k", "mean", "low_10", "high_90", *(f"layer_{number}" for number, _ in layers)]]
    for k in range(len(mean)):
        others = (spectrum[name][k] for name in ("mean", "low", "high"))
        rows.append([k + 1, *others, *(shares[k] for _, shares in layers)])
    label = "Share of the activation gap that the first K directions hold, by layer"

    def draw(width: int) -> Drawing:
        narrow = width < 600
        drawing = Drawing(width, 270 if narrow else 320, label)
        count = len(spectrum["layers"])
        entries = [("line", "curve", "mean over heads"), ("line", "dashed", "if all were equal")]
        top = 14 + legend(drawing, 2, 12, entries, width - 4)
        top = _depths(drawing, count, 320 if not narrow else 2, 12 if not narrow else top - 2) or top
        left, right, bottom = 44, width - 14, drawing.height - 38
        x, y = Scale(1, max(len(mean), 2), left, right, log=True), Scale(0, 1, bottom, top)
        y_axis(drawing, y, left, right, [0, 0.25, 0.5, 0.75, 1], lambda share: f"{100 * share:.0f} %")
        for value in powers(1, max(len(mean), 2), 2):
            drawing.text(x(value), bottom + 16, f"{value:.0f}", "tick", "middle")
        drawing.text(right, bottom + 32, "first K directions", "axis", "end")
        for number, shares in layers:
            tip = ", ".join(f"K = {k}: {100 * shares[k - 1]:.0f} %" for k in _shown(num_components, len(mean)))
            points = [(x(k), y(share)) for k, share in enumerate(shares, start=1)]
            drawing.path(
                points, "layer", {"style": f"stroke: {_depth(number, count)}", "tip": f"layer {number}: {tip}"}
            )
        drawing.path([(x(k), y(k / len(mean))) for k in range(1, len(mean) + 1)], "dashed")
        drawing.path([(x(k), y(share)) for k, share in enumerate(mean, start=1)], "curve")
        for k in _shown(num_components, len(mean)):
            text = f"K = {k}: {100 * mean[k - 1]:.0f} %"
            drawing.mark("circle", x(k), y(mean[k - 1]), 4, "dense", {"tip": f"mean over heads, {text}"})
            drawing.text(x(k) + 9, y(mean[k - 1]) + 15, text, "strong halo")
        return drawing

    return Picture("spectrum", label, draw, rows)


def _shown(num_components: int | None, most: int) -> list[int]:
    """The K that are named: one direction, and those that c has."""
    return [k for k in sorted({1, num_components or 1}) if k <= most]


def _depth(layer: int, count: int) -> str:
    """A line's colour, from the first layers' to the last ones'."""
    share = 100 * layer / max(count - 1, 1)
    return f"color-mix(in srgb, var(--accent) {share:.0f}%, var(--first))"


def _depths(drawing: Drawing, count: int, x: float, y: float) -> float | None:
    """What the lines' colours mean; where it ends, if it took a line of its own."""
    drawing.text(x, y + 4, "layer 0", "key")
    for step in range(8):
        drawing.rect(x + 50 + 9 * step, y - 4, 9, 8, "", {"style": f"fill: {_depth(step, 8)}"})
    drawing.text(x + 128, y + 4, str(count - 1), "key")
    return y + 24 if x < 10 else None


def sparsity_picture(before: Sequence[float] | None, after: Sequence[float] | None) -> Picture | None:
    """Zeros by layer before and after, where they are not the same."""
    if not before or not after or list(before) == list(after):
        return None
    rows: list[list[object]] = [["layer", "pruned", "restored"]]
    rows += [[layer, *pair] for layer, pair in enumerate(zip(before, after, strict=True))]
    label = "Zeros in each layer of the pruned and of the restored model"

    def draw(width: int) -> Drawing:
        drawing = Drawing(width, 220, label)
        entries = [(SHAPES[name], name, name) for name in ("pruned", "restored")]
        top = 14 + legend(drawing, 2, 12, entries, width - 4)
        left, right, bottom = 44, width - 14, 182
        high = 1.05 * max(*before, *after) or 1
        x, y = Scale(0, max(len(before) - 1, 1), left + 6, right - 6), Scale(0, high, bottom, top)
        y_axis(drawing, y, left, right, ticks(0, high, 4), lambda share: f"{100 * share:.0f} %")
        for layer in _indices(len(before), (right - left) / len(before), 26):
            drawing.text(x(layer), bottom + 16, str(layer), "tick", "middle")
        drawing.text(right, bottom + 32, "layer", "axis", "end")
        for name, shares in (("pruned", before), ("restored", after)):
            for layer, share in enumerate(shares):
                tip = f"layer {layer}, {name}: {100 * share:.2f} % zeros"
                drawing.mark(SHAPES[name], x(layer), y(share), 4, name, {"tip": tip})
        return drawing

    return Picture("sparsity", label, draw, rows)
