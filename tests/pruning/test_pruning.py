"""Magnitude, Wanda and SparseGPT: the right weights go, exactly as many as asked, and only where they may."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pruning
from models.checkpoint import LINEARS
from models.compact import RECORD
from models.loading import load_config, load_model
from pruning import magnitude, sparsegpt, wanda
from pruning.__main__ import main
from pruning.methods import METHODS
from pruning.pattern import Pattern
from pruning.statistics import Hessian, InputNorms, relative_error
from pruning.streaming import SITES, stream
from utils.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = {"calib_samples": 6, "calib_length": 40}
UNSTRUCTURED = ("magnitude", "wanda", "sparsegpt")


@pytest.fixture
def text(tmp_path) -> str:
    """Twenty documents of about 100 bytes, as .jsonl."""
    rows = ({"text": f"Document {number}: " + " ".join(str(number * k * k) for k in range(25))} for number in range(20))
    path = tmp_path / "calibration.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def prune(tmp_path, text):
    """prune(base, method, sparsity, **options) -> (folder, record)."""

    def run(base: Path, method: str, sparsity: str = "0.5", **options) -> tuple[Path, dict]:
        folder = tmp_path / f"{method}-{sparsity.replace(':', '-')}"
        defaults = {"calib_data": text, "dtype": torch.float32, "device": "cpu", "seed": 3}
        return folder, pruning.prune(base, folder, method, sparsity, **(CALIBRATION | defaults | options))

    return run


def problem(out: int = 7, width: int = 24, tokens: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, width) and correlated inputs (tokens, width), fp32."""
    generator = torch.Generator().manual_seed(11)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(out, width, generator=generator), torch.randn(tokens, width, generator=generator) @ mixing


def inputs_of(layer: torch.nn.Module, forward: Callable[[], object]) -> dict[str, torch.Tensor]:
    """What each site of a decoder layer is fed, (tokens, width), while `forward` runs."""
    inputs = {}
    for site in SITES:
        layer.get_submodule(site).register_forward_pre_hook(
            lambda _, args, site=site: inputs.update({site: args[0].flatten(0, 1)})
        )
    forward()
    return inputs


def test_magnitude_removes_the_smallest_weights_of_the_matrix():
    weight, _ = problem()
    pruned = magnitude.prune(weight, None, Pattern(0.3))
    gone = pruned == 0
    assert gone.sum() == round(0.3 * weight.numel())
    assert weight[gone].abs().max() < weight[~gone].abs().min()
    assert torch.equal(pruned[~gone], weight[~gone])


def test_wanda_removes_the_lowest_weight_times_input_norm_of_each_row():
    weight, inputs = problem()
    pruned = wanda.prune(weight, inputs.norm(dim=0), Pattern(0.4))
    norms = [sum(x * x for x in column) ** 0.5 for column in inputs.T.tolist()]
    for row, before in zip(pruned, weight, strict=True):
        scores = [abs(w) * norm for w, norm in zip(before.tolist(), norms, strict=True)]
        lowest = sorted(range(24), key=scores.__getitem__)[: round(0.4 * 24)]
        assert sorted(lowest) == (row == 0).nonzero().flatten().tolist()
        assert torch.equal(row[row != 0], before[row != 0])


@pytest.mark.parametrize("method", UNSTRUCTURED)
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:4", "4:8", "2:3"])
def test_nm_pattern_is_exact_in_every_group(method, pattern):
    weight, inputs = problem(width=264)  # longer than one block of SparseGPT, and no multiple of it
    chosen, parsed = METHODS[method], Pattern.parse(pattern)
    value = {"magnitude": None, "wanda": inputs.norm(dim=0), "sparsegpt": inputs.T @ inputs}[method]
    pruned = chosen.prune(weight.clone(), None if value is None else chosen.prepare(value), parsed)
    kept = (pruned.unflatten(1, (-1, parsed.m)) != 0).sum(-1)
    assert (kept == parsed.n).all()


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.5, 0.81])
@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_ratio_is_exact_to_rounding(method, ratio):
    weight, inputs = problem(out=5, width=300)
    weight[:, :40] = 0.5  # ties may not prune more or less
    value = {"magnitude": None, "wanda": torch.ones(300), "sparsegpt": inputs.T @ inputs}[method]
    chosen = METHODS[method]
    pruned = chosen.prune(weight.clone(), None if value is None else chosen.prepare(value), Pattern(ratio))
    zeros = (pruned == 0).sum(1)
    if method == "wanda":
        assert (zeros == round(300 * ratio)).all()
    else:
        assert zeros.sum() == round(5 * 300 * ratio)


