"""Magnitude, Wanda and SparseGPT: the right weights go, exactly as many as asked, and only where they may."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import LINEARS
from models.compact import RECORD
from models.loading import load_config, load_model
from pruning import calibration, magnitude, sparsegpt, wanda
from pruning.__main__ import main
from pruning.input_statistics import Hessian, InputMeans, InputNorms, relative_error
from pruning.layers import SITES
from pruning.pattern import Pattern
from pruning.prune_model import check, prune_into, prune_layers
from pruning.pruners import METHODS
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
        return folder, prune_into(base, folder, method, sparsity, **(CALIBRATION | defaults | options))

    return run


def problem(out: int = 7, width: int = 24, tokens: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, width) and correlated inputs (tokens, width), fp32."""
    generator = torch.Generator().manual_seed(11)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(out, width, generator=generator), torch.randn(tokens, width, generator=generator) @ mixing


def pruned_by(method: str, weight: torch.Tensor, inputs: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    value = {"magnitude": None, "wanda": inputs.norm(dim=0), "sparsegpt": inputs.T @ inputs}[method]
    return METHODS[method].prune(
        weight.clone(), METHODS[method].prepare(value) if method != "magnitude" else None, pattern
    )


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
@pytest.mark.parametrize("asked", ["1:4", "2:4", "3:4", "4:8", "2:3", "0.1", "0.37", "0.5", "0.81"])
def test_a_pattern_is_exact_in_every_group_and_a_share_to_rounding(method, asked):
    weight, inputs = problem(out=5, width=264)  # longer than one block of SparseGPT, and no multiple of it
    pattern = Pattern.parse(asked)
    if not pattern.m:
        weight[:, :40] = 0.5  # ties may not prune more or less
    zeros = pruned_by(method, weight, inputs, pattern) == 0
    if pattern.m:
        assert (zeros.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.m - pattern.n).all()
    elif method == "wanda":
        assert (zeros.sum(1) == round(264 * pattern.ratio)).all()
    else:
        assert zeros.sum() == round(5 * 264 * pattern.ratio)


def test_statistics_gathered_in_batches_are_those_of_the_whole():
    _, inputs = problem(tokens=3000)
    expected = {InputNorms: inputs.norm(dim=0), Hessian: inputs.T @ inputs, InputMeans: inputs.double().mean(0)}
    for statistic, whole in expected.items():
        gathered = statistic(24, inputs.device)
        for batch in inputs.split(1300):
            gathered.add(batch)
        torch.testing.assert_close(gathered.value(), whole, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_sparsegpt_equals_brute_force_optimal_brain_surgery(pattern):
    """Each column in turn: its pruned weights go, and the columns after it move to where least squares puts them."""
    weight, inputs = problem(out=4, width=12)
    hessian = inputs.T @ inputs
    pruned = pruned_by("sparsegpt", weight, inputs, Pattern.parse(pattern))
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
    inverses = [torch.linalg.inv(hessian[column:, column:])[0, 0].item() for column in range(start, start + 4)]
    for row in range(len(weight)):
        costs = [weight[row, start + place].item() ** 2 / inverses[place] for place in range(4)]
        gone = (pruned[row, start : start + 4] == 0).nonzero().flatten().tolist()
        assert gone == sorted(sorted(range(4), key=costs.__getitem__)[:2])


def test_sparsegpt_in_blocks_equals_sparsegpt_in_one_block(monkeypatch):
    """The lazy update between blocks changes nothing but the order of the arithmetic."""
    weight, inputs = problem(width=40)
    whole = pruned_by("sparsegpt", weight, inputs, Pattern.parse("2:4"))
    monkeypatch.setattr(sparsegpt, "BLOCK", 8)
    torch.testing.assert_close(pruned_by("sparsegpt", weight, inputs, Pattern.parse("2:4")), whole)


def test_dead_inputs_are_pruned_and_few_tokens_suffice_but_dampening_has_an_end():
    weight, inputs = problem()
    inputs *= 0.01  # so that a dead column, were it kept, would look dearer than a live one
    inputs[:, [3, 17]] = 0
    pruned = pruned_by("sparsegpt", weight, inputs, Pattern(0.5))
    assert pruned.isfinite().all() and (pruned[:, [3, 17]] == 0).all()
    weight, inputs = problem(tokens=5)  # the Hessian's rank is 5 of 24: dampening makes it invertible
    pruned = pruned_by("sparsegpt", weight, inputs, Pattern(0.5))
    assert pruned.isfinite().all() and relative_error(weight, pruned, inputs.T @ inputs) < 1e-2
    with pytest.raises(torch.linalg.LinAlgError, match="dampening"):
        sparsegpt.inverse_factor(torch.diag(torch.tensor([1.0, -50.0, 60.0])))


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_reconstruction_error_sparsegpt_below_wanda_below_magnitude(pattern):
    """On correlated inputs of uneven size, as those of language models are."""
    weight, inputs = problem(out=40, width=96, tokens=500)
    inputs *= torch.linspace(0.1, 3, 96)
    pruned = [pruned_by(method, weight, inputs, Pattern.parse(pattern)) for method in UNSTRUCTURED]
    magnitudes, wandas, sparsegpts = (((weight - each) @ inputs.T).norm() for each in pruned)
    assert sparsegpts < wandas < magnitudes


@pytest.mark.parametrize(
    ("method", "sparsity", "dtype"),
    [
        ("magnitude", "0.37", torch.bfloat16),
        ("magnitude", "4:8", torch.float32),
        ("wanda", "0.37", torch.float32),
        ("wanda", "2:4", torch.bfloat16),
        ("sparsegpt", "0.37", torch.float32),
        ("sparsegpt", "4:8", torch.bfloat16),
    ],
)
def test_checkpoint_is_sparse_where_it_may_be_and_untouched_elsewhere(make_tiny_llama, prune, method, sparsity, dtype):
    base, pattern = make_tiny_llama(attention_bias=True, mlp_bias=True, dtype=dtype), Pattern.parse(sparsity)
    folder, record = prune(base, method, sparsity, dtype=dtype)
    dense, pruned = (AutoModelForCausalLM.from_pretrained(place) for place in (base, folder))
    linears = {f"model.layers.{layer}.{name}.weight" for layer in range(3) for name in LINEARS}
    weights = dict(pruned.named_parameters())
    for name, before in dense.named_parameters():
        assert weights[name].dtype == dtype
        if name in linears:
            share = (weights[name] == 0).float().mean().item()
            assert share == pytest.approx(pattern.ratio, abs=0.5 / weights[name].shape[1])
        else:
            assert torch.equal(weights[name], before), name
    ids = [AutoTokenizer.from_pretrained(place)("abc").input_ids for place in (base, folder)]
    assert ids[0] == ids[1]
    assert record == json.loads((folder / "pruning.json").read_text())
    assert record["sparsity_reached"] == pytest.approx(pattern.ratio, abs=0.01)
    errors = [layer.get("error") for layer in record["layers"]]
    assert errors == [None] * 3 if method == "magnitude" else all(0 < error < 1 for error in errors)
    assert "python -m pruning" in (folder / "README.md").read_text()


def test_each_layer_is_pruned_with_what_the_pruned_layers_before_it_give(make_tiny_llama, prune, text):
    """Wanda's mask of every linear layer, recomputed with plain forward passes of the half-pruned model."""
    base = make_tiny_llama()
    folder, _ = prune(base, "wanda")
    tokens, _ = calibration.load(text, 6, 40, AutoTokenizer.from_pretrained(base), 3)
    half, pruned = (load_model(place, torch.float32, "cpu", "-x") for place in (base, folder))
    for index in range(3):
        layer, result, inputs = half.model.layers[index], pruned.model.layers[index], {}
        for site in SITES:
            layer.get_submodule(site).register_forward_pre_hook(
                lambda _, args, site=site, inputs=inputs: inputs.update({site: args[0].flatten(0, 1)})
            )
        half(tokens)
        for site, names in SITES.items():
            for name in names:
                weight = layer.get_submodule(name).weight
                expected = wanda.prune(weight, inputs[site].norm(dim=0), Pattern(0.5))
                assert torch.equal(expected == 0, result.get_submodule(name).weight == 0), f"{index} {name}"
                weight.copy_(expected)


def test_the_same_seed_gives_the_same_checkpoint_and_another_one_another(make_tiny_llama, prune):
    base, digests = make_tiny_llama(), []
    for seed in (3, 3, 4):
        folder, record = prune(base, "wanda", seed=seed)
        digests.append((record["calibration"]["tokens_digest"], (folder / "model.safetensors").read_bytes()))
        shutil.rmtree(folder)
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0] and digests[0][1] != digests[2][1]


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
        ({"method": "slimgpt", "sparsity": "2:4"}, "-sparsity"),
        ({"method": "slimgpt", "sparsity": "0.99"}, "-sparsity"),
        ({"method": "slimgpt", "mode": "tiny"}, "-mode"),
        ({"mode": "compact"}, "-mode"),
    ],
)
def test_a_wrong_flag_is_named_before_a_model_loads(make_tiny_llama, changed, flag):
    arguments = {"method": "wanda", "sparsity": "0.5", "calib_data": "bundled", **CALIBRATION} | changed
    with pytest.raises(UserError, match=f"^{flag}: ") as error:
        check(**arguments, config=load_config(make_tiny_llama(), "-x"))
    assert "\n" not in str(error.value)


