"""Files are for others than their maker too."""

import stat

import torch
from safetensors.torch import save_file

from utils.common.files import whole_file, whole_folder


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
