"""Evaluation: scores are what the logits say, plans are checked before a model loads, nothing asks the network."""

import json
import math
import socket
from pathlib import Path

import pytest
import torch
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.builders import masks_of
from utils.common.errors import UserError
from utils.evaluation import plan as eval_plan
from utils.evaluation.comparison import compare, recovered
from utils.evaluation.model import InMemoryLM, share_contexts
from utils.evaluation.plan import plan_tasks
from utils.evaluation.scoring import Evaluation, evaluate
from utils.evaluation.tasks import DEFINITIONS, MAIN_METRIC, PAPER_TASKS, TOKEN_PERPLEXITY, WIKITEXT, main_metric
from utils.packing import PromptWithContinuations

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
        {
            "activity_label": "Baking",
            "ctx_a": "A cook mixes flour.",
            "ctx_b": "she",
            "endings": ["adds [step] water.", "flies away.", "paints a wall.", "sleeps in it."],
            "label": str(gold),
        }
        for gold in (0, 3, 1)
    ],
    "winogrande": [
        {
            "sentence": "The cup broke the plate because _ was heavy.",
            "option1": "cup",
            "option2": "plate",
            "answer": "1",
        },
        {"sentence": "Ann thanked Eve since _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        {"sentence": "The rope held the stone as _ was strong.", "option1": "rope", "option2": "stone", "answer": "1"},
    ],
    "arc_easy": [
        {
            "question": "What melts?",
            "choices": {"text": ["ice", "hot sand", "air"], "label": ["A", "B", "C"]},
            "answerKey": k,
        }
        for k in "ABC"
    ],
    "openbookqa": [
        {"question_stem": "Birds can", "choices": {"text": ["fly", "read books"], "label": ["A", "B"]}, "answerKey": k}
        for k in "ABA"
    ],
}
ROWS["arc_challenge"] = ROWS["arc_easy"]
WIKI = "".join(
    f" \n = Title {letter} = \n \n The {letter} article has some words , a few of them rare . \n \n"
    " = = Part = = \n \n End of it . \n"
    for letter in "ABC"
)


@pytest.fixture
def data(tmp_path) -> Path:
    """A plain folder of three-row copies of all seven tasks, and a WikiText of three pages."""
    folder = tmp_path / "rows"
    for task, rows in ROWS.items():
        file = folder / task / f"{PAPER_TASKS[task].split}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / WIKITEXT).mkdir()
    (folder / WIKITEXT / "test.txt").write_text(WIKI, encoding="utf-8")
    return folder


