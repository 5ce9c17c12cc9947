"""The pictures of a run, and of several runs, from their records alone; None where there is nothing to draw."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.report.svg import Drawing, Scale, log_ticks, short, ticks
from utils.report.tables import DASH, MODELS, ScoreRow

WIDTH = 800
"""Pixels of a picture. A narrower page moves it sideways, so that no text shrinks."""

SHAPES = {"dense": "diamond", "pruned": "square", "restored": "circle"}
"""Marks are told apart without any colour, as on paper."""


class Plot(Drawing):
    """A drawing with a horizontal axis `x` and a vertical one `y`, each from a value to its place.

    across, up: (lowest, highest) value. names: of both axes. entries: the legend's. x_ticks: where numbers stand.
    """

    def __init__(
        self, height: int, label: str, across: tuple[float, float], up: tuple[float, float], names: tuple[str, str],
        entries: Sequence[tuple[str, str, str]], x_ticks: Sequence[float], show: Callable[[float], str] = short,
        log: bool = False,
    ):  # fmt: skip
        super().__init__(WIDTH, height, label)
        left, right, self.bottom, self.top = 54, WIDTH - 14, height - 38, 32 + self.legend(2, 12, entries)
        self.x, self.y = Scale(*across, left, right, log), Scale(*up, self.bottom, self.top)
        for value in ticks(*up):
            self.line(left, self.y(value), right, self.y(value), "grid")
            self.text(left - 7, self.y(value) + 4, show(value), "tick", "end")
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
    rows = [row for row in rows if any(math.isfinite(score.value) for score in row.scores.values())]
    if not rows:
        return None
    shares = [row for row in rows if row.percent]
    panels = [shares] * bool(shares) + [[row] for row in rows if not row.percent]
    tall, axis, top, left, right = 46, 34, 34, 214, WIDTH - 150
    drawing = Drawing(
        WIDTH, top + tall * len(rows) + axis * len(panels), "Scores of the dense, pruned and restored model"
    )
    drawing.legend(left, 12, [(SHAPES[name], name, name) for name in MODELS])
    drawing.text(WIDTH, 16, "gap recovered", "axis", "end")
    for panel in panels:  # one axis that its rows share
        factor, bottom = 100 if panel[0].percent else 1, top + tall * len(panel)
        scores = [score for row in panel for score in row.scores.values() if math.isfinite(score.value)]
        x = Scale(*widened([factor * end for score in scores for end in score.ends], 0.06), left + 6, right - 6)
        for stripe in range(top, bottom, 2 * tall):
            drawing.rect(0, stripe, WIDTH, tall, "stripe")
        for value in ticks(x.low, x.high, 6):
            drawing.line(x(value), top, x(value), bottom, "grid")
            drawing.text(x(value), bottom + 15, short(value), "tick", "middle")
        directions = {row.higher_is_better for row in panel}
        better = {True: ", higher is better", False: ", lower is better"}
        direction = better.get(directions.pop(), "") if len(directions) == 1 else ""
        drawing.text(right, bottom + 29, f"{'%' if factor == 100 else panel[0].metric}{direction}", "axis", "end")
        for place, row in enumerate(panel):
            _score_row(drawing, row, top + (place + 0.5) * tall, x, factor)
        top = bottom + axis
    return drawing


def _score_row(drawing: Drawing, row: ScoreRow, middle: float, x: Scale, factor: int) -> None:
    texts = row.texts
    drawing.text(10, middle - 2, _cut(row.task, 28), "name strong" if row.is_mean else "name")
    drawing.text(10, middle + 13, row.metric, "unit")
    if row.recovered is None or not math.isfinite(row.recovered):
        drawing.text(WIDTH - 10, middle + 4, DASH, "none", "end")
    else:
        drawing.rect(WIDTH - 126, middle - 3, 70, 6, "track")
        drawing.rect(WIDTH - 126, middle - 3, 70 * min(max(row.recovered, 0), 1), 6, "filled")
        drawing.text(WIDTH - 10, middle + 4, texts["recovered"], "share", "end")
    for name, y in zip(MODELS, (middle - 11, middle, middle + 11), strict=True):
        if (score := row.scores.get(name)) and math.isfinite(score.value):
            if score.stderr:
                low, high = score.ends
                drawing.line(x(factor * low), y, x(factor * high), y, name)
            more = f"; {texts['difference']} to pruned, {row.verdict}" if name == "restored" and row.verdict else ""
            tip = f"{row.task}, {name}: {texts[name]}{more}"
            drawing.mark(SHAPES[name], x(factor * score.value), y, 4.5, name, tip)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def loss_picture(history: list[dict]) -> Drawing | None:
    """Training and validation loss by step; None where nothing was trained."""
    training, valid = (
        [(row["step"], row[key]) for row in history if row.get(key) is not None and math.isfinite(row[key])]
        for key in ("loss", "valid_loss")
    )
    if not training and len(valid) < 2:
        return None
    losses = [loss for _, loss in training]
    # A few odd batches must not flatten everything else.
    most = np.percentile(losses, [0.5, 99.5]).tolist() if losses else []
    low, high = widened([*most, *(loss for _, loss in valid)], 0.05)
    last, window, before = max(step for step, _ in training + valid), len(training) // 20, valid and valid[0][0] == 0
    lines = {"training": (training, "faint" if window > 1 else "curve"), "validation": (valid, "curve restored")}
    if window > 1:
        smoothed = zip((step for step, _ in training), smooth(losses, window), strict=True)
        lines[f"mean of {window} steps"] = (list(smoothed), "curve")
    entries = [("line", kind, name) for name, (points, kind) in lines.items() if points and name != "validation"]
    entries += [("circle", "restored", "validation")] * bool(valid)
    entries += [("line", "dashed", "before training")] * bool(before)
    names, across = ("optimiser step", "nats per token"), (0, max(last, 1))
    plot = Plot(300, "Training and validation loss by step", across, (low, high), names, entries, ticks(*across, 8))
    if before:
        plot.curve([(0, valid[0][1]), (last, valid[0][1])], "dashed")
    for points, kind in lines.values():
        if points:
            plot.curve([(step, min(max(loss, low), high)) for step, loss in points], kind)
    for step, loss in valid:
        plot.mark("circle", plot.x(step), plot.y(loss), 4, "restored", f"step {step}: validation {loss:.4f}")
    if valid:
        plot.text(plot.x(step) - 2, plot.y(loss) - 10, f"{loss:.3f}", "share halo", "end")
    return plot


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean over `window` values, narrower at both ends; same length."""
    sums, centres = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values))
    low = np.maximum(centres - (window - 1) // 2, 0)
    high = np.minimum(centres + window // 2 + 1, len(values))
    return ((sums[high] - sums[low]) / (high - low)).tolist()


def heads_picture(record: dict) -> Drawing | None:
    """Heat map of the heads' scores, layers to the right and heads upwards; trained ones ringed.

    record: what `utils.report.records.heads_record` made; sizes are shown on hovering.
    """
    if not record.get("scores"):
        return None
    scores = np.array(record["scores"], dtype=float)  # (L, H), NaN where a head cannot be restored
    known, trained = scores[np.isfinite(scores)], [tuple(pair) for pair in record["trained"]]
    (layers, heads), left, top = scores.shape, 30, 58
    cell = min(26, (WIDTH - left - 2) / layers, 420 / heads)
    bottom, gap, name = top + cell * heads, 1 if cell > 6 else 0.4, score_name_of(record)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    # Gaps, unlike accuracies, span orders of magnitude between layers.
    shade = Scale(low, high, 0.08, 1, log=low > 0 and high > 100 * low)
    drawing = Drawing(WIDTH, bottom + 34, f"Score of each head ({name}) by layer; trained heads are ringed")
    _shades(drawing, short(low), short(high), _cut(name, 60), f"trained ({len(trained)} of {scores.size})")
    learned = [dict(zip(trained, record.get(f"{key}_sizes") or (), strict=False)) for key in ("magnitude", "bias")]
    for layer, head in np.ndindex(*scores.shape):
        score, sizes = float(scores[layer, head]), record.get("component_sizes")
        norms = [sizes and sizes[layer][head], *(each.get((layer, head)) for each in learned)]
        pairs = zip(("‖c‖", "‖β‖", "‖b‖"), norms, strict=True)
        said, look = "cannot be restored", {"class_": "cell none"}
        if math.isfinite(score):
            said, look = f"score {short(score)}", {"class_": "cell", "fill_opacity": f"{shade(score):.2f}"}
        tip = [
            f"layer {layer}, head {head}",
            said,
            *(f"{norm} {short(size)}" for norm, size in pairs if size is not None),
        ]
        tip += ["trained"] * ((layer, head) in trained)
        x, y = left + cell * layer, bottom - cell * (head + 1)
        drawing.add("rect", x=x, y=y, width=cell - gap, height=cell - gap, tip=" · ".join(tip), **look)
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


def score_name_of(record: dict) -> str:
    """What the heads' score is."""
    return record.get("score_name") or "validation accuracy of the probe"


def _shades(drawing: Drawing, low: str, high: str, name: str, trained: str) -> None:
    """What the shades and the rings of the heat map mean."""
    drawing.text(0, 12, name, "key")
    x = 8 + min(6.4 * len(name), 352)
    drawing.text(x, 12, low, "tick")
    x += 8 + 6.5 * len(low)
    for step in range(12):
        drawing.rect(x + 7 * step, 3, 7, 10, "cell", fill_opacity=f"{0.08 + 0.92 * step / 11:.2f}")
    drawing.text(x + 90, 12, high, "tick")
    marks = [("circle", "trained", trained), ("square", "cell none", "cannot be restored")]
    drawing.legend(x + 102 + 7 * len(high), 8, marks)


def _indices(count: int, cell: float, room: float) -> range:
    """Indices in round steps, so far apart that a label has `room` pixels."""
    return range(0, count, next(step for step in (1, 2, 5, 10, 20, 50, 10**6) if step * cell >= room))


def spectrum_picture(spectrum: dict | None, num_components: int | None) -> Drawing | None:
    """How much of the gap's energy the first K directions hold: a line a layer, and the mean over all heads.

    spectrum: what `utils.report.records.spectrum_record` made.
    """
    if not spectrum:
        return None
    mean, layers = spectrum["mean"], spectrum["layers"]
    named = [k for k in sorted({1, num_components or 1}) if k <= len(mean)]

    color = "color-mix(in srgb, var(--accent) {:.0%}, var(--first))".format  # from the first layers' to the last ones'

    def percent(share: float) -> str:
        return f"{100 * share:.3g} %"

    entries = [("line", "curve", "mean over heads"), ("line", "dashed", "if all were equal")]
    at = [2**power for power in range(len(mean).bit_length())]
    label, names = "Share of the activation gap that the first K directions hold, by layer", ("first K directions", "")
    plot = Plot(320, label, (1, max(len(mean), 2)), (0, 1), names, entries, at, percent, log=True)
    plot.text(320, 16, "layer 0", "key")
    for step in range(8):
        plot.rect(370 + 9 * step, 8, 9, 8, "", style=f"fill: {color(step / 7)}")
    plot.text(448, 16, str(len(layers) - 1), "key")
    for number, held in enumerate(layers):
        if held:
            tip = f"layer {number}: " + ", ".join(f"K = {k}: {percent(held[k - 1])}" for k in named)
            look = f"stroke: {color(number / max(len(layers) - 1, 1))}"
            plot.curve(list(enumerate(held, 1)), "layer", style=look, tip=tip)
    plot.curve([(k, k / len(mean)) for k in range(1, len(mean) + 1)], "dashed")
    plot.curve(list(enumerate(mean, 1)), "curve")
    for k in named:
        text, (x, y) = f"K = {k}: {100 * mean[k - 1]:.0f} %", (plot.x(k), plot.y(mean[k - 1]))
        plot.mark("circle", x, y, 4, "dense", f"mean over heads, {text}")
        plot.text(x + 9, y + 15 if y + 18 < plot.bottom else y - 9, text, "strong halo")
    return plot


@dataclass(frozen=True)
class Point:
    """A configuration's place in a picture of two numbers.

    error: standard error of y. kept: whether no zero was lost; it is drawn hollow otherwise.
    """

    name: str
    x: float
    y: float
    error: float | None = None
    kept: bool = True


def front(points: Sequence[Point], lower_x: bool, lower_y: bool) -> list[Point]:
    """The points that no other equals in both and beats in one, by x. lower: whether lower is better."""
    costs = [(point.x if lower_x else -point.x, point.y if lower_y else -point.y) for point in points]
    beaten = [any(a <= x and b <= y and (a, b) != (x, y) for a, b in costs) for x, y in costs]
    return sorted((point for point, lost in zip(points, beaten, strict=True) if not lost), key=lambda point: point.x)


def front_picture(points: Sequence[Point], name_x: str, name_y: str, lower_x: bool, lower_y: bool) -> Drawing | None:
    """Points with their names, and their Pareto front.

    x is shown by its logarithm if it spans a factor of ten; a 0 then stands at the left end.
    """
    if not points:
        return None
    positive = [point.x for point in points if point.x > 0]
    log = min(point.x for point in points) >= 0 and bool(positive) and max(positive) > 10 * min(positive)
    zero, best = (min(positive) / 4 if log else 0), front(points, lower_x, lower_y)
    spots = {point: max(point.x, zero) if log else point.x for point in points}
    across = (
        tuple(10**end for end in widened([math.log10(x) for x in spots.values()]))
        if log
        else widened([*spots.values()])
    )
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


def names_beside(
    spots: Sequence[tuple[float, float, str]], top: float, bottom: float
) -> list[tuple[float, float, str, str]]:
    """(x, baseline, anchor, text) of the names that find room beside their mark at (x, y), in that order.

    A name covers no mark and no other name; one that finds no room, even cut to 13 letters, is left to the pointer.
    """
    found, taken = [], [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in spots]
    for x, y, name in spots:
        for most, down, right in ((m, d, r) for m in (26, 13) for d in (-7, 16) for r in (True, False)):
            text = _cut(name, most)
            start = x + 9 if right else x - 9 - 7 * len(text)
            end, high, low = start + 7 * len(text), y + down - 10, y + down + 3
            inside = start >= 0 and end <= WIDTH and high >= top - 8 and low <= bottom
            if inside and all(start >= b[2] or b[0] >= end or high >= b[3] or b[1] >= low for b in taken):
                taken.append((start, high, end, low))
                found.append((x + 9 if right else x - 9, y + down, "start" if right else "end", text))
                break
    return found
