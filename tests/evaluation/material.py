"""Three rows of each of the paper's tasks, what they ask read by hand, and log-likelihoods straight from the logits."""

import math

import numpy as np
import torch

ACCURACY = {"aggregation": "mean", "higher_is_better": True}
BITS = {"aggregation": "bits_per_byte", "higher_is_better": False}
LOSSES = {"aggregation": "exp_mean", "higher_is_better": False}

ROWS = {
    "boolq": [
        {"passage": "Copper conducts.", "question": "does copper conduct", "label": 1},
        {"passage": "Wood floats on water.", "question": "does wood sink", "label": 0},
        {"passage": "A hen is a bird.", "question": "is a hen a bird", "label": 1},
    ],
    "rte": [
        {"sentence1": "Ann sold her car.", "sentence2": "Ann had a car.", "label": 0},
        {"sentence1": "Bob ran.", "sentence2": "Bob sat.", "label": 1},
        {"sentence1": "Rain fell all day.", "sentence2": "It was dry.", "label": 1},
    ],
    "hellaswag": [
        {"activity_label": "Baking", "ctx_a": "A cook mixes flour.", "ctx_b": "she", "label": label,
         "endings": ["adds [step] water.", "flies away.", "paints a wall.", "sleeps in it."]}
        for label in "031"
    ],
    "winogrande": [
        {"sentence": "A cup broke the plate because _ was heavy.", "option1": "cup", "option2": "plate", "answer": "1"},
        {"sentence": "Ann thanked Eve since _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        {"sentence": "The rope held the stone as _ was strong.", "option1": "rope", "option2": "stone", "answer": "1"},
    ],
    "arc_easy": [
        {"question": "What melts?", "answerKey": key, "choices": {"text": ["ice", "hot oil", "air"], "label": [*"ABC"]}}
        for key in "ABC"
    ],
    "openbookqa": [
        {"question_stem": "Ein Vogel ist", "answerKey": key, "choices": {"text": ["blau", "größer"], "label": [*"AB"]}}
        for key in "BAB"
    ],
}  # fmt: skip
ROWS["arc_challenge"] = ROWS["arc_easy"]
SPLITS = {task: "test" if task.startswith(("arc", "open")) else "validation" for task in ROWS}
PAGE = " \n = Page {0} = \n \n The {0} text has two words , a few of them rare . \n \n = = Bit = = \n \n End of it . \n"
WIKI = "".join(map(PAGE.format, "ABC"))

Question = tuple[list[tuple[str, str]], int]
"""(context, continuation) of each choice, and which is right."""


def question(context: str, texts: list[str], right: int) -> Question:
    return [(context, f" {text}") for text in texts], right


def hellaswag(row: dict) -> Question:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return question(context, [ending.replace("[step] ", "") for ending in row["endings"]], int(row["label"]))


def winogrande(row: dict) -> Question:
    before, after = row["sentence"].split("_")
    return [(before + row[name], " " + after.strip()) for name in ("option1", "option2")], int(row["answer"]) - 1


def lettered(context: str, row: dict) -> Question:
    return question(context, row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))


QUESTIONS = {
    "boolq": lambda r: question(f"{r['passage']}\nQuestion: {r['question']}?\nAnswer:", ["no", "yes"], r["label"]),
    "rte": lambda r: question(
        f"{r['sentence1']}\nQuestion: {r['sentence2']} True or False?\nAnswer:", ["True", "False"], r["label"]
    ),
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "arc_easy": lambda r: lettered(f"Question: {r['question']}\nAnswer:", r),
    "arc_challenge": lambda r: lettered(f"Question: {r['question']}\nAnswer:", r),
    "openbookqa": lambda r: lettered(r["question_stem"], r),
}
"""Each of the seven as its rows are read here, not by lm_eval."""


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Sum of log-probabilities of the continuation's tokens, straight from the logits."""
    ids = torch.tensor([tokenizer(context + continuation).input_ids])
    start = len(tokenizer(context).input_ids)
    with torch.no_grad():
        scores = model(ids).logits.double().log_softmax(-1)
    return sum(scores[0, i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


def bits(rows) -> float:
    """Bits a byte of [log-likelihood, bytes] rows."""
    return -sum(row[0] for row in rows) / sum(row[1] for row in rows) / math.log(2)


def jackknife(statistic, tasks: list[np.ndarray]) -> float:
    """Standard error of a statistic of independent tables of rows, by leaving out each row of each in turn."""
    variance = 0.0
    for place, rows in enumerate(tasks):
        some = ([*tasks[:place], np.delete(rows, i, axis=0), *tasks[place + 1 :]] for i in range(len(rows)))
        variance += (len(rows) - 1) * np.var(list(map(statistic, some)))
    return math.sqrt(variance)
