"""The merged checkpoint is a plain Llama with every weight and zero of the pruned one, and that is proved."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import count_zeros, restorable_heads
from models.loading import load_model
from models.merge import PROOF, logits_tolerance, main, merge, merge_and_prove, probe_logits, prove
from models.modeling_llama import attach, read_restoration
from models.restoration import attach_restoration, load_restoration, save_restoration
from tests.models.test_modeling import trained
from utils.common.errors import UserError

TOKENS = [[5, 9, 77, 30, 200, 41], [1, 2, 3]]
SHAPES = {
    "gqa": {},
    "biased": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "scaled": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}},
    "mha": {"num_key_value_heads": 6},
}


def attached_logits(folder, restoration, dtype):
    return probe_logits(attach(load_model(folder, dtype, "cpu", "-p"), restoration), TOKENS)


def merged(folder, output, dtype, run_dtype=None):
    run_dtype = run_dtype or dtype
    restoration = trained()
    return merge_and_prove(
        folder,
        restoration,
        output,
        tokenizer_from=folder,
        attached_logits=attached_logits(folder, restoration, run_dtype),
        token_ids=TOKENS,
        dtype=run_dtype,
        device="cpu",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_merged_equals_attached_and_keeps_every_bit(make_tiny_llama, tmp_path, shape, dtype):
    folder = make_tiny_llama(zeros=0.5, dtype=dtype, **SHAPES[shape])
    proof = merged(folder, tmp_path / "merged", dtype)
    assert proof["passed"]
    assert proof["logits_relative_difference"] <= logits_tolerance(dtype)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in before.items():
        if not name.endswith("o_proj.bias"):
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
            assert torch.equal(tensor == 0, after[name] == 0)
    assert {name.rsplit(".", 1)[1] for name in set(after) - set(before)} <= {"bias"}
    assert count_zeros(folder) == count_zeros(tmp_path / "merged")


def test_merged_loads_without_this_project(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    merged(folder, tmp_path / "merged", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(model).__module__.startswith("transformers.")
    assert model.config.attention_bias
    expected = attached_logits(folder, trained(), torch.float32)[0]
    found = model(torch.tensor([TOKENS[0]])).logits[0]
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("abc").input_ids


def test_only_o_proj_bias_holds_new_values(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    proof = merged(folder, tmp_path / "merged", torch.float32)
    assert proof["nonzero_new_tensors"] == [f"model.layers.{layer}.self_attn.o_proj.bias" for layer in (0, 2)]
    assert len(proof["new_tensors"]) == 3 * 4


def test_a_run_in_bf16_keeps_the_bits_of_a_fp32_checkpoint(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5, dtype=torch.float32)
    proof = merged(folder, tmp_path / "merged", torch.float32, run_dtype=torch.bfloat16)
    assert proof["passed"]
    assert proof["tensors_identical"] == proof["tensors_compared"]


def _spoil_zero(tensors):
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    weight[tuple((weight == 0).nonzero()[0])] = 1e-9


def _spoil_bit(tensors):
    tensors["model.norm.weight"][3] += 1e-6


def _spoil_bias(tensors):
    tensors["model.layers.1.self_attn.q_proj.bias"][0] = 1e-3


def _spoil_compensation(tensors):
    tensors["model.layers.2.self_attn.o_proj.bias"] *= 1.01


def _spoil_dtype(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()


def _spoil_nan(tensors):
    tensors["model.layers.2.self_attn.o_proj.bias"][0] = float("nan")


@pytest.mark.parametrize("spoil", [_spoil_zero, _spoil_bit, _spoil_bias, _spoil_compensation, _spoil_dtype, _spoil_nan])
def test_the_proof_fails_on_any_broken_promise(make_tiny_llama, tmp_path, spoil):
    folder = make_tiny_llama(zeros=0.5)
    restoration = trained()
    output = tmp_path / "merged"
    merge(folder, restoration, output, folder)
    logits = attached_logits(folder, restoration, torch.float32)
    assert prove(folder, output, logits, TOKENS, torch.float32, "cpu")["passed"]
    tensors = load_file(output / "model.safetensors")
    spoil(tensors)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    assert not prove(folder, output, logits, TOKENS, torch.float32, "cpu")["passed"]


def test_a_failed_proof_leaves_nothing_behind(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    wrong = [logits + 1 for logits in attached_logits(folder, trained(), torch.float32)]
    with pytest.raises(RuntimeError, match="failed its proof"):
        merge_and_prove(
            folder,
            trained(),
            tmp_path / "merged",
            tokenizer_from=folder,
            attached_logits=wrong,
            token_ids=TOKENS,
            dtype=torch.float32,
            device="cpu",
        )
    assert not list(tmp_path.iterdir())


def test_saved_restoration_attaches_to_the_same_logits(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    restoration = trained()
    save_restoration(tmp_path / "restoration", restoration, {"pruned_sha256": "0"})
    model = attach_restoration(load_model(folder, torch.float32, "cpu", "-p"), tmp_path / "restoration")
    for found, expected in zip(
        probe_logits(model, TOKENS), attached_logits(folder, restoration, torch.float32), strict=True
    ):
        assert torch.equal(found, expected)
    assert not any(p.requires_grad for p in model.parameters())
    assert load_restoration(tmp_path / "restoration")[0].heads == read_restoration(model).heads


def test_a_later_merge_refuses_another_pruned_model(make_tiny_llama, tmp_path):
    from models.checkpoint import fingerprint

    folder, other = make_tiny_llama(zeros=0.5), make_tiny_llama(zeros=0.5, seed=3)
    save_restoration(tmp_path / "restoration", trained(), {"pruned_sha256": fingerprint(folder)})
    flags = ["-restoration", str(tmp_path / "restoration"), "-output_dir", str(tmp_path / "out"), "-dtype", "float32"]
    with pytest.raises(UserError, match="is not the pruned checkpoint"):
        main(["-pruned_model_path", str(other), *flags])
    assert not (tmp_path / "out").exists()
    main(["--pruned_model_path", str(folder), *flags])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_later_merge_replaces_what_it_wrote_and_touches_no_input(make_tiny_llama, tmp_path):
    from models.checkpoint import fingerprint

    folder, run = make_tiny_llama(zeros=0.5), tmp_path / "run"
    save_restoration(run / "restoration", trained(), {"pruned_sha256": fingerprint(folder)})
    flags = ["-pruned_model_path", str(folder), "-restoration", str(run / "restoration"), "-dtype", "float32"]
    (tmp_path / "link").symlink_to(run)
    for output in (run, tmp_path / "link", run / "restoration" / "merged", folder, folder.parent):
        with pytest.raises(UserError, match=r"^-output_dir: .* what -(restoration|pruned_model_path) names"):
            main([*flags, "-output_dir", str(output), "-overwrite"])
    assert load_restoration(run / "restoration")[1]["pruned_sha256"] == fingerprint(folder)
    output = tmp_path / "out"
    main([*flags, "-output_dir", str(output)])
    named = json.loads((output / PROOF).read_text())
    assert named["passed"] and sorted(named["files"]) == sorted(path.name for path in output.iterdir())
    (output / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        main([*flags, "-output_dir", str(output)])
    main([*flags, "-output_dir", str(output), "-overwrite"])
    assert {path.name for path in output.iterdir()} == {*named["files"], "note.txt"}
    (output / PROOF).unlink()
    with pytest.raises(UserError, match="no result of this project"):
        main([*flags, "-output_dir", str(output), "-overwrite"])


def test_heads_without_columns_in_o_proj_are_known(make_tiny_llama):
    folder = make_tiny_llama()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 4 * 8 : 5 * 8] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    usable = restorable_heads(folder, 3, 6)
    assert usable.shape == (3, 6)
    assert (~usable).nonzero().tolist() == [[1, 4]]
