"""Differences are paired by row, the mean over tasks too, and every metric's direction is lm_eval's own."""

import math

import numpy as np
import pytest
from lm_eval.api.group import AggMetricConfig, Group

from tests.evaluation.test_evaluation import data, tiny  # noqa: F401
from utils.common.names import ANSWER_BITS
from utils.evaluation.comparison import mean_over_tasks, recovered, summarise
from utils.evaluation.plan import EvalPlan, plan_task, plan_tasks
from utils.evaluation.scoring import Evaluation, evaluate
from utils.evaluation.tasks import WIKITEXT

MODELS = ("dense", "pruned", "restored")
ACCURACY = {"aggregation": "mean", "higher_is_better": True}
BITS = {"aggregation": "bits_per_byte", "higher_is_better": False}


def scored(kind: dict = ACCURACY, metric: str = "acc", **rows: list[float]) -> Evaluation:
    """An evaluation with these rows of each task."""
    values = {task: {metric: {"value": float(np.mean(each)), "stderr": None}} for task, each in rows.items()}
    samples = {task: {metric: each} for task, each in rows.items()}
    return Evaluation(scores=values, samples=samples, metrics={task: {metric: kind} for task in rows})


def correlated(seed: int = 0) -> dict[str, Evaluation]:
    """Two tasks of other sizes, answered by three models that agree on most questions."""
    draw = np.random.default_rng(seed)
    rows = {name: {} for name in MODELS}
    for task, n in (("a", 40), ("b", 90)):
        hard = draw.random(n)
        for name, skill in zip(MODELS, (0.7, 0.45, 0.6), strict=True):
            rows[name][task] = (hard + 0.1 * draw.random(n) < skill).astype(float).tolist()
    return {name: scored(**tasks) for name, tasks in rows.items()}


def jackknife(statistic, tasks: list[np.ndarray]) -> float:
    """Standard error of a statistic of independent tables of rows, by leaving out each row of each in turn."""
    variance = 0.0
    for index, rows in enumerate(tasks):
        n = len(rows)
        left_out = [statistic([*tasks[:index], np.delete(rows, i, axis=0), *tasks[index + 1 :]]) for i in range(n)]
        variance += (n - 1) / n * sum((value - np.mean(left_out)) ** 2 for value in left_out)
    return math.sqrt(variance)


def test_the_means_errors_are_the_jackknifes_of_paired_rows():
    evaluations = correlated()
    found = mean_over_tasks(evaluations)
    tables = [np.array([evaluations[name].samples[task]["acc"] for name in MODELS]).T for task in ("a", "b")]
    for column, name in enumerate(MODELS):

        def mean(tasks, column=column):
            return np.mean([rows[:, column].mean() for rows in tasks])

        assert found["scores"][name]["value"] == pytest.approx(mean(tables))
        assert found["scores"][name]["stderr"] == pytest.approx(jackknife(mean, tables))

    def difference(tasks):
        return np.mean([rows[:, 2].mean() - rows[:, 1].mean() for rows in tasks])

    assert found["paired"]["difference"] == pytest.approx(difference(tables))
    assert found["paired"]["stderr"] == pytest.approx(jackknife(difference, tables))
    unpaired = math.hypot(*(found["scores"][name]["stderr"] for name in ("pruned", "restored")))
    assert found["paired"]["stderr"] < 0.7 * unpaired


def test_the_means_share_of_the_gap_takes_paired_errors():
    questions = [float(i % 2) for i in range(40)]
    # The dense model is right wherever the pruned one is, and on two questions more: 0.05 apart, each ± 0.08.
    dense = {task: [1.0, 1.0, 1.0, 1.0, *questions[4:]] for task in "ab"}
    pruned = {task: [0.0, 0.0, 1.0, 1.0, *questions[4:]] for task in "ab"}
    restored = {task: [1.0, 0.0, 1.0, 1.0, *questions[4:]] for task in "ab"}
    evaluations = {name: scored(**rows) for name, rows in zip(MODELS, (dense, pruned, restored), strict=True)}
    found = mean_over_tasks(evaluations)
    errors = [found["scores"][name]["stderr"] for name in ("dense", "pruned")]
    assert found["scores"]["dense"]["value"] - found["scores"]["pruned"]["value"] < 2 * math.hypot(*errors)
    assert found["recovered"] == pytest.approx(0.5)
    same = {**evaluations, "dense": evaluations["pruned"]}
    assert mean_over_tasks(same)["recovered"] is None


