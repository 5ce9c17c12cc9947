"""Loading of samples, the bundled set and the bundled evaluation tasks."""

import json
import re
from collections import Counter
from unittest.mock import Mock

import pytest
import torch

from data.sources import BUNDLED_FOLDER, Sample, alpaca_prompt, bundled_text, check_data_path, load_samples
from tests.builders import mistake
from tests.runs import write_samples

SIZES = {"train": 2000, "valid": 250, "heldout": 520}
TASKS = {"bundled_response": 280, "bundled_facts": 373, "bundled_arithmetic": 300, "bundled_heldout": 220}


def alpaca(count: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"Say {i}.", "input": "Loudly." if i % 2 else "", "output": f"Number {i}."}
        for i in range(start, start + count)
    ]


def responses(split) -> list[list[str]]:
    return [[sample.response for sample in samples] for samples in (split.train, split.valid)]


def test_every_format_gives_the_same_samples_in_the_templates_words_and_the_files_order(tmp_path):
    rows = alpaca(5)
    rows[2]["output"] = "  Two."  # of its spaces only the one before a label goes
    expected = load_samples(str(write_samples(tmp_path / "a.jsonl", rows)), 3, 2)
    assert expected.train == [
        Sample("### Instruction:\nSay 0.\n\n### Response:", "Number 0."),
        Sample("### Instruction:\nSay 1.\n\n### Input:\nLoudly.\n\n### Response:", "Number 1."),
        Sample("### Instruction:\nSay 2.\n\n### Response:", "  Two."),
    ]
    assert responses(expected)[1] == ["Number 3.", "Number 4."]
    without_inputs = [{name: value for name, value in row.items() if value} for row in rows]
    (tmp_path / "b.json").write_text(json.dumps(without_inputs), encoding="utf-8")
    texts = [{"text": s.prompt, "label": f" {s.response}"} for s in [*expected.train, *expected.valid]]
    torch.save(texts, tmp_path / "c.pt")
    no_inputs = [{**row, "input": row["input"] or None, "response": row.pop("output")} for row in rows]
    write_samples(tmp_path / "d.jsonl", no_inputs)
    for name in ("b.json", "c.pt", "d.jsonl"):
        assert load_samples(str(tmp_path / name), 3, 2) == expected, name


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_a_folder_brings_its_validation_file(tmp_path, name):
    write_samples(tmp_path / "train.jsonl", alpaca(3))
    (tmp_path / f"{name}.json").write_text(json.dumps(alpaca(2, start=10)), encoding="utf-8")
    assert responses(load_samples(str(tmp_path), 2, 2)) == [["Number 0.", "Number 1."], ["Number 10.", "Number 11."]]


def test_hub_ids_go_to_the_hub_which_may_be_out_of_reach(monkeypatch):
    hub = Mock(return_value=alpaca(9))
    monkeypatch.setattr("datasets.load_dataset", hub)
    assert responses(load_samples("someone/alpaca", 2, 1)) == [["Number 0.", "Number 1."], ["Number 2."]]
    hub.assert_called_once_with("someone/alpaca", split="train")
    hub.side_effect = ConnectionError("no route\nto host")
    mistake(r"cannot get 'no/route' from the hub \(no route\)", load_samples, "no/route", 1, 1)
    hub.side_effect = RuntimeError("round and round")  # no OSError
    mistake(r"cannot get 'no/route' from the hub \(round", load_samples, "no/route", 1, 1)


def test_wrong_paths_are_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "empty").mkdir()
    wrong = dict.fromkeys(("gone.jsonl", "/no/such/folder", "alpaca"), "does not exist")
    for path, says in (wrong | {"a.csv": "is none of .jsonl, .json, .pt", "empty": "holds no train.jsonl"}).items():
        mistake(f"^-data_path: {path} {says}", check_data_path, path)


