"""Tasks, their rows and the model are checked before a model is loaded; one line says what is wrong."""

import json
from functools import partial
from unittest.mock import Mock

import pytest
from lm_eval.tasks import TaskManager

from data.sources import Sample
from tests.builders import mistake, write_files
from tests.evaluation.material import QUESTIONS, ROWS, SPLITS
from tests.runs import write_samples
from utils.common.flags import parse_arguments
from utils.common.names import SPEC_TASKS
from utils.evaluation import task_loading
from utils.evaluation.scoring import evaluate
from utils.evaluation.task_loading import load_texts, plan_tasks
from utils.evaluation.tasks import DEFINITIONS, PAPER_TASKS, WIKITEXT


def write(data, task: str, rows: list[dict], split: str | None = None) -> None:
    write_samples(data / task / f"{split or SPLITS[task]}.jsonl", rows, encoding="utf-8-sig")  # a mark too


def test_key_follows_rows_limit_and_window_but_not_the_place(data, tmp_path):
    plan = plan_tasks("paper,rte", data, None, 64)  # rte, named twice, is scored once
    assert [planned.name for planned in plan.planned] == [*PAPER_TASKS, WIKITEXT]
    base = plan.key()
    moved = tmp_path / "elsewhere" / "tasks"
    moved.parent.mkdir()
    data.rename(moved)
    (moved / WIKITEXT).rename(moved.parent / WIKITEXT)

    def changed(limit: int | None = None, window: int = 64) -> set[str]:
        key = plan_tasks("paper", moved.parent, limit, window).key()
        return {name for name in key if key[name] != base[name]}

    assert json.loads(json.dumps(base)) == base and changed() == set()
    assert {"boolq", "token_perplexity"} < changed(limit=2) and changed(window=32) == {"token_perplexity"}
    write(moved, "rte", [*ROWS["rte"][:2], {**ROWS["rte"][2], "label": 0}])
    assert changed() == {"rte"}


def test_tags_groups_and_examples_are_read_from_the_folder_and_other_examples_are_another_key(data, tiny, monkeypatch):
    easy, acc = str(DEFINITIONS / "arc" / "arc_easy.yaml"), [{"metric": "acc", "weight_by_size": True}]
    shots = {"task": "arc_shots", "include": easy, "num_fewshot": 2, "tag": None}
    both = {"group": "arc_both", "task": ["arc_easy", "arc_challenge"], "aggregate_metric_list": acc}
    write_files(data / "arc_shots", {"task.yaml": json.dumps(shots), "group.yaml": json.dumps(both)})
    # Only lm_eval's ARC folder stands for all its definitions: indexing them takes ten seconds.
    manager = TaskManager(include_path=[str(DEFINITIONS / "arc"), str(data / "arc_shots")], include_defaults=False)
    monkeypatch.setattr(task_loading, "every_task", lambda: manager)

    def planned(name: str) -> list[tuple[str, list[int]]]:
        parts = plan_tasks(name, data, None, 64).planned
        return [(part.name, [record["rows"] for record in part.records.values()]) for part in parts]

    assert planned("ai2_arc") == [("arc_challenge", [3]), ("arc_easy", [3])]
    assert planned("arc_both") == planned("arc_both,arc_easy") == [("arc_both", [3, 3])]
    assert planned("arc_easy,arc_challenge,arc_both")[2:] == [("arc_both", [3, 3])]  # whose own score is not there yet
    mistake("^-eval_tasks: .*'arc_hard'; did you mean", planned, "arc_hard")
    write(data, "arc_shots", ROWS["arc_easy"], "test")
    mistake("^-eval_data_dir: .*train split of arc_shots", planned, "arc_shots")
    write(data, "arc_shots", ROWS["arc_easy"] * 2, "train")
    plan = plan_tasks("arc_shots", data, None, 64)
    task = plan.planned[0].tasks["arc_shots"]
    assert len(list(task.fewshot_docs())) == 6 and len(task.eval_docs) == 3
    write(data, "arc_shots", ROWS["arc_easy"], "train")
    one, other = (each.key()["arc_shots"] for each in (plan, plan_tasks("arc_shots", data, None, 64)))
    assert {name for name, value in one.items() if value != other[name]} == {"examples_sha256"}
    found = [evaluate(*tiny, plan, label="x").choices for _ in range(3)]
    assert found[0] == found[1] == found[2], "each model is shown the same examples"


