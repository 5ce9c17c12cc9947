"""Scores are what the logits say, by hand, whatever the batches, and are kept by all that determines them."""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.api.group import AggMetricConfig, Group
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.huggingface import HFLM

import models.families
import utils.evaluation
from models.loading import load_model, tokenizer_digest
from tests.builders import mistake
from tests.evaluation.material import BITS, QUESTIONS, ROWS, WIKI, bits, jackknife, log_likelihood, question
from utils.common.cache import Cache, code_version
from utils.common.names import ANSWER_BITS
from utils.evaluation.in_memory_lm import InMemoryLM, share_contexts
from utils.evaluation.perplexity import token_scores
from utils.evaluation.scoring import PACKAGES, Evaluation, choice_rows, evaluate
from utils.evaluation.task_loading import EvalPlan, plan_task, plan_tasks
from utils.evaluation.tasks import BUNDLED_FOLDER, MAIN_METRIC, PAPER_TASKS, TOKEN_PERPLEXITY, WIKITEXT
from utils.examples import greedy
from utils.losses import frozen_head_loss
from utils.packing import PromptWithContinuations
from utils.stages.measure import scores


def assert_by_hand(found: Evaluation, task: str, tiny, questions: list) -> None:
    golds = [gold for _, gold in questions]
    choices, by_length, answers = [], [], []
    for requests, gold in questions:
        sums = [log_likelihood(*tiny, *request) for request in requests]
        choices.append(sums)
        # The text without the space before it, by characters.
        by_length.append([total / (len(text) - 1) for total, (_, text) in zip(sums, requests, strict=True)])
        answers.append([sums[gold], float(len(requests[gold][1].encode("utf-8")))])
    assert found.choices[task] == [pytest.approx(row, rel=1e-5) for row in choices]
    assert found.samples[task][ANSWER_BITS] == [pytest.approx(row, rel=1e-5) for row in answers]
    score = found.scores[task][ANSWER_BITS]
    assert score["value"] == pytest.approx(bits(answers), rel=1e-5)
    assert score["stderr"] == pytest.approx(jackknife(lambda tables: bits(tables[0]), [np.array(answers)]), rel=1e-4)
    for metric, rows in (("acc", choices), ("acc_norm", by_length)):
        if metric in found.samples[task]:
            right = [float(row.index(max(row)) == gold) for row, gold in zip(rows, golds, strict=True)]
            assert found.samples[task][metric] == right
            spread = np.std(right, ddof=1) / math.sqrt(len(right))
            assert found.scores[task][metric] == pytest.approx({"value": np.mean(right), "stderr": spread})
    assert found.metrics[task][ANSWER_BITS] == BITS


