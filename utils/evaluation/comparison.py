"""Three models' scores side by side: paired differences, shares of the gap, and the mean over tasks."""

from collections.abc import Iterator

from utils.common.names import ANSWER_BITS
from utils.evaluation import statistics as eval_statistics
from utils.evaluation.scoring import Evaluation
from utils.evaluation.tasks import main_metric

MODELS = ("dense", "pruned", "restored")


def summarise(evaluations: dict[str, Evaluation]) -> dict:
    """The part of results.json that says how good the models are.

    evaluations: "dense", "pruned" and "restored", of one plan.
    """
    dense, pruned, restored = (evaluations[name] for name in MODELS)
    return {
        "scores": {name: evaluation.scores for name, evaluation in evaluations.items()},
        "metrics": restored.metrics,
        "paired": compare(restored, pruned),
        "recovered": recovered(dense, pruned, restored),
        "main_metric": {task: main_metric(task, metrics) for task, metrics in restored.scores.items()},
        "mean": mean_over_tasks(evaluations),
        "answers": mean_of_answers(evaluations),
        "agreement": agreement(evaluations),
        "provenance": {name: evaluation.provenance for name, evaluation in evaluations.items()},
    }


def compare(restored: Evaluation, pruned: Evaluation) -> dict[str, dict[str, dict[str, float | None]]]:
    """task -> metric -> {"difference", "stderr", "mcnemar_p"} of restored minus pruned, row by row.

    Both answered the same questions, so the difference varies less than either score. mcnemar_p is None where rows
    are not right or wrong.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for task, metric, kind in _shared(restored, pruned):
        rows = restored.samples[task][metric], pruned.samples[task][metric]
        difference, spread = eval_statistics.paired_difference(*rows, kind["aggregation"])
        p = eval_statistics.mcnemar_p(*rows) if kind["aggregation"] == "mean" else None
        found.setdefault(task, {})[metric] = {"difference": difference, "stderr": spread, "mcnemar_p": p}
    return found


def recovered(dense: Evaluation, pruned: Evaluation, restored: Evaluation) -> dict[str, dict[str, float | None]]:
    """task -> metric -> share of the gap between dense and pruned that the restored model closes.

    None where the gap is within two standard errors of the paired difference, the pruned model is the better one, or
    nobody says which of two values is the better.
    """
    found: dict[str, dict[str, float | None]] = {}
    for task, metric, kind in _shared(restored, pruned, dense):
        rows = (each.samples[task][metric] for each in (dense, pruned, restored))
        higher = kind["higher_is_better"]
        share = None if higher is None else eval_statistics.share_recovered(*rows, kind["aggregation"], higher)
        found.setdefault(task, {})[metric] = share
    return found


def mean_over_tasks(evaluations: dict[str, Evaluation]) -> dict | None:
    """The mean of the accuracies of all tasks that have rows; None below two of them.

    {"tasks": [name, …], "higher_is_better": True, "scores": {model: {"value", "stderr"}}, "paired": {"difference",
    "stderr"} of restored minus pruned, "recovered": share of the gap, None where it is within noise}. A task's two
    models answered the same questions, and other tasks ask others: errors are paired within a task, and independent
    between tasks. A group of tasks counts by its members.
    """
    dense, pruned, restored = (evaluations[name] for name in MODELS)
    chosen = []
    for task, metric, kind in _shared(restored, pruned, dense):
        is_main = metric == main_metric(task, restored.scores[task])
        is_accuracy = metric.startswith("acc") and kind == {"aggregation": "mean", "higher_is_better": True}
        if is_main and is_accuracy:
            chosen.append((task, metric))
    return _mean(evaluations, chosen, "mean", higher_is_better=True)


def mean_of_answers(evaluations: dict[str, Evaluation]) -> dict | None:
    """The mean over tasks of the right answers' bits a byte, in the form of `mean_over_tasks`; None below two tasks."""
    shared = _shared(*(evaluations[name] for name in MODELS))
    chosen = [(task, metric) for task, metric, _ in shared if metric == ANSWER_BITS]
    return _mean(evaluations, chosen, "bits_per_byte", higher_is_better=False)


def _mean(
    evaluations: dict[str, Evaluation], chosen: list[tuple[str, str]], aggregation: str, higher_is_better: bool
) -> dict | None:
    if len(chosen) < 2:
        return None
    rows = {name: [evaluations[name].samples[task][metric] for task, metric in chosen] for name in MODELS}
    scores = {name: eval_statistics.mean_of_tasks(each, aggregation) for name, each in rows.items()}
    difference, spread = eval_statistics.mean_difference(rows["restored"], rows["pruned"], aggregation)
    return {
        "tasks": [task for task, _ in chosen],
        "higher_is_better": higher_is_better,
        "scores": {name: {"value": value, "stderr": error} for name, (value, error) in scores.items()},
        "paired": {"difference": difference, "stderr": spread},
        "recovered": eval_statistics.mean_share_recovered(*rows.values(), aggregation, higher_is_better),
    }


def agreement(evaluations: dict[str, Evaluation]) -> dict | None:
    """How far the pruned and the restored model are from the dense one's answers to multiple-choice questions.

    {"pruned": {task: {"flipped": {"value", "stderr"}, "kl": {"value", "stderr"}}}, "restored": the same, "paired":
    {task: {"flipped": {"difference", "stderr"}, "kl": …}} of restored minus pruned}; beside the tasks stands "all", all
    their questions together, each counting once. flipped: the share of questions whose likeliest choice is not the
    dense model's. kl: the mean of KL(dense || model) over the softmax of the choices' log-likelihoods, in nats. None
    without multiple-choice tasks.
    """
    dense, pruned, restored = (evaluations[name].choices for name in MODELS)
    tasks = [task for task in dense if task in pruned and task in restored]
    if not tasks:
        return None
    found: dict[str, dict] = {"pruned": {}, "restored": {}, "paired": {}}
    for measure, apart in (("flipped", eval_statistics.flips), ("kl", eval_statistics.divergences)):
        before, after = ({task: apart(dense[task], model[task]) for task in tasks} for model in (pruned, restored))
        for rows in (before, after):
            rows["all"] = [row for task in tasks for row in rows[task]]
        for task in before:
            for name, rows in (("pruned", before[task]), ("restored", after[task])):
                value, spread = eval_statistics.aggregate(rows, "mean"), eval_statistics.stderr(rows, "mean")
                found[name].setdefault(task, {})[measure] = {"value": value, "stderr": spread}
            difference, spread = eval_statistics.paired_difference(after[task], before[task], "mean")
            found["paired"].setdefault(task, {})[measure] = {"difference": difference, "stderr": spread}
    return found


def _shared(one: Evaluation, *others: Evaluation) -> Iterator[tuple[str, str, dict]]:
    """(task, metric, kind) of all whose rows every one of the evaluations has."""
    for task, metrics in one.samples.items():
        for metric in metrics:
            if all(metric in other.samples.get(task, {}) for other in others):
                yield task, metric, one.metrics[task][metric]
