"""The closed form is the exact minimiser of what it claims, on what the dense model's layers are really fed."""

from functools import partial

import pytest
import torch

from baselines.streams import walk
from models.checkpoint import Checkpoint
from models.contract import SITES, Given
from models.loading import load_config, load_model
from models.methods import Options
from models.restoration import Restoration


def fed(model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """All inputs (tokens, in) of o_proj and down_proj, by name, one window at a time."""
    seen: dict[str, list] = {}
    hooks = []
    for layer in range(model.config.num_hidden_layers):
        for site in SITES.values():
            name = f"model.layers.{layer}.{site}"
            keep = seen.setdefault(name, []).append
            hook = model.get_submodule(name).register_forward_pre_hook(lambda _, x, keep=keep: keep(x[0][0].double()))
            hooks.append(hook)
    with torch.no_grad():
        for window in tokens:
            model(window[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (5, 23), generator=torch.Generator().manual_seed(2))


def test_means_are_those_of_every_token(make_tiny_llama, tokens, monkeypatch):
    monkeypatch.setattr("baselines.streams.BATCH_TOKENS", 50)
    load = partial(load_model, make_tiny_llama(), torch.float32, "cpu", "-b")
    expected = fed(load(), tokens)
    blocks = 0
    for block in walk(Given(load().config, 0, tokens=tokens, dense=load), "", restored=False):
        blocks += 1
        for site in SITES:
            name = f"model.layers.{block.index}.{SITES[site]}"
            found = block.dense.mean_inputs([site])[site]
            assert found.dtype == torch.float64
            assert torch.allclose(found, expected[name].mean(0), atol=1e-5), name
    assert blocks == 3


@pytest.mark.parametrize("apply_to", ["attention", "ffn", "both", "all"])
def test_the_bias_minimises_what_pruning_took_on_average(make_tiny_llama, tokens, apply_to):
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    model = load_model(dense, torch.float32, "cpu", "-b")
    read, teacher = Checkpoint(pruned).read, Checkpoint(dense).read
    config = load_config(pruned, "-p")
    load = partial(load_model, dense, torch.float32, "cpu", "-b")
    given = Given(config, 0, read, teacher=teacher, tokens=tokens, dense=load)
    restoration = Restoration.start("flap_bias", Options(apply_to), given)
    asked = {"both": {"attention", "ffn"}, "all": set(SITES)}.get(apply_to, {apply_to})
    assert set(restoration.state) == asked
    inputs = fed(model, tokens)
    for site in asked:
        for layer in range(3):
            name = f"model.layers.{layer}.{SITES[site]}"
            lost = inputs[name] @ (teacher(f"{name}.weight").double() - read(f"{name}.weight").double()).T
            best = torch.linalg.lstsq(torch.ones(len(lost), 1, dtype=torch.float64), lost).solution[0]
            assert best.abs().max() > 1e-3
            assert torch.allclose(restoration.state[site][layer].double(), best, atol=1e-5), name
