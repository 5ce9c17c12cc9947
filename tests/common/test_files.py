"""JSON files are for people too, and files for others than their maker."""

import json
import math
import stat

import torch
from safetensors.torch import save_file

from utils.common.files import whole_file, whole_folder, write_json


def test_a_list_of_numbers_is_one_line_and_reads_back_as_it_was(tmp_path):
    content = {"a": [[1, -2.5e-07], [None, math.inf]], "b": "[\n  1,\n  2\n]", "c": ["1", 2], "d": [True], "e": []}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "    [1, -2.5e-07],\n    [null, Infinity]\n" in text


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
    """safetensors makes its files for their owner alone."""
    (tmp_path / "any").touch()
    (tmp_path / "any-folder").mkdir()
    with whole_folder(tmp_path / "model") as partial:
        (partial / "deep").mkdir()
        save_file({"a": torch.ones(2)}, partial / "deep" / "model.safetensors")
    with whole_file(tmp_path / "a.safetensors") as partial:
        save_file({"a": torch.ones(2)}, partial)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes["a.safetensors"] == modes["model.safetensors"] == modes["any"]
    assert modes["model"] == modes["any-folder"]
