"""The numbers of a sweep's table, read from the runs' files alone: means over seeds, and differences over questions."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils.common.errors import UserError
from utils.sweep.differences import COMPARED, difference, of_shared_seeds, row_difference
from utils.sweep.file import CONTROL
from utils.sweep.outcome import Outcome, mean_or_none, spread
from utils.sweep.runs import FAILED, Member, Row, best_rate, finished, refused, valid_loss

SPREADS = (
    "valid_loss", "perplexity", "forgetting", "task_mean", "recovered", "recovered_perplexity", "recovered_answers",
    "answer_bits", "flipped", "kl",
)  # fmt: skip
"""What is averaged over seeds, by its name in table.json."""


def build_table(output: Path, rows: Sequence[Row], counts: Callable[[Member], bool], now: dict | None = None) -> dict:
    """The table as table.json keeps it, from what lies in `output`.

    counts: whether a finished run is one of this table's. now: the present {"versions", "code"}, to be told where runs
    of others were counted. {"rows": a row each, "models": the dense and the pruned model of each pruning, "notes"}.
    """
    notes: list[str] = []
    found = finished_runs(output, rows, counts)
    chosen = {(row.name, row.pruning): chosen_runs(output, row, found) for row in rows}
    table = [table_row(output, row, *chosen[row.name, row.pruning], found, notes) for row in rows]
    before = _losses_before(chosen)
    for row, entry in zip(rows, table, strict=True):
        other = chosen.get((row.compare_to, row.pruning)) if row.compare_to not in (None, row.name) else None
        if control := chosen.get((row.name, CONTROL)) if row.pruning != CONTROL else None:
            entry["control"] = _of_control(chosen[row.name, row.pruning][1], control[1], before)
        if other:
            entry["against"] = _against(row, chosen[row.name, row.pruning][1], other[1], notes)
    used = [outcome for _, outcomes in chosen.values() for outcome in outcomes]
    notes += _searched_apart(rows, found) + _apart(used, now) + _pruned_again(chosen)
    return {"rows": table, "models": _models(rows, chosen, before), "notes": list(dict.fromkeys(notes))}


def finished_runs(
    output: Path, rows: Sequence[Row], counts: Callable[[Member], bool] = lambda member: True
) -> dict[str, Outcome]:
    """Every finished run of the rows that counts, by its id."""
    found = {}
    for row in rows:
        for member in (*row.searches, *row.finals):
            record = finished(output / member.id)
            if record is not None and counts(member):
                found[member.id] = Outcome(output / member.id, record)
    return found


def chosen_runs(output: Path, row: Row, found: dict[str, Outcome]) -> tuple[float | None, list[Outcome]]:
    """(rate, the finished runs of the seeds at it); no rate and no runs until every rate was tried."""
    if any(each.id not in found and not refused(output / each.id) for each in row.searches):
        return None, []
    rate = best_rate(row, {each.id: valid_loss(found[each.id].folder) for each in row.searches if each.id in found})
    if row.searches and rate is None:
        return None, []
    return rate, [found[each.id] for each in row.at(rate) if each.id in found]


def table_row(
    output: Path, row: Row, rate: float | None, outcomes: list[Outcome], found: dict[str, Outcome], notes: list[str]
) -> dict:
    """A row of the table, of the runs of all seeds at its rate; found: every finished run, by id."""
    place = f"{row.name}, {row.pruning}"
    searched = {each.rate: valid_loss(found[each.id].folder) if each.id in found else None for each in row.searches}
    known = [rate for rate, loss in searched.items() if loss is not None]
    if rate is not None and len(known) > 1 and rate in (min(searched), max(searched)):
        end = "lowest" if rate == min(searched) else "highest"
        notes.append(f"{place}: the best rate is the {end} that was tried; a better one may lie beyond")
    failed = sum((output / each.id / FAILED).is_file() for each in {*row.searches, *row.at(rate)})
    if failed:
        notes.append(f"{place}: {failed} run{'s' * (failed > 1)} failed")
    values = [outcome.seed_values() for outcome in outcomes]
    entry = {
        "name": row.name,
        "pruning": row.pruning,
        "class": _single(_kind(outcome) for outcome in outcomes),
        "trained_parameters": _single((outcome.run.get("method") or {}).get("parameters") for outcome in outcomes),
        "zeros_kept": mean_or_none([_zeros_kept(outcome.results.get("proof") or {}) for outcome in outcomes]),
        "rate": rate,
        "rates": [{"rate": rate, "valid_loss": loss} for rate, loss in searched.items()],
        "seeds": [each.seed for each in row.at(rate) if each.id in found] if outcomes else [],
        "wanted": len(row.at(row.finals[0].rate)),
        "failed": failed,
        "minutes": mean_or_none([outcome.record.get("seconds", 0) / 60 for outcome in outcomes]),
        **{name: spread(each[name] for each in values) for name in SPREADS},
        "tasks": [task for task, _ in outcomes[0].accuracies] if outcomes else [],
        "perplexity_of": outcomes[0].perplexity if outcomes else None,
        "scores": _scores(outcomes),
        "against": None,
        "control": None,
    }
    for name, error in _over_questions(place, outcomes, notes).items():
        if entry[name] is not None:
            entry[name]["stderr_questions"] = error
    return entry


def _scores(outcomes: list[Outcome]) -> dict[str, dict[str, dict | None]]:
    """task → metric → spread over seeds of the restored models."""
    scores = (outcomes[0].results.get("scores") or {}).get("restored") or {} if outcomes else {}
    return {
        task: {metric: spread(each.score("restored", task, metric) for each in outcomes) for metric in metrics}
        for task, metrics in scores.items()
    }


def _over_questions(place: str, outcomes: list[Outcome], notes: list[str]) -> dict[str, float]:
    """Standard errors over questions of the recovered shares: that of the paired gain over the gap, taken as it is."""
    found: dict[str, float] = {}
    if not outcomes:
        return found
    first = outcomes[0]
    gaps = {"recovered": (first.accuracies, [first.task_mean(model) for model in ("dense", "pruned")])}
    if first.perplexity:
        scores = [first.score(model, *first.perplexity) for model in ("dense", "pruned")]
        gaps["recovered_perplexity"] = ([first.perplexity], scores)
    if first.answers:
        gaps["recovered_answers"] = (
            first.answers,
            [first.level(model)["answer_bits"] for model in ("dense", "pruned")],
        )
    for name, (asked, (dense, pruned)) in gaps.items():
        try:
            gain = row_difference(outcomes, None, asked)
        except (UserError, ValueError) as error:
            notes.append(f"{place}: no error over questions of what was recovered: {error}")
            continue
        if gain and gain["stderr"] is not None and None not in (dense, pruned) and dense != pruned:
            found[name] = gain["stderr"] / abs(dense - pruned)
    return found


def _against(row: Row, outcomes: list[Outcome], others: list[Outcome], notes: list[str]) -> dict | None:
    """What the row has over the one it is held against: {"name", COMPARED: what `difference` gives}."""
    if not outcomes or not others:
        return None
    found: dict = {"name": row.compare_to}
    for name in COMPARED:
        try:
            found[name] = difference(outcomes, others, name)
        except (UserError, ValueError) as error:
            found[name] = None
            notes.append(f"{row.name}, {row.pruning}: not held against {row.compare_to}: {error}")
    return found


def _losses_before(chosen: dict) -> dict[tuple, float]:
    """`Outcome.validated` → the validation loss of a model that nothing was restored in, by the first run that has it.

    Runs that begin elsewhere may lack it. A control's pruned model is the dense one.
    """
    found: dict[tuple, float] = {}
    for _, outcomes in chosen.values():
        for outcome in outcomes:
            loss = outcome.level("pruned")["valid_loss"]
            if loss is not None:
                found.setdefault(outcome.validated("pruned"), loss)
    return found


def _of_control(outcomes: list[Outcome], controls: list[Outcome], losses: dict) -> dict | None:
    """(pruned - restored) / (pruned - control) in each that `Outcome.level` tells, means over the seeds of both first.

    control: the dense model after the same method on the same samples, so what training would have given without any
    pruning. None where that is no better than the pruned model, or where one of them was not measured. losses: see
    `_losses_before`.
    """
    if not outcomes or not controls:
        return None
    outcomes, controls = of_shared_seeds(outcomes, controls)
    before, after, best = (
        [outcome.level(model) for outcome in each]
        for model, each in (("pruned", outcomes), ("restored", outcomes), ("restored", controls))
    )
    for level, outcome in zip(before, outcomes, strict=True):
        if level["valid_loss"] is None:
            level["valid_loss"] = losses.get(outcome.validated("pruned"))
    found = {}
    for name in before[0]:
        pruned, restored, control = (mean_or_none([each[name] for each in level]) for level in (before, after, best))
        known = None not in (pruned, restored, control) and control < pruned
        found[name] = (pruned - restored) / (pruned - control) if known else None
    return found


def _models(rows: Sequence[Row], chosen: dict, losses: dict) -> list[dict]:
    """The dense and the pruned model's validation loss, perplexity, bits a byte and mean accuracy, once a pruning.

    losses: see `_losses_before`; the dense model's is known where the sweep has a control.
    """
    found = []
    for pruning in dict.fromkeys(row.pruning for row in rows):
        scored = [outcome for row in rows if row.pruning == pruning for outcome in chosen[row.name, pruning][1]]
        scored = [outcome for outcome in scored if outcome.perplexity or outcome.accuracies]
        for model in ("dense", "pruned") if scored and pruning != CONTROL else ():
            level = scored[0].level(model)
            # Older runs that trained nothing validated nothing; others of the same weights did.
            weights, dtype, _ = scored[0].validated(model)
            asked = (outcome.validated(model) for outcome in scored)
            known = (losses.get(each) for each in asked if each[:2] == (weights, dtype))
            level["valid_loss"] = next((loss for loss in known if loss is not None), None)
            found.append({"model": model, "pruning": pruning, **level, "task_mean": scored[0].task_mean(model)})
    return found


def _apart(outcomes: list[Outcome], now: dict | None) -> list[str]:
    """Notes on runs of more than one code, set of versions or device, or of other ones than the present."""
    notes = []
    codes = Counter(str(outcome.record.get("code"))[:8] for outcome in outcomes)
    present = str(now["code"])[:8] if now else None
    if len(codes) > 1 or (present and codes and present not in codes):
        notes.append(f"the code differs: {_named(codes)}" + (f"; now it is {present}" if present else ""))
    for package in sorted({name for outcome in outcomes for name in outcome.record.get("versions") or {}}):
        seen = {str((outcome.record.get("versions") or {}).get(package)) for outcome in outcomes}
        seen |= {str(now["versions"].get(package))} if now else set()
        if len(seen) > 1:
            notes.append(f"the version of {package} differs: {', '.join(sorted(seen))}")
    devices = {str(outcome.run.get("device")) for outcome in outcomes}
    if len(devices) > 1:
        notes.append(f"runs were made on different devices: {', '.join(sorted(devices))}")
    return notes


def _searched_apart(rows: Sequence[Row], found: dict[str, Outcome]) -> list[str]:
    """Notes on the flags in which the runs that chose a rate are not as those that are reported."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        searches, finals = (
            [found[each.id] for each in some if each.id in found] for some in (row.searches, row.finals)
        )
        # A control's rate was chosen on the pruned model that it is the control of.
        if not searches or not finals or row.pruning == CONTROL:
            continue
        chose, reported = (each[0].record.get("arguments") or {} for each in (searches, finals))
        # What is evaluated, and how, has no part in a validation loss.
        same = [name for name in chose if name in ("lr", "train_seed") or name.startswith(("eval_", "ppl_"))]
        apart = [name for name in chose if name not in same and chose[name] != reported.get(name)]
        if apart:
            what = ", ".join(f"{name} {chose[name]} (reported: {reported.get(name)})" for name in apart)
            kinds.setdefault(what, []).append(row.name)
    return [
        f"rates were chosen by runs with {what}" + (f": {', '.join(names)}" if len(kinds) > 1 else "")
        for what, names in kinds.items()
    ]


def _pruned_again(chosen: dict) -> list[str]:
    """Notes on runs of one pruned model's name that began with different weights. chosen: as `build_table` has it."""
    weights: dict[str, Counter[str]] = {}
    for (_, pruning), (_, outcomes) in chosen.items():
        found = ((outcome.run.get("inputs") or {}).get("pruned model") for outcome in outcomes)
        weights.setdefault(pruning, Counter()).update(filter(None, found))
    return [
        f"{pruning}: the weights of the pruned model differ, so it was made more than once: {_named(counts)}"
        for pruning, counts in weights.items()
        if len(counts) > 1
    ]


def _named(counts: Counter[str]) -> str:
    return ", ".join(f"{each[:8]} ({count} runs)" for each, count in counts.items())


def _kind(outcome: Outcome) -> str | None:
    method = outcome.run.get("method") or {}
    return method.get("kind") if method.get("restores", True) else "nothing"


def _zeros_kept(proof: dict) -> float | None:
    """The share of the pruned model's zeros that the restored one still has."""
    zeros = proof.get("zeros_pruned")
    return 1 - proof.get("zeros_lost", 0) / zeros if zeros else None


def _single(values: Iterable[object]) -> object:
    """What all of them are; None if they are not one."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else None
