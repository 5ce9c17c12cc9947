"""Pictures as SVG text: shapes, scales and ticks; what a shape looks like is in templates/chart.css.

Every text is escaped where it enters: a task's name or a label is never markup.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Scale:
    """From a value in [low, high] to a place in [start, end]; by its logarithm if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def powers(low: float, high: float, base: int) -> list[float]:
    """The powers of `base` within [low, high]; both ends where there are fewer than two."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    found = [float(base) ** place for place in range(first, last + 1)]
    return found if len(found) > 1 else [low, high]


def short(value: float) -> str:
    """A tick's or a tip's number: at most four significant digits, thousands with commas, large ones by their power."""
    if value and not 1e-4 <= abs(value) < 1e7:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{float(f'{value:.4g}'):,.10g}"


class Drawing:
    """One picture of `width` × `height` pixels, from the top left corner. Classes are those of chart.css."""

    def __init__(self, width: float, height: float, label: str):
        self.width, self.height, self.label = width, height, label
        self._parts: list[Markup] = []

    def add(self, markup: Markup) -> None:
        """Markup that is already safe."""
        self._parts.append(markup)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.add(
            Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *map(_place, (x1, y1, x2, y2)))
        )

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """A text whose baseline begins (`start`), is centred (`middle`) or ends (`end`) there."""
        opened = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">').format(kind, _place(x), _place(y), anchor)
        self.add(opened + text + Markup("</text>"))

    def rect(self, x: float, y: float, width: float, height: float, kind: str, more: dict | None = None) -> None:
        """A rectangle; more: further attributes, and "tip"."""
        size = [_place(value) for value in (x, y, max(width, 0), max(height, 0))]
        self._shape(Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"').format(kind, *size), "rect", more)

    def path(self, points: Sequence[tuple[float, float]], kind: str, more: dict | None = None, closed: bool = False):
        """A line through points, or an area."""
        drawn = "M" + "L".join(f"{_place(x)},{_place(y)}" for x, y in points) + "Z" * closed
        self._shape(Markup('<path class="{}" d="{}"').format(kind, drawn), "path", more)

    def mark(self, shape: str, x: float, y: float, radius: float, kind: str, more: dict | None = None) -> None:
        """A `circle`, `square` or `diamond` around a place."""
        if shape == "circle":
            at = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"').format(kind, *map(_place, (x, y, radius)))
            self._shape(at, "circle", more)
        elif shape == "square":
            side = 0.9 * radius
            self.rect(x - side, y - side, 2 * side, 2 * side, kind, more)
        else:
            far = 1.25 * radius
            self.path([(x, y - far), (x + far, y), (x, y + far), (x - far, y)], kind, more, closed=True)

    def _shape(self, opened: Markup, name: str, more: dict | None) -> None:
        others = dict(more or {})
        tip = others.pop("tip", None)
        attributes = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in others.items())
        end = Markup("/>") if tip is None else Markup("><title>{}</title></{}>").format(tip, name)
        self.add(opened + attributes + end)

    def inline(self, kind: str = "") -> Markup:
        """The picture within a page, which has chart.css."""
        return self._whole(f"chart {kind}".strip(), Markup(""), Markup(""))

    def alone(self) -> str:
        """The picture as a file of its own."""
        style = Markup("<style>{}</style>").format(Markup(stylesheet("chart.css")))
        return str(self._whole("chart alone", Markup(' xmlns="http://www.w3.org/2000/svg"'), style)) + "\n"

    def _whole(self, kind: str, space: Markup, style: Markup) -> Markup:
        size = _place(self.width), _place(self.height)
        head = Markup(
            '<svg{} class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">'
        ).format(space, kind, *size, *size, self.label)
        return head + style + Markup("\n").join(self._parts) + Markup("</svg>")


def stylesheet(name: str) -> str:
    """A stylesheet of ours."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def x_axis(
    drawing: Drawing, scale: Scale, top: float, bottom: float, at: Sequence[float], show: Callable[[float], str] = short
) -> None:
    """Faint lines up from each tick, and its number below `bottom`."""
    for value in at:
        drawing.line(scale(value), top, scale(value), bottom, "grid")
        drawing.text(scale(value), bottom + 15, show(value), "tick", "middle")


def y_axis(
    drawing: Drawing, scale: Scale, left: float, right: float, at: Sequence[float], show: Callable[[float], str] = short
) -> None:
    """Faint lines from `left` to `right` at each tick, and its number left of them."""
    for value in at:
        drawing.line(left, scale(value), right, scale(value), "grid")
        drawing.text(left - 7, scale(value) + 4, show(value), "tick", "end")


def legend(drawing: Drawing, x: float, y: float, entries: Sequence[tuple[str, str, str]], room: float) -> float:
    """Marks with their names from (x, y) on, in lines of at most `room`; returns the height taken.

    entries: (shape, class, name); shape is a mark's, or `line`.
    """
    left, line = x, 0
    for shape, kind, name in entries:
        width = 20 + 6.6 * len(name) + 16
        if left > x and left + width > x + room:
            left, line = x, line + 1
        middle = y + 18 * line
        if shape == "line":
            drawing.line(left, middle, left + 15, middle, kind)
        else:
            drawing.mark(shape, left + 6, middle, 4.5, kind)
        drawing.text(left + 20, middle + 4, name, "key")
        left += width
    return 18 * (line + 1)


def _place(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
