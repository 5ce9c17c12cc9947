"""Loading of samples, the bundled set and the bundled evaluation tasks."""

import calendar
import json
import math
import re
import socket
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.loading import BUNDLED_FOLDER, Sample, bundled_text, check_data_path, load_samples
from utils.common.errors import UserError

TASKS_FOLDER = BUNDLED_FOLDER.parent / "tasks"
SIZES = {"train": 2000, "valid": 250, "heldout": 520}
MONTHS = list(calendar.month_name)[1:]
TASKS = ("bundled_response", "bundled_facts", "bundled_arithmetic", "bundled_heldout")


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def alpaca(count: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"Say {i}.", "input": "Loudly." if i % 2 else "", "output": f"Number {i}."}
        for i in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def error_of(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_samples(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Loading


def test_every_format_gives_the_same_samples(tmp_path):
    rows = alpaca(5)
    jsonl = write_jsonl(tmp_path / "a.jsonl", rows)
    as_list = tmp_path / "b.json"
    as_list.write_text(json.dumps(rows), encoding="utf-8")
    original = tmp_path / "c.pt"
    expected = load_samples(jsonl, 3, 2)
    torch.save([{"text": s.prompt, "label": f" {s.response}"} for s in [*expected.train, *expected.valid]], original)
    responses = write_jsonl(
        tmp_path / "d.jsonl",
        [{"instruction": r["instruction"], "input": r["input"], "response": r["output"]} for r in rows],
    )
    for path in (as_list, original, responses):
        assert load_samples(str(path), 3, 2) == expected, path


def test_samples_hold_the_template_and_keep_the_order_of_the_file(tmp_path):
    loaded = load_samples(write_jsonl(tmp_path / "a.jsonl", alpaca(4)), 2, 1)
    assert loaded.train == [
        Sample("### Instruction:\nSay 0.\n\n### Response:", "Number 0."),
        Sample("### Instruction:\nSay 1.\n\n### Input:\nLoudly.\n\n### Response:", "Number 1."),
    ]
    assert [sample.response for sample in loaded.valid] == ["Number 2."]


def test_a_response_loses_one_leading_space_only(tmp_path):
    torch.save([{"text": "Q:", "label": "  code"}], tmp_path / "a.pt")
    assert load_samples(str(tmp_path / "a.pt"), 1, 0).train == [Sample("Q:", " code")]


def test_input_may_be_missing(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Go.", "output": "Gone."}])
    assert load_samples(path, 1, 0).train == [Sample("### Instruction:\nGo.\n\n### Response:", "Gone.")]


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_a_folder_brings_its_validation_file(tmp_path, name):
    write_jsonl(tmp_path / "train.jsonl", alpaca(3))
    (tmp_path / f"{name}.json").write_text(json.dumps(alpaca(2, start=10)), encoding="utf-8")
    loaded = load_samples(str(tmp_path), 2, 2)
    assert [s.response for s in loaded.train] == ["Number 0.", "Number 1."]
    assert [s.response for s in loaded.valid] == ["Number 10.", "Number 11."]


def test_valid_path_wins_over_the_folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", alpaca(3))
    write_jsonl(tmp_path / "valid.jsonl", alpaca(3, start=10))
    other = write_jsonl(tmp_path / "other.jsonl", alpaca(3, start=20))
    assert load_samples(str(tmp_path), 2, 1, valid_path=other).valid[0].response == "Number 20."


def test_hub_ids_go_to_the_hub_and_take_its_first_rows(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return alpaca(9)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    loaded = load_samples("someone/alpaca", 2, 1)
    assert asked == [("someone/alpaca", "train")]
    assert [s.response for s in (*loaded.train, *loaded.valid)] == ["Number 0.", "Number 1.", "Number 2."]


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert "cannot get 'someone/alpaca' from the hub (no route)" in error_of("someone/alpaca", 1, 1)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone.jsonl", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("alpaca", "does not exist"),
        ("a.csv", "is none of .jsonl, .json, .pt"),
        ("empty", "holds no train.jsonl"),
    ],
)
def test_wrong_paths_are_named_before_anything_is_read(tmp_path, monkeypatch, path, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=says) as caught:
        check_data_path(path)
    assert str(caught.value).startswith(f"-data_path: {path} ")
    with pytest.raises(UserError, match=says) as caught:
        check_data_path("bundled", path)
    assert str(caught.value).startswith(f"-valid_data_path: {path} ")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a", \n', ":2: not valid JSON"),
        ('{"instruction": "a", "output": "b"}\n\n{"instruction": "a"}\n', ":3: field 'output' is missing"),
        ('{"output": "b"}\n', ":1: field 'instruction' is missing"),
        ('{"instruction": "  ", "output": "b"}\n', ":1: field 'instruction' is empty"),
        ('{"instruction": "a", "output": 7}\n', ":1: field 'output' is no text"),
        ('{"instruction": "a", "input": [], "output": "b"}\n', ":1: field 'input' is no text"),
        ('["a", "b"]\n', ":1: not an object"),
    ],
)
def test_damaged_rows_are_named_with_file_and_row(tmp_path, lines, says):
    path = tmp_path / "a.jsonl"
    path.write_text(lines, encoding="utf-8")
    assert error_of(str(path), 3, 0).startswith(f"-data_path: {path}{says}")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "a",\n "output": }]', encoding="utf-8")
    assert "a.json:2: not valid JSON" in error_of(str(tmp_path / "a.json"), 1, 0)
    (tmp_path / "b.json").write_text('{"instruction": "a"}', encoding="utf-8")
    assert "holds no list of samples" in error_of(str(tmp_path / "b.json"), 1, 0)
    (tmp_path / "c.pt").write_bytes(b"no zip at all")
    assert "cannot read" in error_of(str(tmp_path / "c.pt"), 1, 0)
    torch.save({"text": "a"}, tmp_path / "d.pt")
    assert "holds no list of samples" in error_of(str(tmp_path / "d.pt"), 1, 0)
    (tmp_path / "e.jsonl").write_bytes(b'{"instruction": "\xff"}')
    assert "UTF-8" in error_of(str(tmp_path / "e.jsonl"), 1, 0)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_pt_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save([Harmful()], tmp_path / "a.pt")
    assert "cannot read" in error_of(str(tmp_path / "a.pt"), 1, 0)
    assert not (tmp_path / "harm").exists()


