"""Scores are kept by all that determines them."""

import json
import shutil

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from models.loading import tokenizer_digest
from utils.evaluation import scoring
from utils.evaluation.scoring import score_key
from utils.evaluation.task_loading import plan_tasks


def test_the_key_follows_tokenizer_code_and_versions_and_holds_no_path(data, saved, tmp_path, monkeypatch):
    part, folder = plan_tasks("rte", data, None, 64), tmp_path / "copied"
    before = score_key(part, saved())
    shutil.copytree(saved(), folder)
    assert score_key(part, folder) == json.loads(json.dumps(before)) == before
    assert str(tmp_path) not in json.dumps(before)

    def changed() -> set[str]:
        return {name for name, value in score_key(part, folder).items() if value != before[name]}

    found = scoring.version
    for package in ("lm_eval", "tokenizers"):
        with monkeypatch.context() as patched:
            patched.setattr(scoring, "version", lambda name, package=package: "0" if name == package else found(name))
            assert changed() == {"versions"}
    with monkeypatch.context() as patched:
        files = []
        patched.setattr(scoring, "digest_files", lambda paths: files.extend(path.name for path in paths))
        assert changed() == {"code"} and {"packing.py", "scoring.py", "answers.py", "tasks.py"} < set(files)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = tokenizer("a").input_ids
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [256, *plain]
    assert changed() == {"tokenizer"}


def test_every_file_of_a_tokenizer_counts_but_not_where_it_was_saved_from(saved, tmp_path):
    AutoTokenizer.from_pretrained(saved()).save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "name_or_path": "/somewhere/else"}))
    digests = [tokenizer_digest(tmp_path)]
    assert digests == [tokenizer_digest(saved())]
    for name in ("added_tokens.json", "additional_chat_templates/tools.jinja", "tokenizer.model", "merges.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for content in ("{}", '{"a": 0}'):
            (tmp_path / name).write_text(content)
            digests.append(tokenizer_digest(tmp_path))
    assert len(set(digests)) == 9
