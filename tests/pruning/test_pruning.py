"""The right weights go, exactly as many as asked, and only where they may; calibration sets are as they are asked."""

import json
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import LINEARS
from models.compact import RECORD
from models.loading import load_config, load_model
from pruning import calibration, sparsegpt, wanda
from pruning.__main__ import main, parser
from pruning.input_statistics import Hessian, InputMeans, InputNorms, relative_error
from pruning.pattern import Pattern
from pruning.prune_model import check, prune_layers
from pruning.pruners import METHODS
from tests.baselines.test_closed_forms import inputs_seen
from tests.builders import byte_tokenizer, mistake, rewrite


def problem(out: int = 7, width: int = 24, tokens: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, width) and correlated inputs (tokens, width), fp32."""
    generator = torch.Generator().manual_seed(11)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(out, width, generator=generator), torch.randn(tokens, width, generator=generator) @ mixing


def pruned_by(method: str, weight: torch.Tensor, inputs: torch.Tensor, pattern: str) -> torch.Tensor:
    value = {"magnitude": None, "wanda": inputs.norm(dim=0), "sparsegpt": inputs.T @ inputs}[method]
    value = value if value is None else METHODS[method].prepare(value)
    return METHODS[method].prune(weight.clone(), value, Pattern.parse(pattern))


def test_magnitude_ranks_the_weights_of_the_matrix_and_wanda_weight_times_input_norm_in_each_row():
    weight, inputs = problem()
    by_norm = weight.abs() * inputs.double().square().sum(0).sqrt()
    for method, scores, pattern in (("magnitude", weight.abs().view(1, -1), "0.3"), ("wanda", by_norm, "0.4")):
        pruned = pruned_by(method, weight, inputs, pattern)
        gone = pruned == 0
        for row, zeros in zip(scores, gone.view_as(scores), strict=True):
            assert zeros.sum() == round(float(pattern) * len(row)) and row[zeros].max() < row[~zeros].min()
        assert torch.equal(pruned[~gone], weight[~gone])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("asked", ["1:4", "2:4", "3:4", "4:8", "2:3", "0.1", "0.37", "0.5", "0.81"])
def test_a_pattern_is_exact_in_every_group_and_a_share_to_rounding(method, asked):
    weight, inputs = problem(out=5, width=264)  # longer than one block of SparseGPT, and no multiple of it
    weight[:, :40] = 0.5  # ties may not prune more or less
    pattern, zeros = Pattern.parse(asked), pruned_by(method, weight, inputs, asked) == 0
    if pattern.m:
        assert (zeros.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.m - pattern.n).all()
    elif method == "wanda":
        assert (zeros.sum(1) == round(264 * pattern.ratio)).all()
    else:
        assert zeros.sum() == round(5 * 264 * pattern.ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_gathered_in_batches_are_those_of_the_whole_in_fp32(monkeypatch, dtype):
    monkeypatch.setattr("pruning.input_statistics._BLOCK", 10)
    _, inputs = problem(tokens=3000)
    inputs = (300 + 100 * inputs).to(dtype)  # whose squares fp16 has no room for
    exact = inputs.double()
    expected = {InputNorms: exact.norm(dim=0), Hessian: exact.T @ exact, InputMeans: exact.mean(0)}
    for statistic, whole in expected.items():
        gathered = statistic(24, inputs.device)
        for batch in inputs.split(1300):
            gathered.add(batch)
        torch.testing.assert_close(gathered.value().double(), whole, rtol=3e-5, atol=0)  # fp32 sums of 3,000


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("block", [128, 8])
def test_sparsegpt_in_any_blocks_equals_brute_force_optimal_brain_surgery(monkeypatch, pattern, block):
    """Each column in turn: its pruned weights go, and the columns after it move to where least squares puts them.

    Of four, the two with the lowest saliency go, the columns before them frozen.
    """
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    weight, inputs = problem(out=4, width=12)
    pruned = pruned_by("sparsegpt", weight, inputs, pattern)
    damped = (inputs.T @ inputs).double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    saliency = torch.stack([torch.linalg.inv(damped[column:, column:])[0, 0] for column in range(12)])
    expected = weight.double()
    for column in range(12):
        if pattern == "2:4" and column % 4 == 0:
            four = slice(column, column + 4)
            costs = expected[:, four].square() / saliency[four]
            assert torch.equal(pruned[:, four] == 0, costs < costs.sort(1).values[:, 2:3])
        for row in (pruned[:, column] == 0).nonzero().flatten().tolist():
            rest = slice(column + 1, 12)
            if column < 11:
                move = torch.linalg.solve(damped[rest, rest], damped[rest, column])
                expected[row, rest] += expected[row, column] * move
            expected[row, column] = 0
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-4, atol=1e-5)


def test_dead_inputs_are_pruned_and_few_tokens_suffice_but_dampening_has_an_end():
    weight, inputs = problem()
    inputs *= 0.01  # so that a dead column, were it kept, would look dearer than a live one
    inputs[:, [3, 17]] = 0
    pruned = pruned_by("sparsegpt", weight, inputs, "0.5")
    assert pruned.isfinite().all() and (pruned[:, [3, 17]] == 0).all()
    weight, inputs = problem(tokens=5)  # the Hessian's rank is 5 of 24: dampening makes it invertible
    pruned = pruned_by("sparsegpt", weight, inputs, "0.5")
    assert pruned.isfinite().all() and relative_error(weight, pruned, inputs.T @ inputs) < 1e-2
    with pytest.raises(torch.linalg.LinAlgError, match="dampening"):
        sparsegpt.inverse_factor(torch.diag(torch.tensor([1.0, -50.0, 60.0])))


@pytest.mark.parametrize(
    ("method", "sparsity", "dtype"),
    [("magnitude", "0.37", torch.bfloat16), ("wanda", "2:4", torch.float32), ("sparsegpt", "4:8", torch.bfloat16)],
)
def test_checkpoint_is_sparse_where_it_may_be_and_untouched_elsewhere(make_tiny_llama, prune, method, sparsity, dtype):
    base, pattern = make_tiny_llama(attention_bias=True, mlp_bias=True, dtype=dtype), Pattern.parse(sparsity)
    unasked = {"calib_data": "nowhere.jsonl"} if method == "magnitude" else {}  # which asks for no calibration set
    folder, record = prune(base, method, sparsity, dtype=dtype, base_name="my own", **unasked)
    dense, pruned = (AutoModelForCausalLM.from_pretrained(place) for place in (base, folder))
    for (name, before), after in zip(dense.named_parameters(), pruned.parameters(), strict=True):
        assert after.dtype == dtype
        if name.endswith(tuple(f"{linear}.weight" for linear in LINEARS)):
            assert (after == 0).float().mean().item() == pytest.approx(pattern.ratio, abs=0.5 / after.shape[1])
        else:
            assert torch.equal(after, before), name
    one, other = (AutoTokenizer.from_pretrained(place)("abc").input_ids for place in (base, folder))
    assert one == other and record == json.loads((folder / "pruning.json").read_text())
    assert record["sparsity_reached"] == pytest.approx(pattern.ratio, abs=0.01)
    errors = [layer.get("error") for layer in record["layers"]]
    if method == "magnitude":
        assert (errors, record["calibration"]) == ([None] * 3, {})
    else:
        assert all(0 < error < 1 for error in errors)
    card = (folder / "README.md").read_text()
    assert ("the error of every layer" in card) == (method != "magnitude")
    words = shlex.split(card.split("```")[1])
    assert words[:3] == ["python", "-m", "pruning"] and parser().parse_args(words[3:]).base_model_name == "my own"


def test_each_layer_is_pruned_with_what_the_pruned_layers_before_it_give(make_tiny_llama, prune, text):
    base = make_tiny_llama()
    folder, _ = prune(base, "wanda")
    tokens = calibration.load(text, 6, 40, AutoTokenizer.from_pretrained(base), 3)
    half, pruned = (load_model(place, torch.float32, "cpu", "-x") for place in (base, folder))
    for index in range(3):
        layer, result = half.model.layers[index], pruned.model.layers[index]
        inputs = inputs_seen(half, tokens)
        for name in LINEARS:
            weight, norms = layer.get_submodule(name).weight, inputs[f"model.layers.{index}.{name}"].norm(dim=0)
            expected = wanda.prune(weight, norms.float(), Pattern(0.5))
            assert torch.equal(expected == 0, result.get_submodule(name).weight == 0), f"{index} {name}"
            weight.copy_(expected)


def test_the_same_seed_gives_the_same_checkpoint_and_another_one_another(make_tiny_llama, prune):
    base, found = make_tiny_llama(), []
    for seed in (3, 3, 4):
        folder, record = prune(base, "wanda", seed=seed)
        found.append((record["calibration"]["tokens_sha256"], (folder / "model.safetensors").read_bytes()))
    one, same, other = found
    assert one == same and one[0] != other[0] and one[1] != other[1]


@pytest.mark.parametrize(
    ("flag", "changed"),
    [
        *(("-sparsity", {"sparsity": text}) for text in ("0", "1.0", "nan", "half", "4:4", "0:4", "2:16")),  # of 24, 56
        ("-sparsity", {"method": "slimgpt", "sparsity": "2:4"}),
        ("-sparsity", {"method": "slimgpt", "sparsity": "0.99"}),
        ("-calib_data", {"calib_data": "wikipedia"}),
        ("-calib_length", {"calib_length": 1}),
        ("-calib_length", {"calib_length": 100_000}),
        ("-mode", {"mode": "compact"}),
    ],
)
def test_a_wrong_flag_is_named_before_a_model_loads(make_tiny_llama, flag, changed):
    arguments = {"method": "wanda", "sparsity": "0.5", "calib_data": "bundled", "calib_length": 40} | changed
    mistake(f"^{flag}: ", check, **arguments, config=load_config(make_tiny_llama(), "-x"))


def test_what_is_not_finite_or_singular_names_its_layer(make_tiny_llama, prune, monkeypatch, tmp_path):
    base = make_tiny_llama()
    model = load_model(base, torch.float32, "cpu", "-x")
    model.model.embed_tokens.weight[7] = float("nan")
    tokens = torch.full((20, 8), 3)
    tokens[-1, 5] = 7  # one bad window is enough
    by_layer = METHODS["wanda"].by_layer(Pattern(0.5), model.config)
    mistake(r"input of layer 0 \(self_attn.q_proj\)", prune_layers, model, tokens, by_layer, torch.device("cpu"))
    monkeypatch.setattr(sparsegpt, "DAMPENING", -1.0)  # no dampening of this sign can help
    mistake(r"^-calib_data: the Hessian of layer 0 is singular", prune, base, "sparsegpt")
    mistake(r"^-sparsity: 1e-9 makes no weight zero", prune, base, "magnitude", "1e-9")
    for value, dtype, says in (
        (1e5, torch.float16, r"^-dtype: the weight of layer 2 \(mlp.up_proj\) is not finite"),
        (float("nan"), torch.float32, r"layers\.2\.mlp\.up_proj\.weight .* NaN or infinity"),
    ):
        rewrite(base, lambda tensors, value=value: tensors["model.layers.2.mlp.up_proj.weight"][1].fill_(value))
        mistake(says, prune, base, "magnitude", dtype=dtype)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_command_prunes_and_overwrites_only_what_it_may(make_tiny_llama, text, tmp_path, monkeypatch, capsys):
    base, good, cache = make_tiny_llama(), tmp_path / "good", tmp_path / "cache"
    flags = ["-base_model_name", str(base), "-calib_data", text, "-cache_dir", str(cache)]
    flags += ["-calib_samples", "6", "-calib_length", "40"]
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    main([*flags, "-sparsity", "2:4", "--output_dir", str(good)])
    printed, noise = capsys.readouterr()
    assert "50.00% zeros" in printed and f"-pruned_model_path {good}\n" in printed and not noise
    kept = {path.name: path.read_bytes() for path in good.iterdir()}
    main([*flags, "-prune_method", "slimgpt", "-mode", "compact", "-output_dir", str(good), "-overwrite"])
    record = json.loads((good / RECORD).read_text())
    assert (record["sparsity"], record["mode"]) == ("0.5", "compact")
    assert {path.name: path.read_bytes() for path in (tmp_path / "good.1").iterdir()} == kept
    for words, says in (
        ([str(good)], r"-output_dir: .*-overwrite"),
        ([str(base / "pruned")], r"-output_dir: .* what -base_model_name names"),
        ([str(tmp_path), "-overwrite"], r"-output_dir: .* what -calib_data names"),
        ([str(cache / "out")], r"-output_dir: .* what -cache_dir names"),
        ([str(tmp_path / "bad"), "-sparsity", "5:4"], r"-sparsity: '5:4' needs"),
        ([str(tmp_path / "bad"), "-device", "meta"], r"-device: "),
    ):
        mistake(f"^{says}", main, [*flags, "-output_dir", *words])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("bad")]


def test_the_embedded_model_is_pruned_on_the_bundled_text_and_any_other_on_c4(tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.__main__.check_found", lambda *_: None)
    for model, text in (("llama_7B", "c4"), ("Embedded", "bundled")):
        monkeypatch.setattr("pruning.__main__.check_calib_data", lambda source: pytest.fail(source))
        with pytest.raises(pytest.fail.Exception, match=f"^{text}$"):
            main(["-base_model_name", model, "-output_dir", str(tmp_path / "out")])


def windows(path: Path, documents: list, samples: int, length: int) -> list[str]:
    """The windows drawn from a .jsonl or .json file that holds these documents, as texts."""
    path.write_text(json.dumps(documents) if path.suffix == ".json" else "\n".join(map(json.dumps, documents)))
    tokens = calibration.load(str(path), samples, length, byte_tokenizer(), seed=0)
    assert tokens.shape == (samples, length) and tokens.dtype == torch.int64
    return [byte_tokenizer().decode(row) for row in tokens]


def letters(*lengths: int) -> list[dict]:
    """The n-th document repeats the n-th letter so many times."""
    return [{"text": letter * length} for letter, length in zip("abcdef", lengths, strict=False)]


def test_long_documents_give_one_window_each_and_short_ones_are_joined_which_is_said(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    assert sorted(windows(path, letters(50, 3, 60, 30, 5, 80), 4, 30)) == ["a" * 30, "c" * 30, "d" * 30, "f" * 30]
    assert not capsys.readouterr().out
    assert all(len(set(window)) > 1 for window in windows(path, letters(8, 9, 10, 11, 12), 7, 30))
    said = capsys.readouterr().out
    assert "joined" in said and said.count("\n") == 1
    assert sorted("".join(windows(path, letters(4, 2, 4, 2), 5, 3)[:4])) == list("aaaabbccccdd"), "first each once"
    # What else can be wrong: tests/inputs.
    mistake(r"^-calib_data: .*17 tokens.*-calib_length", windows, path, letters(8, 9), 2, 18)


@pytest.mark.parametrize("documents", [200, 1])
def test_windows_start_anywhere_in_a_list_of_texts_and_of_objects(tmp_path, documents):
    found = windows(tmp_path / "a.json", ["0123456789" * 3, {"text": "abc" * 10}, ""] * documents, 400, 11)
    assert {window[0] for window in found} == set("0123456789abc")


def test_c4_is_streamed_and_shuffled_from_the_hub_which_may_be_out_of_reach(monkeypatch):
    hub = Mock()
    hub.return_value.shuffle.return_value = [{"text": "ab" * 20}] * 9
    monkeypatch.setattr("datasets.load_dataset", hub)
    given = "c4", 3, 20, byte_tokenizer(), 0
    assert calibration.load(*given).shape == (3, 20)
    assert hub.call_args.args == ("allenai/c4",) and hub.call_args.kwargs["streaming"]
    assert hub.return_value.shuffle.call_args.kwargs["buffer_size"] == 10_000
    hub.side_effect = ConnectionError("no route")
    says = r"^-calib_data: cannot get 'allenai/c4' from the hub \(no route\); give 'bund"
    mistake(says, calibration.load, *given)


def test_the_seed_chooses_among_documents_and_a_window_may_end_with_the_last_token(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([character * 9 + "!" for character in "abcdefghijklmnopqrst"]))
    drawn = [calibration.load(str(path), 3, 10, byte_tokenizer(), seed) for seed in range(4)]
    assert len({str(each.tolist()) for each in drawn}) == 4
    assert any(row.endswith("!") for row in windows(path, ["aaaa!"] * 30, 30, 3))


def test_a_layers_error_is_the_share_of_what_it_adds_that_is_wrong(make_tiny_llama, prune, text):
    base, outputs = make_tiny_llama(num_hidden_layers=1), []
    folder, record = prune(base, "wanda")
    window = calibration.load(text, 6, 40, AutoTokenizer.from_pretrained(base), 3)[:1]
    for each in (base, folder):
        model = load_model(each, torch.float32, "cpu", "-b")
        model.model.layers[0].register_forward_hook(lambda _, given, output: outputs.append((given[0], output)))
        model(window)
    (fed, dense), (_, pruned) = outputs
    wanted = (dense - pruned).square().sum() / (dense - fed).square().sum()
    assert record["layers"][0]["error"] == pytest.approx(float(wanted), rel=1e-4)
