"""A card is valid whatever the names in it, and says what was measured without a private folder."""

import re

import pytest
from huggingface_hub import ModelCard

from models.model_names import SHORT_NAMES
from tests.report.made import HOSTILE, PROOF, RUN, hostile, with_answers
from utils.report.card import model_card
from utils.report.tables import proof_rows

FOUND = with_answers() | {"proof": PROOF}
KNOWN = {"language", "library_name", "license", "pipeline_tag", "tags", "base_model", "base_model_relation"}
"""The keys of a card's metadata, by the hub's documentation."""


def data_of(run: dict):
    """The metadata of a card, which the hub takes and which is the same once written and read again."""
    found = ModelCard(model_card(FOUND, run))
    assert found.data.to_dict().keys() <= KNOWN
    assert ModelCard(str(found)).data.to_dict() == found.data.to_dict()
    return found.data


@pytest.mark.parametrize("name", [
    'say "no"', "it's", "a: b", "- a", "a #b", "{a}", "[a", "&a", "`a`", "? a", "|", ">", "null", "1e3", "2026-01-02",
    "~", "a\n---\nb", "a\r\nb", "\ta", "ü 漢 😀", "a" * 200, "x\u2028y", "...", "a\\nb", "owner/na\nme", "k: {a: [",
    HOSTILE, "`</code><img src=x>", "[a](javascript:b)|c", "*a* _b_",
])  # fmt: skip
def test_no_name_breaks_the_card_or_is_markup_on_it(name):
    for models in ({"dense": name, "pruned": None}, {"dense": f"/data/{name}", "pruned": name}):
        run = RUN | {"models": models, "arguments": {"output_dir": name}, "pruning": {"method": name, "sparsity": name}}
        data = data_of(run)
        assert data.tags == ["llama", "pruned", "restorelcc"] and data.base_model is None
        for text in (model_card(FOUND, run), model_card(hostile().results, hostile().run)):
            assert not {"img", "svg", "script", "a"} & set(re.findall(r"<(\w+)", text))
            assert not any(mark in text.partition("\n---\n")[2] for mark in ("](", "|c", "*a*", "_b_"))
            rows = [line for line in text.splitlines() if line.startswith("| ")]
            assert {line.count("|") for line in rows} <= {3, 4, 8}  # no name makes a cell


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
    data = data_of({**RUN, "models": models})
    assert (data.get("base_model"), data.get("license")) == (base, license)
    assert data.get("base_model_relation") == (base and "finetune")
    assert data_of({**RUN, "models": models, "method": {"restores": False}}).get("base_model_relation") is None


def test_the_card_holds_table_proof_way_of_use_and_no_private_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    title = "what is in /home/ann/notes, not in https://example.org/home/ann"
    text = model_card(FOUND, {**RUN, "method": {"title": title, "restores": True}})
    for part in ("| a<br>acc | 70.00 ±\u00a06.00 |", "| -0.100 ±\u00a00.007 | 33 % | better |", "**worse**"):
        assert part in text
    assert all(f"| {promise} | {numbers} | yes |" in text for promise, numbers, _ in proof_rows(PROOF))
    assert "AutoModelForCausalLM.from_pretrained" in text and "restored with what is in ~/notes" in text
    control = model_card(FOUND | {"proof": {**PROOF, "zeros_pruned": 0}}, RUN)
    assert all(f"{words} trained with" in control for words in ("left unpruned,", ") and")) and "zeros buy" in text
    assert "zeros buy" not in control and "compact/</code> is" in model_card(FOUND | {"proof_compact": PROOF}, RUN)
    assert "example.org/home/ann" in text and "173c87a5" in text
    assert not re.search("(?<!example.org)/home/ann|/data/ann", text)
