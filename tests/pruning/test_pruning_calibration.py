"""Calibration sets: windows of the asked size, drawn reproducibly from the documents the user named."""

import json

import pytest
import torch

from pruning import calibration
from tests.builders import byte_tokenizer
from utils.common.errors import UserError


@pytest.fixture
def load(tmp_path):
    """load(documents, samples, length, suffix) -> the windows as texts; documents: what a .jsonl or .json holds."""

    def make(documents: list, samples: int, length: int, suffix: str = ".jsonl") -> list[str]:
        path, tokenizer = tmp_path / f"documents{suffix}", byte_tokenizer()
        path.write_text(json.dumps(documents) if suffix == ".json" else "\n".join(map(json.dumps, documents)))
        tokens = calibration.load(str(path), samples, length, tokenizer, seed=0)
        assert tokens.shape == (samples, length) and tokens.dtype == torch.int64
        return [tokenizer.decode(row) for row in tokens]

    return make


def letters(*lengths: int) -> list[dict]:
    """The n-th document repeats the n-th letter so many times."""
    return [{"text": letter * length} for letter, length in zip("abcdef", lengths, strict=False)]


def test_long_documents_give_one_window_each_and_short_ones_are_joined_which_is_said(load, capsys):
    assert sorted(load(letters(50, 3, 60, 30, 5, 80), 4, 30)) == ["a" * 30, "c" * 30, "d" * 30, "f" * 30]
    assert not capsys.readouterr().out
    assert all(len(set(window)) > 1 for window in load(letters(8, 9, 10, 11, 12), 7, 30))
    said = capsys.readouterr().out
    assert "joined" in said and said.count("\n") == 1
    with pytest.raises(UserError, match=r"^-calib_data: .*17 tokens.*-calib_length"):
        load(letters(8, 9), 2, 18)  # what else can be wrong: tests/inputs


@pytest.mark.parametrize("documents", [200, 1])
def test_windows_start_anywhere(load, documents):
    assert {window[0] for window in load(["0123456789" * 3] * documents, 200, 11)} == set("0123456789")


def test_json_lists_of_texts_and_of_objects_are_read(load):
    assert set(load(["x" * 40, {"text": "y" * 40}, ""], 2, 20, ".json")) == {"x" * 20, "y" * 20}


def test_c4_is_streamed_and_shuffled_from_the_hub_which_may_be_out_of_reach(monkeypatch):
    calls = []

    class Rows(list):
        def shuffle(self, **how) -> "Rows":
            calls.append(how["buffer_size"])
            return self

    def load_dataset(name, *, split, data_files, streaming) -> Rows:
        if len(calls) > 1:
            raise ConnectionError("no route")
        calls.append(name)
        return Rows([{"text": "ab" * 20}] * 9)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert calibration.load("c4", 3, 20, byte_tokenizer(), seed=0).shape == (3, 20)
    assert calls == ["allenai/c4", 10_000]
    with pytest.raises(UserError, match=r"^-calib_data: cannot get 'allenai/c4' from the hub \(no route\); give 'bund"):
        calibration.load("c4", 3, 20, byte_tokenizer(), seed=0)
