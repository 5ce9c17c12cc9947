"""The pictures of a comparison as files: what the page's own script draws at first, with the numbers of each.

`templates/compare.js` draws the same for any two columns; a mark has the same place in both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from utils.report.charts import Picture
from utils.report.svg import Drawing, Scale, legend, short, ticks, y_axis


@dataclass(frozen=True)
class Point:
    """A line of the comparison in a picture. error: standard error of y. kept: whether no zero was lost."""

    name: str
    x: float
    y: float
    error: float | None
    kept: bool
    group: int = 0

    @property
    def kind(self) -> str:
        """Its class in chart.css."""
        return "restored" if self.kept else "lost"

    @property
    def ends(self) -> tuple[float, float]:
        """Of its error bar."""
        return self.y - (self.error or 0), self.y + (self.error or 0)


@dataclass(frozen=True)
class Joined:
    """What joins places of a picture; kind: `front` or `curve`."""

    kind: str
    places: Sequence[tuple[float, float]]


def pictures_of(content: dict, stem: str) -> list[Picture]:
    """The front of the columns that the page shows at first, and a curve over each flag that differs."""
    found = [pareto_picture(content, f"{stem}-pareto")]
    found += [curve_picture(content, flag, f"{stem}-{flag}") for flag in content["curves"]]
    return [picture for picture in found if picture]


def pareto_picture(content: dict, name: str) -> Picture | None:
    """The page's two columns against each other, and the front that nothing beats; None where no line has both."""
    across, up = _column(content, content["across"]), _column(content, content["up"])
    if across is None or across is up:
        return None
    cells = [line["cells"][across["name"]] for line in content["lines"]]
    values = [cell and cell["value"] for cell in cells]
    points, left_out = points_of(content, values, up["name"], across["log"])
    if not points:
        return None
    joined = front(points, across["lower"], up["lower"])
    named = {point.name for point in joined}
    rows = _numbers(content, across["name"], values, "on_front", [line["label"] in named for line in content["lines"]])
    paths = [Joined("front", [(point.x, point.y) for point in joined])] if len(joined) > 1 else []
    plot = Plot(points, paths, left_out, across["heading"], up["heading"], across["log"])
    return Picture(name, plot.label, plot.draw, rows)


def curve_picture(content: dict, flag: str, name: str) -> Picture | None:
    """The column that the page shows at first over a flag; None where fewer than two of its numbers have one."""
    up = _column(content, content["up"])
    if up is None:
        return None
    values, groups = (content["curves"][flag][part] for part in ("values", "groups"))
    points, left_out = points_of(content, values, up["name"], False, groups)
    numbers = {point.x for point in points}
    if len(numbers) < 2:
        return None
    log = min(numbers) > 0 and max(numbers) > 10 * min(numbers)
    plot = Plot(points, curves(points), left_out, f"-{flag}", up["heading"], log)
    return Picture(name, plot.label, plot.draw, _numbers(content, flag, values, "curve", groups))


def _column(content: dict, name: str | None) -> dict | None:
    return next((column for column in content["columns"] if column["name"] == name), None)


def _numbers(
    content: dict, across: str, values: Sequence[float | None], more: str, of_line: Sequence[object]
) -> list[list[object]]:
    """The rows of a picture's CSV, a line each, those that have no place in the picture too."""
    up = content["up"]
    rows: list[list[object]] = [["name", "pruning", across, up, f"{up}_stderr", "every_zero_kept", more]]
    for line, x, last in zip(content["lines"], values, of_line, strict=True):
        cell = line["cells"][up] or {}
        rows.append([line["name"], line["pruning"], x, cell.get("value"), cell.get("error"), line["kept"], last])
    return rows


def points_of(
    content: dict, values: Sequence[float | None], up: str, log: bool, groups: Sequence[int] | None = None
) -> tuple[list[Point], list[str]]:
    """(points, names of lines with runs that have no place in the picture). values: a number a line, or None."""
    points, left_out = [], []
    for place, (line, x) in enumerate(zip(content["lines"], values, strict=True)):
        cell = line["cells"].get(up)
        if cell is not None and cell["value"] is not None and x is not None and (x > 0 or not log):
            group = groups[place] if groups else 0
            points.append(Point(line["label"], x, cell["value"], cell["error"], line["kept"], group))
        elif line["n"]:
            left_out.append(line["label"])
    return points, left_out


def front(points: Sequence[Point], lower_x: bool | None, lower_y: bool | None) -> list[Point]:
    """The points that no other equals in both and beats in one, by x; none where a column has no better end."""
    if lower_x is None or lower_y is None:
        return []
    signs = (1 if lower_x else -1), (1 if lower_y else -1)
    costs = [(signs[0] * point.x, signs[1] * point.y) for point in points]
    best = [
        point
        for point, (x, y) in zip(points, costs, strict=True)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in costs)
    ]
    return sorted(best, key=lambda point: point.x)


def curves(points: Sequence[Point]) -> list[Joined]:
    """A line a group through the mean at each x; none through a single one."""
    found = []
    for group in dict.fromkeys(point.group for point in points):
        mine = [point for point in points if point.group == group]
        places = [(x, mean(point.y for point in mine if point.x == x)) for x in sorted({point.x for point in mine})]
        if len(places) > 1:
            found.append(Joined("curve", places))
    return found


