"""A cache answers only for the very content it was made from."""

import shutil
from pathlib import Path

import pytest
import torch

from models.checkpoint import fingerprint
from utils.common.cache import Cache
from utils.common.files import whole_file, whole_folder

KEY = {"model": "a", "data": "b", "seed": 1}


@pytest.mark.parametrize("change", [{"model": "other"}, {"data": "other"}, {"seed": 2}, {"extra": None}])
def test_nothing_is_reused_for_another_model_data_or_seed(tmp_path, change):
    cache = Cache(tmp_path)
    cache.document("scores", KEY, lambda: {"value": 1})
    cache.tensors("z", KEY, lambda: {"z": torch.ones(2)})
    assert cache.document("scores", {**KEY, **change}, lambda: {"value": 2}) == {"value": 2}
    assert cache.tensors("z", {**KEY, **change}, lambda: {"z": torch.zeros(2)})["z"].sum() == 0


def test_what_is_kept_is_not_made_again(tmp_path):
    cache = Cache(tmp_path)
    made = cache.tensors("z", KEY, lambda: {"z": torch.randn(3, 2)})
    assert torch.equal(cache.tensors("z", dict(reversed(KEY.items())), dict)["z"], made["z"])
    assert cache.document("scores", KEY, lambda: {"value": [1, None]}) == {"value": [1, None]}
    assert cache.document("scores", KEY, dict) == {"value": [1, None]}


def test_nothing_is_kept_when_making_it_fails(tmp_path):
    def fail():
        raise ValueError

    for make in (Cache(tmp_path).tensors, Cache(tmp_path).document):
        with pytest.raises(ValueError):
            make("z", KEY, fail)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_fingerprint_is_the_content_not_the_place(make_tiny_llama):
    same = make_tiny_llama(zeros=0.5), make_tiny_llama(zeros=0.5)
    assert fingerprint(same[0]) == fingerprint(same[1])
    assert fingerprint(same[0]) != fingerprint(make_tiny_llama(zeros=0.5, seed=1))


def test_files_and_folders_appear_whole_or_not_at_all(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").write_text("old")
    with pytest.raises(ValueError), whole_folder(tmp_path / "kept") as partial:
        (partial / "new").write_text("half")
        raise ValueError
    with pytest.raises(ValueError), whole_file(tmp_path / "file.json") as partial:
        partial.write_text("half")
        raise ValueError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "old"]
    with whole_folder(tmp_path / "kept") as partial:
        (partial / "new").write_text("whole")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["new"]


def damaged(file: Path, at: float) -> None:
    """Flip a bit at that share of the file, or cut it there."""
    content = bytearray(file.read_bytes())
    place = min(int(at * len(content)), len(content) - 1)
    content[place] ^= 4
    file.write_bytes(content)


def cut(file: Path, at: float) -> None:
    file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)])


@pytest.mark.parametrize("spoil", [damaged, cut])
@pytest.mark.parametrize("at", [0, 0.05, 0.3, 0.5, 0.8, 0.98])
@pytest.mark.parametrize("kind", ["tensors", "document"])
def test_what_is_damaged_is_told_and_made_again(tmp_path, capsys, kind, at, spoil):
    cache, calls = Cache(tmp_path), []

    def make() -> dict:
        calls.append(1)
        return {"z": torch.arange(64.0)} if kind == "tensors" else {"value": list(range(64)), "text": "naïve"}

    ask = getattr(cache, kind)
    first = ask("z", KEY, make)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    spoil(file, at)
    again = ask("z", KEY, make)
    assert len(calls) == 2 and cache.reused == []
    assert torch.equal(again["z"], first["z"]) if kind == "tensors" else again == first
    assert str(file) in capsys.readouterr().out
    assert ask("z", KEY, make) is not None and len(calls) == 2 and cache.reused == ["z"]


@pytest.mark.parametrize("spoil", ["bit", "cut", "config", "record", "no record"])
def test_a_damaged_checkpoint_in_the_cache_is_made_again(make_tiny_llama, tmp_path, capsys, spoil):
    source, calls, cache = make_tiny_llama(zeros=0.5), [], Cache(tmp_path / "cache")

    def make(folder: Path) -> None:
        calls.append(shutil.copytree(source, folder))

    folder = cache.tree("pruned", KEY, make, fingerprint)
    assert cache.tree("pruned", KEY, make, fingerprint) == folder and len(calls) == 1
    record = folder.with_suffix(".json")
    {
        "bit": lambda: damaged(folder / "model.safetensors", 0.9),
        "cut": lambda: cut(folder / "model.safetensors", 0.5),
        "config": lambda: (folder / "config.json").write_text("{}"),
        "record": lambda: record.write_text("{"),
        "no record": record.unlink,
    }[spoil]()
    assert cache.tree("pruned", KEY, make, fingerprint) == folder and len(calls) == 2
    assert fingerprint(folder) == fingerprint(source) and str(folder) in capsys.readouterr().out
