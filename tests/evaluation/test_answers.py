"""The right answers' likelihood and the agreement with the dense model are what the logits say, by hand."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.filters import build_filter_ensemble

from tests.evaluation.test_comparison import MODELS, jackknife
from tests.evaluation.test_evaluation import ROWS, data, load, log_likelihood, tiny  # noqa: F401
from utils.common.cache import Cache
from utils.common.names import ANSWER_BITS
from utils.evaluation import scoring
from utils.evaluation.answers import answer_rows, asks_choices, choice_rows
from utils.evaluation.comparison import agreement, mean_of_answers, summarise
from utils.evaluation.plan import plan_tasks
from utils.evaluation.rows import CHOICES, pair_rows, read_rows, write_rows
from utils.evaluation.scoring import Evaluation, evaluate, score_key
from utils.evaluation.statistics import divergences, flips, paired_difference
from utils.evaluation.tasks import BUNDLED_FOLDER, PAPER_TASKS, WIKITEXT

Question = tuple[list[tuple[str, str]], int]
"""(context, continuation) of each choice, and which is right."""


def two_words(context, words):
    return lambda row: ([(context(row), f" {word}") for word in words], row["label"])


def of_letters(context):
    def question(row: dict) -> Question:
        choices = row["choices"]
        return [(context(row), f" {text}") for text in choices["text"]], choices["label"].index(row["answerKey"])

    return question


def hellaswag(row: dict) -> Question:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return [(context, " " + ending.replace("[step] ", "")) for ending in row["endings"]], int(row["label"])


def winogrande(row: dict) -> Question:
    before, after = row["sentence"].split("_")
    options = row["option1"], row["option2"]
    return [(before + option, " " + after.strip()) for option in options], {"1": 0, "2": 1}[row["answer"]]


QUESTIONS = {
    "boolq": two_words(lambda row: f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes")),
    "rte": two_words(
        lambda row: f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:", ("True", "False")
    ),
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "arc_easy": of_letters(lambda row: f"Question: {row['question']}\nAnswer:"),
    "arc_challenge": of_letters(lambda row: f"Question: {row['question']}\nAnswer:"),
    "openbookqa": of_letters(lambda row: row["question_stem"]),
}
"""Each of the seven as its rows are read here, not by lm_eval."""


def bundled(row: dict) -> Question:
    return [(row["prompt"], f" {choice}") for choice in row["choices"]], row["answer"]


def by_hand(tiny, questions: list[Question]) -> tuple[list[list[float]], list[list[float]]]:  # noqa: F811
    """(log-likelihoods of each row's choices, [that of the right one, its bytes]) from plain forward passes."""
    choices, answers = [], []
    for requests, right in questions:
        choices.append([log_likelihood(*tiny, *request) for request in requests])
        answers.append([choices[-1][right], float(len(requests[right][1].encode("utf-8")))])
    return choices, answers


def bits(rows: list[list[float]]) -> float:
    return -sum(row[0] for row in rows) / sum(row[1] for row in rows) / math.log(2)


def assert_by_hand(found: Evaluation, task: str, tiny, questions: list[Question]) -> None:  # noqa: F811
    choices, answers = by_hand(tiny, questions)
    for kept, expected in ((found.choices[task], choices), (found.samples[task][ANSWER_BITS], answers)):
        assert [len(row) for row in kept] == [len(row) for row in expected]
        for row, wanted in zip(kept, expected, strict=True):
            assert row == pytest.approx(wanted, rel=1e-5)
    score = found.scores[task][ANSWER_BITS]
    assert score["value"] == pytest.approx(bits(answers), rel=1e-5)
    assert score["stderr"] == pytest.approx(jackknife(lambda tables: bits(tables[0]), [np.array(answers)]), rel=1e-4)
    assert found.metrics[task][ANSWER_BITS] == {"aggregation": "bits_per_byte", "higher_is_better": False}


@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_each_of_the_seven_is_what_plain_logits_give(data, tiny, batch_size):  # noqa: F811
    found = evaluate(*tiny, plan_tasks("paper", data, None, 64), batch_size=batch_size, label="x")
    for task, question in QUESTIONS.items():
        assert_by_hand(found, task, tiny, [question(row) for row in ROWS[task]])
    assert set(found.choices) == set(PAPER_TASKS)
    assert ANSWER_BITS not in found.scores[WIKITEXT]


def test_the_bundled_choices_are_what_plain_logits_give(tiny):  # noqa: F811
    found = evaluate(*tiny, plan_tasks("bundled", None, 3, 64), label="x")
    tasks = ("bundled_response", "bundled_facts", "bundled_arithmetic")
    assert set(found.choices) == set(tasks)
    for task in tasks:
        lines = (BUNDLED_FOLDER / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:3]
        assert_by_hand(found, task, tiny, [bundled(json.loads(line)) for line in lines])


def test_a_model_that_knows_an_answer_has_few_bits_for_it(data, tiny):  # noqa: F811
    """No index is right by chance: the right choice alone is made likely."""
    plan = plan_tasks("paper", data, None, 64)
    for planned in plan.planned:
        if planned.name == WIKITEXT:
            continue
        (task,) = planned.tasks.values()
        samples = []
        for row, doc in zip(ROWS[planned.name], task.eval_docs, strict=True):
            requests, right = QUESTIONS[planned.name](row)
            responses = [[(-1.0 if i == right else -50.0, False)] for i in range(len(requests))]
            samples.append({"doc": doc, "resps": responses, "arguments": requests})
        rows = answer_rows(task, samples, choice_rows(task, samples))
        assert [row[0] for row in rows] == [-1.0] * len(samples), planned.name


def test_bytes_are_utf_8_with_the_space_before_the_answer(data, tiny):  # noqa: F811
    row = {"question_stem": "Ein Vogel ist", "choices": {"text": ["blau", "größer"], "label": ["A", "B"]}}
    rows = [{**row, "answerKey": "B"}, {**row, "answerKey": "A"}]
    (data / "openbookqa" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(*tiny, plan_tasks("openbookqa", data, None, 64), label="x")
    assert [row[1] for row in found.samples["openbookqa"][ANSWER_BITS]] == [9.0, 5.0]
    question = QUESTIONS["openbookqa"]
    assert_by_hand(found, "openbookqa", tiny, [question(row) for row in rows])


def test_answers_that_lm_eval_does_not_look_up_itself_have_no_bits(data, tiny):  # noqa: F811
    def scored(change) -> Evaluation:
        plan = plan_tasks("arc_easy", data, None, 64)
        change(plan.planned[0].loaded)
        return evaluate(*tiny, plan, label="x")

    def own_results(task):
        task.config.process_results = lambda doc, results: {"acc": 1.0}

    def no_answer(task):
        task.config.doc_to_target = lambda doc: -1

    def several(task):
        task.multiple_target = 2
        task.config.doc_to_target = lambda doc: [0, 1]

    usual = scored(lambda task: None)
    assert ANSWER_BITS in usual.scores["arc_easy"]
    for change in (own_results, no_answer, several):
        found = scored(change)
        assert ANSWER_BITS not in found.scores["arc_easy"] and ANSWER_BITS not in found.samples["arc_easy"]
        assert found.choices == usual.choices
    task = plan_tasks("arc_easy", data, None, 64).planned[0].loaded
    assert asks_choices(task)
    task.OUTPUT_TYPE = "loglikelihood"
    assert not asks_choices(task)


def test_an_answer_given_as_text_is_looked_up_among_the_choices(data, tiny):  # noqa: F811
    plan = plan_tasks("arc_easy", data, None, 64)
    task = plan.planned[0].loaded
    by_index = evaluate(*tiny, plan, label="x")
    target = task.config.doc_to_target
    task.config.doc_to_target = lambda doc: doc["choices"]["text"][task.doc_to_target(doc, target)]
    assert evaluate(*tiny, plan, label="x").samples == by_index.samples


def test_requests_without_context_and_further_filters_are_no_choices():
    task = SimpleNamespace(doc_to_choice=lambda doc: ["a", "b"])
    sample = {"doc": {}, "resps": [[(-1.0, True)], [(-2.0, False)], [(-8.0, True)], [(-9.0, True)]]}
    assert choice_rows(task, [sample]) == [[-1.0, -2.0]]


def test_one_row_a_question_whatever_the_filters(data, tiny):  # noqa: F811
    plan = plan_tasks("arc_easy", data, None, 64)
    usual = evaluate(*tiny, plan, label="x")
    task = plan.planned[0].loaded
    task._filters = [build_filter_ensemble(name, [["take_first", None]]) for name in ("one", "other")]
    assert evaluate(*tiny, plan, label="x").choices == usual.choices


def evaluation(**choices: list[list[float]]) -> Evaluation:
    return Evaluation(choices=choices)


def drawn(seed: int, rows: int, apart: float = 0.0) -> list[list[float]]:
    """Log-likelihoods of three to five choices a row: those of one seed are alike to `apart`."""
    draw, noise = np.random.default_rng(seed), np.random.default_rng([seed, int(100 * apart)])
    sizes = draw.integers(3, 6, rows)
    return [(draw.normal(-20, 2, size) + apart * noise.normal(size=size)).tolist() for size in sizes]


@pytest.fixture
def three() -> dict[str, Evaluation]:
    """Two tasks of other sizes; the restored model is nearer to the dense one."""
    return {
        name: evaluation(a=drawn(0, 25, apart), b=drawn(1, 40, apart))
        for name, apart in zip(MODELS, (0.0, 2.0, 1.0), strict=True)
    }


def kl(dense: list[float], other: list[float]) -> float:
    one, two = (torch.tensor(row, dtype=torch.float64).log_softmax(0) for row in (dense, other))
    return torch.nn.functional.kl_div(two, one, reduction="sum", log_target=True).item()


def test_agreement_is_the_share_of_flips_and_the_mean_divergence_with_jackknifed_errors(three):
    found = agreement(three)
    rows = {}
    for name in ("pruned", "restored"):
        for task in "ab":
            pairs = list(zip(three["dense"].choices[task], three[name].choices[task], strict=True))
            flipped = [float(one.index(max(one)) != two.index(max(two))) for one, two in pairs]
            rows[name, task] = {"flipped": flipped, "kl": [kl(*pair) for pair in pairs]}
        rows[name, "all"] = {m: [*rows[name, "a"][m], *rows[name, "b"][m]] for m in ("flipped", "kl")}

    def mean(tables):
        return tables[0].mean()

    assert 0 < np.mean(rows["restored", "all"]["flipped"]) < np.mean(rows["pruned", "all"]["flipped"]) < 1
    for task in ("a", "b", "all"):
        for measure in ("flipped", "kl"):
            tables = {name: np.array(rows[name, task][measure]) for name in ("pruned", "restored")}
            for name, table in tables.items():
                expected = {"value": pytest.approx(table.mean()), "stderr": pytest.approx(jackknife(mean, [table]))}
                assert found[name][task][measure] == expected
            apart = tables["restored"] - tables["pruned"]
            assert found["paired"][task][measure] == {
                "difference": pytest.approx(apart.mean()),
                "stderr": pytest.approx(jackknife(mean, [apart])),
            }
    assert [list(found[name]) for name in ("pruned", "restored", "paired")] == [["a", "b", "all"]] * 3


def test_a_model_agrees_with_itself(data, tiny):  # noqa: F811
    same = evaluate(*tiny, plan_tasks("arc_easy,winogrande", data, None, 64), label="x")
    found = agreement(dict.fromkeys(MODELS, same))
    zero = {"value": 0.0, "stderr": 0.0}
    for name in ("pruned", "restored"):
        assert found[name] == {task: {"flipped": zero, "kl": zero} for task in ("arc_easy", "winogrande", "all")}


def test_planted_flips_are_counted_and_no_others():
    dense = [[-1.0, -2.0, -3.0]] * 10
    flipped = [[-2.0, -1.0, -3.0]] * 3 + [[-3.0, -2.0, -1.0]]
    less_sure = [[-1.5, -1.6, -1.7]] * 6
    assert flips(dense, flipped + less_sure) == [1.0] * 4 + [0.0] * 6
    # Of equal ones the first, as lm_eval's acc takes it.
    assert flips([[-1.0, -1.0]] * 2, [[-1.0, -2.0], [-2.0, -1.0]]) == [0.0, 1.0]
    # A shift of all choices is none of the distribution.
    assert divergences(dense, [[value - 100 for value in row] for row in dense]) == pytest.approx([0.0] * 10, abs=1e-12)


def test_divergence_is_the_dense_models_and_survives_the_impossible():
    sure, unsure = [[0.0, math.log(0.25)]], [[0.0, 0.0]]
    assert divergences(sure, unsure)[0] == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    assert divergences(unsure, sure)[0] == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2))
    assert divergences([[0.0, -math.inf]], unsure)[0] == pytest.approx(math.log(2))
    assert divergences(unsure, [[0.0, -math.inf]])[0] == math.inf
    assert math.isnan(divergences(unsure, [[math.nan, 0.0]])[0])
    with pytest.raises(ValueError, match="number of choices"):
        divergences([[0.0]], [[0.0, 1.0]])


