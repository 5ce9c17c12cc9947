"""SlimGPT: the cheapest heads and channels go, the rest makes up for them, and nothing is lost by compacting."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from models.checkpoint import LINEARS
from models.compact import in_dense_shapes, write_compact
from models.compact_llama import CompactLlamaForCausalLM
from models.loading import check_pair, load_config, load_model
from pruning import calibration, slimgpt
from pruning.prune_model import prune_into
from pruning.sparsegpt import damped_inverse
from tests.builders import mistake, save_tiny_llama
from tests.pruning.test_pruning import problem
from tests.runs import program


def refitted(weight: torch.Tensor, hessian: torch.Tensor, gone: list[int]) -> tuple[torch.Tensor, float]:
    """The best weight without those columns, by least squares, and what it costs: tr(ΔHΔᵀ)."""
    kept = [column for column in range(weight.shape[1]) if column not in gone]
    best = torch.zeros_like(weight)
    best[:, kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight.T).T
    return best, (((weight - best) @ hessian) * (weight - best)).sum().item()


def slim_problem(size: int, units: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (11, units·size), XᵀX in fp32, and the dampened fp64 Hessian the method works with."""
    weight, inputs = problem(out=11, width=units * size, tokens=400)
    hessian = inputs.T @ inputs
    return weight.double(), hessian, torch.linalg.inv(damped_inverse(hessian))


