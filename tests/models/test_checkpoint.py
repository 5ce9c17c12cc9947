"""What a checkpoint's files hold is known from their headers, and nothing is drawn at random in place of a weight."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import Checkpoint, Header, check_finite, check_weights, weight_files, write_tensors
from models.loading import load_config
from utils.common.errors import UserError

FLAG = "-pruned_model_path"


def spoiled(folder, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, folder / "model.safetensors")
    return folder


def check(folder) -> None:
    checkpoint = Checkpoint(folder, FLAG)
    check_weights(checkpoint, load_config(folder, FLAG))
    check_finite(checkpoint)


def one_line(folder, *words: str) -> None:
    with pytest.raises(UserError) as found:
        check(folder)
    assert str(found.value).startswith(f"{FLAG}: ") and "\n" not in str(found.value)
    for word in words:
        assert word in str(found.value)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.self_attn.o_proj.weight", "model.norm.weight"]
    + ["model.embed_tokens.weight", "lm_head.weight"],
)
def test_a_weight_that_is_not_there_is_named(make_tiny_llama, name):
    one_line(
        spoiled(make_tiny_llama(), lambda t: {n: tensor for n, tensor in t.items() if n != name}),
        name,
        "draw at random",
    )


def test_names_under_another_prefix_are_no_weights_of_a_llama(make_tiny_llama):
    folder = make_tiny_llama()
    one_line(spoiled(folder, lambda t: {f"base_model.{name}": tensor for name, tensor in t.items()}), "and 27 more")


def test_a_head_may_be_missing_or_repeated_where_it_is_tied(make_tiny_llama):
    folder = make_tiny_llama(tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint(folder).headers
    check(folder)
    check(spoiled(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()}))


def test_old_buffers_are_no_weights_and_others_are_refused(make_tiny_llama):
    folder = make_tiny_llama()
    check(spoiled(folder, lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    one_line(spoiled(folder, lambda t: {**t, "model.layers.0.mlp.up_proj.bias": torch.ones(56)}), "mlp.up_proj.bias")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_quantized_weights_are_refused(make_tiny_llama, dtype):
    name = "model.layers.1.mlp.up_proj.weight"
    one_line(spoiled(make_tiny_llama(), lambda t: {**t, name: t[name].to(dtype)}), name, "dequantize")


def test_another_shape_is_named(make_tiny_llama):
    name = "model.layers.1.mlp.up_proj.weight"
    one_line(spoiled(make_tiny_llama(), lambda t: {**t, name: t[name][:-1].clone()}), name, "(55, 24)", "(56, 24)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.down_proj.weight"])
def test_numbers_that_are_none_are_named(make_tiny_llama, name, value):
    one_line(spoiled(make_tiny_llama(), lambda t: t[name].view(-1)[-1:].fill_(value)), name, "NaN or infinity")


def test_no_weights_and_a_truncated_file_are_one_line(make_tiny_llama, tmp_path):
    one_line(tmp_path, "holds no weights")
    folder = make_tiny_llama()
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        one_line(folder, "cannot read", "copy it again")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "no index of weights"),
        ("[]", "no index of weights"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "not in the folder itself"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not in the folder itself"),
        ('{"weight_map": {"a": "model-00002.safetensors"}}', "lacks model-00002.safetensors"),
    ],
)
def test_an_index_is_read_with_care(make_tiny_llama, index, words):
    folder = make_tiny_llama()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    one_line(folder, words)


def test_files_that_transformers_would_not_read_are_not_read(make_tiny_llama):
    folder = make_tiny_llama()
    before = Checkpoint(folder).survey().sha256
    save_file({"other": torch.ones(2)}, folder / "adapter_model.safetensors")
    torch.save({"other": torch.ones(2)}, folder / "pytorch_model.bin")
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    assert Checkpoint(folder).survey().sha256 == before


def test_code_in_a_pickle_does_not_run(make_tiny_llama, tmp_path):
    folder = make_tiny_llama()
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    one_line(folder, "PyTorch file of plain tensors")
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], folder / "pytorch_model.bin")
    one_line(folder, "holds no plain tensors by name")


def test_one_pass_finds_zeros_and_is_not_repeated(make_tiny_llama, monkeypatch):
    folder = make_tiny_llama(zeros=0.5)
    checkpoint = Checkpoint(folder)
    survey = checkpoint.survey()
    tensors = load_file(folder / "model.safetensors")
    expected = [
        sum(int((t == 0).sum()) for n, t in tensors.items() if f"layers.{i}." in n and "proj" in n) for i in range(3)
    ]
    assert survey.counts()[0] == expected
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
    headers = [(name, Header("x", tensor.dtype, tuple(tensor.shape))) for name, tensor in tensors.items()]
    write_tensors(tmp_path / "x.safetensors", headers, tensors.__getitem__)
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with pytest.raises(ValueError, match=r"is torch\.float64"):
        write_tensors(tmp_path / "y.safetensors", headers, lambda name: tensors[name].double())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_config_of_more_layers_than_the_files_have_is_told(make_tiny_llama):
    folder = make_tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    one_line(folder, "model.layers.3.self_attn.q_proj.weight")
