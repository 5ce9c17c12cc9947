"""Samples for task-specific recovery: the original's form, the task's own training split, the right negatives."""

import json

import pytest

from tests.evaluation.test_evaluation import ROWS, one_line
from utils.common.names import SPEC_TASKS
from utils.evaluation.plan import plan_tasks
from utils.evaluation.spec_tasks import load_spec_samples
from utils.evaluation.tasks import PAPER_TASKS


@pytest.fixture
def folder(tmp_path):
    """A plain folder with training and evaluation splits of the four tasks."""
    for task in SPEC_TASKS:
        for split in {"train", PAPER_TASKS[task].split}:
            file = tmp_path / task / f"{split}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    return tmp_path


@pytest.mark.parametrize("task", SPEC_TASKS)
def test_prompts_and_responses_are_what_lm_eval_scores(folder, task):
    (scored,) = plan_tasks(task, folder, None, 32).planned[0].tasks.values()
    by_prompt = {}
    for row in scored.eval_docs:
        choices = scored.doc_to_choice(row)
        by_prompt.setdefault(scored.doc_to_text(row), []).append((choices, choices[scored.doc_to_target(row)]))
    samples = load_spec_samples(task, folder, 3, seed=7)
    assert len(samples) == 3
    for sample in samples:
        assert sample.prompt.endswith("\nAnswer:")
        matching = [choices for choices, right in by_prompt[sample.prompt] if right == sample.response]
        assert matching
        assert sorted((*sample.negatives, sample.response)) == sorted(matching[0])


def test_labels_are_words_of_the_original(folder):
    answers = {task: {s.response for s in load_spec_samples(task, folder, 3, 0)} for task in ("boolq", "rte")}
    assert answers == {"boolq": {"yes", "no"}, "rte": {"True", "False"}}


def test_seed_decides_which_rows_are_drawn(tmp_path):
    rows = [{**ROWS["rte"][0], "sentence1": f"Sentence {i}."} for i in range(40)]
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, again, other = (load_spec_samples("rte", tmp_path, 10, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 10


def test_mistakes_are_one_line(folder):
    one_line(lambda: load_spec_samples("hellaswag", folder, 3, 0), "-spec_task", "hellaswag")
    one_line(lambda: load_spec_samples("rte", folder, 4, 0), "-num_train_samples", "rte", "3 rows")
    (folder / "rte" / "train.jsonl").unlink()
    one_line(lambda: load_spec_samples("rte", folder, 3, 0), "-eval_data_dir", "train.jsonl")
