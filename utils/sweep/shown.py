"""A sweep's table as Markdown and as CSV."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

from utils.report.tables import DASH, markdown_table
from utils.sweep.differences import COMPARED
from utils.sweep.outcome import CONTROLLED
from utils.sweep.table import SPREADS

CLASSES = {
    "nothing": DASH,
    "constants": "constants",
    "norms": "constants, norms",
    "mask": "inside the mask",
    "dense": "dense",
}
"""What a merge may touch, by the word in run.json."""

READ = (
    "Values are means over seeds ± their standard error; with one seed there is none. *Forgetting* is the perplexity "
    "minus the pruned model's. *Bits a byte* are those of the right answers, the mean over tasks; *unlike dense* is "
    "the share of questions whose likeliest choice is not the dense model's, *KL* the divergence from its distribution "
    "over the choices, in nats. *Recovered* is the share of the gap between the dense and the pruned model, where that "
    "gap is beyond noise. *Of control* is the same, with the dense model after the same training in the dense model's "
    "place, over the seeds of both: training on instructions lowers a loss that was not pruned away too. A difference "
    "(Δ) is paired, over the seeds that both rows have: each question's values are averaged over these, then held "
    "against the other row's on the same question; its first standard error is over questions (of a validation loss "
    "over samples; of a perplexity over windows or pages, and of the mean of the seeds' losses there), its "
    "second, where they share two seeds or more, over the differences of each seed. Neither error holds the other."
)


def markdown(table: dict) -> str:
    """The whole page: the table, the models it starts from, how to read it, and notes."""
    rows = table["rows"]
    columns = [column for column in COLUMNS if any(column.of(row) for row in rows)]
    header = ["configuration", "pruned model", "class", "trained", "zeros kept", "rate", "seeds"]
    cells = [
        [row["name"], row["pruning"], CLASSES.get(row["class"], DASH), _count(row["trained_parameters"])]
        + [_share(row["zeros_kept"]), DASH if row["rate"] is None else f"{row['rate']:g}", _seeds(row)]
        + [column.text(row) for column in columns]
        for row in rows
    ]
    header += [column.title for column in columns]
    parts = ["# Sweep", markdown_table(header, cells, right=range(3, len(header)))]
    if compared := sorted({row["against"]["name"] for row in rows if row["against"]}):
        parts.append(f"Δ: minus {' or '.join(compared)} on the same pruned model.")
    if table["models"]:
        models = [
            [each["model"], each["pruning"], _fixed(each["valid_loss"], 3), _fixed(each["perplexity"], 2)]
            + [_fixed(each["answer_bits"], 3), _share(each["task_mean"])]
            for each in table["models"]
        ]
        titles = ["model", "pruned model", "validation loss ↓", "perplexity ↓", "bits a byte ↓", "task mean ↑"]
        parts.append(markdown_table(titles, models, right=(2, 3, 4, 5)))
    parts.append(f"{_asked(rows)}{READ}")
    if table["notes"]:
        parts.append("\n".join(f"- {note}" for note in table["notes"]))
    return "\n\n".join(parts) + "\n"


def csv_text(table: dict) -> str:
    """One line a row, each number in full, with a column for each task and metric."""
    rows = table["rows"]
    metrics = dict.fromkeys((task, metric) for row in rows for task, found in row["scores"].items() for metric in found)
    lines = []
    for row in rows:
        line = {name: row[name] for name in ("name", "pruning", "class", "trained_parameters", "zeros_kept", "rate")}
        line |= {"seeds": len(row["seeds"]), "minutes": row["minutes"]}
        for name in SPREADS:
            line |= {name: _value(row[name]), f"{name}_stderr": (row[name] or {}).get("stderr")}
        line["against"] = (row["against"] or {}).get("name")
        for name in COMPARED:
            found = (row["against"] or {}).get(name) or {}
            line[f"{name}_difference"] = found.get("difference")
            line |= {f"{name}_difference_{part}": found.get(part) for part in ("stderr", "stderr_seeds")}
        for name in CONTROLLED:
            line[f"{name}_of_control"] = (row["control"] or {}).get(name)
        for task, metric in metrics:
            score = row["scores"].get(task, {}).get(metric)
            line |= {f"{task}:{metric}": _value(score), f"{task}:{metric}_stderr": (score or {}).get("stderr")}
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


@dataclass(frozen=True)
class Column:
    """A column of the page. text: a row's cell. of: whether a row has something to say there."""

    title: str
    text: Callable[[dict], str]
    of: Callable[[dict], object]


def _asked(rows: list[dict]) -> str:
    perplexities = sorted(
        {f"{task} {metric}" for row in rows if row["perplexity_of"] for task, metric in [row["perplexity_of"]]}
    )
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    text = f"Perplexity: {', '.join(perplexities)}. " if perplexities else ""
    return text + (f"Tasks in the mean: {', '.join(tasks)}. " if tasks else "")


def _value(found: dict | None) -> float | None:
    return None if found is None else found["value"]


def _spread(found: dict | None, digits: int, percent: bool = False, sign: str = "") -> str:
    if found is None:
        return DASH
    scale = 100 if percent else 1
    value, errors = scale * found["value"], (found["stderr"], found.get("stderr_seeds"))
    digits = digits if abs(value) < 1000 else 0
    return f"{value:{sign},.{digits}f}" + "".join(f" ± {scale * e:,.{digits}f}" for e in errors if e is not None)


def _difference(found: dict | None, digits: int, percent: bool = False) -> str:
    return DASH if found is None else _spread({"value": found["difference"], **found}, digits, percent, "+")


def _seeds(row: dict) -> str:
    done, wanted = len(row["seeds"]), row["wanted"]
    return f"n={done}" if done == wanted else f"n={done} of {wanted}"


def _count(number: int | None) -> str:
    return DASH if number is None else f"{number:,}"


def _share(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def _fixed(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _level(name: str, title: str, digits: int, percent: bool = False, sign: str = "") -> Column:
    return Column(title, lambda row: _spread(row[name], digits, percent, sign), lambda row: row[name])


def _more(name: str, digits: int, percent: bool = False) -> Column:
    def found(row: dict) -> dict | None:
        return (row["against"] or {}).get(name)

    return Column("Δ", lambda row: _difference(found(row), digits, percent), found)


def _shares(title: str, values: Callable[[dict], list[float | None]]) -> Column:
    return Column(
        title,
        lambda row: " / ".join(_share(value, 0) for value in values(row)),
        lambda row: any(value is not None for value in values(row)),
    )


RECOVERED = ("recovered_perplexity", "recovered_answers", "recovered")

COLUMNS = (
    _level("valid_loss", "validation loss ↓", 3),
    _more("valid_loss", 3),
    _level("perplexity", "perplexity ↓", 2),
    _more("perplexity", 2),
    _level("forgetting", "forgetting ↓", 2, sign="+"),
    _level("answer_bits", "bits a byte ↓", 3),
    _more("answer_bits", 3),
    _level("kl", "KL ↓", 3),
    _more("kl", 3),
    _level("flipped", "unlike dense ↓", 1, percent=True),
    _more("flipped", 1, percent=True),
    _level("task_mean", "task mean ↑", 1, percent=True),
    _more("task_mean", 1, percent=True),
    _shares("recovered: perplexity / bits / tasks", lambda row: [_value(row[name]) for name in RECOVERED]),
    _shares(
        "of control: loss / perplexity / bits",
        lambda row: [(row["control"] or {}).get(name) for name in CONTROLLED] if row["control"] else [],
    ),
)
"""What a page tells of each row, what has power first; a column that no row fills is left out."""