def test_empty_responses_stop_the_run_or_are_left_out_and_named(tmp_path, capsys):
    rows = alpaca(10)
    for row, empty in ((1, ""), (4, "  "), (6, None), (9, "")):
        rows[row]["output"] = empty
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    message = error_of(path, 5, 2)
    assert message.startswith(f"-data_path: {path}: 3 samples have an empty response (rows 2, 5, 7)")
    assert "-skip_bad_samples" in message
    loaded = load_samples(path, 4, 2, skip_bad=True)
    assert [s.response for s in loaded.train] == [f"Number {i}." for i in (0, 2, 3, 5)]
    assert [s.response for s in loaded.valid] == ["Number 7.", "Number 8."]
    assert capsys.readouterr().out == f"{path}: 3 samples have an empty response (rows 2, 5, 7): left out\n"


def test_rows_beyond_the_split_are_not_judged(tmp_path):
    rows = alpaca(5)
    rows[4]["output"] = ""
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert len(load_samples(path, 3, 1).train) == 3


def test_too_few_samples_say_how_many_there_are(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", alpaca(5))
    message = error_of(path, 4, 2)
    assert "has 5 samples, but -num_train_samples + -num_valid_samples asks for 4 + 2" in message
    few = write_jsonl(tmp_path / "few.jsonl", alpaca(1))
    assert error_of(path, 4, 2, valid_path=few).startswith(f"-valid_data_path: {few} has 1 samples")


def test_real_alpaca_loads(shared):
    loaded = load_samples(str(shared / "data" / "alpaca"), 2000, 250)
    assert (len(loaded.train), len(loaded.valid)) == (2000, 250)


# The bundled set


@pytest.fixture(scope="module")
def bundled() -> dict[str, list[dict]]:
    return {name: rows_of(BUNDLED_FOLDER / f"{name}.jsonl") for name in SIZES}


def test_bundled_set_has_the_promised_size_and_loads():
    loaded = load_samples("bundled", 2000, 250)
    assert (len(loaded.train), len(loaded.valid)) == (2000, 250)
    texts = bundled_text()
    assert texts[:2000] == [f"{s.prompt} {s.response}" for s in loaded.train]
    assert len(texts) == 2000


def test_bundled_files_are_disjoint_and_without_repeats(bundled):
    asked = Counter((row["instruction"], row["input"]) for rows in bundled.values() for row in rows)
    assert max(asked.values()) == 1
    assert {name: len(rows) for name, rows in bundled.items()} == SIZES
    assert all(row["output"].strip() for rows in bundled.values() for row in rows)


def test_no_heldout_answer_is_a_training_answer_of_its_family(bundled):
    trained = {(row["family"], row["output"]) for row in bundled["train"] + bundled["valid"]}
    assert not trained & {(row["family"], row["output"]) for row in bundled["heldout"]}


def family_rows(bundled: dict[str, list[dict]], family: str) -> list[tuple[str, str, str]]:
    rows = [row for part in bundled.values() for row in part if row["family"] == family]
    assert len(rows) >= 10
    return [(row["instruction"], row["input"], row["output"]) for row in rows]


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def test_sums_and_products_are_right(bundled):
    for ask, _, answer in family_rows(bundled, "addition"):
        assert numbers(answer)[-1] == sum(numbers(ask))
    for ask, _, answer in family_rows(bundled, "multiplication"):
        assert numbers(answer)[-1] == math.prod(numbers(ask))
    for _, given, answer in family_rows(bundled, "average"):
        assert numbers(answer)[-1] * len(numbers(given)) == sum(numbers(given))


def test_sorted_numbers_and_words_are_right(bundled):
    for ask, given, answer in family_rows(bundled, "sort_numbers"):
        assert numbers(answer) == sorted(numbers(given), reverse="descending" in ask)
    for _, given, answer in family_rows(bundled, "sort_words"):
        assert answer.split(", ") == sorted(given.split(", "))


def test_problems_are_right(bundled):
    for ask, _, answer in family_rows(bundled, "gain_and_loss"):
        have, gain, lose = numbers(ask)
        assert numbers(answer)[-1] == have + gain - lose
    for ask, _, answer in family_rows(bundled, "discount"):
        price, percent = numbers(ask)
        assert numbers(answer)[-1] * 100 == price * (100 - percent)


def test_dates_and_temperatures_are_right(bundled):
    for ask, _, answer in family_rows(bundled, "date_after"):
        days, day, month = re.search(r"is (\d+) days .* (\d+) (\w+)\?", ask).groups()
        start = date(2023, MONTHS.index(month) + 1, int(day))
        end = start + timedelta(days=int(days)) * (-1 if "before" in ask else 1)
        assert answer == f"It is {end.day} {MONTHS[end.month - 1]}."
    for _, _, answer in family_rows(bundled, "temperature"):
        first, second = (int(n) for n in re.findall(r"-?\d+", answer))
        celsius, fahrenheit = (first, second) if answer.index("Celsius") < answer.index("Fahr") else (second, first)
        assert fahrenheit == celsius * 1.8 + 32


def test_word_games_are_right(bundled):
    for ask, _, answer in family_rows(bundled, "reverse_word"):
        assert answer == "".join(reversed(re.search('"(.*)"', ask)[1]))
    for _, given, answer in family_rows(bundled, "initials"):
        assert answer == "".join(word[0] for word in given.split())
    for _, given, answer in family_rows(bundled, "remove_duplicates"):
        assert Counter(answer.split(", ")) == Counter(set(given.split(", ")))


# The bundled tasks


@pytest.fixture(scope="module")
def task_rows() -> dict[str, list[dict]]:
    return {name: rows_of(TASKS_FOLDER / f"{name}.jsonl") for name in TASKS}


def test_tasks_have_enough_rows_and_four_different_choices(task_rows):
    for name, rows in task_rows.items():
        assert len(rows) >= 200, name
        if name != "bundled_heldout":
            assert len({(row["prompt"], *sorted(row["choices"])) for row in rows}) == len(rows)
            assert all(len(set(row["choices"])) == 4 and row["answer"] in range(4) for row in rows), name
            places = Counter(row["answer"] for row in rows)
            assert min(places.values()) > len(rows) / 8, name


def test_arithmetic_choices_are_right(task_rows):
    for row in task_rows["bundled_arithmetic"]:
        a, sign, b = row["prompt"].splitlines()[-1].split()[:3]
        result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert row["choices"][row["answer"]] == str(result)


def test_tasks_are_disjoint_from_training_and_from_each_other(bundled, task_rows):
    loaded = load_samples("bundled", 2000, 250)
    trained = {sample.prompt for sample in (*loaded.train, *loaded.valid)}
    response = {row["prompt"] for row in task_rows["bundled_response"]}
    heldout = {row["prompt"] for row in task_rows["bundled_heldout"]}
    assert not response & trained
    assert not heldout & trained
    assert not response & heldout
    texts = " ".join(f"{row['instruction']} {row['output']}" for row in bundled["train"] + bundled["valid"])
    texts = texts.replace("×", "*")
    assert not [row for row in task_rows["bundled_arithmetic"] if f" {row['prompt'].splitlines()[-1]}" in f" {texts}"]


def test_right_response_is_the_rows_own(bundled, task_rows):
    loaded = {row["instruction"]: row["output"] for row in bundled["heldout"] if not row["input"]}
    checked = 0
    for row in task_rows["bundled_response"]:
        instruction = re.fullmatch(r"### Instruction:\n(.*)\n\n### Response:", row["prompt"])
        if instruction:
            assert row["choices"][row["answer"]] == loaded[instruction[1]]
            checked += 1
    assert checked > 50


def test_tasks_score_through_lm_eval_offline_from_any_folder(make_tiny_llama, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    folder = make_tiny_llama(max_position_embeddings=512)
    model = AutoModelForCausalLM.from_pretrained(folder)
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=4)
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    results = lm_eval.simple_evaluate(lm, tasks=["bundled"], task_manager=manager, limit=4)["results"]
    for name in TASKS[:3]:
        for metric in ("acc", "acc_norm"):
            assert results[name][f"{metric},none"] in {0, 0.25, 0.5, 0.75, 1}
            assert results[name][f"{metric}_stderr,none"] >= 0
    assert results["bundled_heldout"]["bits_per_byte,none"] == pytest.approx(heldout_bits(model, folder, 4), rel=1e-4)
    assert results["bundled_heldout"]["bits_per_byte_stderr,none"] > 0


def heldout_bits(model, folder: Path, limit: int) -> float:
    """Mean bits a byte of the first held-out responses, from the model's own logits."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for row in rows_of(TASKS_FOLDER / "bundled_heldout.jsonl")[:limit]:
        whole = tokenizer(f"{row['prompt']} {row['response']}", return_tensors="pt").input_ids
        start = len(tokenizer(row["prompt"]).input_ids)
        with torch.no_grad():
            chances = model(whole).logits[0].log_softmax(-1)
        likelihood = sum(chances[i - 1, whole[0, i]].item() for i in range(start, whole.shape[1]))
        scores.append(-likelihood / math.log(2) / len(row["response"].encode()))
    return sum(scores) / limit
