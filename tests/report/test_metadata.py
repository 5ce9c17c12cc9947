"""What the hub reads of a card is what was measured: valid whatever the names, and nothing where nothing was."""

import copy

import pytest
from huggingface_hub import ModelCard
from lm_eval.tasks._yaml_loader import load_yaml

from models.names import SHORT_NAMES
from tests.report.test_report import RESULTS, RUN, make_results, task
from utils.evaluation.task_loading import _HUB_WIKITEXT
from utils.evaluation.tasks import DEFINITIONS, PAPER_TASKS, TOKEN_PERPLEXITY, WIKITEXT
from utils.report import metadata
from utils.report.card import model_card

FOUND = {
    **make_results(
        boolq=task(0.7512345678901234, 0.51, 1 / 3),
        arc_easy=task(0.7, 0.5, 0.6, stderr=None),
        arc_challenge=task(0.4, 0.2, 0.30000000000000004, "acc_norm"),
        bundled_facts=task(0.6, 0.5, 0.55),
        wikitext2=task(24.2, 54.0, 1e-05, "token_perplexity", 0.3),
        gsm8k=task(0.2, 0.0, 0.0, "exact_match,strict-match"),
    ),
    "proof": RESULTS["proof"],
}
for _model in FOUND["scores"].values():
    _model["boolq"]["answer_bits_per_byte"] = {"value": 1.25, "stderr": 0.5}
    _model["wikitext2"]["word_perplexity"] = {"value": 2, "stderr": None}
FOUND["provenance"] = {
    "restored": {
        "tasks": {
            "boolq": {"rows": 1024, "rows_in_split": 3270, "num_fewshot": 0},
            "gsm8k": {"rows": 8, "rows_in_split": 8, "num_fewshot": 5},
            "wikitext2": {"rows": 62, "rows_in_split": 62, "num_fewshot": 0},
        },
        "token_perplexity": {"windows": 17, "window_tokens": 64},
    }
}


KNOWN = {
    "language", "library_name", "license", "pipeline_tag", "tags", "base_model", "base_model_relation", "model-index",
}  # fmt: skip
"""The keys of a card's metadata, by the hub's documentation."""


def data_of(results: dict, run: dict):
    """The metadata of a card, which the hub takes and which is the same once written and read again."""
    card = ModelCard(model_card(results, run))
    assert card.data.to_dict().keys() <= KNOWN
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    return card.data


def results_of(data) -> dict:
    return {each.metric_name: each for each in data.eval_results}


def test_every_score_of_the_restored_model_is_there_as_it_was_measured():
    found = results_of(data_of(FOUND, RUN))
    scores = FOUND["scores"]["restored"]
    wanted = {f"{name} {metric}": score["value"] for name in scores for metric, score in scores[name].items()}
    assert {name: each.metric_value for name, each in found.items()} == wanted and len(wanted) == 8
    assert {each.verified for each in found.values()} == {False}
    assert {each.task_type for each in found.values()} == {"text-generation"}
    assert found["boolq acc"].metric_args == {"n": 1024, "n_in_split": 3270, "num_fewshot": 0, "stderr": 0.02}
    assert found["wikitext2 token_perplexity"].metric_args == {"n": 17, "stderr": 0.3}
    assert found["arc_easy acc"].metric_args is None
    types = {name: each.metric_type for name, each in found.items()}
    assert types["boolq acc"] == "accuracy" and types["wikitext2 word_perplexity"] == "perplexity"
    assert types["arc_challenge acc_norm"] == "acc_norm"
    assert types["gsm8k exact_match,strict-match"] == "exact_match,strict-match"


def test_data_sets_are_those_that_the_tasks_read(monkeypatch):
    hub = results_of(data_of(FOUND, RUN))
    places = {name: (each.dataset_type, each.dataset_config, each.dataset_split) for name, each in hub.items()}
    assert places["boolq acc"] == places["boolq answer_bits_per_byte"] == ("aps/super_glue", "boolq", "validation")
    assert places["arc_easy acc"] == ("allenai/ai2_arc", "ARC-Easy", "test")
    assert hub["arc_challenge acc_norm"].dataset_name == "ARC-Challenge"  # though of the same repository
    assert places["bundled_facts acc"] == ("bundled_facts", None, None)
    assert places["wikitext2 token_perplexity"] == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    # A folder's text may be any.
    local = {**RUN, "arguments": {**RUN["arguments"], "eval_data_dir": "/data/ann/texts"}}
    for name, each in results_of(data_of(FOUND, local)).items():
        wanted = ("wikitext2", None, None) if name.startswith("wikitext2 ") else places[name]
        assert (each.dataset_type, each.dataset_config, each.dataset_split) == wanted


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_the_papers_data_sets_are_those_of_lm_evals_definitions(name):
    definition = load_yaml(DEFINITIONS / PAPER_TASKS[name].definition, resolve_func=False)
    data = metadata.DATASETS[name]
    assert (data.id, data.config) == (definition["dataset_path"], definition.get("dataset_name"))
    assert data.split == PAPER_TASKS[name].split
    assert data.split == (definition.get("test_split") or definition["validation_split"])


