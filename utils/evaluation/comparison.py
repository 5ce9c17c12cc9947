"""Three models' scores side by side: paired differences, shares of the gap, and the mean over tasks."""

from utils.common.names import ANSWER_BITS, MODELS
from utils.evaluation.paired_statistics import AGREEMENT, mcnemar_p, mean_difference, score, share_recovered
from utils.evaluation.scoring import Evaluation
from utils.evaluation.tasks import main_metric


def summarise(evaluations: dict[str, Evaluation]) -> dict:
    """Compare MODELS, scored by one plan: the part of results.json that docs/evaluation.md describes.

    McNemar's p is None unless each row is right or wrong. A share of the gap is None where no better direction is known
    or the gap is noise. Means over tasks need at least two: of accuracies that are a task's main metric (the members of
    a group count one by one), and of the right answers' bits.
    """
    *others, restored = (evaluations[name] for name in MODELS)
    paired, recovered, accuracies, answers = {}, {}, {}, {}
    for task, metrics in restored.samples.items():
        for metric, rows in metrics.items():
            if not all(metric in other.samples.get(task, {}) for other in others):
                continue
            rows = [*(other.samples[task][metric] for other in others), rows]
            aggregation, higher = (restored.metrics[task][metric][name] for name in ("aggregation", "higher_is_better"))
            difference = mean_difference([rows[2]], [rows[1]], aggregation)
            p = mcnemar_p(rows[2], rows[1]) if aggregation == "mean" else None
            paired.setdefault(task, {})[metric] = {**difference, "mcnemar_p": p}
            share = None if higher is None else share_recovered([[each] for each in rows], aggregation, higher)
            recovered.setdefault(task, {})[metric] = share
            is_accuracy = metric.startswith("acc") and aggregation == "mean" and higher
            if metric == ANSWER_BITS:
                answers[task] = rows
            elif is_accuracy and metric == main_metric(task, restored.scores[task]):
                accuracies[task] = rows
    return {
        "scores": {name: evaluation.scores for name, evaluation in evaluations.items()},
        "metrics": restored.metrics,
        "paired": paired,
        "recovered": recovered,
        "main_metric": {task: main_metric(task, metrics) for task, metrics in restored.scores.items()},
        "mean": _mean(accuracies, "mean", higher_is_better=True),
        "answers": _mean(answers, "bits_per_byte", higher_is_better=False),
        "agreement": agreement(evaluations),
        "provenance": {name: evaluation.provenance for name, evaluation in evaluations.items()},
    }


def _mean(chosen: dict[str, list], aggregation: str, higher_is_better: bool) -> dict | None:
    """The mean over tasks, or None for fewer than two. chosen: task -> rows of each of MODELS."""
    if len(chosen) < 2:
        return None
    by_model = list(zip(*chosen.values(), strict=True))
    return {
        "tasks": list(chosen),
        "higher_is_better": higher_is_better,
        "scores": {name: score(tasks, aggregation) for name, tasks in zip(MODELS, by_model, strict=True)},
        "paired": mean_difference(by_model[2], by_model[1], aggregation),
        "recovered": share_recovered(by_model, aggregation, higher_is_better),
    }


def agreement(evaluations: dict[str, Evaluation]) -> dict | None:
    """How far the pruned and the restored model are from the dense one's answers to multiple-choice questions, if any.

    The measures are AGREEMENT's: means over the questions of each task, and under "all" over those of all tasks.
    """
    dense, pruned, restored = (evaluations[name].choices for name in MODELS)
    tasks = [task for task in dense if task in pruned and task in restored]
    if not tasks:
        return None
    found: dict[str, dict] = {"pruned": {}, "restored": {}, "paired": {}}
    for measure, rows_of in AGREEMENT.items():
        before, after = ({task: rows_of(dense[task], model[task]) for task in tasks} for model in (pruned, restored))
        for rows in (before, after):
            rows["all"] = [row for task in tasks for row in rows[task]]
        for task in before:
            found["pruned"].setdefault(task, {})[measure] = score([before[task]], "mean")
            found["restored"].setdefault(task, {})[measure] = score([after[task]], "mean")
            found["paired"].setdefault(task, {})[measure] = mean_difference([after[task]], [before[task]], "mean")
    return found