def test_what_the_folder_or_a_row_lacks_and_a_hub_out_of_reach_are_one_line(data, monkeypatch):
    def refused(tasks: str, says: str, folder=data) -> None:
        mistake(f"^{says}", plan_tasks, tasks, folder, None, 64)

    (data / WIKITEXT / "test.txt").unlink()  # without which `paper` is the seven
    plan = plan_tasks("paper", data, None, 64)
    assert [planned.name for planned in plan.planned] == list(PAPER_TASKS)
    assert "wikitext2: left out" in plan.describe()[-1]
    for tasks in (WIKITEXT, "paper,wikitext2_tokens", "wikitext2_tokens,paper"):
        refused(tasks, r"-eval_data_dir: .*test\.txt")
    (data / WIKITEXT / "test.txt").write_text("one\u2028row\x0b\n \nanother\n")
    assert task_loading.wikitext_rows(data)[0] == ["one\u2028row\x0b\n", "", "another\n"]
    (data / WIKITEXT / "test.txt").write_text(" \n")
    refused(WIKITEXT, r"-eval_data_dir: .*test\.txt .*empty")
    for wrong, says in (({"passage": None}, "'passage' is undefined"), ({"label": -1}, "of which -1 is right")):
        write(data, "boolq", [ROWS["boolq"][0], {**ROWS["boolq"][1], **wrong}])
        refused("boolq", f"-eval_data_dir: .*row 2: .*{says}")
    refused("boolq,,rte", "-eval_tasks: ")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(task_loading.datasets.config, "HF_HUB_OFFLINE", True)
    refused("rte", "-eval_tasks: .*'rte' .*HF_HOME .*-eval_data_dir", folder=None)
    monkeypatch.setattr(task_loading.ConfigurableTask, "UNSAFE_CODE", True, raising=False)
    refused("rte", "-eval_tasks: rte runs code")
    monkeypatch.setattr(task_loading.TaskManager, "load", Mock(side_effect=[ImportError("thing"), OSError("no code")]))
    refused("rte", "-eval_tasks: .*'rte' .*thing", folder=None)
    refused("rte", "-eval_data_dir: rte in .*no code")


def test_a_function_whose_arguments_are_set_is_known_by_its_source_and_them():
    one, same, other = (task_loading._jsonable(partial(drawn, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other and one[0].startswith("def drawn(") and one[2] == {"seed": 1}


def drawn(data, task: str, count: int, seed: int) -> list[Sample]:
    words = "-spec_task", task, "-eval_data_dir", data, "-num_train_samples", count, "-data_seed", seed
    split = load_texts(parse_arguments([str(word) for word in words]))
    assert split.valid == []
    return split.train


@pytest.mark.parametrize("task", SPEC_TASKS)
def test_samples_of_a_task_are_its_rows_with_right_and_wrong_answers(data, task):
    mistake(r"^-eval_data_dir: .*train\.jsonl", drawn, data, task, 3, 0)
    write(data, task, ROWS[task], "train")
    expected = set()
    for choices, right in map(QUESTIONS[task], ROWS[task]):
        texts = [text.removeprefix(" ") for _, text in choices]
        expected.add(Sample(choices[0][0], texts[right], tuple(text for text in texts if text != texts[right])))
    assert set(drawn(data, task, 3, seed=7)) == expected


def test_seed_decides_which_samples_are_drawn(data):
    write(data, "rte", [{**ROWS["rte"][0], "sentence1": f"Sentence {i}."} for i in range(40)], "train")
    first, again, other = (drawn(data, "rte", 10, seed) for seed in (1, 1, 2))
    assert first == again != other and len(set(first)) == 10