def test_the_text_of_wikitext_has_one_name_here():
    assert (metadata.HUB_WIKITEXT.id, metadata.HUB_WIKITEXT.config) == _HUB_WIKITEXT
    assert (metadata.WIKITEXT, metadata.TOKEN_PERPLEXITY) == (WIKITEXT, TOKEN_PERPLEXITY)
    assert metadata.DATASETS.keys() == PAPER_TASKS.keys()


def test_the_text_says_how_many_rows_were_scored():
    card = model_card(FOUND, RUN)
    place = "BoolQ (SuperGLUE)<br>`aps/super_glue`, `boolq`, `validation`"
    assert f"| `boolq`<br>acc | {place} | rows: 1,024 of 3,270 | 0 |" in card
    assert "| `gsm8k`<br>exact_match,strict-match | `gsm8k` | rows: 8 | 5 |" in card
    assert "| windows of 64 tokens: 17 | – |" in card and "| pages: 62 | – |" in card
    assert "| `bundled_facts`<br>acc | `bundled_facts` | – | – |" in card


@pytest.mark.parametrize("scores", [{}, {"restored": {}}, {"restored": {"boolq": {}}}, {"pruned": {"a": {"acc": {}}}}])
def test_where_nothing_was_measured_nothing_is_listed(scores):
    results = {**RESULTS, "scores": scores, "paired": {}, "metrics": {}}
    data = data_of(results, RUN)
    assert "model-index" not in data.to_dict() and not data.eval_results
    assert "What was scored" not in model_card(results, RUN)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "N/A"])
def test_what_is_no_number_is_left_out(value):
    results = copy.deepcopy(FOUND)
    results["scores"]["restored"]["boolq"]["acc"]["value"] = value
    results["scores"]["restored"]["gsm8k"]["exact_match,strict-match"]["stderr"] = value
    found = results_of(data_of(results, RUN))
    assert len(found) == 7 and "boolq acc" not in found
    assert "stderr" not in found["gsm8k exact_match,strict-match"].metric_args


HOSTILE = [
    'say "no"', "it's", "a: b", "- a", "#a", "a #b", "{a}", "[a", "*a", "&a", "!a", "%a", "@a", "`a`", "? a", "|", ">",
    "null", "yes", "1e3", "0x10", "2026-01-02", "~", "a\nb", "---", "a\n---\nb", "a\r\nb", "\ta", "ü 漢 😀", "a" * 200,
    "x\u2028y", "x\x85y", "...", "<script>", "a\\nb", "{{ a }}", "owner/na\nme", "me: x/y", "key: {a: [",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_a_model_breaks_the_card(name):
    for models in ({"dense": name, "pruned": None}, {"dense": f"/data/{name}", "pruned": name}):
        run = {**RUN, "models": models, "pruning": {"method": name, "sparsity": name}}
        data = data_of(FOUND, run)
        assert len(data.eval_results) == 8 and data.model_name.endswith("restored with RestoreLCC")
        assert data.tags == ["llama", "pruned", "restorelcc"] and data.base_model is None
        body = ModelCard(model_card(FOUND, run)).text
        assert body.strip().splitlines()[0] == f"# {data.model_name}"


def test_a_home_folder_is_hidden_in_the_metadata_and_leaves_it_whole(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    run = {**RUN, "method": {"title": "what is in /home/ann/notes", "restores": True}}
    assert data_of(FOUND, run).model_name.endswith("restored with what is in ~/notes")
    assert "/home/ann" not in model_card(FOUND, run)


def test_a_restored_model_is_a_finetune_and_one_that_is_only_pruned_is_not():
    models = {"dense": "llama2_7B", "pruned": None}
    data = data_of(FOUND, {**RUN, "models": models})
    assert (data.base_model, data.base_model_relation) == (SHORT_NAMES["llama2_7B"], "finetune")
    nothing = {**RUN, "models": models, "method": {"restores": False}}
    assert data_of(FOUND, nothing).get("base_model_relation") is None
    assert data_of(FOUND, RUN | {"models": {"dense": "/x/y"}}).get("base_model_relation") is None