def test_the_mean_takes_main_accuracies_with_rows_only_and_two_at_least():
    evaluations = correlated()
    assert mean_over_tasks(evaluations)["tasks"] == ["a", "b"]
    perplexity = {"aggregation": "exp_mean", "higher_is_better": False}
    for extra in (
        scored(perplexity, "token_perplexity", w=[1.0, 2.0]),
        scored({"aggregation": "mean", "higher_is_better": False}, "acc_gap", w=[1.0, 0.0]),
        scored({"aggregation": "mean", "higher_is_better": None}, "acc", w=[1.0, 0.0]),
    ):
        more = {name: Evaluation.joined([each, extra]) for name, each in evaluations.items()}
        assert mean_over_tasks(more) == mean_over_tasks(evaluations)
    assert mean_over_tasks({name: scored(a=each.samples["a"]["acc"]) for name, each in evaluations.items()}) is None
    assert mean_over_tasks({name: Evaluation() for name in MODELS}) is None


def test_a_metric_of_unknown_direction_has_no_recovered_share():
    kind = {"aggregation": "mean", "higher_is_better": None}
    dense, pruned, restored = (scored(kind, "m", t=[x, x + 0.1] * 5) for x in (3.0, 1.0, 2.0))
    assert recovered(dense, pruned, restored) == recovered(pruned, dense, restored) == {"t": {"m": None}}
    kind["higher_is_better"] = True
    assert recovered(dense, pruned, restored) == {"t": {"m": pytest.approx(0.5)}}


def test_every_score_has_lm_evals_direction(data, tiny):  # noqa: F811
    plan = plan_tasks("hellaswag,wikitext2", data, None, 32)
    task = plan.planned[0].loaded
    task._higher_is_better["acc"] = False  # as a task's definition may say
    results = summarise(dict.fromkeys(MODELS, evaluate(*tiny, plan, label="x")))
    assert {task: set(metrics) for task, metrics in results["metrics"].items()} == {
        task: set(metrics) for task, metrics in results["scores"]["dense"].items()
    }
    assert results["metrics"]["hellaswag"] == {
        "acc": {"aggregation": "mean", "higher_is_better": False},
        "acc_norm": {"aggregation": "mean", "higher_is_better": True},
        ANSWER_BITS: BITS,
    }
    assert {metric: kind["higher_is_better"] for metric, kind in results["metrics"][WIKITEXT].items()} == dict.fromkeys(
        ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"), False
    )


def test_a_metric_without_rows_and_a_group_have_their_direction(data, tiny):  # noqa: F811
    (rte, boolq) = (planned.loaded for planned in plan_tasks("rte,boolq", data, None, 64).planned)
    for task in (rte, boolq):
        task._aggregation_list["acc"] = max  # nothing here resamples it
        task._higher_is_better["acc"] = False
    outer, inner = (
        Group(name, aggregate_metric_list=[AggMetricConfig(metric="acc")], metadata={"version": 1})
        for name in ("outer", "inner")
    )
    inner.add(rte), inner.add(boolq), outer.add(inner)
    found = evaluate(*tiny, EvalPlan((plan_task(outer, None, "here"),), None, 64), label="x")
    accuracy = {"acc": {"aggregation": None, "higher_is_better": False}}
    assert found.metrics == {
        **{task: {**accuracy, ANSWER_BITS: BITS} for task in ("rte", "boolq")},
        **dict.fromkeys(("inner", "outer"), accuracy),
    }
    assert {task: list(metrics) for task, metrics in found.samples.items()} == {
        "rte": [ANSWER_BITS],
        "boolq": [ANSWER_BITS],
    }
