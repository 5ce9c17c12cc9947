"""The tasks a model is scored on: the paper's seven, the bundled ones, any of lm_eval's, and where their rows are."""

from collections.abc import Iterable
from pathlib import Path

import lm_eval.tasks
from lm_eval.api.task import Task

from data.sources import json_rows
from utils.common.errors import UserError

DEFINITIONS = Path(lm_eval.tasks.__file__).parent  # lm_eval's own task definitions
BUNDLED_FOLDER = Path(__file__).resolve().parents[2] / "data" / "tasks"
WIKITEXT = "wikitext2"
TOKENS_ONLY = "wikitext2_tokens"  # asks for WikiText-2's token perplexity alone
TOKEN_PERPLEXITY = "token_perplexity"
DATA_FLAG = "-eval_data_dir"

PAPER_TASKS = {
    "boolq": DEFINITIONS / "super_glue" / "boolq",
    "rte": DEFINITIONS / "glue" / "rte",
    "hellaswag": DEFINITIONS / "hellaswag",
    "winogrande": DEFINITIONS / "winogrande",
    "arc_easy": DEFINITIONS / "arc",
    "arc_challenge": DEFINITIONS / "arc",
    "openbookqa": DEFINITIONS / "openbookqa",
}
"""The folders of the paper's seven in lm_eval, in the order of its table."""

MAIN_METRIC = {  # the metric that tables show, for the seven as is usual for LLaMA; all others are kept too
    **dict.fromkeys(("boolq", "rte", "winogrande", "arc_easy"), "acc"),
    **dict.fromkeys(("hellaswag", "arc_challenge", "openbookqa"), "acc_norm"),
    WIKITEXT: TOKEN_PERPLEXITY,
    **dict.fromkeys(("bundled_response", "bundled_facts", "bundled_arithmetic"), "acc"),
    "bundled_heldout": "bits_per_byte",
}


def main_metric(task: str, metrics: Iterable[str]) -> str | None:
    """The main metric of `task`, among those it was scored with."""
    have = list(metrics)
    preferred = (MAIN_METRIC.get(task), "acc_norm", "acc", "exact_match", "bits_per_byte", *have)
    return next((metric for metric in preferred if metric in have), None)


def task_rows(data_dir: Path, task: str, split: str) -> list[dict]:
    """The rows in `data_dir/TASK/SPLIT.jsonl` or `data_dir/tasks/TASK/SPLIT.jsonl`; UserError if there are none."""
    places = [folder / task / f"{split}.jsonl" for folder in (data_dir, data_dir / "tasks")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        where = f"it would be {places[0]} or {places[1]}"
        raise UserError(f"{DATA_FLAG}: {data_dir} has no {split} split of {task}; {where}")
    rows = dict(json_rows(file, DATA_FLAG))
    if odd := [number for number, row in rows.items() if not isinstance(row, dict)]:
        raise UserError(f"{DATA_FLAG}: {file}, row {odd[0]}: no JSON object; the hub's field names are expected")
    if not rows:
        raise UserError(f"{DATA_FLAG}: {file} has no rows; copy the task's split there")
    return list(rows.values())


def right_choice(task: Task, doc: dict) -> int | None:
    """Index of the right choice as lm_eval's accuracy takes it; None unless there is one."""
    choices = task.doc_to_choice(doc)
    # If the choices are contexts, doc_to_text gives the index, and doc_to_target the continuation that they share.
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(target, str):
        return choices.index(target) if target in choices else None
    return target if type(target) is int and 0 <= target < len(choices) else None