def test_samples_with_an_empty_response_are_left_out_and_too_few_are_counted(tmp_path, capsys):
    rows = alpaca(10)
    for row, empty in ((1, ""), (4, "  "), (6, None), (9, "")):  # the last one is beyond the split
        rows[row]["output"] = empty
    path = str(write_samples(tmp_path / "train.jsonl", rows))
    assert responses(load_samples(path, 4, 2)) == [[f"Number {i}." for i in rows] for rows in ((0, 2, 3, 5), (7, 8))]
    assert capsys.readouterr().out == f"{path}: left out 3 samples with an empty response (rows 2, 5, 7)\n"
    few = "has 6 samples with a response, but -num_train_samples + -num_valid_samples is 5 + 2"
    assert mistake(None, load_samples, path, 5, 2).startswith(f"-data_path: {path} {few}")
    valid = write_samples(tmp_path / "valid.jsonl", alpaca(1))
    mistake(f"{valid} has 1 sample, but -num_valid_samples is 2", load_samples, str(tmp_path), 4, 2)


@pytest.fixture(scope="module")
def bundled() -> dict[str, list[dict]]:
    """The rows of the set's three files, and of the tasks."""
    files = [BUNDLED_FOLDER / f"{name}.jsonl" for name in SIZES]
    files += [BUNDLED_FOLDER.parent / "tasks" / f"{name}.jsonl" for name in TASKS]
    return {file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files}


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


FAMILIES = {
    "addition": lambda ask, given, answer: numbers(answer)[-1] == sum(numbers(ask)),
    "average": lambda ask, given, answer: numbers(answer)[-1] * len(numbers(given)) == sum(numbers(given)),
    "sort_numbers": lambda ask, given, answer: numbers(answer) == sorted(numbers(given), reverse="descending" in ask),
    "discount": lambda ask, given, answer: numbers(answer)[-1] * 100 == numbers(ask)[0] * (100 - numbers(ask)[1]),
    "reverse_word": lambda ask, given, answer: answer == re.search('"(.*)"', ask)[1][::-1],
    "initials": lambda ask, given, answer: answer == "".join(word[0] for word in given.split()),
}


def test_the_bundled_set_is_whole_right_asks_nothing_twice_and_holds_out_answers(bundled):
    assert {name: len(rows) for name, rows in bundled.items()} == {**SIZES, **TASKS}
    loaded = load_samples("bundled", 2000, 250)
    assert (len(loaded.train), len(loaded.valid)) == (2000, 250)
    assert bundled_text() == [f"{s.prompt} {s.response}" for s in loaded.train]
    rows = [row for name in SIZES for row in bundled[name]]
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)
    assert all(row["output"].strip() for row in rows)
    trained, heldout = ({(row["family"], row["output"]) for row in part} for part in (rows[:2250], rows[2250:]))
    assert not trained & heldout
    computed = [row for row in rows if row["family"] in FAMILIES]
    assert all(FAMILIES[row["family"]](row["instruction"], row["input"], row["output"]) for row in computed)
    assert len(computed) == 123


def test_choices_differ_and_the_right_one_is_anywhere_and_nothing_was_trained_on(bundled):
    for name in list(TASKS)[:3]:
        rows = bundled[name]
        assert len({(row["prompt"], *sorted(row["choices"])) for row in rows}) == len(rows)
        assert all(len(set(row["choices"])) == 4 for row in rows), name
        places = Counter(row["answer"] for row in rows)
        assert set(places) == set(range(4)) and min(places.values()) > len(rows) / 8, name
    for row in bundled["bundled_arithmetic"]:
        a, sign, b = row["prompt"].splitlines()[-1].split()[:3]
        result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert row["choices"][row["answer"]] == str(result)
    own = {alpaca_prompt(row["instruction"], row["input"]): row["output"] for row in bundled["heldout"]}
    assert all(row["choices"][row["answer"]] == own[row["prompt"]] for row in bundled["bundled_response"])
    # Tasks are disjoint from training and from each other.
    rows = bundled["train"] + bundled["valid"]
    prompts = [{row["prompt"] for row in bundled[name]} for name in ("bundled_response", "bundled_heldout")]
    prompts.append({alpaca_prompt(row["instruction"], row["input"]) for row in rows})
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    texts = "".join(f" {row['instruction']} {row['output']}" for row in rows).replace("×", "*")
    assert not [row for row in bundled["bundled_arithmetic"] if f" {row['prompt'].splitlines()[-1]}" in texts]
