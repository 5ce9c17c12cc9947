"""FLAP's bias is the exact minimiser of what it claims; what closed forms have in common: passes, order, device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.checkpoint import Checkpoint
from models.loading import load_model
from models.merge import merge
from models.restoration import Restoration
from tests.builders import inputs_of
from utils.common.methods import SITES, Options

TOKENS = torch.randint(0, 256, (7, 23), generator=torch.Generator().manual_seed(2))


def started(dense: Path, pruned: Path, apply_to: str, method="flap_bias", **options) -> Restoration:
    return Restoration.start(method, Options(apply_to, **options), inputs_of(dense, pruned, TOKENS))


def biases_of(restoration: Restoration) -> dict[str, torch.Tensor]:
    """The constants by linear layer."""
    terms = restoration.terms.items()
    return {name.removesuffix(".bias"): some[-1].change.detach() for name, some in terms if name.endswith(".bias")}


def inputs_seen(model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """All inputs (tokens, in) of the linear layers, by name, one window at a time; fp64."""
    found: dict[str, list] = {f"model.layers.{n}.{site}": [] for n in range(3) for site in SITES.values()}
    for name, kept in found.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, kept=kept: kept.append(x[0][0].double()))
    with torch.no_grad():
        for window in tokens:
            model(window[None])
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize(
    ("apply_to", "shape"), [("both", {}), ("all", {"attention_bias": True, "mlp_bias": True}), ("gate", {})]
)
def test_the_bias_is_the_best_constant_on_the_dense_models_inputs(make_tiny_llama, monkeypatch, apply_to, shape):
    # Of another seed, so that norms, embeddings and biases differ too.
    dense, pruned = make_tiny_llama(**shape), make_tiny_llama(seed=3, zeros=0.5, **shape)
    monkeypatch.setattr("pruning.layers.BATCH_TOKENS", 50)  # two windows at a time, the last one alone
    inputs = inputs_seen(load_model(dense, torch.float32, "cpu", "-b"), TOKENS)
    sites = {"both": {"attention", "ffn"}, "all": set(SITES)}.get(apply_to, {apply_to})
    found = biases_of(started(dense, pruned, apply_to))
    assert found.keys() == {f"model.layers.{layer}.{SITES[site]}" for layer in range(3) for site in sites}
    for name, bias in found.items():
        outputs = []
        for read in (Checkpoint(dense).read, Checkpoint(pruned).read):
            own = read(f"{name}.bias").double() if shape else 0
            outputs.append(inputs[name] @ read(f"{name}.weight").double().T + own)
        wanted = (outputs[0] - outputs[1]).mean(0)  # the least squares of a constant
        assert wanted.abs().max() > 1e-2
        assert torch.allclose(bias.double(), wanted, atol=2e-5 * float(wanted.abs().max())), name


def test_few_passes_over_the_set_and_no_model_that_is_not_read(make_tiny_llama):
    start, passes = inputs_of(make_tiny_llama(), make_tiny_llama(zeros=0.5), TOKENS), []
    dense = start.dense()
    for layer in dense.model.layers:
        layer.register_forward_pre_hook(lambda *_: passes.append(1))
    Restoration.start("flap_bias", Options("all"), replace(start, dense=lambda: dense, pruned=None))
    assert len(passes) == 2 * 3 - 1  # nobody needs what the last layer gives


def test_a_second_closed_form_takes_what_the_first_one_left(make_tiny_llama, tmp_path):
    """As if it were given the checkpoint that a merge of the first one writes."""
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    alone = started(dense, pruned, "all", "eora", lora_rank=3)
    weights = {name: some for name, some in alone.terms.items() if name.endswith("weight")}
    merge(pruned, Restoration("eora", weights), tmp_path / "merged", pruned)
    expected = biases_of(started(dense, tmp_path / "merged", "all"))
    found = started(dense, pruned, "all", lora_rank=3, first="eora")
    unlike = biases_of(started(dense, pruned, "all"))
    for name, bias in biases_of(found).items():
        assert torch.allclose(bias, expected[name], atol=2e-5) and not torch.allclose(bias, unlike[name], atol=2e-3)
    for name, (term,) in weights.items():
        assert all(torch.equal(getattr(found.terms[name][0], key), tensor) for key, tensor in term.tensors().items())


aten = torch.ops.aten


class Card(TorchDispatchMode):
    """Within it `meta` is a device from which values come back: zeros, and ones where a single number is asked for.

    What computes with tensors of it and of the CPU together fails, as on a card.
    """

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator is aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if operator is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if operator is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        return operator(*args, **kwargs)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("output_bias", Options("all", train_norms=True, first="reconstruct")),
        ("admm_update", Options()),
        ("flap_bias", Options()),
    ],
)
def test_all_of_a_layer_is_on_the_device_that_computes_it(make_tiny_llama, method, options):
    inputs = inputs_of(make_tiny_llama(), make_tiny_llama(zeros=0.5), TOKENS, device="meta")
    with Card():
        restoration = Restoration.start(method, options, inputs)
    assert all(tensor.device.type == "cpu" for tensor in restoration.tensors().values())