def test_statistics_gathered_in_batches_are_those_of_the_whole():
    _, inputs = problem(tokens=3000)
    for statistic, whole in ((InputNorms, inputs.norm(dim=0)), (Hessian, inputs.T @ inputs)):
        gathered = statistic(24, inputs.device)
        for batch in inputs.split(1300):
            gathered.add(batch)
        torch.testing.assert_close(gathered.value(), whole, rtol=1e-4, atol=1e-2)
        assert gathered.value().dtype == torch.float32


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_sparsegpt_equals_brute_force_optimal_brain_surgery(pattern):
    """Each column in turn: its pruned weights go, and the columns after it move to where least squares puts them."""
    weight, inputs = problem(out=4, width=12)
    hessian = inputs.T @ inputs
    pruned = METHODS["sparsegpt"].prune(weight.clone(), sparsegpt.inverse_factor(hessian), Pattern.parse(pattern))
    damped = hessian.double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    expected = weight.double()
    for column in range(12):
        if pattern == "2:4" and column % 4 == 0:
            check_cheapest_two_of_four(expected, damped, column, pruned)
        for row in (pruned[:, column] == 0).nonzero().flatten().tolist():
            rest = slice(column + 1, 12)
            if column < 11:
                move = torch.linalg.solve(damped[rest, rest], damped[rest, column])
                expected[row, rest] += expected[row, column] * move
            expected[row, column] = 0
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-4, atol=1e-5)


def check_cheapest_two_of_four(weight: torch.Tensor, hessian: torch.Tensor, start: int, pruned: torch.Tensor) -> None:
    """The two of the next four weights that are gone have the lowest saliency, the earlier columns frozen."""
    for row in range(len(weight)):
        costs = []
        for column in range(start, start + 4):
            inverse = torch.linalg.inv(hessian[column:, column:])  # columns before this one are frozen
            costs.append(weight[row, column].item() ** 2 / inverse[0, 0].item())
        gone = (pruned[row, start : start + 4] == 0).nonzero().flatten().tolist()
        assert gone == sorted(sorted(range(4), key=costs.__getitem__)[:2])


def test_sparsegpt_in_blocks_equals_sparsegpt_in_one_block(monkeypatch):
    """The lazy update between blocks changes nothing but the order of the arithmetic."""
    weight, inputs = problem(width=40)
    factor = sparsegpt.inverse_factor(inputs.T @ inputs)
    whole = sparsegpt.prune(weight.clone(), factor, Pattern.parse("2:4"))
    monkeypatch.setattr(sparsegpt, "BLOCK", 8)
    torch.testing.assert_close(sparsegpt.prune(weight.clone(), factor, Pattern.parse("2:4")), whole)


def test_dead_inputs_are_pruned_and_break_nothing():
    weight, inputs = problem()
    inputs *= 0.01  # so that a dead column, were it kept, would look dearer than a live one
    inputs[:, [3, 17]] = 0
    factor = sparsegpt.inverse_factor(inputs.T @ inputs)
    pruned = sparsegpt.prune(weight.clone(), factor, Pattern(0.5))
    assert pruned.isfinite().all()
    assert (pruned[:, [3, 17]] == 0).all()


def test_fewer_tokens_than_features_still_prune():
    """The Hessian's rank is 5 of 24: dampening makes it invertible."""
    weight, inputs = problem(tokens=5)
    pruned = sparsegpt.prune(weight.clone(), sparsegpt.inverse_factor(inputs.T @ inputs), Pattern(0.5))
    assert pruned.isfinite().all()
    assert relative_error(weight, pruned, inputs.T @ inputs) < 1e-2


