"""The pictures of a run, and of several runs, from their records alone; None where there is nothing to draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from utils.common.errors import shortened
from utils.report.svg import Drawing, Scale, log_ticks, short, ticks
from utils.report.tables import DASH, MODELS, ScoreRow

WIDTH = 800  # pixels of a picture. A narrower page scrolls it sideways, so that no text shrinks.

SHAPES = {"dense": "diamond", "pruned": "square", "restored": "circle"}  # distinct without colour, as on paper


class Plot(Drawing):
    """A drawing with a horizontal axis `x` and a vertical one `y`; each maps a value to its pixel."""

    def __init__(
        self, height: int, label: str, across: tuple[float, float], up: tuple[float, float], names: tuple[str, str],
        entries: Sequence[tuple[str, str, str]], x_ticks: Sequence[float], log: bool = False,
    ):  # fmt: skip
        """across, up: (lowest, highest) value. names: of both axes. entries: the legend's."""
        super().__init__(WIDTH, height, label)
        left, right, self.bottom, self.top = 54, WIDTH - 14, height - 38, 50
        self.legend(2, 12, entries)
        self.x, self.y = Scale(*across, left, right, log), Scale(*up, self.bottom, self.top)
        for value in ticks(*up):
            self.line(left, self.y(value), right, self.y(value), "grid")
            self.text(left - 7, self.y(value) + 4, short(value), "tick", "end")
        for value in x_ticks:
            self.text(self.x(value), self.bottom + 16, short(value), "tick", "middle")
        self.text(right, self.bottom + 32, names[0], "axis", "end")
        self.text(0, self.top - 12, names[1], "axis")

    def curve(self, points: Sequence[tuple[float, float]], kind: str, **more: object) -> None:
        self.path([(self.x(x), self.y(y)) for x, y in points], kind, **more)