def test_every_head_is_the_cheapest_given_those_already_gone():
    weight, hessian, damped = slim_problem(size=4, units=6)
    pruned, removed = slimgpt.remove(weight, hessian, 4, 4, lambda _: 1)
    gone: list[int] = []
    for unit in removed:
        left = [n for n in range(6) if 4 * n not in gone]
        costs = [refitted(weight, damped, [*gone, *range(n * 4, n * 4 + 4)])[1] for n in left]
        assert unit == left[costs.index(min(costs))]
        if not gone:
            assert slimgpt.unit_errors(weight, damped_inverse(hessian), 4).tolist() == pytest.approx(costs, rel=1e-6)
        gone += range(unit * 4, unit * 4 + 4)
    torch.testing.assert_close(pruned, refitted(weight, damped, gone)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("step", [lambda _: 1, lambda _: 3, slimgpt.shrinking_step])
def test_channels_left_are_where_least_squares_puts_them_whatever_the_group_size(step):
    weight, hessian, damped = slim_problem(size=1, units=30)
    pruned, removed = slimgpt.remove(weight, hessian, 1, 13, step)
    assert len(set(removed)) == 13 and (pruned[:, removed] == 0).all()
    torch.testing.assert_close(pruned, refitted(weight, damped, removed)[0], rtol=1e-6, atol=1e-9)


def test_dead_inputs_are_the_first_to_go_and_steps_shrink_from_1024_to_8():
    weight, inputs = problem(out=11, width=20, tokens=300)
    inputs *= 0.01  # so that a dead column, were it kept, would look dearer than a live one
    inputs[:, [4, 9]] = 0
    _, removed = slimgpt.remove(weight, inputs.T @ inputs, 1, 3, lambda _: 1)
    assert set(removed[:2]) == {4, 9}
    assert [slimgpt.shrinking_step(to_go) for to_go in (5000, 300, 20, 3)] == [1024, 150, 10, 8]


def test_ratio_grows_with_depth_as_in_the_paper():
    """LLaMA-7B at 20 %: 0.0625 in the first layer, 0.25 in the last, growing with the logarithm of the depth."""
    ratios = slimgpt.ratios(32, 0.2)
    assert (ratios[0], ratios[-1]) == (pytest.approx(0.0625), pytest.approx(0.25, abs=1e-3))
    assert ratios[7] - ratios[3] == pytest.approx(ratios[15] - ratios[7])
    assert sum(ratios) / 32 == pytest.approx(0.2) and slimgpt.ratios(1, 0.3) == [0.3]


@pytest.mark.parametrize("total", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(32, 4096, 11008, 32, 32), (30, 576, 1536, 9, 3), (5, 64, 172, 8, 4)])
def test_incremental_ratio_reaches_the_total(shape, total):
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    layers, width, channels, queries, keys = shape
    config = LlamaConfig(**dict(zip(names, shape, strict=True)))
    head, channel = config.head_dim * width * 2 * (queries // keys + 1), 3 * width
    removals = slimgpt.plan(config, total)
    gone = sum(gone * head + left_out * channel for gone, left_out in removals)
    whole = layers * (keys * head + channels * channel)
    assert gone / whole == pytest.approx(total, abs=8 * channel / whole) and len(removals) == layers
    assert all(0 <= gone < keys and 0 <= left_out < channels for gone, left_out in removals)


def test_a_head_larger_than_the_target_stays():
    sizes = {"hidden_size": 256, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128}
    ((gone, left_out),) = slimgpt.plan(LlamaConfig(num_hidden_layers=1, intermediate_size=776, **sizes), 0.3)
    whole = 2 * 128 * 256 * 2 * (8 + 1) + 776 * 3 * 256
    assert gone == 0 and abs(left_out * 3 * 256 - 0.3 * whole) <= 4 * 3 * 256


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def both(request, tmp_path_factory) -> tuple[Path, Path, Path]:
    """(dense, masked, compact) folders of one model with biases everywhere, 40 % gone. To be read only."""
    place = tmp_path_factory.mktemp("slim")
    shape = {"num_hidden_layers": 5, "num_attention_heads": 12, "num_key_value_heads": 4}
    shape |= {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": request.param}
    base = save_tiny_llama(place / "dense", **shape)
    options = {"calib_data": "bundled", "calib_samples": 6, "calib_length": 40, "dtype": torch.float32}
    for mode in ("masked", "compact"):
        prune_into(base, place / mode, "slimgpt", "0.4", **options, device="cpu", seed=3, mode=mode)
    return base, place / "masked", place / "compact"


def loaded(*folders: Path) -> list[torch.nn.Module]:
    return [load_model(folder, torch.float32, "cpu", "-x") for folder in folders]


def test_masked_compact_and_expanded_are_one_model_that_lost_whole_heads_and_channels(both, tmp_path):
    ids = torch.randint(0, 250, (3, 17), generator=torch.Generator().manual_seed(0))
    folder, small = in_dense_shapes(both[2], tmp_path / "cache")
    write_compact(folder, tmp_path / "again")
    assert small and (folder / "pruning.json").is_file()
    retold = shutil.copytree(both[2], tmp_path / "retold")  # the same weights, with another tokenizer
    (retold / "chat_template.jinja").write_text("another")
    assert in_dense_shapes(retold, tmp_path / "cache")[0] != folder
    dense, slim, small, expanded, again = loaded(*both, folder, tmp_path / "again")
    assert isinstance(small, CompactLlamaForCausalLM)
    assert type(expanded) is type(slim) and expanded.config.model_type == "llama"
    for model in (small, expanded):
        torch.testing.assert_close(model(ids).logits, slim(ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dense(ids).logits, slim(ids).logits, atol=1e-2)
    assert small.num_parameters() < 0.8 * dense.num_parameters()
    assert len({len(kept) for kept in small.config.kept_kv_heads}) > 1, "the layers of this model should differ in size"
    generated = [model.generate(ids[:1], max_new_tokens=8, do_sample=False) for model in (slim, small)]
    assert torch.equal(*generated)  # with a key-value cache of a different size in every layer
    small, again, before, after, masked = (each.state_dict() for each in (small, again, dense, expanded, slim))
    torch.testing.assert_close(again, small, rtol=0, atol=0)
    assert all(torch.equal(after[name], tensor) for name, tensor in masked.items() if "self_attn" in name)
    kept = [name for name in before if not any(linear in name for linear in LINEARS)]
    assert all(torch.equal(before[name], masked[name]) for name in kept)
    # Removed heads and channels are zero in every matrix and bias.
    config = load_config(both[2], "-x")
    for index, (before, after) in enumerate(zip(dense.model.layers, slim.model.layers, strict=True)):
        dead = (after.mlp.down_proj.weight == 0).all(0)
        assert dead.sum() == 56 - config.intermediate_sizes[index]
        for name in ("gate_proj", "up_proj"):
            linear = after.mlp.get_submodule(name)
            assert torch.equal((linear.weight == 0).all(1), dead) and torch.equal(linear.bias == 0, dead)
            assert torch.equal(linear.weight[~dead], before.mlp.get_submodule(name).weight[~dead])
        read = after.self_attn.o_proj.weight.unflatten(1, (4, -1)).ne(0).any(0).any(-1)
        assert read.nonzero().flatten().tolist() == config.kept_kv_heads[index]
        assert torch.equal(after.self_attn.o_proj.bias, before.self_attn.o_proj.bias)


def test_attention_is_pruned_before_the_ffns_hessian_is_collected(make_tiny_llama, prune, text):
    """down_proj of the first layer equals an update computed from what the pruned attention feeds it."""
    base = make_tiny_llama(num_hidden_layers=1, num_attention_heads=12, num_key_value_heads=4)
    folder, _ = prune(base, "slimgpt", "0.4")
    dense, slim = loaded(base, folder)
    pruned, fed = slim.model.layers[0].mlp.down_proj.weight.double(), []
    mlp = slim.model.layers[0].mlp = dense.model.layers[0].mlp  # the pruned attention with the dense FFN
    mlp.down_proj.register_forward_pre_hook(lambda _, args: fed.append(args[0].flatten(0, 1)))
    slim(calibration.load(text, 6, 40, AutoTokenizer.from_pretrained(base), 3))
    hessian, count = fed[0].T @ fed[0], slimgpt.plan(slim.config, 0.4)[0][1]
    expected, _ = slimgpt.remove(mlp.down_proj.weight, hessian, 1, count, slimgpt.shrinking_step)
    torch.testing.assert_close(pruned, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compact_folder_loads_alone_with_its_own_code(both, tmp_path):
    """In a process that knows nothing of this project; without trust_remote_code it is refused, not misread."""
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == 'yes')\n"
        "print(model(torch.arange(20)[None]).logits.sum().item())\n"
    )
    words, how = [sys.executable, "-c", code, both[2]], {"PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path)}
    trusted, refused = (program(*words, trust, cwd=tmp_path, **how) for trust in ("yes", "no"))
    (here,) = loaded(both[2])
    assert float(trusted.stdout) == pytest.approx(here(torch.arange(20)[None]).logits.sum().item(), rel=1e-4)
    assert refused.returncode != 0 and "trust_remote_code" in refused.stderr


def test_record_says_what_went_and_what_it_cost_and_a_compact_model_is_not_pruned_again(make_tiny_llama, prune):
    folder, record = prune(make_tiny_llama(num_hidden_layers=5), "slimgpt", "0.3", mode="compact")
    assert record["sparsity_reached"] == pytest.approx(0.3, abs=0.02)
    assert record["parameters"]["dense"] > record["parameters"]["pruned"] == loaded(folder)[0].num_parameters()
    assert all(0 < layer["error"] < 1 for layer in record["layers"])
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    for method in ("slimgpt", "wanda"):
        mistake(r"^-base_model_name: .* pruned \(slimgpt's compact form", prune, folder, method)
    mistake(r"^-base_model_name: .* pruned \(slimgpt's compact form", check_pair, folder, folder, "-pruned_model_path")
