"""What the hub reads of a card is what was measured: valid whatever the names, and nothing where nothing was."""

import copy
import re

import pytest
from huggingface_hub import ModelCard
from lm_eval.tasks._yaml_loader import load_yaml

from models.model_names import SHORT_NAMES
from tests.report.made import HOSTILE, PROOF, RUN, hostile, make_results, task, whole, with_answers
from utils.evaluation.task_loading import _HUB_WIKITEXT
from utils.evaluation.tasks import DEFINITIONS, PAPER_TASKS, TOKEN_PERPLEXITY, WIKITEXT
from utils.report import card
from utils.report.card import model_card
from utils.report.tables import proof_rows

FOUND = {
    **make_results(
        boolq=task(0.7512345678901234, 0.51, 1 / 3),
        arc_easy=task(0.7, 0.5, 0.6, stderr=None),
        wikitext2=task(24.2, 54.0, 1e-05, "token_perplexity", 0.3),
        gsm8k=task(0.2, 0.0, 0.0, "exact_match,strict-match"),
    ),
    "proof": PROOF,
    "provenance": {
        "restored": {
            "tasks": {
                "boolq": {"rows": 1024, "rows_in_split": 3270, "num_fewshot": 0},
                "gsm8k": {"rows": 8, "rows_in_split": 8, "num_fewshot": 5},
                "wikitext2": {"rows": 62, "rows_in_split": 62, "num_fewshot": 0},
            },
            "token_perplexity": {"windows": 17, "window_tokens": 64},
        }
    },
}
for _model in FOUND["scores"].values():
    _model["boolq"]["answer_bits_per_byte"] = {"value": 1.25, "stderr": 0.5}
    _model["wikitext2"]["word_perplexity"] = {"value": 2, "stderr": None}
KNOWN = {
    "language", "library_name", "license", "pipeline_tag", "tags", "base_model", "base_model_relation", "model-index",
}  # fmt: skip
"""The keys of a card's metadata, by the hub's documentation."""


def data_of(results: dict, run: dict):
    """The metadata of a card, which the hub takes and which is the same once written and read again."""
    found = ModelCard(model_card(results, run))
    assert found.data.to_dict().keys() <= KNOWN
    assert ModelCard(str(found)).data.to_dict() == found.data.to_dict()
    return found.data


def scores_of(results: dict, run: dict = RUN) -> dict:
    return {each.metric_name: each for each in data_of(results, run).eval_results or []}


def test_every_score_is_there_as_it_was_measured_with_how_much_it_is_of():
    found, scores = scores_of(FOUND), FOUND["scores"]["restored"]
    wanted = {f"{name} {metric}": score["value"] for name in scores for metric, score in scores[name].items()}
    assert {name: each.metric_value for name, each in found.items()} == wanted and len(wanted) == 6
    assert found["boolq acc"].metric_args == {"n": 1024, "n_in_split": 3270, "num_fewshot": 0, "stderr": 0.02}
    assert found["wikitext2 token_perplexity"].metric_args == {"n": 17, "stderr": 0.3}
    assert found["arc_easy acc"].metric_args is None
    types = [found[name].metric_type for name in ("boolq acc", "wikitext2 word_perplexity")]
    assert types == ["accuracy", "perplexity"]
    text = model_card(FOUND, RUN)
    place = "BoolQ (SuperGLUE)<br>aps/super_glue, boolq, validation"
    assert f"| boolq acc | {place} | rows: 1,024 of 3,270 | 0 |" in text
    assert "| gsm8k exact_match,strict-match | gsm8k | rows: 8 | 5 |" in text
    assert "| windows of 64 tokens: 17 | – |" in text and "| pages: 62 | – |" in text


def test_data_sets_are_those_that_lm_evals_definitions_read():
    for name, known in PAPER_TASKS.items():
        definition = load_yaml(DEFINITIONS / known.definition, resolve_func=False)
        place, _, config, split = card.DATASETS[name]
        assert (place, config) == (definition["dataset_path"], definition.get("dataset_name"))
        assert split == known.split == (definition.get("test_split") or definition["validation_split"])
    assert (card.TEXT, card.TOKEN_PERPLEXITY) == (WIKITEXT, TOKEN_PERPLEXITY)
    assert card.DATASETS[WIKITEXT][::2] == _HUB_WIKITEXT


