"""JSON files are for people too."""

import json
import math

from utils.common.files import write_json


def test_a_list_of_numbers_is_one_line_and_reads_back_as_it_was(tmp_path):
    content = {"a": [[1, -2.5e-07], [None, math.inf]], "b": "[\n  1,\n  2\n]", "c": ["1", 2], "d": [True], "e": []}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "    [1, -2.5e-07],\n    [null, Infinity]\n" in text