@pytest.fixture
def tiny(make_tiny_llama):
    """A random Llama in fp32 and its byte tokenizer."""
    return load(make_tiny_llama())


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the network: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Sum of log-probabilities of the continuation's tokens, straight from the logits."""
    ids = torch.tensor([tokenizer(context + continuation).input_ids])
    start = len(tokenizer(context).input_ids)
    with torch.no_grad():
        scores = model(ids).logits.double().log_softmax(-1)
    return sum(scores[0, i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


def boolq_from_logits(model, tokenizer, rows) -> list[float]:
    right = []
    for row in rows:
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        chances = [log_likelihood(model, tokenizer, context, answer) for answer in (" no", " yes")]
        right.append(float(chances.index(max(chances)) == row["label"]))
    return right


def test_three_row_task_scores_as_its_logits_say(data, tiny):
    plan = plan_tasks("boolq", data, None, 64)
    result = evaluate(*tiny, plan, batch_size=2, label="dense")
    right = boolq_from_logits(*tiny, ROWS["boolq"])
    assert result.samples["boolq"]["acc"] == right
    mean = sum(right) / 3
    spread = math.sqrt(sum((x - mean) ** 2 for x in right) / 2 / 3)
    assert result.scores["boolq"]["acc"]["value"] == pytest.approx(mean)
    assert result.scores["boolq"]["acc"]["stderr"] == pytest.approx(spread)


def test_both_accuracies_of_arc_come_from_the_logits(data, tiny):
    plan = plan_tasks("arc_easy", data, None, 64)
    result = evaluate(*tiny, plan, batch_size="auto", label="dense")
    expected = {"acc": [], "acc_norm": []}
    for row in ROWS["arc_easy"]:
        texts, gold = row["choices"]["text"], "ABC".index(row["answerKey"])
        sums = [log_likelihood(*tiny, f"Question: {row['question']}\nAnswer:", f" {text}") for text in texts]
        by_length = [total / len(text) for total, text in zip(sums, texts, strict=True)]
        expected["acc"].append(float(sums.index(max(sums)) == gold))
        expected["acc_norm"].append(float(by_length.index(max(by_length)) == gold))
    assert {metric: result.samples["arc_easy"][metric] for metric in expected} == expected
    assert expected["acc"] != expected["acc_norm"]


def test_paper_runs_all_seven_and_perplexity_without_the_network(data, tiny, no_network):
    plan = plan_tasks("paper", data, None, 32)
    result = evaluate(*tiny, plan, batch_size="auto", label="dense")
    assert list(result.scores) == [*PAPER_TASKS, WIKITEXT]
    for task, metrics in result.scores.items():
        assert MAIN_METRIC[task] in metrics
        assert all(score["stderr"] is not None for score in metrics.values())
        assert task in result.seconds
        assert task == WIKITEXT or result.provenance["tasks"][task]["config"]["doc_to_text"] is not None
    assert {"token_perplexity", "word_perplexity"} <= set(result.scores[WIKITEXT])
    assert any("boolq: 3 rows" in line for line in plan.describe())


def test_token_perplexity_is_exp_of_the_mean_loss_over_whole_windows(data, tiny):
    model, tokenizer = tiny
    result = evaluate(*tiny, plan_tasks(WIKITEXT, data, 3, 40), batch_size=2, label="dense")
    rows = [line if line.strip() else "" for line in WIKI.splitlines(keepends=True)]
    ids = torch.tensor(tokenizer("\n\n".join(rows)).input_ids)
    losses = []
    for start in range(0, 120, 40):
        window = ids[start : start + 40].unsqueeze(0)
        with torch.no_grad():
            losses.append(model(window, labels=window).loss.item())
    score = result.scores[WIKITEXT]["token_perplexity"]
    assert result.samples[WIKITEXT]["token_perplexity"] == pytest.approx(losses, rel=1e-5)
    assert score["value"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)
    delta_method = score["value"] * torch.tensor(losses).std().item() / math.sqrt(3)
    assert score["stderr"] == pytest.approx(delta_method, rel=0.05)


def test_word_perplexity_counts_the_words_of_every_page(data, tiny):
    result = evaluate(*tiny, plan_tasks(WIKITEXT, data, None, 64), batch_size=2, label="dense")
    rows = result.samples[WIKITEXT]["word_perplexity"]
    assert len(rows) == 3
    total, words = (sum(row[i] for row in rows) for i in (0, 1))
    assert result.scores[WIKITEXT]["word_perplexity"]["value"] == pytest.approx(math.exp(-total / words))


def test_limit_takes_the_first_rows_and_windows(data, tiny):
    plan = plan_tasks("boolq,wikitext2", data, 2, 32)
    result = evaluate(*tiny, plan, batch_size=1, label="dense")
    assert result.samples["boolq"]["acc"] == boolq_from_logits(*tiny, ROWS["boolq"][:2])
    assert len(result.samples[WIKITEXT]["token_perplexity"]) == 2
    assert any("the first 2 of 3 rows" in line for line in plan.describe())


def test_key_follows_rows_limit_and_window_but_not_the_place(data, tmp_path):
    base = plan_tasks("paper", data, None, 64).key()
    moved = tmp_path / "elsewhere" / "tasks"
    moved.parent.mkdir()
    data.rename(moved)
    (moved / WIKITEXT).rename(moved.parent / WIKITEXT)
    data = moved.parent
    assert plan_tasks("paper", data, None, 64).key() == base
    assert json.loads(json.dumps(base)) == base
    limited = plan_tasks("paper", data, 2, 64).key()
    assert limited["tasks"]["boolq"] != base["tasks"]["boolq"]
    assert limited["token_perplexity"] != base["token_perplexity"]
    assert plan_tasks("paper", data, None, 32).key() != base
    changed = {**ROWS["rte"][2], "label": 0}
    rows = [*ROWS["rte"][:2], changed]
    (moved / "rte" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    now = plan_tasks("paper", data, None, 64).key()
    assert now["tasks"]["rte"] != base["tasks"]["rte"]
    assert now["tasks"]["boolq"] == base["tasks"]["boolq"]


def test_scores_read_back_from_json_equal_fresh_ones(data, tiny):
    plan = plan_tasks("arc_challenge,wikitext2", data, None, 64)
    first, second = (evaluate(*tiny, plan, batch_size=2, label="dense") for _ in range(2))
    cached = Evaluation.from_json(json.loads(json.dumps(first.to_json())))
    assert cached == first
    assert (cached.scores, cached.samples) == (second.scores, second.samples)


def test_paired_comparison_of_two_models(data, make_tiny_llama):
    plan = plan_tasks("hellaswag,wikitext2", data, None, 32)
    one, other = (evaluate(*load(make_tiny_llama(seed=s)), plan, batch_size=2, label="x") for s in (0, 5))
    found = compare(one, other)
    for metric in ("acc", "acc_norm"):
        rows = [each.samples["hellaswag"][metric] for each in (one, other)]
        difference = [a - b for a, b in zip(*rows, strict=True)]
        assert found["hellaswag"][metric]["difference"] == pytest.approx(sum(difference) / 3)
        assert 0 < found["hellaswag"][metric]["mcnemar_p"] <= 1
    assert found[WIKITEXT]["token_perplexity"]["mcnemar_p"] is None
    values = [each.scores[WIKITEXT]["token_perplexity"]["value"] for each in (one, other)]
    assert found[WIKITEXT]["token_perplexity"]["difference"] == pytest.approx(values[0] - values[1])
    shares = recovered(one, other, one)
    assert set(shares) == {"hellaswag", WIKITEXT}


def test_recovered_share_has_the_right_sign_and_is_silent_on_noise():
    def scored(rows, aggregation="mean", higher=True):
        kind = {"aggregation": aggregation, "higher_is_better": higher}
        return Evaluation(samples={"t": {"m": rows}}, metrics={"t": {"m": kind}})

    dense, pruned = scored([1.0] * 9 + [0.0]), scored([0.0] * 9 + [1.0])
    half = scored([1.0] * 5 + [0.0] * 5)
    assert recovered(dense, pruned, half)["t"]["m"] == pytest.approx((0.5 - 0.1) / 0.8)
    assert recovered(pruned, dense, half)["t"]["m"] is None
    assert recovered(scored([1.0, 0.0] * 5), scored([0.0, 1.0] * 5), half)["t"]["m"] is None
    losses = [[2.0, 2.1, 2.05], [3.0, 3.1, 3.02], [2.5, 2.6, 2.55]]
    dense, pruned, between = (scored(rows, "exp_mean", False) for rows in losses)
    share = recovered(dense, pruned, between)["t"]["m"]
    values = [math.exp(sum(rows) / 3) for rows in losses]
    assert share == pytest.approx((values[2] - values[1]) / (values[0] - values[1]))


def test_metric_map_names_a_real_metric_for_every_paper_task(data):
    plan = plan_tasks("paper", data, None, 64)
    for planned in plan.planned:
        for name, task in planned.tasks.items():
            allowed = {*task.aggregation(), "token_perplexity"} if name == WIKITEXT else set(task.aggregation())
            assert MAIN_METRIC[name] in allowed
    assert set(MAIN_METRIC) >= {*PAPER_TASKS, WIKITEXT}
    assert main_metric("unheard_of", ["acc", "acc_norm"]) == "acc_norm"


def test_tag_of_several_tasks_reads_all_of_them_from_the_folder(data, monkeypatch):
    arc = str(DEFINITIONS / "arc")

    def small(include_path=(), include_defaults=True):
        # Only lm_eval's ARC folder stands for all its definitions: indexing them takes ten seconds.
        return TaskManager(include_path=[arc, *include_path], include_defaults=False)

    monkeypatch.setattr(eval_plan, "TaskManager", small)
    plan = plan_tasks("ai2_arc", data, None, 64)
    assert [planned.name for planned in plan.planned] == ["arc_challenge", "arc_easy"]
    assert all(planned.rows[planned.name].total == 3 for planned in plan.planned)
    one_line(lambda: plan_tasks("arc_hard", data, None, 64), "-eval_tasks", "arc_hard", "did you mean")


def test_parts_of_a_plan_score_as_the_whole(data, tiny):
    plan = plan_tasks("rte,arc_easy,wikitext2", data, None, 32)
    whole = evaluate(*tiny, plan, label="x")
    joined = Evaluation.joined([evaluate(*tiny, part, label="x") for part in plan.parts()])
    assert (joined.scores, joined.samples, joined.metrics) == (whole.scores, whole.samples, whole.metrics)
    assert joined.choices == whole.choices and set(whole.choices) == {"rte", "arc_easy"}
    assert joined.provenance == whole.provenance
    assert [list(part.key()["tasks"]) for part in plan.parts()] == [["rte"], ["arc_easy"], [WIKITEXT]]


def test_bundled_group_is_its_single_tasks(tiny, no_network):
    plan = plan_tasks("bundled", None, 2, 64)
    result = evaluate(*tiny, plan, label="x")
    assert list(result.scores) == [planned.name for planned in plan.planned]
    assert len(result.scores) == 4
    for task, metrics in result.scores.items():
        assert MAIN_METRIC[task] in metrics
        assert metrics[MAIN_METRIC[task]]["stderr"] is not None


def test_token_perplexity_alone_has_windows_of_its_own(data, tiny):
    plan = plan_tasks("rte,wikitext2_tokens", data, 2, 40, windows=3)
    assert [len(part.planned) for part in plan.parts()] == [1, 0]
    found = Evaluation.joined([evaluate(*tiny, part, batch_size=2, label="dense") for part in plan.parts()])
    assert set(found.scores[WIKITEXT]) == {TOKEN_PERPLEXITY}
    assert len(found.samples[WIKITEXT][TOKEN_PERPLEXITY]) == 3 and len(found.samples["rte"]["acc"]) == 2
    both = evaluate(*tiny, plan_tasks(WIKITEXT, data, 3, 40), batch_size=2, label="dense")
    assert both.samples[WIKITEXT][TOKEN_PERPLEXITY] == found.samples[WIKITEXT][TOKEN_PERPLEXITY]
    assert plan_tasks("wikitext2_tokens", data, 2, 40, windows=2).key() != plan.parts()[1].key()


def test_none_evaluates_nothing(tiny):
    plan = plan_tasks("none", None, None, 64)
    assert plan.describe() == []
    assert evaluate(*tiny, plan, label="dense").scores == {}


def one_line(call, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_missing_split_is_named(data):
    (data / "rte" / "validation.jsonl").unlink()
    one_line(lambda: plan_tasks("paper", data, None, 64), "-eval_data_dir", "rte", "validation.jsonl")


def test_truncated_jsonl_is_named_with_file_and_row(data):
    file = data / "openbookqa" / "test.jsonl"
    file.write_text(file.read_text()[:-20])
    one_line(lambda: plan_tasks("openbookqa", data, None, 64), "-eval_data_dir", str(file), "row 3", "truncated")


@pytest.mark.parametrize(
    ("task", "change", "word"),
    [
        ("boolq", {"passage": None}, "passage"),
        ("boolq", {"label": "yes"}, "label"),
        ("hellaswag", {"label": "7"}, "label"),
        ("winogrande", {"sentence": "no gap here"}, "sentence"),
        ("arc_easy", {"answerKey": "Z"}, "answerKey"),
        ("arc_challenge", {"choices": ["a", "b"]}, "choices"),
    ],
)
def test_wrong_field_is_named_with_file_and_row(data, task, change, word):
    file = data / task / f"{PAPER_TASKS[task].split}.jsonl"
    rows = [ROWS[task][0], {**ROWS[task][1], **change}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one_line(lambda: plan_tasks(task, data, None, 64), "-eval_data_dir", str(file), "row 2", word)


def test_missing_wikitext_is_named(data):
    (data / WIKITEXT / "test.txt").unlink()
    one_line(lambda: plan_tasks(WIKITEXT, data, None, 64), "-eval_data_dir", "test.txt")


def test_paper_without_wikitext_runs_the_seven_and_says_so(data):
    (data / WIKITEXT / "test.txt").unlink()
    plan = plan_tasks("paper", data, None, 64)
    assert [planned.name for planned in plan.planned] == list(PAPER_TASKS)
    assert "wikitext2: left out" in plan.describe()[-1]


def test_task_named_twice_is_scored_once(data):
    plan = plan_tasks("rte,paper,rte", data, None, 64)
    assert [planned.name for planned in plan.planned].count("rte") == 1


def test_data_folder_that_is_none_is_named(tmp_path):
    one_line(lambda: plan_tasks("paper", tmp_path / "absent", None, 64), "-eval_data_dir", "absent")


def test_hub_out_of_reach_says_what_to_do_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(eval_plan.datasets.config, "HF_HUB_OFFLINE", True)
    one_line(lambda: plan_tasks("rte", None, None, 64), "-eval_tasks", "rte", "HF_HOME", "-eval_data_dir")


def test_a_window_beyond_the_models_positions_is_refused(data, tiny):
    plan = plan_tasks(WIKITEXT, data, None, 64)
    plan.check_model(tiny[1], 64)
    one_line(lambda: plan.check_model(tiny[1], 63), "-ppl_window", "64", "63 or less")
    plan_tasks("rte", data, None, 64).check_model(tiny[1], 63)
    tiny[0].config.max_position_embeddings = 63
    one_line(lambda: evaluate(*tiny, plan, label="x"), "-ppl_window")


ONE_WORD = {
    "only its beginning": models.BPE({"<s>": 0}, []),
    "all unknown": models.WordLevel({"<s>": 0, "<unk>": 1}, unk_token="<unk>"),
    "no other word": models.WordLevel({"<s>": 0, "word": 1}, unk_token="<unk>"),
}


@pytest.mark.parametrize("tasks", ["rte", "wikitext2_tokens"])
@pytest.mark.parametrize("words", ONE_WORD.values(), ids=ONE_WORD)
def test_a_tokenizer_that_tells_no_words_apart_is_refused(data, tasks, words):
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    plan = plan_tasks(tasks, data, None, 64)
    one_line(lambda: plan.check_model(tokenizer, 256), "-base_model_name", "tokenizer")


def test_empty_name_is_refused():
    one_line(lambda: plan_tasks("boolq,,rte", None, None, 64), "-eval_tasks")


@pytest.mark.parametrize("max_length", [256, 48])
def test_shared_contexts_give_the_log_likelihoods_of_single_requests(data, tiny, max_length):
    model, tokenizer = tiny
    model.config.max_position_embeddings = max_length
    answers = {}
    plan = plan_tasks("hellaswag,arc_easy,winogrande,rte,wikitext2", data, None, 32)
    for batch_size in ("auto", 1):
        lm = InMemoryLM(model, tokenizer, batch_size, "tiny")
        assert lm.max_length == max_length
        values = []
        for planned in plan.planned:
            planned.loaded.build_all_requests(limit=None)
            requests = planned.loaded.instances
            if planned.name == WIKITEXT:
                values += [(value, True) for value in lm.loglikelihood_rolling(requests)]
            else:
                values += lm.loglikelihood(requests)
        answers[batch_size] = values
    packed, single = (torch.tensor(answers[each], dtype=torch.float64) for each in ("auto", 1))
    torch.testing.assert_close(packed, single, rtol=1e-5, atol=1e-5)


def test_contexts_with_one_continuation_each_need_no_mask(tiny):
    model, tokenizer = tiny
    seen = masks_of(model)
    requests = [(None, [5, 6, 7], [8]), (None, [1], [2, 3]), (None, [4] * 9, [9])]
    InMemoryLM(model, tokenizer, "auto", "")._loglikelihood_tokens(requests)
    assert seen and set(seen) == {None}


def test_sharing_respects_the_budget_and_the_length_of_the_model():
    long, short = list(range(50)), list(range(4))
    requests = [(long, [1, 2])] * 5 + [(short, [1, 2, 3, 4, 5, 6])] * 2 + [(short, long)]
    prompts, owners, cut = share_contexts(requests, max_length=40, budget=42)
    assert cut == 6
    assert prompts[-1] == PromptWithContinuations([9], [list(range(10, 49))]) and owners[-1] == [7]
    assert [owners[row] for row in range(2)] == [[0, 1, 2], [3, 4]]
    assert all(len(row.prompt) + len(ids) <= 40 for row in prompts for ids in row.continuations)
    assert all(len(row) <= 42 for row in prompts)
    assert sorted(owner for members in owners for owner in members) == list(range(8))
    assert all(len(row.continuations) == 1 for row in prompts if row.prompt == short)