def widened(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """(lowest, highest) of values, with a margin."""
    low, high = min(values), max(values)
    margin = share * (high - low) or abs(low) * 0.1 or 1
    return low - margin, high + margin


def scores_picture(rows: Sequence[ScoreRow]) -> Drawing | None:
    """Dense, pruned and restored of each row with one standard error, and the share of the gap recovered."""
    if not rows:
        return None
    shares = [row for row in rows if row.percent]
    panels = [shares] * bool(shares) + [[row] for row in rows if not row.percent]
    tall, axis, top, left, right = 46, 34, 34, 214, WIDTH - 150
    height = top + tall * len(rows) + axis * len(panels)
    drawing = Drawing(WIDTH, height, "Scores of the dense, pruned and restored model")
    drawing.legend(left, 12, [(SHAPES[name], name, name) for name in MODELS])
    drawing.text(WIDTH, 16, "gap recovered", "axis", "end")
    for panel in panels:  # one axis that its rows share
        factor, bottom = 100 if panel[0].percent else 1, top + tall * len(panel)
        ends = [end for row in panel for score in row.scores.values() for end in score.ends(factor)]
        x = Scale(*widened(ends, 0.06), left + 6, right - 6)
        for stripe in range(top, bottom, 2 * tall):
            drawing.rect(0, stripe, WIDTH, tall, "stripe")
        for value in ticks(x.low, x.high, 6):
            drawing.line(x(value), top, x(value), bottom, "grid")
            drawing.text(x(value), bottom + 15, short(value), "tick", "middle")
        drawing.text(right, bottom + 29, "%" if factor == 100 else panel[0].label, "axis", "end")
        for place, row in enumerate(panel):
            _score_row(drawing, row, top + (place + 0.5) * tall, x, factor)
        top = bottom + axis
    return drawing


def _score_row(drawing: Drawing, row: ScoreRow, middle: float, x: Scale, factor: int) -> None:
    texts = row.texts
    drawing.text(10, middle - 2, shortened(row.task, 28), "name strong" if row.is_mean else "name")
    drawing.text(10, middle + 13, row.metric, "unit")
    if row.recovered is None:
        drawing.text(WIDTH - 10, middle + 4, DASH, "none", "end")
    else:
        drawing.rect(WIDTH - 126, middle - 3, 70, 6, "track")
        drawing.rect(WIDTH - 126, middle - 3, 70 * min(max(row.recovered, 0), 1), 6, "filled")
        drawing.text(WIDTH - 10, middle + 4, texts["recovered"], "share", "end")
    for name, y in zip(MODELS, (middle - 11, middle, middle + 11), strict=True):
        if score := row.scores.get(name):
            if score.stderr:
                low, high = score.ends(factor)
                drawing.line(x(low), y, x(high), y, name)
            more = f"; {texts['difference']} to pruned, {row.verdict}" if name == "restored" and row.verdict else ""
            tip = f"{row.task}, {name}: {texts[name]}{more}"
            drawing.mark(SHAPES[name], x(factor * score.value), y, 4.5, name, tip)


def loss_picture(history: list[dict]) -> Drawing | None:
    """Training and validation loss by step; None where nothing was trained."""
    known = {key: [row for row in history if row.get(key) is not None] for key in ("loss", "valid_loss")}
    training, valid = ([(row["step"], row[key]) for row in rows] for key, rows in known.items())
    if not training and len(valid) < 2:
        return None
    losses = [loss for _, loss in training]
    # A few outliers must not flatten everything else.
    most = np.percentile(losses, [0.5, 99.5]).tolist() if losses else []
    low, high = widened([*most, *(loss for _, loss in valid)], 0.05)
    last, window, before = max(step for step, _ in training + valid), len(training) // 20, valid and valid[0][0] == 0
    lines = [("line", "dashed", "before training", [(0, valid[0][1]), (last, valid[0][1])] if before else [])]
    what = "training, distilled" if any("valid_kl" in row for row in history) else "training"
    lines.append(("line", "faint" if window > 1 else "curve", what, training))
    lines.append(("circle", "curve restored", "validation", valid))
    if window > 1:
        over, counted = (np.convolve(each, np.ones(window), "same") for each in (losses, np.ones(len(losses))))
        smoothed = zip((step for step, _ in training), (over / counted).tolist(), strict=True)
        lines.append(("line", "curve", f"mean of {window} steps", list(smoothed)))
    lines, names, across = [line for line in lines if line[3]], ("optimiser step", "nats per token"), (0, max(last, 1))
    entries, steps = [line[:3] for line in lines], [step for step in ticks(*across, 8) if step == int(step)]
    plot = Plot(300, "Training and validation loss by step", across, (low, high), names, entries, steps)
    for _, kind, _, points in lines:
        plot.curve([(step, min(max(loss, low), high)) for step, loss in points], kind)
    for step, loss in valid:
        plot.mark("circle", plot.x(step), plot.y(loss), 4, "restored", f"step {step}: validation {loss:.4f}")
    if valid:
        plot.text(plot.x(step) - 2, plot.y(loss) - 10, f"{loss:.3f}", "share halo", "end")
    return plot


def heads_picture(record: dict) -> Drawing | None:
    """Heat map of the heads' scores in a `heads_record`, layers to the right and heads upwards; trained ones ringed."""
    if not record:
        return None
    scores, trained = np.array(record["scores"], dtype=float), [tuple(pair) for pair in record["trained"]]
    known = scores[np.isfinite(scores)]  # (L, H) has NaN where a head cannot be restored
    (layers, heads), left, top = scores.shape, 30, 58
    cell = min(26, (WIDTH - left - 2) / layers, 420 / heads)
    bottom, gap, name = top + cell * heads, 1 if cell > 6 else 0.4, record["score_name"]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    # Gaps, unlike accuracies, span orders of magnitude between layers.
    shade = Scale(low, high, 0.08, 1, log=low > 0 and high > 100 * low)
    drawing = Drawing(WIDTH, bottom + 34, f"Score of each head ({name}) by layer; trained heads are ringed")
    drawing.text(0, 12, shortened(name, 60), "key")
    looks = [{"class_": "cell", "fill_opacity": f"{0.08 + 0.92 * step / 11:.2f}"} for step in range(12)]
    x = _shades(drawing, 8 + min(6.4 * len(name), 352), 12, short(low), short(high), looks)
    marks = ("circle", "trained", f"trained ({len(trained)} of {scores.size})")
    drawing.legend(x, 8, [marks, ("square", "cell none", "cannot be restored")])
    norms = {"‖c‖": dict(np.ndenumerate(np.array(record.get("component_sizes", []))))}
    for symbol, key in (("‖β‖", "magnitude_sizes"), ("‖b‖", "bias_sizes")):
        norms[symbol] = dict(zip(trained, record.get(key, []), strict=False))
    for place, score in np.ndenumerate(scores):
        layer, head = place
        said, look = "cannot be restored", {"class_": "cell none"}
        if math.isfinite(score):
            said, look = f"score {short(score)}", {"class_": "cell", "fill_opacity": f"{shade(score):.2f}"}
        tip = [f"layer {layer}, head {head}", said]
        tip += [f"{symbol} {short(sizes[place])}" for symbol, sizes in norms.items() if sizes.get(place) is not None]
        tip += ["trained"] * (place in trained)
        x, y = left + cell * layer, bottom - cell * (head + 1)
        drawing.add("rect", x=x, y=y, width=cell - gap, height=cell - gap, tip=" · ".join(tip), **look)
    for layer, head in trained:
        middle = left + cell * (layer + 0.5) - gap / 2, bottom - cell * (head + 0.5) - gap / 2
        drawing.mark("circle", *middle, min(max(0.2 * cell, 1.2), 4), "trained")
    for layer in range(0, layers, math.ceil(26 / cell)):
        drawing.text(left + cell * (layer + 0.5), bottom + 15, str(layer), "tick", "middle")
    for head in range(0, heads, math.ceil(14 / cell)):
        drawing.text(left - 7, bottom - cell * (head + 0.5) + 4, str(head), "tick", "end")
    drawing.text(left + cell * layers, bottom + 30, "layer", "axis", "end")
    drawing.text(0, top - 8, "head", "axis")
    return drawing


def _shades(drawing: Drawing, x: float, y: float, low: str, high: str, looks: Sequence[dict]) -> float:
    """Draw a row of shades between its end labels `low` and `high`, from (x, y) on; returns the x after it."""
    drawing.text(x, y, low, "tick")
    x += 8 + 6.5 * len(low)
    for step, look in enumerate(looks):
        drawing.add("rect", x=x + 7 * step, y=y - 9, width=7, height=10, **look)
    x += 7 * len(looks) + 6
    drawing.text(x, y, high, "tick")
    return x + 12 + 7 * len(high)


def spectrum_picture(spectrum: dict | None, num_components: int | None) -> Drawing | None:
    """How much of the gap's energy the first K directions of a `spectrum_record` hold: by layer, and the mean."""
    if not spectrum:
        return None
    mean, layers = spectrum["mean"], spectrum["layers"]
    named = [k for k in sorted({1, num_components or 1}) if k <= len(mean)]
    color = "color-mix(in srgb, var(--accent) {:.0%}, var(--first))".format  # from the first layers' to the last ones'
    entries = [("line", "curve", "mean over heads"), ("line", "dashed", "if all were equal")]
    at = [2**power for power in range(len(mean).bit_length())]
    label, names = "Share of the activation gap that the first K directions hold, by layer", ("first K directions", "%")
    plot = Plot(320, label, (1, max(len(mean), 2)), (0, 100), names, entries, at, log=True)
    _shades(plot, 320, 16, "layer 0", str(len(layers) - 1), [{"style": f"fill: {color(n / 11)}"} for n in range(12)])
    for number, held in enumerate(layers):
        if held:
            tip = f"layer {number}: " + ", ".join(f"K = {k}: {100 * held[k - 1]:.3g} %" for k in named)
            look = f"stroke: {color(number / max(len(layers) - 1, 1))}"
            plot.curve([(k, 100 * share) for k, share in enumerate(held, 1)], "layer", style=look, tip=tip)
    plot.curve([(k, 100 * k / len(mean)) for k in range(1, len(mean) + 1)], "dashed")
    plot.curve([(k, 100 * share) for k, share in enumerate(mean, 1)], "curve")
    for k in named:
        text, x, y = f"K = {k}: {100 * mean[k - 1]:.0f} %", plot.x(k), plot.y(100 * mean[k - 1])
        plot.mark("circle", x, y, 4, "dense", f"mean over heads, {text}")
        plot.text(x + 9, y + 15 if y + 18 < plot.bottom else y - 9, text, "strong halo")
    return plot


@dataclass(frozen=True)
class Point:
    """A configuration's place in a picture of two numbers, y ± error; it is hollow where zeros were not `kept`."""

    name: str
    x: float
    y: float
    error: float | None = None
    kept: bool = True


def front(points: Sequence[Point], lower_y: bool) -> list[Point]:
    """The Pareto front: points that no other point dominates, by x. Lower x is better, lower y only if `lower_y`."""
    costs = [(point.x, point.y if lower_y else -point.y) for point in points]
    beaten = [any(a <= x and b <= y and (a, b) != (x, y) for a, b in costs) for x, y in costs]
    return sorted((point for point, lost in zip(points, beaten, strict=True) if not lost), key=lambda point: point.x)


def front_picture(points: Sequence[Point], name_x: str, name_y: str, lower_y: bool) -> Drawing:
    """Points with their names, and their front. The x-axis is logarithmic beyond a factor of ten, a 0 at its left."""
    positive = [point.x for point in points if point.x > 0]
    log = bool(positive) and max(positive) > 10 * min(positive)
    zero, best = (min(positive) / 4 if log else 0), front(points, lower_y)
    spots = {point: max(point.x, zero) for point in points}
    across = widened([math.log10(x) if log else x for x in spots.values()])
    if log:
        across = 10 ** across[0], 10 ** across[1]
    up = widened([point.y + sign * (point.error or 0) for point in points for sign in (-1, 1)])
    at = [value for value in log_ticks(*across) if value > 2 * zero] if log else ticks(*across, 7)
    kinds = {True: ("circle", "restored", "every zero kept"), False: ("circle", "lost", "zeros lost")}
    entries = [kinds[kept] for kept in kinds if kept in {point.kept for point in points}]
    entries += [("line", "front", "Pareto front")] * (len(best) > 1)
    plot = Plot(400, f"{name_y} against {name_x}", across, up, (name_x, name_y), entries, at, log=log)
    if log and len(positive) < len(points):
        plot.text(plot.x(zero), plot.bottom + 16, "0", "tick", "middle")
    if len(best) > 1:
        plot.curve([(spots[point], point.y) for point in best], "front")
    for point in points:
        x, y, kind, error = plot.x(spots[point]), plot.y(point.y), kinds[point.kept][1], ""
        if point.error:
            error = f" ± {short(point.error)}"
            plot.line(x, plot.y(point.y - point.error), x, plot.y(point.y + point.error), kind)
        plot.mark("circle", x, y, 5, kind, f"{point.name}: {short(point.y)}{error} at {short(point.x)}")
    places = [(plot.x(spots[p]), plot.y(p.y), p.name) for p in sorted(spots, key=lambda p: p not in best)]
    for x, y, anchor, text in names_beside(places, plot.top, plot.bottom):
        plot.text(x, y, text, "key halo", anchor)
    return plot


def names_beside(spots: Sequence[tuple], top: float, bottom: float) -> list[tuple[float, float, str, str]]:
    """Place the names of spots (x, y, name) beside them: (x, baseline, anchor, text) of each, in that order.

    A name covers no mark and no other name. One without room, even cut to 13 letters, is left to the mark's tooltip.
    """
    found, taken = [], [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in spots]
    for x, y, name in spots:
        for most, down, right in product((26, 13), (-7, 16), (True, False)):
            text = shortened(name, most)
            start = x + 9 if right else x - 9 - 7 * len(text)
            end, high, low = start + 7 * len(text), y + down - 10, y + down + 3
            inside = start >= 0 and end <= WIDTH and high >= top - 8 and low <= bottom
            if inside and all(start >= b[2] or b[0] >= end or high >= b[3] or b[1] >= low for b in taken):
                taken.append((start, high, end, low))
                found.append((x + 9 if right else x - 9, y + down, "start" if right else "end", text))
                break
    return found
