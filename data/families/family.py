"""What a family of instructions is, and how its rows are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Row:
    """One instruction in Alpaca's form; `output` is None where the model is to write it."""

    instruction: str
    input: str = ""
    output: str | None = None


@dataclass(frozen=True)
class Family:
    """Instructions of one kind; `draw` makes one row from a random generator."""

    name: str
    draw: Callable[[Random], Row]
    computed: bool


def computed(*draws: Callable[[Random], Row]) -> tuple[Family, ...]:
    """Families whose answers are computed, named after their functions."""
    return tuple(Family(draw.__name__, draw, computed=True) for draw in draws)


def written(*draws: Callable[[Random], Row]) -> tuple[Family, ...]:
    """Families whose answers the model writes, named after their functions."""
    return tuple(Family(draw.__name__, draw, computed=False) for draw in draws)


def draw_rows(family: Family, count: int, seed: int) -> list[Row]:
    """`count` rows that differ in instruction or input; the same ones for the same seed.

    Raises ValueError if the family has too few slots for so many.
    """
    random = Random(f"{seed}/{family.name}")
    rows: dict[tuple[str, str], Row] = {}
    for _ in range(200 * count):
        row = family.draw(random)
        rows.setdefault((row.instruction, row.input), row)
        if len(rows) == count:
            return list(rows.values())
    raise ValueError(f"family '{family.name}' has only {len(rows)} different rows, {count} are wanted")


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listed(text: str) -> tuple[str, ...]:
    """The items of a text, which commas separate."""
    return tuple(" ".join(item.split()) for item in text.split(","))
