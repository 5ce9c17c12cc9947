"""Task-specific recovery: samples of one task's own training split in the original release's form (design 2.5)."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import UserError
from utils.evaluation.plan import hub_split
from utils.evaluation.tasks import PAPER_TASKS, read_rows, split_file

FLAG = "-spec_task"
DATA_FLAG = "-eval_data_dir"


@dataclass(frozen=True)
class SpecSample:
    """One training sample.

    prompt ends in "Answer:"; the text trained on is prompt + " " + response. negatives: what r⁻ is chosen from: the
    other label, or for ARC the other choices, of which the paper takes the most similar to the response.
    """

    prompt: str
    response: str
    negatives: tuple[str, ...]


def _boolq(row: dict) -> SpecSample:
    answers = ("no", "yes")
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return SpecSample(prompt, answers[row["label"]], (answers[1 - row["label"]],))


def _rte(row: dict) -> SpecSample:
    answers = ("True", "False")
    prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return SpecSample(prompt, answers[row["label"]], (answers[1 - row["label"]],))


def _arc(row: dict) -> SpecSample:
    texts = row["choices"]["text"]
    right = row["choices"]["label"].index(row["answerKey"])
    negatives = tuple(text for index, text in enumerate(texts) if index != right)
    return SpecSample(f"Question: {row['question']}\nAnswer:", texts[right], negatives)


SPEC_TASKS: dict[str, Callable[[dict], SpecSample]] = {
    "boolq": _boolq,
    "rte": _rte,
    "arc_easy": _arc,
    "arc_challenge": _arc,
}


def check_spec_task(task: str) -> None:
    """UserError unless `task` has a form here."""
    if task not in SPEC_TASKS:
        raise UserError(f"{FLAG}: '{task}' is not one of {', '.join(SPEC_TASKS)}")


def load_spec_samples(task: str, data_dir: Path | None, num_train: int, seed: int) -> list[SpecSample]:
    """`num_train` samples of the task's training split, drawn with `seed`, in the drawn order.

    data_dir: a folder or mirror as -eval_data_dir takes it, which must hold the training split; None for the hub.
    Prompts are those that lm_eval scores the task with. Raises UserError: unknown task, missing split, damaged row,
    too few rows.
    """
    check_spec_task(task)
    fault = PAPER_TASKS[task].fault
    if data_dir is None:
        rows = hub_split(task, "train")
    else:
        rows = read_rows(split_file(data_dir, task, "train", DATA_FLAG), DATA_FLAG, fault)
    if len(rows) < num_train:
        raise UserError(
            f"-num_train_samples: {num_train} asked for, but {task}'s training split has {len(rows)} rows; lower it"
        )
    drawn = random.Random(seed).sample(range(len(rows)), num_train)
    return [SPEC_TASKS[task](rows[index]) for index in drawn]
