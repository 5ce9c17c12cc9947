"""A mirror holds all that an air-gapped machine needs, and its damage is named."""

import json
import shutil
import subprocess
import sys

import datasets
import pytest
from lm_eval.tasks import TaskManager

from tests.evaluation.test_evaluation import ROWS, data, no_network, one_line, tiny  # noqa: F401
from utils.evaluation import mirror
from utils.evaluation.plan import TaskLoader, plan_tasks
from utils.evaluation.scoring import evaluate
from utils.evaluation.tasks import PAPER_TASKS, WIKITEXT


@pytest.fixture
def made(data, tmp_path):  # noqa: F811
    """A mirror of all seven tasks and WikiText-2, made from the plain folder."""
    mirror.main(["-tasks", "paper", "-output_dir", str(tmp_path / "mirror"), "-eval_data_dir", str(data)])
    return tmp_path / "mirror"


def test_mirror_gives_the_scores_of_its_source_without_the_network(data, made, tiny, no_network):  # noqa: F811
    from_folder, from_mirror = (plan_tasks("paper", place, None, 32) for place in (data, made))
    assert from_mirror.key() == from_folder.key()
    scores = [evaluate(*tiny, plan, label="x").scores for plan in (from_folder, from_mirror)]
    assert scores[0] == scores[1]


def test_mirror_from_the_hub_writes_the_split_that_is_scored(monkeypatch, tmp_path):
    def hub(path, name=None, **kwargs):
        task = {"nyu-mll/glue": "rte", "allenai/openbookqa": "openbookqa"}[path]
        rows = datasets.Dataset.from_list(ROWS[task])
        return datasets.DatasetDict({"train": rows.select([0]), "validation": rows.select([1, 2]), "test": rows})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: [])
    record = mirror.write_mirror("rte,openbookqa", tmp_path / "mirror")
    assert set(record["sha256"]) == {
        "tasks/rte/validation.jsonl",
        "tasks/rte/train.jsonl",
        "tasks/openbookqa/test.jsonl",
    }
    lines = (tmp_path / "mirror/tasks/rte/validation.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS["rte"][1:]


def test_lm_eval_alone_reads_the_mirror_wherever_it_lies(made, tmp_path, monkeypatch, no_network):  # noqa: F811
    moved = shutil.move(made, tmp_path / "moved")
    monkeypatch.chdir("/")
    tasks = TaskManager(include_path=str(moved / "lm_eval"), include_defaults=False).load(list(PAPER_TASKS))["tasks"]
    assert set(tasks) == set(PAPER_TASKS)
    for name, task in tasks.items():
        assert len(task.eval_docs) == 3
        assert task.has_test_docs() == (PAPER_TASKS[name].split == "test")
    assert tasks["hellaswag"].eval_docs[0]["choices"][0] == "adds water."  # lm_eval's own function cleaned it
    assert tasks["winogrande"].doc_to_choice(ROWS["winogrande"][0])[1] == "The cup broke the plate because plate"


def test_wikitext_of_a_mirror_is_the_source_text(data, made):  # noqa: F811
    texts = [plan_tasks(WIKITEXT, place, None, 32).wikitext for place in (data, made)]
    assert texts[0] == texts[1]


def test_changed_file_of_a_mirror_is_named(made):
    file = made / "tasks" / "boolq" / "validation.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    one_line(lambda: plan_tasks("paper", made, None, 32), "-eval_data_dir", str(file), "mirror")


def test_mirror_of_an_unknown_task_leaves_nothing_behind(tmp_path, monkeypatch):
    def definitions(self, name):
        raise mirror.UserError(f"{self.flag}: unknown task '{name}'")

    monkeypatch.setattr(TaskLoader, "definitions", definitions)
    one_line(lambda: mirror.write_mirror("no_such_task", tmp_path / "mirror"), "-tasks", "no_such_task")
    assert list(tmp_path.iterdir()) == []


def test_mirror_command_says_a_mistake_in_one_line(tmp_path):
    mirror = [sys.executable, "-m", "utils.evaluation.mirror"]
    command = [*mirror, "-output_dir", str(tmp_path / "m"), "-eval_data_dir", "/absent"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: -eval_data_dir") and ended.stderr.count("\n") == 1


def test_mirror_takes_flags_as_all_commands_do(tmp_path):
    one_line(lambda: mirror.main(["-output_dir", str(tmp_path / "m"), "-limit", "3"]), "-limit")