def test_magnitude_asks_for_no_calibration_set_and_pruning_for_a_device_with_fp64(make_tiny_llama, prune, tmp_path):
    base = make_tiny_llama()
    _, record = prune(base, "magnitude", calib_data="nowhere.jsonl")
    assert record["calibration"] is None
    before = sorted(tmp_path.iterdir())
    for device in ("cuda:99", "meta"):
        with pytest.raises(UserError, match=r"^-device: "):
            prune(base, "sparsegpt", device=device)
    assert sorted(tmp_path.iterdir()) == before


def changed(base: Path, name: str, value: float) -> Path:
    """The model with one value of a parameter changed."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.get_parameter(name).data[1, -1] = value
    model.save_pretrained(base)
    return base


def test_weights_and_inputs_that_are_not_finite_name_their_layer(make_tiny_llama, prune):
    spoiled = changed(make_tiny_llama(), "model.layers.2.mlp.up_proj.weight", float("nan"))
    large = changed(make_tiny_llama(), "model.layers.2.mlp.up_proj.weight", 1e5)
    for method in UNSTRUCTURED:
        with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj\.weight .* NaN or infinity"):
            prune(spoiled, method)
        with pytest.raises(UserError, match=r"^-dtype: the weight of layer 2 \(mlp.up_proj\) is not finite"):
            prune(large, method, dtype=torch.float16)


def test_one_bad_window_is_enough_to_name_the_layer(make_tiny_llama):
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-x")
    model.model.embed_tokens.weight[7] = float("nan")
    tokens = torch.full((20, 8), 3)
    tokens[-1, 5] = 7
    passes = METHODS["wanda"].passes(Pattern(0.5), model.config)
    with pytest.raises(UserError, match=r"input of layer 0 \(self_attn.q_proj\)"):
        prune_layers(model, tokens, passes, torch.device("cpu"))


def test_a_singular_hessian_names_its_layer(make_tiny_llama, prune, monkeypatch, tmp_path):
    monkeypatch.setattr(sparsegpt, "DAMPENING", -1.0)  # no dampening of this sign can help
    with pytest.raises(UserError, match=r"^-calib_data: the Hessian of layer 0 is singular"):
        prune(make_tiny_llama(), "sparsegpt")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_command_line_refuses_an_output_that_touches_an_input(make_tiny_llama, text, tmp_path):
    base = make_tiny_llama()
    (tmp_path / "link").symlink_to(base)
    flags = ["-base_model_name", str(base), "-prune_method", "magnitude", "-calib_data", text, "-overwrite"]
    flags += ["-cache_dir", str(tmp_path / "c")]
    cases = {base / "pruned": "-base_model_name", tmp_path / "link": "-base_model_name", tmp_path: "-calib_data"}
    for output, named in {**cases, tmp_path / "c" / "out": "-cache_dir"}.items():
        with pytest.raises(UserError, match=f"^-output_dir: .* what {named} names"):
            main([*flags, "-output_dir", str(output)])
    assert (base / "model.safetensors").is_file() and Path(text).is_file()


def test_command_line_prunes_overwrites_when_told_and_says_what_is_wrong_in_one_line(
    make_tiny_llama, text, tmp_path, capsys
):
    flags = ["-base_model_name", str(make_tiny_llama()), "-calib_data", text, "--calib_samples", "6"]
    main([*flags, "-calib_length", "40", "-sparsity", "2:4", "-output_dir", str(tmp_path / "good")])
    assert "50.00% zeros" in capsys.readouterr().out
    kept = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    with pytest.raises(UserError, match=r"^-output_dir: .*-overwrite"):
        main([*flags, "-calib_length", "40", "-output_dir", str(tmp_path / "good")])
    main([*flags, "-calib_length", "40", "-output_dir", str(tmp_path / "good"), "-overwrite"])
    assert json.loads((tmp_path / "good" / RECORD).read_text())["sparsity"] == "0.5"
    assert {path.name: path.read_bytes() for path in (tmp_path / "good.1").iterdir()} == kept
    command = [sys.executable, "-m", "pruning", *flags, "-sparsity", "5:4", "-output_dir", str(tmp_path / "bad")]
    bad = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: -sparsity: ") and bad.stderr.count("\n") == 1
    assert not (tmp_path / "bad").exists()
