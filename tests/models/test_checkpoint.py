"""What a checkpoint's files hold is known from their headers, and nothing is drawn at random in place of a weight.

More of what can be wrong with files: tests/inputs.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import Checkpoint, Header, check_weights, weight_files, write_checkpoint
from models.loading import load_config
from tests.builders import rewrite
from utils.common.errors import UserError

FLAG = "-pruned_model_path"
UP, BIAS = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"


def check(folder) -> None:
    check_weights(Checkpoint(folder, FLAG), load_config(folder, FLAG))


def one_line(folder, *words: str) -> None:
    with pytest.raises(UserError, match=f"^{FLAG}: [^\n]*\\Z") as found:
        check(folder)
    assert all(word in str(found.value) for word in words)


def without(name: str) -> tuple:
    return lambda t: {n: tensor for n, tensor in t.items() if n != name}, name, "draw at random"


BROKEN = {
    "no projection": without("model.layers.2.self_attn.o_proj.weight"),
    "no head": without("lm_head.weight"),
    "another prefix": (lambda t: {f"base_model.{name}": tensor for name, tensor in t.items()}, "and 27 more"),
    "a bias of no Llama": (lambda t: {**t, BIAS: torch.ones(56)}, BIAS),
    "another shape": (lambda t: {**t, UP: t[UP][:-1].clone()}, UP, "(55, 24)", "(56, 24)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_are_not_the_models_are_named(make_tiny_llama, case):
    change, *words = BROKEN[case]
    one_line(rewrite(make_tiny_llama(), change), *words)


def test_a_head_may_be_missing_or_repeated_where_it_is_tied_and_old_buffers_are_no_weights(make_tiny_llama):
    folder = make_tiny_llama(tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint(folder).headers
    check(folder)
    check(rewrite(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    check(rewrite(folder, lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    own = rewrite(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    one_line(own, "lm_head.weight of its own", "set tie_word_embeddings to false")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_one_line(make_tiny_llama, index):
    folder = make_tiny_llama()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    one_line(folder, "no index of weights")


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
    found = load_file(tmp_path / "right" / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with pytest.raises(ValueError, match=r"is torch\.float64"):
        write_checkpoint(tmp_path / "wrong", layout, lambda name: tensors[name].double())
    assert not list((tmp_path / "wrong").iterdir())