def test_agreement_is_silent_without_choices_and_on_tasks_that_one_model_lacks(three):
    assert agreement(dict.fromkeys(MODELS, Evaluation())) is None
    lacking = {**three, "restored": evaluation(b=three["restored"].choices["b"])}
    found = agreement(lacking)
    assert list(found["pruned"]) == ["b", "all"]
    assert found["pruned"]["all"] == found["pruned"]["b"]


def with_answers(seed: int) -> dict[str, Evaluation]:
    """Right answers of two tasks; what models share of a row is more than what they differ by."""
    draw = np.random.default_rng(seed)
    samples = {name: {} for name in MODELS}
    for task, n in (("a", 30), ("b", 50)):
        length, hard = draw.integers(4, 30, n).astype(float), draw.normal(0, 4, n)
        for name, worse in zip(MODELS, (0.0, 0.5, 0.2), strict=True):
            values = -(length * (1 + worse)) - hard - draw.random(n)
            samples[name][task] = {ANSWER_BITS: np.stack([values, length], axis=1).tolist()}
    kinds = {task: {ANSWER_BITS: {"aggregation": "bits_per_byte", "higher_is_better": False}} for task in "ab"}
    return {name: Evaluation(samples=samples[name], metrics=kinds) for name in MODELS}


def test_the_mean_of_answers_is_over_tasks_and_paired_within_them():
    evaluations = with_answers(3)
    found = mean_of_answers(evaluations)
    tables = [np.array([evaluations[name].samples[task][ANSWER_BITS] for name in MODELS]) for task in "ab"]
    tables = [table.transpose(1, 0, 2) for table in tables]  # rows, models, (log-likelihood, bytes)

    def mean(column):
        return lambda tasks: np.mean([bits(rows[:, column]) for rows in tasks])

    def difference(tasks):
        return mean(2)(tasks) - mean(1)(tasks)

    for column, name in enumerate(MODELS):
        expected = {"value": mean(column)(tables), "stderr": jackknife(mean(column), tables)}
        assert found["scores"][name] == pytest.approx(expected)
    assert found["paired"] == pytest.approx({"difference": difference(tables), "stderr": jackknife(difference, tables)})
    unpaired = math.hypot(*(found["scores"][name]["stderr"] for name in ("pruned", "restored")))
    assert found["paired"]["stderr"] < 0.7 * unpaired
    gap = mean(0)(tables) - mean(1)(tables)
    assert found["recovered"] == pytest.approx(difference(tables) / gap)
    assert (found["tasks"], found["higher_is_better"]) == (["a", "b"], False)
    swapped = {**evaluations, "dense": evaluations["pruned"], "pruned": evaluations["dense"]}
    assert mean_of_answers(swapped)["recovered"] is None


