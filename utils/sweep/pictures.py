"""A sweep's two pictures: from the rows of its table to a matplotlib Figure, or None where nothing can be drawn."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.report.figures import INK, PAGE, PALE
from utils.sweep.shown import CLASSES

LOOKS = {
    "constants": ("o", "#0072B2"),
    "norms": ("D", "#009E73"),
    "mask": ("s", "#E69F00"),
    "dense": ("^", "#D55E00"),
    "nothing": ("x", "#767676"),
}
"""Marker and colour of each class; Okabe and Ito's palette."""

SIDES = [(right, up) for up in (2, -4, 8) for right in (12, -12)]
SIDES += [(0, 12), (0, -12), *((right, up) for right in (12, -12, 24, -24) for up in (12, -12, 2))]
"""Where a point's number may stand, in points from its middle, the best first."""

SHARES = {
    "recovered_perplexity": "perplexity",
    "recovered_answers": "bits of right answers",
    "recovered": "tasks' mean accuracy",
}
"""What a panel of `draw_recovered` is of."""


def draw_loss(rows: list[dict]) -> Figure | None:
    """Validation loss against trained parameters, a panel a pruned model; classes by marker, bars over seeds."""
    drawn = [row for row in rows if row["valid_loss"] and row["trained_parameters"] and row["class"]]
    if not drawn:
        return None
    groups: dict[str, list[dict]] = {}
    for row in sorted(drawn, key=lambda row: row["trained_parameters"]):
        groups.setdefault(row["pruning"], []).append(row)
    names = {
        pruning: [
            _named(number, f"{row['name']} ({CLASSES[row['class']]})") for number, row in enumerate(mine, start=1)
        ]
        for pruning, mine in groups.items()
    }
    # As high as the names beside it.
    heights = [max(3.4, 0.4 + 0.185 * sum(1 + name.count("\n") for name in each)) for each in names.values()]
    figure = Figure(figsize=(PAGE, sum(heights) + 0.4 * len(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (pruning, mine) in zip(panels, groups.items(), strict=True):
        for name, row in zip(names[pruning], mine, strict=True):
            marker, color = LOOKS[row["class"] or "nothing"]
            bar, look = row["valid_loss"]["stderr"] or 0, {"fmt": marker, "color": color, "markersize": 6}
            panel.errorbar(
                row["trained_parameters"], row["valid_loss"]["value"], bar, elinewidth=1.4, label=name, **look
            )
        panel.set_xscale("log")
        panel.margins(0.1)
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        panel.set_title(pruning)
        panel.set_ylabel("validation loss (nats a token)")
        panel.grid(color=PALE, linewidth=0.8)
        panel.set_axisbelow(True)
    panels[-1].set_xlabel("trained parameters")
    figure.draw_without_rendering()  # the layout first: what is free depends on it
    for panel, mine in zip(panels, groups.values(), strict=True):
        _number(panel, [(row["trained_parameters"], row["valid_loss"]["value"]) for row in mine])
    return figure


def _named(number: int, name: str) -> str:
    return textwrap.fill(f"{number}  {name}", 34, subsequent_indent="    ")


def _number(panel: Axes, points: list[tuple[float, float]]) -> None:
    """Write each point's number, from 1, at its first side that is free; where none is, at the last."""
    pixels = panel.figure.dpi / 72
    at = panel.transData.transform(points)
    taken = [*at]
    for number, place in enumerate(at, start=1):
        for right, up in SIDES:
            spot = place + (right * pixels, up * pixels)
            if all(abs(spot - other)[0] > 11 * pixels or abs(spot - other)[1] > 9 * pixels for other in taken):
                break
        taken.append(spot)
        where = {"xytext": (right, up), "textcoords": "offset points", "ha": "center", "va": "center"}
        panel.annotate(str(number), points[number - 1], fontsize=8, color=INK, **where)


def draw_recovered(rows: list[dict]) -> Figure | None:
    """Share of the gap that each row recovered; thick bars: a standard error over seeds, thin ones: over questions."""
    measures = [name for name in SHARES if any(row[name] for row in rows)]
    drawn = [row for row in rows if any(row[name] for name in measures)]
    if not drawn:
        return None
    several = len({row["pruning"] for row in drawn}) > 1
    labels = [textwrap.fill(f"{row['name']}, {row['pruning']}" if several else row["name"], 26) for row in drawn]
    height = sum(0.18 * (label.count("\n") + 1) + 0.16 for label in labels)
    figure = Figure(figsize=(PAGE, height + 1.2), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for panel, name in zip(panels, measures, strict=True):
        for place, row in enumerate(drawn):
            if share := row[name]:
                marker, color = LOOKS[row["class"] or "nothing"]
                value = 100 * share["value"]
                panel.errorbar(value, place, xerr=100 * (share.get("stderr_questions") or 0), color=color, elinewidth=1)
                seeds = 100 * (share["stderr"] or 0)
                panel.errorbar(value, place, xerr=seeds, fmt=marker, color=color, markersize=6, elinewidth=3)
        panel.axvline(0, color=INK, linewidth=0.8)
        panel.set_yticks(range(len(drawn)), labels)
        panel.set_ylim(len(drawn) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel(f"{SHARES[name]}: % recovered")
        panel.grid(axis="x", color=PALE, linewidth=0.8)
        panel.set_axisbelow(True)
    _classes(figure, panels[0], [row["class"] for row in drawn])
    return figure


def _classes(figure: Figure, panel: Axes, seen: list[str | None]) -> None:
    """A legend of the classes that were drawn."""
    for name in [name for name in LOOKS if name in {each or "nothing" for each in seen}]:
        marker, color = LOOKS[name]
        label = "changes nothing" if name == "nothing" else CLASSES[name]
        panel.plot([], [], linestyle="none", marker=marker, color=color, label=label)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
