"""The report's pictures: each function takes numbers and returns a matplotlib Figure."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.report.records import loss_curves, spans_magnitudes
from utils.report.tables import MODELS, ScoreRow

COLORS = {"dense": "#767676", "pruned": "#D55E00", "restored": "#0072B2"}
"""Okabe and Ito's palette, told apart with every form of colour blindness."""
MARKERS = {"dense": "D", "pruned": "s", "restored": "o"}
INK, PALE = "#333333", "#E4E4E4"
HEAT = LinearSegmentedColormap.from_list("heat", ["#F4F7FA", "#9FC3DE", "#2F7FB5", "#08395E"])
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}
PAGE = 7.6
"""Width of every picture in inches."""


@contextmanager
def style() -> Iterator[None]:
    """The look that all pictures share; drawing and saving both happen inside it."""
    with matplotlib.rc_context(STYLE):
        yield


def draw_scores(rows: list[ScoreRow]) -> Figure:
    """Dense, pruned and restored of each row with one standard error: shares in one panel, each other metric apart."""
    shares = [row for row in rows if row.percent]
    others = [row for row in rows if not row.percent]
    names = [_broken(row.task) for row in rows]
    tall = max(0.5, 0.18 * max(name.count("\n") + 1 for name in names))
    heights = ([tall * len(shares)] if shares else []) + [max(tall, 0.6)] * len(others)
    figure = Figure(figsize=(PAGE, sum(heights) + 0.6 * len(heights) + 0.4), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if shares:
        _dots(axes[0], shares, scale=100)
        axes[0].set_xlabel("%" + _better({row.higher_is_better for row in shares}))
    for panel, row in zip(axes[len(axes) - len(others) :], others, strict=True):
        _dots(panel, [row], scale=1)
        panel.set_xlabel(row.metric + _better({row.higher_is_better}))
    handles, labels = max((panel.get_legend_handles_labels() for panel in axes), key=lambda found: len(found[1]))
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


def _better(directions: set[bool | None]) -> str:
    """What an axis says of the direction that all its rows share, if they share one."""
    texts = {True: " (higher is better)", False: " (lower is better)", None: ""}
    return texts[directions.pop()] if len(directions) == 1 else ""


def _dots(panel: Axes, rows: list[ScoreRow], scale: float) -> None:
    """One line a task, the first on top, the three models slightly apart so that their error bars don't cover."""
    for name, offset in zip(MODELS, (-0.22, 0.0, 0.22), strict=True):
        points = [(i + offset, row.scores[name]) for i, row in enumerate(rows) if name in row.scores]
        points = [(y, score) for y, score in points if np.isfinite(score.value)]
        if points:
            panel.errorbar(
                [scale * score.value for _, score in points],
                [y for y, _ in points],
                xerr=[scale * (score.stderr or 0) for _, score in points],
                fmt=MARKERS[name],
                color=COLORS[name],
                markersize=5.5,
                elinewidth=1.4,
                label=name,
            )
    for i in range(0, len(rows), 2):
        panel.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", zorder=0, linewidth=0)
    panel.set_yticks(range(len(rows)), [_broken(row.task) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.margins(x=0.08)
    panel.grid(axis="x", color=PALE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines["left"].set_visible(False)


def draw_history(history: list[dict]) -> Figure:
    """Training loss (each step faint, smoothed strong) and validation loss, with the one before training as a line."""
    curves = loss_curves(history)
    figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
    panel = figure.subplots()
    if curves.limits:
        panel.set_ylim(curves.limits)
    if len(curves.training):
        color, width = (INK, 1.6) if curves.smoothed is None else ("#B8B8B8", 0.8)
        panel.plot(*curves.training.T, color=color, linewidth=width, label="training, each step")
    if curves.smoothed is not None:
        label = f"training, mean of {curves.window}"
        panel.plot(*curves.smoothed.T, color=INK, linewidth=1.8, label=label)
    if curves.before is not None:
        panel.axhline(
            curves.before,
            color=COLORS["pruned"],
            linestyle=(0, (5, 3)),
            linewidth=1.4,
            label=f"validation before training, {curves.before:.3f}",
        )
    if len(curves.validation):
        panel.plot(
            *curves.validation.T,
            color=COLORS["restored"],
            marker="o",
            markersize=5,
            linewidth=1.6,
            label=f"validation, last {curves.validation[-1, 1]:.3f}",
        )
    panel.set_xlabel("optimiser step")
    panel.set_ylabel("loss per token (nats)")
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    panel.grid(axis="y", color=PALE, linewidth=0.8)
    panel.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def draw_heads(scores: np.ndarray, heads: Sequence[tuple[int, int]], score_name: str) -> Figure:
    """Heat map of a score of every head, layers to the right and heads upwards, the trained ones dotted.

    scores: (L, H); what is not finite (a head that cannot be restored) is left grey.
    """
    layers, count = scores.shape
    image = np.ma.masked_invalid(scores).T
    cell = min(5.7 / layers, 5.8 / count, 0.45)
    figure = Figure(figsize=(max(cell * layers + 1.9, 4), max(cell * count, 1) + 1), layout="constrained")
    panel = figure.subplots()
    colors = HEAT.with_extremes(bad="#BDBDBD")
    norm = "log" if spans_magnitudes(scores) else "linear"
    picture = panel.imshow(image, cmap=colors, norm=norm, origin="lower", aspect="equal", interpolation="nearest")
    size = min(cell * 72 * 0.42, 5)
    panel.plot(
        *head_marks(heads, layers, count),
        clip_on=False,
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor="white",
        markeredgecolor="#111111",
        markeredgewidth=min(0.8, size / 4),
        label=f"trained ({len(heads)} of {layers * count})",
    )
    bar = figure.colorbar(picture, cax=panel.inset_axes((1 + 0.12 / (cell * layers), 0, 0.2 / (cell * layers), 1)))
    bar.set_label(textwrap.fill(score_name, int(max(10, 12 * cell * count))))
    bar.outline.set_visible(False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_xlabel("layer")
    panel.set_ylabel("head")
    panel.set_xticks(_indices(layers))
    panel.set_yticks(_indices(count))
    if np.ma.is_masked(image):
        panel.plot([], [], linestyle="none", marker="s", markersize=9, color="#BDBDBD", label="cannot be restored")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2)
    return figure


def head_marks(heads: Sequence[tuple[int, int]], layers: int, count: int) -> tuple[list[int], list[int]]:
    """(x, y) of (layer, head) pairs in a picture with layers to the right and heads upwards."""
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < count):
            raise ValueError(f"head ({layer}, {head}) is outside {layers} layers × {count} heads")
    return [layer for layer, _ in heads], [head for _, head in heads]


def draw_spectrum(spectrum: dict, num_components: int | None = None) -> Figure:
    """Share of the activation gap's energy that the first K directions hold: mean over heads and a band of 80 %.

    spectrum: what `utils.report.records.spectrum_record` made.
    """
    mean, low, high = (np.array(spectrum[name]) for name in ("mean", "low", "high"))
    directions = np.arange(1, len(mean) + 1)
    figure = Figure(figsize=(PAGE, 3.4), layout="constrained")
    panel = figure.subplots()
    blue = COLORS["restored"]
    panel.fill_between(
        directions, 100 * low, 100 * high, color=blue, alpha=0.18, linewidth=0, label="80 % of the heads"
    )
    panel.plot(directions, 100 * mean, color=blue, linewidth=2, label="mean over heads")
    even = 100 * directions / len(mean)
    panel.plot(directions, even, color=COLORS["dense"], linestyle=":", linewidth=1.4, label="if all were equal")
    for k in sorted({1, num_components or 1}):
        if k <= len(mean):
            share = 100 * mean[k - 1]
            panel.plot([k], [share], "o", color=blue, markersize=6)
            panel.annotate(f"K = {k}: {share:.0f} %", (k, share), (8, -4), textcoords="offset points", va="top")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_xlim(0.95, len(mean) * 1.03)
    panel.set_ylim(0, 102)
    panel.set_xlabel("first K directions")
    panel.set_ylabel("share of the gap (%)")
    panel.grid(axis="y", color=PALE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.legend(loc="lower right")
    return figure


def draw_sparsity(before: Sequence[float], after: Sequence[float]) -> Figure:
    """Share of zeros per layer in the pruned and the restored model."""
    figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
    panel = figure.subplots()
    layers = np.arange(len(before))
    for name, values, width in (("pruned", before, 4), ("restored", after, 1.6)):
        panel.step(layers, 100 * np.asarray(values), where="mid", color=COLORS[name], linewidth=width, label=name)
    panel.set_xlabel("layer")
    panel.set_ylabel("zeros (%)")
    panel.set_xticks(_indices(len(before)))
    panel.yaxis.get_major_formatter().set_useOffset(False)
    panel.grid(axis="y", color=PALE, linewidth=0.8)
    panel.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _indices(count: int) -> range:
    """At most eleven round indices below `count`."""
    return range(0, count, next(step for step in (1, 2, 5, 10, 20, 50, count) if count <= 10 * step))


def _broken(name: str, width: int = 24) -> str:
    """A long task name on several lines, broken after underscores."""
    lines = [""]
    for part in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