def test_accuracy_stays_what_stands_for_a_task(data, tiny):  # noqa: F811
    found = evaluate(*tiny, plan_tasks("paper", data, None, 64), label="x")
    results = summarise(dict.fromkeys(MODELS, found))
    assert {task: results["main_metric"][task] for task in PAPER_TASKS} == {
        task: about.metric for task, about in PAPER_TASKS.items()
    }
    assert results["answers"]["tasks"] == results["mean"]["tasks"] == list(PAPER_TASKS)
    values = [found.scores[task][ANSWER_BITS]["value"] for task in PAPER_TASKS]
    assert results["answers"]["scores"]["dense"]["value"] == pytest.approx(np.mean(values))
    assert set(results["agreement"]["paired"]) == {*PAPER_TASKS, "all"}
    assert results["paired"]["rte"][ANSWER_BITS] == {"difference": 0.0, "stderr": 0.0, "mcnemar_p": None}


def test_two_runs_agreement_is_paired_from_their_rows(data, make_tiny_llama, tmp_path):  # noqa: F811
    plan = plan_tasks("hellaswag,arc_easy", data, None, 64)
    dense, one, other = (evaluate(*load(make_tiny_llama(seed=s)), plan, label="x") for s in (0, 3, 5))
    for name, restored in (("one", one), ("other", other)):
        write_rows(tmp_path / name, {"dense": dense, "restored": restored})
    first, second = (read_rows(tmp_path / name) for name in ("one", "other"))
    expected = agreement({"dense": dense, "pruned": other, "restored": one})["paired"]
    for task in ("hellaswag", "arc_easy"):
        assert first["dense"][task][CHOICES].values == dense.choices[task]
        base, kept = pair_rows(first["dense"], first["restored"], task, CHOICES)
        _, against = pair_rows(first["dense"], second["restored"], task, CHOICES)
        for measure, apart in (("flipped", flips), ("kl", divergences)):
            rows = [apart(base.values, each.values) for each in (kept, against)]
            assert paired_difference(*rows, "mean") == tuple(expected[task][measure].values())


def test_scores_kept_by_earlier_code_are_not_taken(data, tiny, make_tiny_llama, tmp_path, monkeypatch):  # noqa: F811
    part, folder, cache = plan_tasks("rte", data, None, 64), make_tiny_llama(), Cache(tmp_path / "cache")

    def scored() -> Evaluation:
        return Evaluation.from_json(
            cache.document("scores", score_key(part, folder), lambda: evaluate(*tiny, part, label="x").to_json())
        )

    modules = scoring.code_version

    def without_answers(*those):
        return modules(*(module for module in those if module is not scoring.answers))

    monkeypatch.setattr(scoring, "code_version", without_answers)
    cache.document("scores", score_key(part, folder), lambda: Evaluation().to_json())
    assert scored() == Evaluation()
    monkeypatch.undo()
    assert len(scored().choices["rte"]) == 3
    assert scored() == scored()
