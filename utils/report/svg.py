"""Pictures as SVG text; templates/chart.css says how they look. Every text is escaped where it enters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Scale:
    """Map a value in [low, high] to a coordinate in [start, end]; logarithmically if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        ends = self.low, self.high, value
        low, high, at = map(math.log, ends) if self.log else ends
        return self.start + (at - low) / ((high - low) or 1) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], also times 2 and 5 up to a span of 100; both ends if fewer than two are."""
    factors = (1,) if high > 100 * low else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]
    return found if len(found) > 1 else [low, high]


def short(value: float) -> str:
    """A tick's number: at most four significant digits, thousands with commas, large and tiny ones in e-notation."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}".replace("e+0", "e")
    return f"{float(f'{value:.4g}'):,.10g}"


class Drawing:
    """One picture of `width` × `height` pixels, with the origin at the top left. Classes are those of chart.css."""

    def __init__(self, width: float, height: float, label: str):
        self.width, self.height, self.label = width, height, label
        self.parts: list[Markup] = []

    def add(self, name: str, text: str = "", tip: str | None = None, **attributes: object) -> None:
        """An element; `class_` and `text_anchor` are written as SVG writes them, numbers to a tenth of a pixel."""
        named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        placed = ((key, _place(value) if isinstance(value, int | float) else value) for key, value in named.items())
        opened = Markup("").join(Markup(' {}="{}"').format(*each) for each in placed)
        inside = Markup("") if tip is None else Markup("<title>{}</title>").format(tip)
        self.parts.append(Markup("<{0}{1}>{2}{3}</{0}>").format(Markup(name), opened, inside, text))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.add("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Write a text whose baseline begins (`start`), is centred (`middle`) or ends (`end`) at (x, y)."""
        self.add("text", text, class_=kind, x=x, y=y, text_anchor=anchor)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, **more: object) -> None:
        self.add("rect", class_=kind, x=x, y=y, width=max(width, 0), height=max(height, 0), **more)

    def path(self, points: Sequence[tuple[float, float]], kind: str, closed: bool = False, **more: object) -> None:
        drawn = "M" + "L".join(f"{_place(x)},{_place(y)}" for x, y in points) + "Z" * closed
        self.add("path", class_=kind, d=drawn, **more)

    def mark(self, shape: str, x: float, y: float, radius: float, kind: str, tip: str | None = None) -> None:
        """A `circle`, `square` or `diamond` around a place."""
        if shape == "circle":
            self.add("circle", tip=tip, class_=kind, cx=x, cy=y, r=radius)
        elif shape == "square":
            side = 0.9 * radius
            self.rect(x - side, y - side, 2 * side, 2 * side, kind, tip=tip)
        else:
            far = 1.25 * radius
            self.path([(x, y - far), (x + far, y), (x, y + far), (x - far, y)], kind, closed=True, tip=tip)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str, str]]) -> None:
        """Draw entries (shape, class, name) side by side, from (x, y) on."""
        for shape, kind, name in entries:
            if shape == "line":
                self.line(x, y, x + 15, y, kind)
            else:
                self.mark(shape, x + 6, y, 4.5, kind)
            self.text(x + 20, y + 4, name, "key")
            x += 36 + 6.6 * len(name)

    def svg(self, alone: bool = False) -> Markup:
        """The picture within a page, which has chart.css; or, `alone`, as a file of its own."""
        opened = Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" class="chart{0}" viewBox="0 0 {1} {2}" width="{1}" height="{2}" '
            'role="img" aria-label="{3}">'
        ).format(" alone" * alone, _place(self.width), _place(self.height), self.label)
        style = Markup(f"<style>{read_template('chart.css')}</style>" * alone)
        return opened + style + Markup("\n").join([*self.parts, Markup("</svg>" + "\n" * alone)])


def read_template(name: str) -> str:
    """A stylesheet or script of ours."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _place(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