def test_a_hessian_that_dampening_cannot_mend_is_an_error():
    indefinite = torch.diag(torch.tensor([1.0, -50.0, 60.0]))
    with pytest.raises(torch.linalg.LinAlgError, match="dampening"):
        sparsegpt.inverse_factor(indefinite)


@pytest.mark.parametrize("sparsity", ["0.37", "2:4", "4:8"])
@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_checkpoint_is_sparse_where_it_may_be_and_untouched_elsewhere(make_tiny_llama, prune, method, sparsity):
    base = make_tiny_llama(attention_bias=True, mlp_bias=True)
    folder, record = prune(base, method, sparsity)
    dense, pruned = (AutoModelForCausalLM.from_pretrained(place) for place in (base, folder))
    linears = {f"model.layers.{layer}.{name}.weight" for layer in range(3) for name in LINEARS}
    weights = dict(pruned.named_parameters())
    for name, before in dense.named_parameters():
        if name in linears:
            share = (weights[name] == 0).float().mean().item()
            assert share == pytest.approx(Pattern.parse(sparsity).ratio, abs=0.5 / weights[name].shape[1])
        else:
            assert torch.equal(weights[name], before), name
    assert (
        AutoTokenizer.from_pretrained(folder)("abc").input_ids == AutoTokenizer.from_pretrained(base)("abc").input_ids
    )
    assert record == json.loads((folder / "pruning.json").read_text())
    assert record["sparsity_reached"] == pytest.approx(Pattern.parse(sparsity).ratio, abs=0.01)
    assert len(record["layers"]) == 3
    assert "python -m pruning" in (folder / "README.md").read_text()


def test_each_layer_is_pruned_with_what_the_pruned_layers_before_it_give(make_tiny_llama, prune, text):
    """Wanda's mask of every linear layer, recomputed with plain forward passes of the half-pruned model."""
    base = make_tiny_llama()
    folder, _ = prune(base, "wanda")
    tokens, _ = pruning.calibration.load(text, 6, 40, AutoTokenizer.from_pretrained(base), 3)
    half, pruned = (load_model(place, torch.float32, "cpu", "-x") for place in (base, folder))
    for index in range(3):
        layer, result = half.model.layers[index], pruned.model.layers[index]
        inputs = inputs_of(layer, lambda: half(tokens))
        for site, names in SITES.items():
            for name in names:
                weight = layer.get_submodule(name).weight
                expected = wanda.prune(weight, inputs[site].norm(dim=0), Pattern(0.5))
                differing = ((expected == 0) != (result.get_submodule(name).weight == 0)).sum()
                assert differing == 0, f"{index} {name}"
                weight.copy_(expected)


def reconstruction_errors(weight: torch.Tensor, inputs: torch.Tensor, pattern: Pattern) -> dict[str, float]:
    """‖WX - ŴX‖ by method."""
    values = {"magnitude": None, "wanda": inputs.norm(dim=0), "sparsegpt": inputs.T @ inputs}
    errors = {}
    for method, value in values.items():
        prepared = None if value is None else METHODS[method].prepare(value)
        pruned = METHODS[method].prune(weight.clone(), prepared, pattern)
        errors[method] = ((weight - pruned) @ inputs.T).norm().item()
    return errors


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_reconstruction_error_sparsegpt_below_wanda_below_magnitude(pattern):
    """On correlated inputs of uneven size, as those of language models are."""
    weight, inputs = problem(out=40, width=96, tokens=500)
    errors = reconstruction_errors(weight, inputs * torch.linspace(0.1, 3, 96), Pattern.parse(pattern))
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_reconstruction_errors_on_real_activations(stories, shared):
    """The same order in a trained model's layer, summed over its linear layers."""
    model = load_model(stories, torch.float32, "cpu", "-x")
    source = str(shared / "data" / "c4" / "calib.jsonl")
    ids, _ = pruning.calibration.load(source, 16, 128, AutoTokenizer.from_pretrained(stories), 0)
    layer = model.model.layers[2]
    inputs = inputs_of(layer, lambda: model(ids))
    total = {"0.5": Counter(), "2:4": Counter()}
    for text, errors in total.items():
        for site, names in SITES.items():
            for name in names:
                weight = layer.get_submodule(name).weight
                errors.update(reconstruction_errors(weight, inputs[site], Pattern.parse(text)))
    assert total["2:4"]["sparsegpt"] < total["2:4"]["wanda"] < total["2:4"]["magnitude"]
    # Unstructured, magnitude is free to leave some rows of this small model's q_proj denser than others.
    assert total["0.5"]["sparsegpt"] < min(total["0.5"]["wanda"], total["0.5"]["magnitude"])


