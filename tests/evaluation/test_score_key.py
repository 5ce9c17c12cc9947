"""Scores are kept by all that determines them."""

import json

import utils.evaluation
from models.loading import tokenizer_digest
from utils.common.cache import Cache, code_version
from utils.evaluation.scoring import PACKAGES
from utils.evaluation.task_loading import plan_tasks
from utils.stages.measure import scores


def test_scores_are_kept_by_weights_rows_device_tokenizer_code_and_libraries(data, tmp_path):
    def key(**changed) -> dict:
        given = {"model": "weights", "part": plan, "device": "cpu", "tokenizer_sha256": "sha"} | changed
        return scores.later(Cache(tmp_path), *given.values(), tokenizer=None, label="x").key()

    plan, other = (plan_tasks("rte", data, limit, 64) for limit in (None, 2))
    for changed in ({"model": "others"}, {"part": other}, {"device": "cuda"}, {"tokenizer_sha256": "others"}):
        assert key(**changed) != key() == key(part=plan_tasks("rte", data, 3, 64))
    assert {"lm_eval", "transformers", "tokenizers", "torch"} <= set(PACKAGES) == set(key()["libraries"])
    assert key()["code"][1] == code_version(utils.evaluation, utils.packing)
    assert str(tmp_path) not in json.dumps(key())


def test_every_file_of_a_tokenizer_counts_but_not_where_it_was_saved_from(load, saved, tmp_path):
    load(0)[1].save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "name_or_path": "/somewhere/else"}))
    digests = [tokenizer_digest(tmp_path)]
    assert digests == [tokenizer_digest(saved())]
    for name in ("tokenizer.json", "added_tokens.json", "additional_chat_templates/tools.jinja", "merges.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for content in ("{}", '{"a": 0}'):
            (tmp_path / name).write_text(content)
            digests.append(tokenizer_digest(tmp_path))
    assert len(set(digests)) == 9
