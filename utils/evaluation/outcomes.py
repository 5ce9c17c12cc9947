"""Results by question (OUT/logs/rows.json.gz), and comparisons of finished runs by them, row by row."""

import gzip
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.common.errors import DAMAGED, UserError, explain
from utils.common.files import digest, parse_json, read_json, whole_file
from utils.common.methods import method_draws
from utils.common.names import ANSWER_BITS
from utils.evaluation.paired_statistics import AGREEMENT, Row, mean_difference
from utils.evaluation.scoring import Evaluation
from utils.evaluation.tasks import TOKEN_PERPLEXITY, WIKITEXT

CHOICES = "choices"  # in place of a metric: a multiple-choice task's log-likelihoods of all choices

VALIDATION, LOSS = "validation", "loss"  # in place of task and metric: [summed loss in nats, tokens] by sample

COMPARED = ("valid_loss", "perplexity", "answer_bits", "kl", "flipped", "task_mean")
"""The measures that describe a run and by which runs are compared; the share of a control uses the first three."""

Measure = str | tuple[str, str]  # one of COMPARED, or (task, metric)
RESULTS = ("scores", "metrics", "main_metric", "paired", "recovered", "mean", "answers", "agreement", "validation")
RUN = ("arguments", "method", "models", "pruning", "seeds", "device", "versions", "inputs", "stages", "training")
"""The keys that are kept: RESULTS, with the proof, of results.json, and RUN of run.json."""


@dataclass(frozen=True)
class KeptRows:
    """One value a row (or [log-likelihood, weight]) of one model, task and metric, in the order of the rows."""

    values: list[Row]  # under CHOICES, of each question the log-likelihoods (nats) of its choices
    aggregation: str | None
    higher_is_better: bool | None
    sha256: str  # of the task's rows, or a text's windows of token ids
    definition: str | None = None  # digest of version, config, examples, window; None in older runs


Kept = dict[str, dict[str, KeptRows]]  # task -> metric -> rows of one model


def write_compressed(path: Path, content: object) -> None:
    """Write gzipped JSON, whole: dataclasses as mappings, arrays as lists. Equal content always gives equal bytes."""
    text = json.dumps(content, ensure_ascii=False, default=lambda x: x.tolist() if hasattr(x, "tolist") else vars(x))
    with whole_file(path) as partial:
        partial.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_compressed(path: Path, build: Callable, what: str):
    """Read a file of `write_compressed` and return `build` of its JSON; UserError if that fails. what: kind of file."""
    with explain(f"{path}: cannot be read as {what}", "copy it again", DAMAGED):
        return build(parse_json(gzip.decompress(path.read_bytes()).decode()))


def write_rows(path: Path, evaluations: dict[str, Evaluation], more: dict[str, Kept] | None = None) -> None:
    """Write the rows of each model (by name). more: by model, further rows, which belong to no task."""
    write_compressed(path, {name: {**_kept(each), **(more or {}).get(name, {})} for name, each in evaluations.items()})


def read_rows(path: Path) -> dict[str, Kept]:
    """Model -> task -> metric -> the rows that `write_rows` kept; UserError if the file cannot be read."""
    return read_compressed(path, lambda models: {name: kept_rows(of) for name, of in models.items()}, "a run's rows")


def kept_rows(tasks: dict) -> Kept:
    """Rebuild `Kept` from its JSON."""
    return {task: {name: KeptRows(**rows) for name, rows in metrics.items()} for task, metrics in tasks.items()}


def pair_rows(first: Kept, second: Kept, task: str, metric: str) -> tuple[KeptRows, KeptRows]:
    """The rows of two models, if row i answers the same question in both, else UserError."""
    for place, kept in (("first", first), ("second", second)):
        if metric not in kept.get(task, {}):
            raise UserError(f"{task}, {metric}: the {place} run has no rows of it; score both on the same -eval_tasks")
    one, other = first[task][metric], second[task][metric]
    if (one.sha256, one.aggregation, len(one.values)) != (other.sha256, other.aggregation, len(other.values)):
        rows = " and ".join(f"{len(each.values)} of {each.sha256[:8]}" for each in (one, other))
        flags = "-eval_tasks, -eval_limit, -eval_data_dir and -ppl_window"
        raise UserError(f"{task}, {metric}: the two runs were scored on different rows ({rows}); give both one {flags}")
    if None not in (told := (one.definition, other.definition)) and told[0] != told[1]:
        said = f"{task}, {metric}: the two runs were scored by other templates, examples or windows of the same rows"
        raise UserError(f"{said}; give both one -eval_data_dir, one -ppl_window and one version of lm_eval")
    return one, other