def test_the_same_seed_gives_the_same_checkpoint_and_another_one_another(make_tiny_llama, prune):
    base = make_tiny_llama()
    digests = []
    for seed in (3, 3, 4):
        folder, record = prune(base, "wanda", seed=seed)
        digests.append((record["calibration"]["tokens_digest"], (folder / "model.safetensors").read_bytes()))
        shutil.rmtree(folder)
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0] and digests[0][1] != digests[2][1]


def test_bfloat16_checkpoint_keeps_its_dtype(make_tiny_llama, prune):
    for method in UNSTRUCTURED:
        folder, _ = prune(make_tiny_llama(), method, dtype=torch.bfloat16)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"method": "lottery"}, "-prune_method"),
        ({"sparsity": "0"}, "-sparsity"),
        ({"sparsity": "1.0"}, "-sparsity"),
        ({"sparsity": "nan"}, "-sparsity"),
        ({"sparsity": "half"}, "-sparsity"),
        ({"sparsity": "4:4"}, "-sparsity"),
        ({"sparsity": "0:4"}, "-sparsity"),
        ({"sparsity": "2:16"}, "-sparsity"),  # 24 and 56 are no multiples of 16
        ({"calib_data": "nowhere.jsonl"}, "-calib_data"),
        ({"calib_data": "wikipedia"}, "-calib_data"),
        ({"calib_samples": 0}, "-calib_samples"),
        ({"calib_length": 1}, "-calib_length"),
        ({"calib_length": 100_000}, "-calib_length"),
    ],
)
def test_a_wrong_flag_is_named_before_a_model_loads(make_tiny_llama, changed, flag):
    arguments = {"method": "wanda", "sparsity": "0.5", "calib_data": "bundled", **CALIBRATION} | changed
    with pytest.raises(UserError, match=f"^{flag}: ") as error:
        pruning.check(**arguments, config=load_config(make_tiny_llama(), "-x"))
    assert "\n" not in str(error.value)


def test_magnitude_asks_for_no_calibration_set(make_tiny_llama, prune):
    _, record = prune(make_tiny_llama(), "magnitude", calib_data="nowhere.jsonl")
    assert record["calibration"] is None


def test_activations_that_are_not_finite_name_their_layer(make_tiny_llama, prune):
    base = make_tiny_llama()
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers[1].post_attention_layernorm.weight.data.fill_(3e38)
    model.save_pretrained(base)
    with pytest.raises(UserError, match="layer 1"):
        prune(base, "wanda")


def test_one_bad_window_is_enough_to_name_the_layer(make_tiny_llama):
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-x")
    model.model.embed_tokens.weight[7] = float("nan")
    tokens = torch.full((20, 8), 3)
    tokens[-1, 5] = 7
    stages = METHODS["wanda"].stages(Pattern(0.5), model.config)
    with pytest.raises(UserError, match=r"input of layer 0 \(self_attn.q_proj\)"):
        stream(model, tokens, stages, torch.device("cpu"))


def test_a_singular_hessian_names_its_layer(make_tiny_llama, prune, monkeypatch, tmp_path):
    monkeypatch.setattr(sparsegpt, "DAMPENING", -1.0)  # no dampening of this sign can help
    with pytest.raises(UserError, match=r"^-calib_data: the Hessian of layer 0 is singular"):
        prune(make_tiny_llama(), "sparsegpt")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_weights_that_are_not_finite_name_their_layer(make_tiny_llama, prune):
    base = make_tiny_llama()
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers[2].mlp.up_proj.weight.data[1, 2] = float("nan")
    model.save_pretrained(base)
    for method in UNSTRUCTURED:
        with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj\.weight .* NaN or infinity"):
            prune(base, method)


