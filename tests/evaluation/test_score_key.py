"""Scores are kept by all that determines them, and each keeps the record of what it was measured with."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import utils.evaluation.perplexity
import utils.evaluation.tasks
from models.loading import tokenizer_digest
from tests.evaluation.test_evaluation import ROWS, data, tiny  # noqa: F401
from utils import packing
from utils.evaluation import answers, model, plan, scoring, statistics, token_scores
from utils.evaluation.plan import EvalPlan, plan_tasks
from utils.evaluation.scoring import Evaluation, evaluate, score_key
from utils.evaluation.tasks import TOKEN_PERPLEXITY, WIKITEXT

CODE = (
    scoring,
    answers,
    model,
    packing,
    plan,
    statistics,
    token_scores,
    utils.evaluation.perplexity,
    utils.evaluation.tasks,
)


@pytest.fixture
def part(data):  # noqa: F811
    """A plan of one task."""
    return plan_tasks("rte", data, None, 64)


@pytest.fixture
def folder(make_tiny_llama) -> Path:
    return make_tiny_llama()


def test_the_key_is_json_that_holds_no_path(part, folder, tmp_path):
    key = score_key(part, folder)
    assert json.loads(json.dumps(key)) == key
    assert str(folder) not in json.dumps(key)
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    assert score_key(part, copied) == key


def test_another_bos_of_the_tokenizer_is_another_key(part, folder):
    before = score_key(part, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = tokenizer("a").input_ids
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [256, *plain]
    changed = {name for name, value in score_key(part, folder).items() if value != before[name]}
    assert changed == {"tokenizer"}


@pytest.mark.parametrize(
    ("file", "text", "other"),
    [
        ("tokenizer_config.json", '{"add_bos_token": true}', '{"add_bos_token": false}'),
        ("special_tokens_map.json", '{"bos_token": "</s>"}', '{"bos_token": "<s>"}'),
        ("added_tokens.json", '{"<pad>": 258}', '{"<pad>": 259}'),
        ("chat_template.jinja", "{{ messages }}", "{{ messages[0] }}"),
        ("additional_chat_templates/tools.jinja", "{{ tools }}", "{{ tools[0] }}"),
        ("tokenizer.model", "pieces", "other pieces"),
        ("vocab.json", '{"a": 0}', '{"b": 0}'),
        ("merges.txt", "a b", "b a"),
    ],
)
def test_every_file_of_a_tokenizer_counts(folder, file, text, other):
    digests = {tokenizer_digest(folder)}
    (folder / file).parent.mkdir(exist_ok=True)
    for content in (text, other):
        (folder / file).write_text(content)
        digests.add(tokenizer_digest(folder))
    assert len(digests) == 3


def test_where_a_tokenizer_was_saved_from_does_not_count(folder, tmp_path):
    moved = tmp_path / "again"
    AutoTokenizer.from_pretrained(folder).save_pretrained(moved)
    config = moved / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "name_or_path": "/somewhere/else"}))
    assert config.read_text() != (folder / "tokenizer_config.json").read_text()
    assert tokenizer_digest(moved) == tokenizer_digest(folder)


@pytest.mark.parametrize("module", CODE, ids=lambda module: module.__name__.rpartition(".")[2])
def test_changed_code_is_another_key(part, folder, module, tmp_path, monkeypatch):
    before = score_key(part, folder)
    source = Path(inspect.getsourcefile(module))
    edited = tmp_path / source.name
    edited.write_text(source.read_text() + "# changed\n")
    found = inspect.getsourcefile
    monkeypatch.setattr(inspect, "getsourcefile", lambda other: edited if other is module else found(other))
    changed = {name for name, value in score_key(part, folder).items() if value != before[name]}
    assert changed == {"code"}


@pytest.mark.parametrize("package", ["lm_eval", "transformers", "torch", "tokenizers", "datasets"])
def test_another_version_of_a_library_is_another_key(part, folder, package, monkeypatch):
    before = score_key(part, folder)
    found = scoring.version
    monkeypatch.setattr(scoring, "version", lambda name: "0.0" if name == package else found(name))
    changed = {name for name, value in score_key(part, folder).items() if value != before[name]}
    assert changed == {"versions"}


def test_other_rows_that_examples_are_drawn_from_are_another_key(data):  # noqa: F811
    def key(examples: list[dict]) -> dict:
        task = plan_tasks("rte", data, None, 64).planned[0].loaded
        task.set_config("num_fewshot", 2)
        task.fewshot_docs = lambda: examples
        return EvalPlan((plan.plan_task(task, None, "here"),), None, 64).key()["tasks"]["rte"]

    one, again, other = key(ROWS["rte"][:2]), key(ROWS["rte"][:2]), key(ROWS["rte"][1:])
    assert one == again
    assert {name for name, value in other.items() if value != one[name]} == {"examples"}


def test_joined_parts_keep_what_each_was_measured_with(data, tiny, monkeypatch):  # noqa: F811
    first, second, third = plan_tasks("rte,boolq,wikitext2", data, 2, 32).parts()
    now = scoring.version("lm_eval")
    measured = [evaluate(*tiny, first, batch_size=2, label="x")]
    found = scoring.version
    monkeypatch.setattr(scoring, "version", lambda name: "0.0" if name == "lm_eval" else found(name))
    measured.append(evaluate(*tiny, third, label="x"))
    tiny[0].bfloat16()
    measured.append(evaluate(*tiny, second, label="x"))
    provenance = Evaluation.joined([Evaluation.from_json(part.to_json()) for part in measured]).provenance
    names = ("dtype", "batch_size", "device")
    told = {
        task: (about["versions"]["lm_eval"], *(about[name] for name in names))
        for task, about in {**provenance["tasks"], TOKEN_PERPLEXITY: provenance[TOKEN_PERPLEXITY]}.items()
    }
    assert told == {
        "rte": (now, "float32", 2, "cpu"),
        WIKITEXT: ("0.0", "float32", "auto", "cpu"),
        TOKEN_PERPLEXITY: ("0.0", "float32", "auto", "cpu"),
        "boolq": ("0.0", "bfloat16", "auto", "cpu"),
    }
    for about in provenance["tasks"].values():
        assert set(about["versions"]) == {"lm_eval", "transformers", "torch", "tokenizers", "datasets"}
    assert set(provenance) == {"tasks", TOKEN_PERPLEXITY}  # nothing is said of all that holds for some
