"""A sweep's table as Markdown and as CSV."""

import csv
import io

from utils.report.tables import DASH, markdown_table
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
    "minus the pruned model's. *Recovered* is the share of the gap between the dense and the pruned model, for the "
    "mean of tasks and for the perplexity, where that gap is beyond noise. A difference (Δ) is paired: each question's "
    "answers are averaged over seeds, then held against the other row's on the same question; its standard error is "
    "over questions (of a perplexity, over windows or pages)."
)


ALT = {
    "loss.png": "Validation loss against trained parameters",
    "recovered.png": "Recovered share; thick bars: standard error over seeds, thin bars: over questions",
}
"""What each picture shows, for who cannot see it."""


def markdown(table: dict, pictures: list[str]) -> str:
    """The whole page: the table, the models it starts from, how to read it, notes, and pictures by their names."""
    rows = table["rows"]
    more = {
        name: title
        for name, title in (("answer_bits", "bits a byte of right answers ↓"), ("flipped", "answers unlike dense ↓"))
        if any(row[name] for row in rows)
    }
    header = ["configuration", "pruned model", "class", "trained", "zeros kept", "rate", "seeds", "validation loss ↓"]
    header += ["perplexity ↓", "forgetting ↓", "task mean ↑", "recovered (tasks / ppl)", "Δ task mean", "Δ perplexity"]
    cells = []
    for row in rows:
        against = row["against"] or {}
        cells.append(
            [row["name"], row["pruning"], CLASSES.get(row["class"], DASH), _count(row["trained_parameters"])]
            + [_share(row["zeros_kept"]), DASH if row["rate"] is None else f"{row['rate']:g}", _seeds(row)]
            + [_spread(row["valid_loss"], 3), _spread(row["perplexity"], 2), _spread(row["forgetting"], 2, sign="+")]
            + [_spread(row["task_mean"], 1, percent=True)]
            + [f"{_share(_value(row['recovered']), 0)} / {_share(_value(row['recovered_perplexity']), 0)}"]
            + [_difference(against.get("task_mean"), 1, percent=True), _difference(against.get("perplexity"), 2)]
            + [_spread(row[name], 3 if name == "answer_bits" else 1, percent=name == "flipped") for name in more]
        )
    parts = ["# Sweep", markdown_table(header + list(more.values()), cells, right=range(3, len(header) + len(more)))]
    if compared := sorted({row["against"]["name"] for row in rows if row["against"]}):
        parts.append(f"Δ: minus {' or '.join(compared)} on the same pruned model.")
    if table["models"]:
        models = [
            [each["model"], each["pruning"], _fixed(each["perplexity"], 2), _share(each["task_mean"])]
            for each in table["models"]
        ]
        parts.append(markdown_table(["model", "pruned model", "perplexity ↓", "task mean ↑"], models, right=(2, 3)))
    parts.append(f"{_asked(rows)}{READ}")
    if table["notes"]:
        parts.append("\n".join(f"- {note}" for note in table["notes"]))
    parts += [f"![{ALT[name]}]({name})" for name in pictures]
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
        for name in ("task_mean", "perplexity"):
            found = (row["against"] or {}).get(name) or {}
            line |= {f"{name}_difference": found.get("difference"), f"{name}_difference_stderr": found.get("stderr")}
        for task, metric in metrics:
            score = row["scores"].get(task, {}).get(metric)
            line |= {f"{task}:{metric}": _value(score), f"{task}:{metric}_stderr": (score or {}).get("stderr")}
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


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
    value, error = scale * found["value"], found["stderr"]
    digits = digits if abs(value) < 1000 else 0
    text = f"{value:{sign},.{digits}f}"
    return text if error is None else f"{text} ± {scale * error:,.{digits}f}"


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
