"""A sweep's table: means over seeds, differences over questions, and both as Markdown."""

from collections import Counter

from utils.common.errors import UserError
from utils.common.names import counted
from utils.evaluation.outcomes import COMPARED, KeptRows, Outcome, difference, mean_or_none, of_shared_seeds, spread
from utils.evaluation.tasks import TOKEN_PERPLEXITY
from utils.report.tables import DASH, markdown_table
from utils.sweep.grid import CONTROL, SweepRow

CONTROLLED = COMPARED[:3]  # the measures in which the share of a control is given

NONE = KeptRows([], None, None, "")  # for a measure whose rows were not kept

RECOVERED = {"recovered_perplexity": "perplexity", "recovered_answers": "answer_bits", "recovered": "task_mean"}
"""Shares of the gap between the dense and the pruned model, and the measure of each gap."""

# What a merge may change, by the word in run.json.
CLASSES = {"constants": "constants", "norms": "constants, norms", "mask": "inside the mask", "dense": "dense"}

SHOWN = (  # (name in a row, title, digits, factor, sign) of columns with an error, by falling statistical power
    ("valid_loss", "validation loss ↓", 3, 1, ""),
    ("perplexity", "perplexity ↓", 2, 1, ""),
    ("forgetting", "forgetting ↓", 2, 1, "+"),
    ("answer_bits", "bits per byte ↓", 3, 1, ""),
    ("kl", "KL ↓", 3, 1, ""),
    ("flipped", "answers flipped ↓", 1, 100, ""),
    ("task_mean", "task mean ↑", 1, 100, ""),
)

READ = (
    "Values are means over seeds ± their standard error; one seed has none. *Forgetting*: the perplexity minus the "
    "pruned model's. *Bits per byte*: of the right answers, the mean over tasks. *KL*, in nats: how far the "
    "distribution over the choices is from the dense model's. *Answers flipped*: the likeliest choice is not the dense "
    "model's, %. *Recovered*: the share of the gap between the dense and the pruned model that was closed, where that "
    "gap is beyond noise. *Of control*: the same with the dense model after the same training in the dense model's "
    "place, since training also lowers loss that pruning did not add. *Δ* is paired over the seeds that both rows have "
    "(what draws nothing has all): each question's values are averaged over seeds, then subtracted question by "
    "question. Its first standard error is over questions (samples of a validation loss, windows of a perplexity), its "
    "second over the seeds' own differences; neither includes the other."
)


def build_table(rows: list[SweepRow]) -> dict:
    """{"rows": a `table_row` each, with "against" and "control", "models": dense and pruned ones, "notes": texts}."""
    notes: list[str] = []
    found = {(row.name, row.pruning): row.outcomes for row in rows}
    rates = {row.name: row.rate for row in rows if row.pruning == CONTROL}
    table = []
    for row in rows:
        others = found.get((row.compare_to, row.pruning), []) if row.compare_to != row.name else []
        controls = found.get((row.name, CONTROL), []) if row.pruning != CONTROL else []
        if controls and None not in (row.rate, rates[row.name]) and row.rate != rates[row.name]:
            notes.append(f"{row.name}, {row.pruning}: its control was trained at another rate, {rates[row.name]:g}")
            controls = []
        entry = table_row(row)
        entry["against"] = {"name": row.compare_to} if row.outcomes and others else None
        for measure in COMPARED if entry["against"] else ():
            try:
                entry["against"][measure] = difference(row.outcomes, others, measure)
            except UserError as error:
                notes.append(f"{row.name}, {row.pruning}: not compared with {row.compare_to}: {error}")
        entry["control"] = _of_control(row.outcomes, controls) if row.outcomes and controls else None
        table.append(entry)
        notes += _of_runs(row)
    return {"rows": table, "models": _models(found), "notes": [*dict.fromkeys(notes), *apart(rows)]}


