"""Each question's outcome, kept so that two runs can be compared in pairs: OUT/logs/rows.json.gz."""

import gzip
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.common.errors import UserError
from utils.common.files import whole_file
from utils.evaluation.paired_statistics import Row
from utils.evaluation.scoring import Evaluation
from utils.evaluation.tasks import TOKEN_PERPLEXITY

CHOICES = "choices"
"""Beside a multiple-choice task's metrics: what its answers were chosen from."""

VALIDATION, LOSS = "validation", "loss"
"""In a task's and a metric's place: each validation sample's [summed loss in nats, tokens] of the restored model."""


@dataclass(frozen=True)
class KeptRows:
    """One value a row (or [log-likelihood, weight]) of one model, task and metric, in the order of the rows.

    Under CHOICES each row is the log-likelihoods (nats) of a question's choices, with no aggregation of their own.
    sha256: digest of what was asked: the task's rows, or a text's windows of token ids.
    """

    values: list[Row]
    aggregation: str | None
    higher_is_better: bool | None
    sha256: str


Kept = dict[str, dict[str, KeptRows]]
"""Task -> metric -> rows of one model."""


def write_rows(path: Path, evaluations: dict[str, Evaluation], more: dict[str, Kept] | None = None) -> None:
    """Write the rows of each model (by name) to `path`, whole; the same rows always give the same bytes.

    more: by one of these models, rows of what is no task of the evaluation.
    """
    kept = {name: {**_kept(each), **(more or {}).get(name, {})} for name, each in evaluations.items()}
    content = json.dumps(kept, ensure_ascii=False, default=asdict)
    with whole_file(path) as partial:
        partial.write_bytes(gzip.compress(content.encode(), mtime=0))


def read_rows(path: Path) -> dict[str, Kept]:
    """Model -> task -> metric -> the rows that `write_rows` kept; UserError if the file cannot be read."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        for metrics in (metrics for tasks in content.values() for metrics in tasks.values()):
            metrics.update({metric: KeptRows(**kept) for metric, kept in metrics.items()})
        return content
    except (OSError, EOFError, zlib.error, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as a run's rows ({error}); give OUT/logs/rows.json.gz") from error


def pair_rows(first: Kept, second: Kept, task: str, metric: str) -> tuple[KeptRows, KeptRows]:
    """The rows of two models, of one run or of two, where row i answers the same question in both.

    Raises UserError where one of them wasn't scored so, or on other rows.
    """
    for place, kept in (("first", first), ("second", second)):
        if metric not in kept.get(task, {}):
            raise UserError(f"{task}, {metric}: the {place} run kept no rows of it; score both on the same -eval_tasks")
    one, other = first[task][metric], second[task][metric]
    if (one.sha256, one.aggregation, len(one.values)) != (other.sha256, other.aggregation, len(other.values)):
        raise UserError(
            f"{task}, {metric}: the two runs were scored on different rows ({len(one.values)} of {one.sha256[:8]}, "
            f"{len(other.values)} of {other.sha256[:8]}); score both with the same -eval_tasks, -eval_limit, "
            "-eval_data_dir and -ppl_window"
        )
    return one, other


def _kept(evaluation: Evaluation) -> Kept:
    records = evaluation.provenance.get("tasks", {})
    kept: Kept = {task: {} for task in evaluation.samples}
    for task, metrics in evaluation.samples.items():
        for metric, values in metrics.items():
            record = evaluation.provenance[metric] if metric == TOKEN_PERPLEXITY else records[task]
            kept[task][metric] = KeptRows(values, **evaluation.metrics[task][metric], sha256=record["rows_sha256"])
    for task, rows in evaluation.choices.items():
        kept.setdefault(task, {})[CHOICES] = KeptRows(rows, None, None, records[task]["rows_sha256"])
    return kept
