"""What a multiple-choice question came to: each choice's log-likelihood, and the right one's beside its bytes.

samples, in all of it: what lm_eval logs of a task that `asks_choices`, one a row.
"""

from lm_eval.api.task import ConfigurableTask, Task


def asks_choices(task: Task) -> bool:
    """Whether lm_eval makes a log-likelihood request for each choice, as the task's definition says."""
    # A class of its own may make other requests.
    return type(task) is ConfigurableTask and task.OUTPUT_TYPE == "multiple_choice"


def choice_rows(task: Task, samples: list[dict]) -> list[list[float]]:
    """Log-likelihood (nats) of each choice, a list a row."""
    # With mutual information, as many requests without a context come after those of the choices.
    counts = [len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return [
        [float(responses[0][0]) for responses in sample["resps"][:count]]
        for sample, count in zip(samples, counts, strict=True)
    ]


def answer_rows(task: Task, samples: list[dict], choices: list[list[float]]) -> list[list[float]] | None:
    """[log-likelihood (nats) of the right answer, its UTF-8 bytes] of each row: what "bits_per_byte" aggregates.

    choices: what `choice_rows` gives. The bytes are those of the continuation in lm_eval's request, so with the
    delimiter before it, mostly a space; where choices fill a gap in the context (WinoGrande), the continuation is the
    text after the gap, the same for all. None unless every row has one right answer that lm_eval itself looks up: not
    where it has none or several, nor where the task's own process_results may mean another.
    """
    right = [right_choice(task, sample["doc"]) for sample in samples]
    if callable(task.config.process_results) or None in right:
        return None
    return [
        [log_likelihoods[index], float(len(sample["arguments"][index][1].encode()))]
        for sample, log_likelihoods, index in zip(samples, choices, right, strict=True)
    ]


def right_choice(task: Task, doc: dict) -> int | None:
    """Index of the right choice as lm_eval's accuracy takes it; None unless there is one."""
    choices = task.doc_to_choice(doc)
    # Where the choices are contexts, the index is the text, and the target the continuation that they share.
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(target, str):
        return choices.index(target) if target in choices else None
    return target if type(target) is int and 0 <= target < len(choices) else None
