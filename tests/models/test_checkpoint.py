"""What a checkpoint's files hold is known from their headers. What can be wrong with them: tests/inputs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import Checkpoint, Header, restorable_heads, weight_files, write_checkpoint
from tests.builders import rewrite

UP = "model.layers.1.mlp.up_proj.weight"


def test_a_fingerprint_is_of_the_content_of_what_transformers_reads(make_tiny_llama, tmp_path):
    folder = make_tiny_llama()
    copy = shutil.copytree(folder, tmp_path / "copy")
    save_file({"other": torch.ones(2)}, copy / "adapter_model.safetensors")
    torch.save({"other": torch.ones(2)}, copy / "pytorch_model.bin")
    assert [file.name for file in weight_files(copy)] == ["model.safetensors"]
    assert Checkpoint(copy).fingerprint == Checkpoint(folder).fingerprint
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config + "\n")
    assert Checkpoint(copy).fingerprint != Checkpoint(folder).fingerprint
    (copy / "config.json").write_text(config)
    rewrite(copy, lambda t: t[UP].view(torch.int32)[3:4, :1].bitwise_xor_(1))
    assert Checkpoint(copy).fingerprint != Checkpoint(folder).fingerprint


def test_one_pass_finds_zeros_and_is_not_repeated(make_tiny_llama, monkeypatch):
    folder = make_tiny_llama(zeros=0.5)
    survey = Checkpoint(folder).survey()
    for layer, zeros in enumerate(survey.counts()[0]):
        own = (t for n, t in load_file(folder / "model.safetensors").items() if f"layers.{layer}." in n and "proj" in n)
        assert zeros == sum(int((tensor == 0).sum()) for tensor in own)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("read again"))
    assert Checkpoint(folder).survey() is survey


def test_tensors_are_written_as_the_library_reads_them(tmp_path):
    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "b": torch.randn(2, dtype=torch.float64),
        "naïve": torch.tensor(2.0),
        "none": torch.zeros(0, 4, dtype=torch.float16),
        "view": torch.randn(4, 6).T,
    }
    layout = {name: Header("x.safetensors", tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_checkpoint(tmp_path / "right", layout, tensors.__getitem__)
    torch.testing.assert_close(load_file(tmp_path / "right" / "x.safetensors"), tensors, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"is torch\.float64"):
        write_checkpoint(tmp_path / "wrong", layout, lambda name: tensors[name].double())
    assert not list((tmp_path / "wrong").iterdir())


def test_a_head_can_be_restored_while_one_of_its_columns_is_left(make_tiny_llama):
    name, expected = "model.layers.1.self_attn.o_proj.weight", torch.ones(3, 6, dtype=torch.bool)
    folder = rewrite(make_tiny_llama(), lambda tensors: tensors[name][:, :15].zero_())  # one and seven eighths
    expected[1, 0] = False
    assert torch.equal(restorable_heads(Checkpoint(folder), 3, 6), expected)
