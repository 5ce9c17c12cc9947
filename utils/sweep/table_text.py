"""A sweep's table as Markdown."""

from utils.evaluation.outcomes import COMPARED
from utils.report.tables import DASH, markdown_table
from utils.sweep.table import CONTROLLED, RECOVERED

CLASSES = {"constants": "constants", "norms": "constants, norms", "mask": "inside the mask", "dense": "dense"}
"""What a merge may touch, by the word in run.json."""

SHOWN = (
    ("valid_loss", "validation loss ↓", 3, 1, ""),
    ("perplexity", "perplexity ↓", 2, 1, ""),
    ("forgetting", "forgetting ↓", 2, 1, "+"),
    ("answer_bits", "bits per byte ↓", 3, 1, ""),
    ("kl", "KL ↓", 3, 1, ""),
    ("flipped", "answers flipped ↓", 1, 100, ""),
    ("task_mean", "task mean ↑", 1, 100, ""),
)
"""Name in a table's row, title, digits, factor and sign of the columns with an error, what has power first."""

READ = (
    "Values are means over seeds ± their standard error; one seed has none. *Forgetting*: the perplexity minus the "
    "pruned model's. *Bits per byte*: of the right answers, the mean over tasks. *KL*, in nats: how far the "
    "distribution over the choices is from the dense model's. *Answers flipped*: the likeliest choice is not the dense "
    "model's, %. *Recovered*: the share of the gap between the dense and the pruned model that was closed, where that "
    "gap is beyond noise. *Of control*: the same with the dense model after the same training in the dense model's "
    "place, since training also lowers loss that pruning did not add. *Δ* is paired over the seeds that both rows "
    "have: each question's values are averaged over seeds, then subtracted question by question. Its first standard "
    "error is over questions (samples of a validation loss, windows of a perplexity), its second over the seeds' own "
    "differences; neither includes the other."
)


def markdown(table: dict) -> str:
    """The whole page: the table, the models it starts from, how to read it, and notes."""
    rows = table["rows"]
    columns = [
        ("configuration", [row["name"] for row in rows]),
        ("pruned model", [row["pruning"] for row in rows]),
        ("class", [CLASSES.get(row["class"], DASH) for row in rows]),
        ("trained", [_fixed(row["trained_parameters"], 0) for row in rows]),
        ("zeros kept", [_share(row["zeros_kept"], 1) for row in rows]),
        ("rate", [DASH if row["rate"] is None else f"{row['rate']:g}" for row in rows]),
        ("seeds", [f"n={row['done']}" + f" of {row['seeds']}" * (row["done"] != row["seeds"]) for row in rows]),
    ]
    for name, title, digits, factor, sign in SHOWN:
        columns.append((title, [_spread(row[name], digits, factor, sign) for row in rows]))
        if name in COMPARED:
            apart = [(row["against"] or {}).get(name) for row in rows]
            shown = [_spread(found and {**found, "value": found["difference"]}, digits, factor, "+") for found in apart]
            columns.append(("Δ", shown))
    shares = [[row[name] and row[name]["value"] for name in RECOVERED] for row in rows]
    columns.append(("recovered: perplexity / bits / tasks", [" / ".join(map(_share, each)) for each in shares]))
    shares = [row["control"].values() if row["control"] else [] for row in rows]
    columns.append(("of control: loss / perplexity / bits", [" / ".join(map(_share, each)) for each in shares]))
    told = columns[:7] + [column for column in columns[7:] if "".join(column[1]).strip(f"{DASH}/ ")]
    parts = ["# Sweep", _table(told, 3)]
    if compared := sorted({row["against"]["name"] for row in rows if row["against"]}):
        parts.append(f"Δ: minus {' or '.join(compared)} on the same pruned model.")
    if models := table["models"]:
        columns = [("model", [each["model"] for each in models]), ("pruned model", [each["of"] for each in models])]
        told = [each for each in SHOWN if each[0] in CONTROLLED]
        columns += [(title, [_fixed(each[name], digits) for each in models]) for name, title, digits, *_ in told]
        columns.append(("task mean ↑", [_share(each["task_mean"], 1) for each in models]))
        parts.append(_table(columns, 2))
    parts.append(f"{_asked(table)}{READ}")
    parts += ["\n".join(f"- {note}" for note in table["notes"])] if table["notes"] else []
    return "\n\n".join(parts) + "\n"


def _asked(table: dict) -> str:
    """What the rows were scored on, and how their rates were found."""
    rows = table["rows"]
    told = {"Perplexity": sorted({" ".join(row["perplexity_of"]) for row in rows if row["perplexity_of"]})}
    told["Tasks in the mean"] = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    text = "".join(f"{what}: {', '.join(names)}. " for what, names in told.items() if names)
    tried = max((row["rates"] for row in rows), default=1)
    searched = " and ".join(dict.fromkeys(["one seed", *(row["search"] for row in rows if row["search"])]))
    how = f"the best of {tried} in validation loss, with {searched}" if tried > 1 else "the one that its file gives"
    return f"{text}Rate: of each row that trains, {how}. "


def _table(columns: list[tuple[str, list[str]]], left: int) -> str:
    """A Markdown table whose first `left` columns are aligned left."""
    titles, cells = zip(*columns, strict=True)
    return markdown_table(titles, zip(*cells, strict=True), range(left, len(titles)))


def _spread(found: dict | None, digits: int, factor: int, sign: str) -> str:
    """A mean, its standard error over seeds, or a difference with its two."""
    if found is None:
        return DASH
    value, errors = factor * found["value"], (found["stderr"], found.get("stderr_seeds"))
    digits = digits if abs(value) < 1000 else 0
    return f"{value:{sign},.{digits}f}" + "".join(f" ± {factor * e:,.{digits}f}" for e in errors if e is not None)


def _share(value: float | None, digits: int = 0) -> str:
    return _fixed(value and 100 * value, digits, " %")


def _fixed(value: float | None, digits: int, unit: str = "") -> str:
    return DASH if value is None else f"{value:,.{digits}f}{unit}"