def test_a_failed_run_leaves_nothing_and_no_existing_folder_is_pruned_into(make_tiny_llama, prune, tmp_path):
    base = make_tiny_llama()
    folder, _ = prune(base, "wanda")
    before = sorted(tmp_path.iterdir())
    options = CALIBRATION | {"calib_data": "", "dtype": torch.float32, "device": "cpu", "seed": 0}
    with pytest.raises(UserError, match=r"^-output_dir: .*-overwrite"):
        prune(base, "wanda")
    with pytest.raises(UserError, match=r"^-device: "):
        prune(base, "sparsegpt", device="cuda:99")
    with pytest.raises(UserError, match=r"^-device: "):
        prune(base, "sparsegpt", device="meta")
    with pytest.raises(UserError, match=r"^-output_dir: .* is what -base_model_name names"):
        pruning.prune(base, base, "magnitude", "0.5", **options)
    with pytest.raises(UserError, match=r"^-output_dir: .* holds what -base_model_name names"):
        pruning.prune(base, base.parent, "magnitude", "0.5", **options)
    assert sorted(tmp_path.iterdir()) == before
    assert (folder / "model.safetensors").is_file()


def test_command_line_replaces_its_own_result_only_with_overwrite_and_when_the_new_one_is_whole(
    make_tiny_llama, tmp_path, capsys
):
    base, output = make_tiny_llama(), tmp_path / "out"
    flags = ["-base_model_name", str(base), "-prune_method", "magnitude", "-dtype", "float32", "-device", "cpu"]
    flags += ["-output_dir", str(output)]
    main(flags)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(UserError, match=r"^-output_dir: .*-overwrite"):
        main([*flags, "-sparsity", "0.25"])
    (output / "thesis.tex").write_text("years of work")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers[2].mlp.up_proj.weight.data[1, 2] = float("nan")
    model.save_pretrained(base)
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj\.weight .* NaN"):
        main([*flags, "-sparsity", "0.25", "-overwrite"])
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before | {"thesis.tex": b"years of work"}
    model.model.layers[2].mlp.up_proj.weight.data[1, 2] = 1
    model.save_pretrained(base)
    main([*flags, "-sparsity", "0.25", "-overwrite"])
    assert json.loads((output / RECORD).read_text())["sparsity"] == "0.25"
    assert {path.name for path in output.iterdir()} == set(before)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out.1").iterdir()}
    assert kept == before | {"thesis.tex": b"years of work"}


def test_command_line_refuses_an_output_that_touches_an_input(make_tiny_llama, text, tmp_path):
    base = make_tiny_llama()
    (tmp_path / "link").symlink_to(base)
    flags = ["-base_model_name", str(base), "-prune_method", "magnitude", "-calib_data", text, "-overwrite"]
    cases = {base / "pruned": "-base_model_name", tmp_path / "link": "-base_model_name", tmp_path: "-calib_data"}
    for output, named in cases.items():
        with pytest.raises(UserError, match=f"^-output_dir: .* what {named} names"):
            main([*flags, "-output_dir", str(output)])
    with pytest.raises(UserError, match=r"^-output_dir: .* lies in what -cache_dir names"):
        main([*flags, "-cache_dir", str(tmp_path / "c"), "-output_dir", str(tmp_path / "c" / "out")])
    assert (base / "model.safetensors").is_file() and Path(text).is_file()


def test_command_line_prunes_and_says_what_is_wrong_in_one_line(make_tiny_llama, text, tmp_path):
    base = make_tiny_llama()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pruning", "-base_model_name", str(base), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    calibration = ("-calib_data", text, "--calib_samples", "6", "-calib_length", "40")
    good = run("--prune_method", "wanda", "-sparsity", "2:4", "-output_dir", str(tmp_path / "good"), *calibration)
    assert good.returncode == 0, good.stderr
    assert "50.00% zeros" in good.stdout and good.stderr == ""  # no line of progress below half a minute
    bad = run("-sparsity", "5:4", "-output_dir", str(tmp_path / "bad"), *calibration)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: -sparsity: ") and bad.stderr.count("\n") == 1
    assert not (tmp_path / "bad").exists()