def table_row(row: SweepRow) -> dict:
    """A row of the table, of its finished runs at its rate."""
    outcomes = row.outcomes
    first = outcomes[0] if outcomes else Outcome({}, {}, {})
    method = first.run.get("method", {})
    entry = {
        "name": row.name,
        "pruning": row.pruning,
        "class": method.get("kind") if method.get("restores", True) else "nothing",
        "trained_parameters": method.get("parameters"),
        "trained_tokens": mean_or_none(outcome.run.get("training", {}).get("tokens") for outcome in outcomes),
        "zeros_kept": mean_or_none(outcome.zeros_kept for outcome in outcomes),
        "rate": row.rate,
        "rates": len(row.searches) or 1,
        "search": row.search,
        "done": len(outcomes),
        "seeds": len({run.seed for run in row.finals}),
        "minutes": mean_or_none(outcome.minutes for outcome in outcomes),
        "perplexity_of": _text_of(first),
        "tasks": [task for task, _ in first.accuracies],
        "questions": sum(len(first.rows.get(task, {}).get(metric, NONE).values) for task, metric in first.accuracies),
        **{measure: spread(outcome.value(measure) for outcome in outcomes) for measure in COMPARED},
        "forgetting": spread(outcome.forgetting for outcome in outcomes),
    }
    shares = {name: spread(each.recovered(measure) for each in outcomes) for name, measure in RECOVERED.items()}
    return entry | shares


def _of_control(outcomes: list[Outcome], controls: list[Outcome]) -> dict[str, float | None]:
    """(pruned - restored) / (pruned - control) in each of CONTROLLED, from means over the seeds that both have.

    None where the control is no better than the pruned model, or where one of them was not measured.
    """
    outcomes, controls = of_shared_seeds(outcomes, controls)
    found = {}
    for measure in CONTROLLED:
        pruned = mean_or_none(outcome.value(measure, "pruned") for outcome in outcomes)
        restored, control = (mean_or_none(each.value(measure) for each in some) for some in (outcomes, controls))
        known = None not in (pruned, restored, control) and control < pruned
        found[measure] = (pruned - restored) / (pruned - control) if known else None
    return found


def _models(found: dict[tuple[str, str], list[Outcome]]) -> list[dict]:
    """{"model", "of": pruning, and its values} of the dense and the pruned model, for each pruning."""
    controls = [outcome for (_, pruning), outcomes in found.items() if pruning == CONTROL for outcome in outcomes]
    models = []
    for pruning in dict.fromkeys(pruning for _, pruning in found if pruning != CONTROL):
        mine = [each for (_, other), outcomes in found.items() if other == pruning for each in outcomes]
        scored = [outcome for outcome in mine if outcome.perplexity or outcome.accuracies]
        for model in ("dense", "pruned") if scored else ():
            values = {measure: scored[0].value(measure, model) for measure in (*CONTROLLED, "task_mean")}
            if model == "dense" and controls:  # a control starts from it
                values["valid_loss"] = controls[0].value("valid_loss", "pruned")
            models.append({"model": model, "of": pruning, **values})
    return models


def _of_runs(row: SweepRow) -> list[str]:
    """Notes on a row's rates, and on its runs that ended without a result."""
    place, tried, notes = f"{row.name}, {row.pruning}", [run.rate for run in row.searches], []
    if tried and row.rate in (min(tried), max(tried)):
        end = "lowest" if row.rate == min(tried) else "highest"
        notes.append(f"{place}: the best rate is the {end} that was tried; a better one may lie beyond")
    for run in (*row.searches, *row.chosen):
        if run.said is not None:
            how = "diverged" if run.diverged else "failed, and the same command tries it again"
            at = "" if run.rate is None else f" at rate {run.rate:g}"
            notes.append(f"{place}: the run of seed {run.seed}{at} {how} ({run.said})")
    return notes


