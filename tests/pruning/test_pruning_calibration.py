"""Calibration sets: windows of the asked size, drawn reproducibly from the documents the user named."""

import json

import pytest
import torch

from pruning import calibration
from tests.builders import byte_tokenizer
from utils.common.errors import UserError

LETTERS = "abcdefghij"


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def letters(tmp_path):
    """letters(lengths) -> a .jsonl whose n-th document repeats the n-th letter so many times."""

    def make(*lengths: int) -> str:
        path = tmp_path / "letters.jsonl"
        path.write_text("\n".join(json.dumps({"text": LETTERS[n] * length}) for n, length in enumerate(lengths)))
        return str(path)

    return make


def test_long_documents_give_one_window_each(tokenizer, letters):
    tokens, record = calibration.load(letters(50, 3, 60, 30, 5, 80), 4, 30, tokenizer, seed=0)
    texts = [tokenizer.decode(row) for row in tokens]
    assert sorted(texts) == ["a" * 30, "c" * 30, "d" * 30, "f" * 30]
    assert tokens.shape == (4, 30) and tokens.dtype == torch.int64
    assert record["windows"] == "one a document"


def test_short_documents_are_joined_and_it_is_said(tokenizer, letters, capsys):
    tokens, record = calibration.load(letters(8, 9, 10, 11, 12), 7, 30, tokenizer, seed=1)
    assert tokens.shape == (7, 30)
    assert all(len(set(row.tolist())) > 1 for row in tokens)
    assert record["windows"] == "over the joined documents"
    said = capsys.readouterr().out
    assert "joined" in said and said.count("\n") == 1


@pytest.mark.parametrize(("documents", "windows"), [(200, "one a document"), (1, "over the joined documents")])
def test_windows_start_anywhere(tokenizer, tmp_path, documents, windows):
    path = tmp_path / "digits.jsonl"
    path.write_text("\n".join([json.dumps("0123456789" * 3)] * documents))
    tokens, record = calibration.load(str(path), 200, 11, tokenizer, seed=0)
    assert record["windows"] == windows
    assert {tokenizer.decode(row)[0] for row in tokens} == set("0123456789")


def test_json_lists_of_texts_and_of_objects_are_read(tokenizer, tmp_path):
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps(["x" * 40, {"text": "y" * 40}, ""]))
    tokens, _ = calibration.load(str(listed), 2, 20, tokenizer, seed=0)
    assert {tokenizer.decode(row) for row in tokens} == {"x" * 20, "y" * 20}


def test_text_shorter_than_a_window_is_an_error(tokenizer, letters):
    with pytest.raises(UserError, match=r"^-calib_data: .*17 tokens.*-calib_length"):
        calibration.load(letters(8, 9), 2, 18, tokenizer, seed=0)  # what else can be wrong: tests/inputs
