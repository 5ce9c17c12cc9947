"""A cache answers only for the very content it was made from."""

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