def apart(rows: list[SweepRow]) -> list[str]:
    """Notes on differences between reported runs: package versions, devices, texts of perplexity, pruned weights."""
    seen: dict[str, Counter[str]] = {}
    for pruning, outcome in [(row.pruning, each) for row in rows for each in row.outcomes]:
        run = outcome.run
        weights = run.get("inputs", {}).get("pruned model") or ""
        told = {"devices": run.get("device"), "texts of perplexity": _text_of(outcome)}
        told[f"weights of {pruning}"] = weights if len(weights) < 64 else weights[:8]
        told |= {f"versions of {package}": version for package, version in run.get("versions", {}).items()}
        for what in filter(told.get, told):
            seen.setdefault(what, Counter())[told[what]] += 1
    several = {what: [f"{value} ({counted(n, 'run')})" for value, n in count.items()] for what, count in seen.items()}
    return [f"the runs are of several {what}: {', '.join(of)}" for what, of in several.items() if len(of) > 1]


def markdown(table: dict) -> str:
    """The whole page: the table, the models it starts from, how to read it, and notes."""
    rows = table["rows"]
    columns = [
        ("configuration", [row["name"] for row in rows]),
        ("pruned model", [row["pruning"] for row in rows]),
        ("class", [CLASSES.get(row["class"], DASH) for row in rows]),
        ("trained", [_fixed(row["trained_parameters"], 0) for row in rows]),
        ("zeros kept", [_kept(row["zeros_kept"]) for row in rows]),
        ("rate", [DASH if row["rate"] is None else f"{row['rate']:g}" for row in rows]),
        ("seeds", [f"n={row['done']}" + f" of {row['seeds']}" * (row["done"] != row["seeds"]) for row in rows]),
        ("tokens", [_fixed(row["trained_tokens"], 0) for row in rows]),
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
    told = {"Perplexity": sorted({row["perplexity_of"] for row in rows if row["perplexity_of"]})}
    told["Tasks in the mean"] = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    told["Questions in them"] = sorted({f"{row['questions']:,}" for row in rows if row["questions"]})
    text = "".join(f"{what}: {', '.join(names)}. " for what, names in told.items() if names)
    tried = max((row["rates"] for row in rows), default=1)
    searched = " and ".join(dict.fromkeys(["one seed", *(row["search"] for row in rows if row["search"])]))
    how = f"the best of {tried} in validation loss, with {searched}" if tried > 1 else "the one that its file gives"
    return f"{text}Rate: of each row that trains, {how}. "


def _text_of(outcome: Outcome) -> str:
    """The task and metric of the perplexity, and how many windows of how many tokens were read."""
    task, metric = outcome.perplexity or ("", "")
    count = len(outcome.rows.get(task, {}).get(metric, NONE).values)
    window = outcome.run.get("arguments", {}).get("ppl_window")
    known = count > 1 and window and metric == TOKEN_PERPLEXITY  # a single window may be shorter than asked
    size = f" over {count:,} windows of {window:,} tokens" if known else ""
    return f"{task} {metric}{size}".strip()


def _table(columns: list[tuple[str, list[str]]], left: int) -> str:
    """A Markdown table whose first `left` columns are aligned left."""
    titles, cells = zip(*columns, strict=True)
    return markdown_table(titles, zip(*cells, strict=True), range(left, len(titles)))


def _spread(found: dict | None, digits: int, factor: int, sign: str) -> str:
    """A mean with its standard error over seeds, or a difference with both of its errors."""
    if found is None:
        return DASH
    value, errors = factor * found["value"], (found["stderr"], found.get("stderr_seeds"))
    digits = digits if abs(value) < 1000 else 0
    return f"{value:{sign},.{digits}f}" + "".join(f" ± {factor * e:,.{digits}f}" for e in errors if e is not None)


def _kept(share: float | None) -> str:
    return "< 100 %" if share and 0.9995 <= share < 1 else _share(share, 1)  # one zero lost is not 100.0 %


def _share(value: float | None, digits: int = 0) -> str:
    return _fixed(value and 100 * value, digits, " %")


def _fixed(value: float | None, digits: int, unit: str = "") -> str:
    return DASH if value is None else f"{value:z,.{digits}f}{unit}"