def _kept(evaluation: Evaluation) -> Kept:
    records = evaluation.provenance.get("tasks", {})
    kept: Kept = {task: {} for task in evaluation.samples}
    for task, metrics in evaluation.samples.items():
        for metric, values in metrics.items():
            record = evaluation.provenance[metric] if metric == TOKEN_PERPLEXITY else records[task]
            kept[task][metric] = KeptRows(values, **evaluation.metrics[task][metric], **_asked(task, record))
    for task, rows in evaluation.choices.items():
        kept.setdefault(task, {})[CHOICES] = KeptRows(rows, None, None, **_asked(task, records[task]))
    return kept


def _asked(task: str, record: dict) -> dict[str, str]:
    """Digests of a task's rows, and of its template, examples and version; of WikiText-2's pages also of the window."""
    told = ["version", "config", "num_fewshot", "examples_sha256"] + ["max_length"] * (task == WIKITEXT)
    return {"sha256": record["rows_sha256"], "definition": digest([record.get(name) for name in told])}


@dataclass(frozen=True)
class Outcome:
    """One finished run: results.json, run.json, and the rows by which the restored model is compared."""

    results: dict
    run: dict
    rows: Kept

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.run.get("seeds", {}).get("training", 0)

    @property
    def draws(self) -> bool:
        """Whether the result depends on the training seed."""
        given = self.run.get("arguments") or {}
        trained = (self.run.get("method") or {}).get("parameters") != 0
        return trained or method_draws(given.get("method"), given.get("first"))

    @property
    def minutes(self) -> float | None:
        """Minutes of all stages, cached results at what they first took; None if an older run did not record that."""
        stages = self.run.get("stages", [])
        if any(stage.get("reused") and "saved_seconds" not in stage for stage in stages):
            return None
        return sum(stage["seconds"] + stage.get("saved_seconds", 0) for stage in stages) / 60

    @property
    def perplexity(self) -> tuple[str, str] | None:
        """(task, metric) of the perplexity that the table shows, None without one."""
        scores = (self._at("scores", "restored") or {}).items()
        names = ("token_perplexity", "word_perplexity")
        return next(((task, name) for name in names for task, metrics in scores if name in metrics), None)

    @property
    def accuracies(self) -> list[tuple[str, str]]:
        """(task, metric) of each accuracy in the mean over tasks."""
        main = self.results.get("main_metric") or {}
        named = self._at("mean", "tasks") or [task for task, metric in main.items() if str(metric).startswith("acc")]
        return [(task, main[task]) for task in named]

    def asked(self, measure: Measure) -> list[tuple[str, str]]:
        """(task, metric) of all rows from which a measure is computed."""
        if isinstance(measure, tuple):
            return [measure]
        return {
            "valid_loss": [(VALIDATION, LOSS)],
            "perplexity": [self.perplexity] if self.perplexity else [],
            "answer_bits": [(task, ANSWER_BITS) for task in self._at("answers", "tasks") or []],
            "task_mean": self.accuracies,
        }.get(measure, [("agreement", measure)])

    def value(self, measure: str, model: str = "restored") -> float | None:
        """A model's value of one of COMPARED; None where it was not measured, or was not finite."""
        if measure == "valid_loss":
            return self._at("validation", model)
        if measure in AGREEMENT:
            return self._at("agreement", model, "all", measure, "value")
        return self._at(*self._place("scores", measure, model), "value")

    def recovered(self, measure: str) -> float | None:
        """The share of the gap between dense and pruned that was closed; None where that gap is noise."""
        return self._at(*self._place("recovered", measure))

    @property
    def forgetting(self) -> float | None:
        """The perplexity minus the pruned model's."""
        after, before = (self.value("perplexity", model) for model in ("restored", "pruned"))
        return None if None in (after, before) else after - before

    @property
    def zeros_kept(self) -> float | None:
        """The share of the pruned model's zeros that the restored one still has."""
        zeros = self._at("proof", "zeros_pruned")
        return 1 - (self._at("proof", "zeros_lost") or 0) / zeros if zeros else None

    def _place(self, part: str, measure: str, *model: str) -> tuple[str, ...]:
        """The keys under which results.json has a part (scores, recovered) of a measure."""
        whole = {"answer_bits": "answers", "task_mean": "mean"}.get(measure, "")
        asked = self.asked(measure)
        return (whole, part, *model) if self.results.get(whole) else (part, *model, *asked[0]) if asked else ("",)

    def _at(self, *names: str) -> object:
        """The value of results.json under these nested keys, or None."""
        found: object = self.results
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def read_outcome(folder: Path) -> Outcome:
    """The finished run in `folder`."""
    files = {"results.json": (*RESULTS, "proof"), "run.json": RUN}
    whole = {name: read_json(folder / name) for name in files}
    results, run = ({part: whole[name][part] for part in files[name] if whole[name].get(part)} for name in files)
    outcome, path = Outcome(results, run, {}), folder / "logs" / "rows.json.gz"
    questions = read_rows(path) if path.is_file() else {}
    dense, restored = (questions.get(model, {}) for model in ("dense", "restored"))
    main = (results.get("main_metric") or {}).items()
    for task, metric in sorted({*main, *(pair for measure in COMPARED for pair in outcome.asked(measure))}):
        if rows := restored.get(task, {}).get(metric):
            outcome.rows.setdefault(task, {})[metric] = replace(rows, values=np.asarray(rows.values))
    if tasks := sorted(task for task in dense if CHOICES in dense[task] and CHOICES in restored.get(task, {})):
        asked = digest([[task, restored[task][CHOICES].sha256] for task in tasks])
        definitions = [restored[task][CHOICES].definition for task in tasks]
        definition = None if None in definitions else digest(definitions)
        sides = [(dense[task][CHOICES].values, restored[task][CHOICES].values) for task in tasks]
        for measure, rows_of in AGREEMENT.items():
            rows = KeptRows(np.concatenate([rows_of(*side) for side in sides]), "mean", False, asked, definition)
            outcome.rows.setdefault("agreement", {})[measure] = rows
    return outcome


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """The mean of the values; None if there are none, or one is None."""
    found = spread(values)
    return found and found["value"]


