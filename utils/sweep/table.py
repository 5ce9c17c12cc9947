"""The numbers of a sweep's table: means over seeds, and differences over questions."""

from collections import Counter

from utils.common.errors import UserError
from utils.evaluation.outcomes import COMPARED, Outcome, difference, mean_or_none, of_shared_seeds, spread
from utils.sweep.grid import CONTROL, SweepRow

CONTROLLED = COMPARED[:3]
"""What the share of a control is told of."""

RECOVERED = {"recovered_perplexity": "perplexity", "recovered_answers": "answer_bits", "recovered": "task_mean"}
"""Shares of the gap between the dense and the pruned model, and what each is a share of."""


def build_table(rows: list[SweepRow]) -> dict:
    """{"rows": a `table_row` each, with "against" and "control", "models": dense and pruned ones, "notes": texts}.

    against: {"name", and what `difference` gives of each of COMPARED} minus the row of that name on the same model.
    """
    notes: list[str] = []
    found = {(row.name, row.pruning): row.outcomes for row in rows}
    table = []
    for row in rows:
        others = found.get((row.compare_to, row.pruning), []) if row.compare_to != row.name else []
        controls = found.get((row.name, CONTROL), []) if row.pruning != CONTROL else []
        entry = table_row(row, row.rate, row.outcomes)
        entry["against"] = {"name": row.compare_to} if row.outcomes and others else None
        for measure in COMPARED if entry["against"] else ():
            try:
                entry["against"][measure] = difference(row.outcomes, others, measure)
            except UserError as error:
                notes.append(f"{row.name}, {row.pruning}: not held against {row.compare_to}: {error}")
        entry["control"] = _of_control(row.outcomes, controls) if row.outcomes and controls else None
        table.append(entry)
        notes += _of_runs(row)
    return {"rows": table, "models": _models(found), "notes": [*dict.fromkeys(notes), *_apart(found)]}


def table_row(row: SweepRow, rate: float | None, outcomes: list[Outcome]) -> dict:
    """A row of the table, of its finished runs at its rate."""
    first = outcomes[0] if outcomes else Outcome({}, {}, {})
    method = first.run.get("method", {})
    entry = {
        "name": row.name,
        "pruning": row.pruning,
        "class": method.get("kind") if method.get("restores", True) else "nothing",
        "trained_parameters": method.get("parameters"),
        "zeros_kept": mean_or_none(outcome.zeros_kept for outcome in outcomes),
        "rate": rate,
        "rates": len(row.searches) or 1,
        "search": row.search,
        "done": len(outcomes),
        "seeds": len({run.seed for run in row.finals}),
        "minutes": mean_or_none(outcome.minutes for outcome in outcomes),
        "perplexity_of": first.perplexity,
        "tasks": [task for task, _ in first.accuracies],
        **{measure: spread(outcome.value(measure) for outcome in outcomes) for measure in COMPARED},
        "forgetting": spread(outcome.forgetting for outcome in outcomes),
    }
    for name, measure in RECOVERED.items():
        entry[name] = spread(outcome.recovered(measure)[0] for outcome in outcomes)
        if entry[name] and len(outcomes) == 1:
            entry[name]["stderr_questions"] = first.recovered(measure)[1]
    return entry


def _of_control(outcomes: list[Outcome], controls: list[Outcome]) -> dict[str, float | None]:
    """(pruned - restored) / (pruned - control) in each of CONTROLLED, means over the seeds of both first.

    control: the dense model after the same method on the same samples, so what training would have given without any
    pruning. None where that is no better than the pruned model, or where one of them was not measured.
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
    """{"model", "of": pruning, and its values} of the dense and the pruned model, once a pruning."""
    controls = [outcome for (_, pruning), outcomes in found.items() if pruning == CONTROL for outcome in outcomes]
    models = []
    for pruning in dict.fromkeys(pruning for _, pruning in found if pruning != CONTROL):
        mine = [each for (_, other), outcomes in found.items() if other == pruning for each in outcomes]
        scored = [outcome for outcome in mine if outcome.perplexity or outcome.accuracies]
        for model in ("dense", "pruned") if scored else ():
            values = {measure: scored[0].value(measure, model) for measure in (*CONTROLLED, "task_mean")}
            if model == "dense" and controls:  # which began with it
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


def _apart(found: dict[tuple[str, str], list[Outcome]]) -> list[str]:
    """Notes on reported runs that are not alike: of several versions of a package, devices, or pruned models."""
    seen: dict[str, Counter[str]] = {}
    for (_, pruning), outcomes in found.items():
        for run in (outcome.run for outcome in outcomes):
            told = {"devices": run.get("device"), f"weights of {pruning}": run.get("inputs", {}).get("pruned model")}
            told |= {f"versions of {package}": version for package, version in run.get("versions", {}).items()}
            for what in filter(told.get, told):
                seen.setdefault(what, Counter())[told[what] if len(told[what]) < 64 else told[what][:8]] += 1
    several = {what: count.items() for what, count in seen.items() if len(count) > 1}
    listed = {what: ", ".join(f"{value} ({n} runs)" for value, n in counts) for what, counts in several.items()}
    return [f"the runs are of several {what}: {values}" for what, values in listed.items()]