def test_a_folders_text_is_named_by_itself():
    assert scores_of(FOUND)["wikitext2 word_perplexity"].dataset_type == "Salesforce/wikitext"
    local = scores_of(FOUND, {**RUN, "arguments": {"eval_data_dir": "/data/ann/texts"}})
    assert local["wikitext2 word_perplexity"].dataset_type == "wikitext2"
    assert local["boolq acc"].dataset_type == "aps/super_glue"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "N/A"])
def test_what_is_no_number_is_left_out(value):
    results = copy.deepcopy(FOUND)
    results["scores"]["restored"]["boolq"]["acc"]["value"] = value
    results["scores"]["restored"]["gsm8k"]["exact_match,strict-match"]["stderr"] = value
    found = scores_of(results)
    assert len(found) == 5 and "boolq acc" not in found
    assert "stderr" not in found["gsm8k exact_match,strict-match"].metric_args
    nothing = {**FOUND, "scores": {"pruned": {"a": {"acc": {}}}}}
    assert scores_of(nothing) == {} and "What was scored" not in model_card(nothing, RUN)


@pytest.mark.parametrize(
    "name",
    ['say "no"', "it's", "a: b", "- a", "a #b", "{a}", "[a", "&a", "`a`", "? a", "|", ">", "null", "1e3", "2026-01-02",
     "~", "a\n---\nb", "a\r\nb", "\ta", "ü 漢 😀", "a" * 200, "x\u2028y", "...", "a\\nb", "owner/na\nme", "k: {a: ["],
)  # fmt: skip
def test_no_name_of_a_model_breaks_the_card(name):
    for models in ({"dense": name, "pruned": None}, {"dense": f"/data/{name}", "pruned": name}):
        data = data_of(FOUND, {**RUN, "models": models, "pruning": {"method": name, "sparsity": name}})
        assert len(data.eval_results) == 6 and data.model_name.endswith("restored with RestoreLCC")
        assert data.tags == ["llama", "pruned", "restorelcc"] and data.base_model is None


@pytest.mark.parametrize("name", [HOSTILE, "`</code><img src=x>", "[a](javascript:b)|c"])
def test_a_name_is_no_markup_on_the_card(name):
    for results, run in (
        (FOUND, {**RUN, "models": {"dense": f"/data/{name}", "pruned": name}, "arguments": {"output_dir": name}}),
        (hostile().results, hostile().run),
    ):
        text = model_card(results, run)
        assert not {"img", "svg", "script", "a"} & set(re.findall(r"<(\w+)", text))
        assert "](" not in text.partition("\n---\n")[2] and "|c" not in text.partition("\n---\n")[2]
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert {line.count("|") for line in rows} <= {3, 4, 5, 8}  # no name makes a cell


@pytest.mark.parametrize(
    ("models", "base", "license"),
    [
        ({"dense": "embedded", "pruned": "/x/wanda"}, "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ({"dense": "llama2_7B", "pruned": None}, SHORT_NAMES["llama2_7B"], "llama2"),
        ({"dense": "llama2_7B", "pruned": "someone/llama2-wanda"}, "someone/llama2-wanda", "llama2"),
        ({"dense": "models/llama", "pruned": "/x/wanda"}, None, None),
        ({"dense": "owner/unknown"}, "owner/unknown", None),
    ],
)
def test_a_base_model_is_named_only_by_its_hub_id(models, base, license, tmp_path, monkeypatch):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    data = data_of(FOUND, {**RUN, "models": models})
    assert (data.get("base_model"), data.get("license")) == (base, license)
    assert data.get("base_model_relation") == (base and "finetune")
    assert data_of(FOUND, {**RUN, "models": models, "method": {"restores": False}}).get("base_model_relation") is None


def test_the_card_holds_table_proof_way_of_use_and_no_private_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    title = "what is in /home/ann/notes"
    text = model_card(with_answers() | {"proof": PROOF}, {**RUN, "method": {"title": title, "restores": True}})
    for part in ("| a<br>acc | 70.00 ±\u00a06.00 |", "| -0.100 ±\u00a00.007 | 33 % | better |", "**worse**"):
        assert part in text
    assert all(f"| {promise} | {numbers} | yes |" in text for promise, numbers, _ in proof_rows(PROOF))
    assert "AutoModelForCausalLM.from_pretrained" in text and "restored with what is in ~/notes" in text
    assert "/home/ann" not in text and "/data/ann" not in text and "173c87a5" in text
    assert "2 of its 15 attention heads" in model_card(whole().results, RUN)
