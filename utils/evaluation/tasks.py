"""The tasks a model is scored on: the paper's seven, the bundled ones, any of lm_eval's, and where their rows are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import lm_eval.tasks

from data.sources import json_rows
from utils.common.errors import UserError, shortened

DEFINITIONS = Path(lm_eval.tasks.__file__).parent
"""lm_eval's own task definitions."""

BUNDLED_FOLDER = Path(__file__).resolve().parents[2] / "data" / "tasks"

WIKITEXT = "wikitext2"
TOKENS_ONLY = "wikitext2_tokens"
"""Asks for WikiText-2's token perplexity alone."""

TOKEN_PERPLEXITY = "token_perplexity"

DATA_FLAG = "-eval_data_dir"


@dataclass(frozen=True)
class PaperTask:
    """One of the seven: lm_eval's definition, the split it scores, its main metric, and what is wrong with a row."""

    definition: str
    split: str
    metric: str
    fault: Callable[[dict], str | None]


def _text(row: dict, *names: str) -> str | None:
    for name in names:
        if not isinstance(row.get(name), str):
            return f"field '{name}' is {'not text' if name in row else 'missing'}"
    return None


def _label(row: dict, name: str, allowed: Iterable[object]) -> str | None:
    if name not in row:
        return f"field '{name}' is missing"
    allowed = list(allowed)
    # By type too: 1.0 and true equal 1, and are no index.
    known = any(type(row[name]) is type(value) and row[name] == value for value in allowed)
    return None if known else f"field '{name}' is {shortened(repr(row[name]))}, not one of {allowed}"


def _texts(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)


def _two_classes(*texts: str) -> Callable[[dict], str | None]:
    return lambda row: _text(row, *texts) or _label(row, "label", (0, 1))


def _choices(question: str) -> Callable[[dict], str | None]:
    def fault(row: dict) -> str | None:
        choices = row.get("choices")
        parts = [choices.get(name) for name in ("text", "label")] if isinstance(choices, dict) else [None]
        if not all(map(_texts, parts)) or len(parts[0]) != len(parts[1]):
            return "field 'choices' is not {'text': [...], 'label': [...]} with as many labels as texts, two or more"
        return _text(row, question) or _label(row, "answerKey", choices["label"])

    return fault


def _hellaswag(row: dict) -> str | None:
    endings = row.get("endings")
    if not _texts(endings):
        return "field 'endings' is not a list of texts, two or more"
    written = {**row, "label": str(row["label"])} if type(row.get("label")) is int else row
    return _text(row, "activity_label", "ctx_a", "ctx_b") or _label(written, "label", map(str, range(len(endings))))


def _winogrande(row: dict) -> str | None:
    gap = None if "_" in str(row.get("sentence")) else "field 'sentence' has no '_'"
    return _text(row, "sentence", "option1", "option2") or gap or _label(row, "answer", ("1", "2"))


PAPER_TASKS = {
    "boolq": PaperTask("super_glue/boolq/default.yaml", "validation", "acc", _two_classes("passage", "question")),
    "rte": PaperTask("glue/rte/default.yaml", "validation", "acc", _two_classes("sentence1", "sentence2")),
    "hellaswag": PaperTask("hellaswag/hellaswag.yaml", "validation", "acc_norm", _hellaswag),
    "winogrande": PaperTask("winogrande/default.yaml", "validation", "acc", _winogrande),
    "arc_easy": PaperTask("arc/arc_easy.yaml", "test", "acc", _choices("question")),
    "arc_challenge": PaperTask("arc/arc_challenge.yaml", "test", "acc_norm", _choices("question")),
    "openbookqa": PaperTask("openbookqa/openbookqa.yaml", "test", "acc_norm", _choices("question_stem")),
}
"""In the order of the paper's table.

BoolQ, RTE and WinoGrande have no acc_norm in lm_eval. For HellaSwag, ARC-e, ARC-c and OBQA the paper does not say which
of the two its table shows; the choice here is the usual one for LLaMA: acc_norm for HellaSwag, ARC-c and OBQA, acc for
ARC-e. Some pruning papers report acc for all seven, so a comparison with the paper's column needs both in view.
"""

MAIN_METRIC = {
    **{name: task.metric for name, task in PAPER_TASKS.items()},
    WIKITEXT: TOKEN_PERPLEXITY,
    "bundled_response": "acc",
    "bundled_facts": "acc",
    "bundled_arithmetic": "acc",
    "bundled_heldout": "bits_per_byte",
}
"""The metric a column shows; all others are kept beside it."""


def main_metric(task: str, metrics: Iterable[str]) -> str | None:
    """The metric that stands for `task` among those it was scored with."""
    have = list(metrics)
    for metric in (MAIN_METRIC.get(task), "acc_norm", "acc", "exact_match", "bits_per_byte"):
        if metric in have:
            return metric
    return have[0] if have else None


def task_rows(data_dir: Path, task: str, split: str) -> list[dict]:
    """The rows in `data_dir/TASK/SPLIT.jsonl` or `data_dir/tasks/TASK/SPLIT.jsonl`, checked if it is one of the seven.

    Raises UserError if there is neither, or a row is damaged.
    """
    places = [folder / task / f"{split}.jsonl" for folder in (data_dir, data_dir / "tasks")]
    for place in places:
        if place.is_file():
            return read_rows(place, DATA_FLAG, PAPER_TASKS[task].fault if task in PAPER_TASKS else None)
    raise UserError(f"{DATA_FLAG}: {data_dir} has no {split} split of {task}; it would be {places[0]} or {places[1]}")


def read_rows(file: Path, flag: str, fault: Callable[[dict], str | None] | None = None) -> list[dict]:
    """The rows of a jsonl file, each checked by `fault`; UserError names the file and the row (counted from 1)."""
    rows = []
    for number, row in json_rows(file, flag):
        problem = "no JSON object" if not isinstance(row, dict) else fault and fault(row)
        if problem:
            raise UserError(f"{flag}: {file}, row {number}: {problem}; the hub's field names are expected")
        rows.append(row)
    if not rows:
        raise UserError(f"{flag}: {file} has no rows")
    return rows