def test_each_of_the_seven_is_what_plain_logits_give_without_the_network(data, tiny):
    plan = plan_tasks("paper", data, None, 64)
    found = evaluate(*tiny, plan, label="x")
    assert list(found.scores) == [*PAPER_TASKS, WIKITEXT] and set(found.choices) == set(PAPER_TASKS)
    for task, of in QUESTIONS.items():
        assert_by_hand(found, task, tiny, list(map(of, ROWS[task])))
        assert MAIN_METRIC[task] in found.scores[task]
        config = found.provenance["tasks"][task]["config"]
        assert config["doc_to_text"] is not None
        # Rows of the hub and of a folder are one key.
        assert not {"dataset_path", "validation_split", "test_split"} & set(config)
    assert found.metrics["hellaswag"]["acc_norm"] == {"aggregation": "mean", "higher_is_better": True}
    assert not any(kind["higher_is_better"] for kind in found.metrics[WIKITEXT].values())
    assert found.samples["arc_easy"]["acc"] != found.samples["arc_easy"]["acc_norm"]
    assert list(found.scores[WIKITEXT]) == ["token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert any("boolq: 3 rows" in line for line in plan.describe())


def test_the_bundled_group_is_its_four_tasks_as_plain_logits_give_them(tiny):
    tiny[0].config.max_position_embeddings = 512  # all of these rows fit
    found = evaluate(*tiny, plan_tasks("bundled", None, 3, 64), label="x")
    tasks = {"bundled_response", "bundled_facts", "bundled_arithmetic"}
    assert set(found.choices) == tasks and set(found.scores) == {*tasks, "bundled_heldout"}
    assert all(metrics[MAIN_METRIC[task]]["stderr"] is not None for task, metrics in found.scores.items())
    texts = {task: (BUNDLED_FOLDER / f"{task}.jsonl").read_text(encoding="utf-8") for task in found.scores}
    rows = {task: [json.loads(line) for line in text.splitlines()[:3]] for task, text in texts.items()}
    for task in tasks:
        questions = [question(row["prompt"], row["choices"], row["answer"]) for row in rows[task]]
        assert_by_hand(found, task, tiny, questions)
    pairs = [(row["prompt"], row["response"]) for row in rows["bundled_heldout"]]
    alone = [bits([[log_likelihood(*tiny, asked, f" {text}"), len(text.encode())]]) for asked, text in pairs]
    assert found.scores["bundled_heldout"]["bits_per_byte"]["value"] == pytest.approx(sum(alone) / 3, rel=1e-4)


def test_perplexities_are_of_whole_windows_and_of_every_pages_words(data, tiny):
    model, tokenizer = tiny
    found = evaluate(*tiny, plan_tasks(WIKITEXT, data, 3, 40), label="dense")
    rows = [line if line.strip() else "" for line in WIKI.splitlines(keepends=True)]
    windows = torch.tensor(tokenizer("\n\n".join(rows)).input_ids)[:120].view(3, 1, 40)
    with torch.no_grad():
        losses = [model(window, labels=window).loss.item() for window in windows]
    score = found.scores[WIKITEXT][TOKEN_PERPLEXITY]
    assert found.samples[WIKITEXT][TOKEN_PERPLEXITY] == pytest.approx(losses, rel=1e-5)
    assert score["value"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)
    assert score["stderr"] == pytest.approx(score["value"] * np.std(losses, ddof=1) / math.sqrt(3), rel=0.05)
    assert found.provenance["tasks"][WIKITEXT]["max_length"] == 40  # of both kinds of windows
    # The first pages that hold as many words as these windows hold tokens.
    totals = [plan_tasks(WIKITEXT, data, n, 20).planned[0].records[WIKITEXT]["rows"] for n in (1, 2, 3, None)]
    assert totals == [2, 2, 3, 3]  # of 26 words each
    total, words = np.sum(found.samples[WIKITEXT]["word_perplexity"], axis=0)
    assert found.scores[WIKITEXT]["word_perplexity"]["value"] == pytest.approx(math.exp(-total / words))


def test_limits_take_the_first_rows_and_parts_of_a_plan_score_as_the_whole_and_read_back_equal(data, tiny):
    tiny[0].config.max_position_embeddings = 40  # no less than a window
    plan, some = plan_tasks("rte,wikitext2", data, 3, 40), plan_tasks("rte,wikitext2_tokens", data, 2, 40, windows=3)
    parts, limited = [evaluate(*tiny, part, "x") for part in plan.parts()], evaluate(*tiny, some, "x")
    assert [Evaluation(**json.loads(json.dumps(asdict(part)))) for part in parts] == parts
    whole = Evaluation.joined(parts)
    assert whole == evaluate(*tiny, plan, "x")
    assert [next(iter(part.key())) for part in plan.parts()] == ["rte", WIKITEXT]
    assert any("the first 2 of 3 rows" in line for line in some.describe())
    (pages,) = [part.records[WIKITEXT] for part in plan_tasks(WIKITEXT, data, 1, 8).planned]
    assert (pages["rows"], pages["rows_in_split"]) == (2, 3)
    assert list(limited.scores[WIKITEXT]) == [TOKEN_PERPLEXITY] != list(whole.scores[WIKITEXT])
    for task, metric, count in ((WIKITEXT, TOKEN_PERPLEXITY, 3), ("rte", "acc", 2)):
        rows = limited.samples[task][metric]
        assert len(rows) == count and rows == whole.samples[task][metric][:count]
    assert plan_tasks("wikitext2_tokens", data, 2, 40, windows=2).key() != some.parts()[1].key()
    nothing = plan_tasks("none", None, None, 64)
    assert nothing.describe() == nothing.parts() == [] and evaluate(*tiny, nothing, "x").scores == {}
    mistake("^-ppl_window: 40 .* 39 or less", plan.check_model, 39)
    asking = plan.planned[0].tasks["rte"]
    asking.OUTPUT_TYPE, asking.config.generation_kwargs = "generate_until", {"max_new_tokens": 40}
    plan.check_model(41)
    mistake("^-eval_tasks: rte: .*up to 40 tokens .*leave it out", plan.check_model, 40)


def test_a_question_without_a_number_has_no_answer(data, tiny):
    tiny[0].model.embed_tokens.weight.data[tiny[1]("R").input_ids] = math.nan  # which the last question alone has
    found = evaluate(*tiny, plan_tasks("rte", data, None, 64), "x")
    assert [math.isnan(row) for row in found.samples["rte"]["acc"]] == [False, False, True]
    assert math.isnan(found.scores["rte"]["acc"]["value"])


def test_a_group_and_a_metric_without_rows_have_lm_evals_direction_too(data, tiny):
    tasks = {part.name: part.tasks[part.name] for part in plan_tasks("rte,boolq", data, None, 64).planned}
    for task in tasks.values():
        task._aggregation_list["acc"] = max  # nothing here resamples it
        task._higher_is_better["acc"] = False  # as a task's definition may say
    means = [AggMetricConfig(metric="acc")]
    outer, inner = (Group(name, aggregate_metric_list=means, metadata={"version": 1}) for name in ("outer", "inner"))
    inner.add(tasks["rte"]), inner.add(tasks["boolq"]), outer.add(inner)
    planned = plan_task(tasks, {"outer": outer, "inner": inner}, None, "here")
    found = evaluate(*tiny, EvalPlan((planned,), 64), label="x")
    tasks["rte"]._aggregation_list["acc"] = lambda rows: {"all": rows}  # no number, so there is no score
    assert list(evaluate(*tiny, EvalPlan((plan_task(tasks, {}, None, ""),), 64), "x").scores["rte"]) == [ANSWER_BITS]
    accuracy = {"acc": {"aggregation": None, "higher_is_better": False}}
    groups, members = (dict.fromkeys(names, accuracy) for names in (("inner", "outer"), ("rte", "boolq")))
    assert found.metrics == groups | {task: {**accuracy, ANSWER_BITS: BITS} for task in members}
    assert [list(found.samples[task]) for task in members] == [[ANSWER_BITS]] * 2
    alone = plan_task(tasks, {}, None, "here")  # whose scores lack the group's
    assert len({str(EvalPlan((each,), 64).key()) for each in (planned, alone)}) == 2


def test_answers_that_lm_eval_does_not_look_up_itself_have_no_bits(data, tiny):
    def scored(attributes: dict | None = None, **config: object) -> Evaluation:
        plan = plan_tasks("arc_easy", data, None, 64)
        task = plan.planned[0].tasks["arc_easy"]
        vars(task).update(attributes or {})
        vars(task.config).update(config)
        return evaluate(*tiny, plan, label="x")

    usual = scored()
    assert ANSWER_BITS in usual.scores["arc_easy"]
    several = scored({"multiple_target": 2}, doc_to_target=lambda doc: [0, 1])
    own = scored(process_results=lambda doc, results: {"acc": 1.0})
    for found in (own, several, scored(doc_to_target=lambda doc: -1)):
        assert ANSWER_BITS not in found.scores["arc_easy"] and ANSWER_BITS not in found.samples["arc_easy"]
        assert found.choices == usual.choices
    as_text = scored(doc_to_target=lambda doc: doc["choices"]["text"][doc["choices"]["label"].index(doc["answerKey"])])
    assert as_text.samples == usual.samples
    filters = [build_filter_ensemble(name, [["take_first", None]]) for name in ("one", "other")]
    assert scored({"_filters": filters}).choices == usual.choices  # one row a question
    # With mutual information, requests without a context follow.
    task = SimpleNamespace(doc_to_choice=lambda doc: ["a", "b"])
    sample = {"doc": {}, "resps": [[(-1.0, True)], [(-2.0, False)], [(-8.0, True)], [(-9.0, True)]]}
    assert choice_rows(task, [sample]) == [[-1.0, -2.0]]


@pytest.mark.parametrize("max_length", [256, 48])
def test_shared_contexts_give_the_log_likelihoods_of_single_requests(data, tiny, max_length):
    model, tokenizer = tiny
    model.config.max_position_embeddings = max_length
    plan, answers = plan_tasks("hellaswag,arc_easy,winogrande,rte,wikitext2", data, None, 32), []
    *tasks, text = (planned.tasks[planned.name] for planned in plan.planned)
    for task in (*tasks, text):
        task.build_all_requests(limit=None)
    for lm in (InMemoryLM(model, tokenizer, "tiny", None), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)):
        assert lm.max_length == max_length
        values = [pair for task in tasks for pair in lm.loglikelihood(task.instances)]
        values += [(value, True) for value in lm.loglikelihood_rolling(text.instances)]
        answers.append(torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


def test_a_continuation_is_greedy_only_if_each_of_its_tokens_is_the_likeliest(tiny):
    model, tokenizer = tiny
    asked = [5, 9, 77]
    right, _ = greedy(model, asked, 3, frozenset())
    wrong = [right[0] + 1, greedy(model, [*asked, right[0] + 1], 1, frozenset())[0][0]]
    requests = [(("", ""), asked, ids) for ids in (right, wrong)]
    found = InMemoryLM(model, tokenizer, "tiny", None)._loglikelihood_tokens(requests)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_tokens_are_scored_and_losses_taken_in_fp32(make_tiny_llama):
    model = load_model(make_tiny_llama(), torch.bfloat16, "cpu", "-p")
    hidden, targets = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.arange(5)
    exact = model.lm_head(hidden).double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    _, losses = frozen_head_loss(hidden, model.lm_head.weight, targets, model.config)
    for found in (token_scores(model, hidden, targets)[0], -losses[0]):
        assert torch.allclose(found.double(), exact, atol=1e-5)


def test_sharing_respects_the_budget_and_the_length_of_the_model():
    long, short = list(range(50)), list(range(4))
    requests = [(long, [1, 2])] * 5 + [(short, [1, 2, 3, 4, 5, 6])] * 2 + [(short, long[:40])]
    prompts, owners, cut = share_contexts(requests, max_length=40, budget=42)
    assert cut == 6 and prompts[-1] == PromptWithContinuations([3], [list(range(39))])
    assert owners == [[0, 1, 2], [3, 4], [5], [6], [7]] and all(len(row) <= 42 for row in prompts)
    assert all(len(row.prompt) + len(ids) <= 40 for row in prompts for ids in row.continuations)
    says = "^-eval_tasks: a continuation of 50 tokens is longer than the model's 40 pos"
    mistake(says, share_contexts, [(short, long)], max_length=40, budget=42)


def test_scores_are_kept_by_weights_rows_device_tokenizer_code_and_libraries(data, tiny, saved, tmp_path):
    def key(**changed) -> dict:
        given = {"model": "weights", "part": plan, "device": "cpu", "tokenizer_sha256": "sha"} | changed
        return scores.later(Cache(tmp_path), *given.values(), tokenizer=None).key

    plan, other = (plan_tasks("rte", data, limit, 64) for limit in (None, 2))
    for changed in ({"model": "others"}, {"part": other}, {"device": "cuda"}, {"tokenizer_sha256": "others"}):
        assert key(**changed) != key() == key(part=plan_tasks("rte", data, 3, 64))
    assert {"lm_eval", "transformers", "tokenizers", "torch"} <= set(PACKAGES) == set(key()["libraries"])
    assert key()["code"][1] == code_version(utils.evaluation, utils.packing, models)
    assert str(tmp_path) not in json.dumps(key())
    # A tokenizer's digest is of every file, but not of where it was saved from.
    tiny[1].save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "name_or_path": "/somewhere/else"}))
    digests = [tokenizer_digest(tmp_path)]
    assert digests == [tokenizer_digest(saved(0))]
    for name in ("tokenizer.json", "added_tokens.json", "additional_chat_templates/tools.jinja", "merges.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for content in ("{}", '{"a": 0}'):
            (tmp_path / name).write_text(content)
            digests.append(tokenizer_digest(tmp_path))
    assert len(set(digests)) == 9
