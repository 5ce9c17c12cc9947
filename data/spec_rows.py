"""Task-specific recovery: a row of one task's training split in the original release's form (design 2.5).

What is trained on is prompt + " " + response. Negatives are what r⁻ is chosen from: the other label, or for ARC the
other choices, of which the paper takes the most similar to the response.
"""

from collections.abc import Callable

from data.sources import Sample
from utils.common.names import SPEC_TASKS


def _boolq(row: dict) -> Sample:
    answers = ("no", "yes")
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return Sample(prompt, answers[row["label"]], (answers[1 - row["label"]],))


def _rte(row: dict) -> Sample:
    answers = ("True", "False")
    prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return Sample(prompt, answers[row["label"]], (answers[1 - row["label"]],))


def _arc(row: dict) -> Sample:
    texts = row["choices"]["text"]
    right = row["choices"]["label"].index(row["answerKey"])
    negatives = tuple(text for index, text in enumerate(texts) if index != right)
    return Sample(f"Question: {row['question']}\nAnswer:", texts[right], negatives)


SPEC_FORMS: dict[str, Callable[[dict], Sample]] = dict(zip(SPEC_TASKS, (_boolq, _rte, _arc, _arc), strict=True))
"""By task: its row as a sample. Rows are taken to be whole (utils/evaluation/tasks.py checks them)."""