def spread(values: Iterable[float | None]) -> dict | None:
    """{"value": mean, "stderr": standard error of the mean, None for a single value, "n"}; None if one is missing."""
    known = list(values)
    if not known or None in known:
        return None
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"value": float(np.mean(known)), "stderr": error, "n": len(known)}


def difference(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> dict | None:
    """{"difference", "stderr", "stderr_seeds", "n"} of `outcomes` minus `others`, over the same n rows.

    Only seeds that both have are used, if any. stderr: over rows, after averaging each over seeds. stderr_seeds: over
    the seeds' differences, or over each side's own seeds if none is shared; None for fewer than two. Returns None if no
    rows were kept or a value is not finite; UserError if they differ.
    """
    outcomes, others = of_shared_seeds(outcomes, others)
    found = _paired(outcomes, others, measure)
    if found:
        if [each.seed for each in outcomes] == [each.seed for each in others]:
            sides = [[([one], [other]) for one, other in zip(outcomes, others, strict=True)]]
        else:
            sides = [[([one], others) for one in outcomes], [(outcomes, [one]) for one in others]]
        each = [[_paired(*pair, measure) for pair in side] for side in sides]
        spreads = [spread(one and one["difference"] for one in side) for side in each]
        errors = [one and one["stderr"] for one in spreads]
        found["stderr_seeds"] = None if None in errors else math.hypot(*errors)
    return found


def of_shared_seeds(outcomes: list[Outcome], others: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The runs of each for the seeds that both have, in order of seed; all runs if they share no seed.

    A single run that does not depend on its seed counts for every seed.
    """
    one, other = ({outcome.seed: outcome for outcome in each} for each in (outcomes, others))
    for mine, theirs in ((one, other), (other, one)):
        if len(mine) == 1 < len(theirs) and not (only := next(iter(mine.values()))).draws:
            mine |= {seed: replace(only, run=only.run | {"seeds": {"training": seed}}) for seed in theirs}
    shared = sorted(one.keys() & other.keys())
    return ([one[seed] for seed in shared], [other[seed] for seed in shared]) if shared else (outcomes, others)


def _paired(outcomes: list[Outcome], others: list[Outcome], measure: Measure) -> dict | None:
    """`difference` without its error over seeds: rows are averaged over the runs first, then differences over tasks."""
    pairs, aggregation, asked = [], "", outcomes[0].asked(measure)
    if any({*each.asked(measure)} != {*asked} for each in (*outcomes, *others)):
        return None  # means over other tasks
    for task, metric in asked:
        sides = [[each.rows.get(task, {}).get(metric) for each in side] for side in (outcomes, others)]
        if None in sides[0] or None in sides[1]:
            return None
        for each in (*outcomes, *others):
            pair_rows(outcomes[0].rows, each.rows, task, metric)
        pairs.append([np.mean([rows.values for rows in side], axis=0) for side in sides])
        aggregation = sides[0][0].aggregation
    if not pairs:
        return None
    found = mean_difference(*zip(*pairs, strict=True), aggregation)
    if not math.isfinite(found["difference"]):
        return None
    return {**found, "stderr_seeds": None, "n": sum(len(one) for one, _ in pairs)}
