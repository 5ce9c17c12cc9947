"""Differences are paired by row, means over tasks too, and agreement is with the dense model's answers."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from tests.evaluation.material import ACCURACY, BITS, LOSSES, bits, jackknife
from utils.common.names import ANSWER_BITS
from utils.evaluation.comparison import MODELS, agreement, summarise
from utils.evaluation.paired_statistics import divergences, flips, mcnemar_p, score
from utils.evaluation.scoring import Evaluation, evaluate
from utils.evaluation.task_loading import plan_tasks
from utils.evaluation.tasks import PAPER_TASKS, WIKITEXT


def scored(kind: dict = ACCURACY, metric: str = "acc", **rows: list) -> Evaluation:
    return Evaluation(
        scores={task: {metric: {}} for task in rows},
        samples={task: {metric: each} for task, each in rows.items()},
        metrics={task: {metric: kind} for task in rows},
    )


def answers(draw: np.random.Generator, n: int) -> np.ndarray:
    """[log-likelihood, bytes] of n right answers by each of MODELS: (3, n, 2)."""
    length, hard = draw.integers(4, 30, n).astype(float), draw.normal(0, 4, n)
    worse = (-length * (1 + more) - hard - draw.random(n) for more in (0.0, 0.5, 0.2))
    return np.stack([np.stack([each, length], axis=1) for each in worse])


@pytest.mark.parametrize(
    ("key", "metric", "kind", "of"), [("mean", "acc", ACCURACY, np.mean), ("answers", ANSWER_BITS, BITS, bits)]
)
def test_a_mean_over_tasks_has_the_jackknifes_errors_of_paired_rows(key, metric, kind, of):
    draw = np.random.default_rng(3)
    tasks = {"a": answers(draw, 50), "b": answers(draw, 40)}
    if key == "mean":
        tasks = {task: (rows[..., 0] > -22).astype(float) for task, rows in tasks.items()}
    by_model = [{task: rows[place].tolist() for task, rows in tasks.items()} for place in range(3)]
    evaluations = {name: scored(kind, metric, **rows) for name, rows in zip(MODELS, by_model, strict=True)}
    found, tables = summarise(evaluations)[key], [rows.swapaxes(0, 1) for rows in tasks.values()]

    def mean(model: int, tables: list[np.ndarray]) -> float:
        return np.mean([of(rows[:, model]) for rows in tables])

    def gain(tables: list[np.ndarray]) -> float:
        return mean(2, tables) - mean(1, tables)

    for model, name in enumerate(MODELS):
        expected = {"value": mean(model, tables), "stderr": jackknife(partial(mean, model), tables)}
        assert found["scores"][name] == pytest.approx(expected)
    assert found["paired"] == pytest.approx({"difference": gain(tables), "stderr": jackknife(gain, tables)})
    assert found["recovered"] == pytest.approx(gain(tables) / (mean(0, tables) - mean(1, tables)))
    assert (found["tasks"], found["higher_is_better"]) == (["a", "b"], kind["higher_is_better"])


@pytest.mark.parametrize(("windows", "blocks"), [(3, 3), (16, 8), (40, 8), (60, 12)])
def test_a_perplexitys_error_leaves_out_neighbouring_windows_together(windows, blocks):
    losses = np.random.default_rng(3).normal(3, 0.5, windows)
    error = jackknife(lambda tables: math.exp(tables[0].mean()), [losses.reshape(blocks, -1)])
    assert score([losses.tolist()], "exp_mean") == pytest.approx({"value": math.exp(losses.mean()), "stderr": error})


def test_the_mean_takes_main_accuracies_with_rows_only_and_two_at_least():
    def mean(*parts: Evaluation) -> dict | None:
        return summarise(dict.fromkeys(MODELS, Evaluation.joined(list(parts))))["mean"]

    both = scored(a=[1.0, 0.0, 0.0], b=[1.0, 1.0])
    assert mean(both)["tasks"] == ["a", "b"]
    for kind, metric in ((LOSSES, "token_perplexity"), (ACCURACY | {"higher_is_better": False}, "acc_gap"),
                         (ACCURACY | {"higher_is_better": None}, "acc")):  # fmt: skip
        assert mean(both, scored(kind, metric, w=[1.0, 2.0])) == mean(both)
    assert mean(scored(t=[1.0, 0.0])) is None and mean() is None
    rows = {"acc": [1.0, 0.0], "acc_norm": [0.0, 0.0]}  # acc stands for winogrande, acc_norm for hellaswag
    parts = [scored(metric=metric, winogrande=each, hellaswag=each) for metric, each in rows.items()]
    one = Evaluation(*({t: getattr(parts[0], k)[t] | getattr(parts[1], k)[t] for t in parts[0].scores}
                       for k in ("scores", "samples", "metrics")))  # fmt: skip
    assert mean(one)["scores"]["dense"]["value"] == (0.5 + 0.0) / 2


def test_a_recovered_share_has_the_right_sign_and_is_silent_on_noise_and_unknown_direction():
    def share(*rows: list, kind: dict = ACCURACY) -> float | None:
        evaluations = {name: scored(kind, t=each) for name, each in zip(MODELS, rows, strict=True)}
        return summarise(evaluations)["recovered"]["t"]["acc"]

    dense, pruned, half = [1.0] * 9 + [0.0], [0.0] * 9 + [1.0], [1.0] * 5 + [0.0] * 5
    assert share(dense, pruned, half) == pytest.approx((0.5 - 0.1) / 0.8)
    assert share(pruned, dense, half) is None
    assert share([1.0, *pruned[1:]], pruned, half) is None  # 0.1 ± 0.1
    assert share(half, [0.0] * 5 + [1.0] + [0.0] * 4, half) is None  # 0.4 ± 0.22
    assert share(dense, pruned, half, kind=ACCURACY | {"higher_is_better": None}) is None
    losses = [[2.0, 2.1, 2.05], [3.0, 3.1, 3.02], [2.5, 2.6, 2.55]]
    values = [math.exp(sum(rows) / 3) for rows in losses]
    assert share(*losses, kind=LOSSES) == pytest.approx((values[2] - values[1]) / (values[0] - values[1]))


def test_mcnemars_p_is_the_exact_two_sided_binomial_test_of_the_rows_that_differ():
    one, other = [1.0] * 7 + [0.0] * 2 + [1.0] * 5, [0.0] * 7 + [1.0] * 2 + [1.0] * 5
    assert mcnemar_p(one, other) == mcnemar_p(other, one) == pytest.approx(2 * (1 + 9 + 36) / 2**9)
    assert mcnemar_p(one, one) == 1 and mcnemar_p([0.5, 1.0], [0.0, 1.0]) is None


def test_scores_of_three_models_are_paired_and_accuracy_stands_for_a_task(data, load):
    plan = plan_tasks("paper", data, None, 64)
    one, other = (evaluate(*load(seed), plan, label="x") for seed in (0, 5))
    found = summarise({"dense": one, "pruned": other, "restored": one})
    for task, metrics in found["paired"].items():
        assert metrics.keys() == one.scores[task].keys() == found["recovered"][task].keys()
        assert all((pair["mcnemar_p"] is not None) == metric.startswith("acc") for metric, pair in metrics.items())
    assert 0 < found["paired"]["hellaswag"]["acc_norm"]["mcnemar_p"] <= 1
    main = dict.fromkeys(PAPER_TASKS, "acc") | dict.fromkeys(("hellaswag", "arc_challenge", "openbookqa"), "acc_norm")
    assert found["main_metric"] == {**main, WIKITEXT: "token_perplexity"}
    assert found["answers"]["tasks"] == found["mean"]["tasks"] == list(PAPER_TASKS)
    zero = {"value": 0.0, "stderr": 0.0}
    assert found["agreement"]["restored"] == {task: {"flipped": zero, "kl": zero} for task in (*PAPER_TASKS, "all")}


def drawn(seed: int, rows: int, noise: float = 0.0) -> list[list[float]]:
    """Log-likelihoods of three to five choices a row: those of one seed are alike to `noise`."""
    draw, other = np.random.default_rng(seed), np.random.default_rng([seed, int(100 * noise)])
    sizes = draw.integers(3, 6, rows)
    return [(draw.normal(-20, 2, size) + noise * other.normal(size=size)).tolist() for size in sizes]


def kl(dense: list[float], other: list[float]) -> float:
    one, two = (torch.tensor(row, dtype=torch.float64).log_softmax(0) for row in (dense, other))
    return torch.nn.functional.kl_div(two, one, reduction="sum", log_target=True).item()


def test_agreement_is_the_share_of_flips_and_the_mean_divergence_with_their_errors():
    noises = dict(zip(MODELS, (0.0, 2.0, 1.0), strict=True))
    choices = {name: {"a": drawn(0, 25, noise), "b": drawn(1, 40, noise)} for name, noise in noises.items()}
    found = agreement({name: Evaluation(choices=each) for name, each in choices.items()})
    for task, parts in (("a", "a"), ("b", "b"), ("all", "ab")):
        dense, *others = ([row for part in parts for row in choices[name][part]] for name in MODELS)
        for measure, of in (("flipped", lambda one, two: float(np.argmax(one) != np.argmax(two))), ("kl", kl)):
            before, after = (np.array(list(map(of, dense, other))) for other in others)
            for name, rows in (("pruned", before), ("restored", after), ("paired", after - before)):
                expected = [rows.mean(), rows.std(ddof=1) / math.sqrt(len(rows))]
                assert list(found[name][task][measure].values()) == pytest.approx(expected)
    assert 0 < found["restored"]["all"]["flipped"]["value"] < found["pruned"]["all"]["flipped"]["value"] < 1
    assert agreement(dict.fromkeys(MODELS, Evaluation())) is None
    del choices["restored"]["a"]
    assert list(agreement({name: Evaluation(choices=each) for name, each in choices.items()})["pruned"]) == ["b", "all"]
    # Of equal choices the first, as lm_eval's acc takes it; what is impossible diverges.
    assert flips([[-1.0, -1.0]] * 2, [[-1.0, -2.0], [-2.0, -1.0]]) == [0.0, 1.0]
    assert math.isnan(flips([[-1.0, -1.0]], [[-1.0, math.nan]])[0])
    assert divergences([[0.0, -math.inf]], [[0.0, 0.0]]) == pytest.approx([math.log(2)])
    impossible, collapsed = divergences([[0.0, 0.0]] * 2, [[0.0, -math.inf], [math.nan, 0.0]])
    assert impossible == math.inf and math.isnan(collapsed)