@dataclass(frozen=True)
class Plot:
    """Points and what joins them. left_out: names of lines without a place. across, up: headings of the axes."""

    points: Sequence[Point]
    paths: Sequence[Joined]
    left_out: Sequence[str]
    across: str
    up: str
    log: bool

    @property
    def label(self) -> str:
        """What it shows, for who cannot see it."""
        return f"{self.up} against {self.across}"

    def draw(self, width: int) -> Drawing:
        """The picture, its legend below it: so marks are where the page has them."""
        narrow = width < 600
        tall = 290 if narrow else 380
        drawing = Drawing(width, tall + 28 + 18 * (bool(self.left_out) + narrow), self.label)
        left, right, top, bottom = 54, width - 20, 30, tall - 44
        x_low, x_high = _range([math.log10(point.x) if self.log else point.x for point in self.points])
        y_low, y_high = _range([end for point in self.points for end in point.ends])
        along, y = Scale(x_low, x_high, left, right), Scale(y_low, y_high, bottom, top)

        def x(value: float) -> float:
            return along(math.log10(value) if self.log else value)

        y_axis(drawing, y, left, right, ticks(y_low, y_high, 5))
        for value in _powers(x_low, x_high) if self.log else ticks(x_low, x_high, 4 if narrow else 7):
            drawing.text(x(value), bottom + 17, short(value), "tick", "middle")
        drawing.text(0, 14, self.up, "axis")
        drawing.text(right, tall - 6, self.across, "axis", "end")
        walls = []
        for path in self.paths:
            places = [(x(each[0]), y(each[1])) for each in path.places]
            walls += _along(places)
            drawing.path(places, path.kind)
        for point in self.points:
            _mark(drawing, point, x(point.x), y)
        firsts = {place for path in self.paths if path.kind == "front" for place in path.places}
        order = sorted(self.points, key=lambda point: (point.x, point.y) not in firsts)
        spots = [(x(point.x), y(point.y), point.name) for point in order]
        marks = [
            [(at - 6, middle - 6, at + 6, middle + 6), (at - 1, y(point.ends[1]), at + 1, y(point.ends[0]))]
            for point, (at, middle, _) in zip(order, spots, strict=True)
        ]
        for at, baseline, anchor, text in labels(spots, marks, walls, width, bottom):
            drawing.text(at, baseline, text, "key halo", anchor)
        self._below(drawing, tall)
        return drawing

    def _below(self, drawing: Drawing, top: float) -> None:
        """What marks and lines mean, and who is not drawn."""
        kinds = {point.kind for point in self.points}
        entries = [("circle", kind, text) for kind, text in KINDS.items() if kind in kinds]
        entries += [("line", kind, PATHS[kind]) for kind in dict.fromkeys(path.kind for path in self.paths)]
        taken = legend(drawing, 2, top + 12, entries, drawing.width - 4)
        if self.left_out:
            names = ", ".join(self.left_out[:4])
            more = f" and {len(self.left_out) - 4} more" if len(self.left_out) > 4 else ""
            text = f"Not drawn, since a number is missing or 0: {names}{more}"
            drawing.text(2, top + 16 + taken, text, "axis")


KINDS = {"restored": "every zero kept", "lost": "zeros lost"}
PATHS = {"front": "nothing beats it in both", "curve": "alike in all other flags but the rate"}
"""What classes of chart.css stand for here."""


def _mark(drawing: Drawing, point: Point, x: float, y: Scale) -> None:
    error = ""
    if point.error:
        error = f" ± {short(point.error)}"
        drawing.line(x, y(point.ends[0]), x, y(point.ends[1]), point.kind)
    tip = f"{point.name}: {short(point.y)}{error} at {short(point.x)}"
    drawing.mark("circle", x, y(point.y), 5, point.kind, {"tip": tip})


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or abs(low) * 0.1 or 1
    return low - margin, high + margin


def _powers(low: float, high: float) -> list[float]:
    """Round numbers whose decimal logarithm is within [low, high]."""
    factors = (1,) if high - low > 2 else (1, 2, 5)
    found = (factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors)
    return [value for value in found if low <= math.log10(value) <= high]


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _along(places: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a line through places."""
    found = []
    for (from_x, from_y), (to_x, to_y) in pairwise(places):
        steps = math.ceil(math.hypot(to_x - from_x, to_y - from_y) / 6)
        for step in range(steps + 1):
            x, y = (start + (end - start) * step / (steps or 1) for start, end in ((from_x, to_x), (from_y, to_y)))
            found.append((x - 2, y - 2, x + 2, y + 2))
    return found


BESIDE = tuple((most, right, down) for most in (26, 13) for down in (-7, 16) for right in (True, False))
"""Where a name may stand: its most characters, whether right of the mark, and its baseline below the mark."""


def labels(
    spots: Sequence[tuple[float, float, str]],
    marks: Sequence[Sequence[Box]],
    walls: Sequence[Box],
    width: float,
    bottom: float,
) -> list[tuple[float, float, str, str]]:
    """(x, baseline, anchor, text) of the names that find room beside their (x, y), earlier ones first.

    marks: what is drawn of each spot, where no other's name may be. walls: where none may be.
    """
    found, taken = [], list(walls)
    for place, (x, y, name) in enumerate(spots):
        others = [box for other, boxes in enumerate(marks) if other != place for box in boxes]
        for most, right, down in BESIDE:
            text = name if len(name) <= most else f"{name[: most - 1]}…"
            length = 7 * len(text)
            start = x + 9 if right else x - 9 - length
            box = (start, y + down - 10, start + length, y + down + 3)
            inside = box[0] >= 0 and box[2] <= width and box[1] >= 18 and box[3] <= bottom
            if inside and not any(_meet(box, each) for each in (*others, *taken)):
                taken.append(box)
                found.append((x + 9 if right else x - 9, y + down, "start" if right else "end", text))
                break
    return found


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
