"""LoRA and masked LoRA compute what they say, start at the pruned model, and train A and B alone."""

import pytest
import torch

from models.checkpoint import LINEARS, Checkpoint
from models.contract import Given
from models.loading import load_config, load_model
from models.methods import Options
from models.restoration import Restoration

IDS = torch.tensor([[5, 9, 77, 30, 200, 41]])
OPTIONS = Options(lora_rank=3, lora_alpha=6.0)


def started(folder, method: str) -> Restoration:
    given = Given(load_config(folder, "-p"), 7, Checkpoint(folder).read)
    return Restoration.start(method, OPTIONS, given)


def moved(restoration: Restoration) -> Restoration:
    generator = torch.Generator().manual_seed(4)
    for name, tensor in restoration.state.items():
        if name.endswith("up"):
            tensor.normal_(0, 0.1, generator=generator)
    return restoration


def by_hand(folder, restoration: Restoration, masked: bool, dtype=torch.float64):
    """A stock model whose weights are W + 2·B A, inside the mask or everywhere; A and B require gradients."""
    model = load_model(folder, dtype, "cpu", "-p")
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in restoration.state.items()}
    changed = {}
    for name in LINEARS:
        for layer in range(model.config.num_hidden_layers):
            full = f"model.layers.{layer}.{name}.weight"
            weight = model.get_parameter(full).detach()
            update = 2.0 * leaves[f"{name}.up"][layer] @ leaves[f"{name}.down"][layer]
            changed[full] = weight + (update * (weight != 0) if masked else update)
    return model, changed, leaves


@pytest.mark.parametrize("masked", [True, False])
def test_logits_and_gradients_are_those_of_the_changed_weights(make_tiny_llama, masked):
    folder, method = make_tiny_llama(zeros=0.5), "masked_lora" if masked else "lora"
    restoration = moved(started(folder, method))
    model = restoration.attach(load_model(folder, torch.float64, "cpu", "-p"))
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    plain, changed, leaves = by_hand(folder, restoration, masked)
    expected = torch.func.functional_call(plain, changed, (IDS,), {"labels": IDS}).loss
    expected.backward()
    assert torch.allclose(loss.detach(), expected.detach(), rtol=1e-5)
    for name in LINEARS:
        for layer, block in enumerate(model.model.layers):
            (update,) = block.get_submodule(name).updates
            for part in ("down", "up"):
                found, wanted = getattr(update, part).grad, leaves[f"{name}.{part}"].grad[layer]
                assert torch.allclose(found.double(), wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max())), name
    assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith(("down", "up")))


@pytest.mark.parametrize("method", ["masked_lora", "lora"])
def test_it_starts_at_the_pruned_model_and_goes_back_there(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    plain = load_model(folder, torch.float32, "cpu", "-p")(IDS).logits
    for restoration in (started(folder, method), moved(started(folder, method)).neutral(Checkpoint(folder).read)):
        model = restoration.attach(load_model(folder, torch.float32, "cpu", "-p"))
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, plain)
    model = moved(started(folder, method)).attach(load_model(folder, torch.float32, "cpu", "-p"))
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, plain, atol=1e-2)


def test_what_inference_keeps_follows_every_change(make_tiny_llama):
    folder = make_tiny_llama(zeros=0.5)
    model = moved(started(folder, "masked_lora")).attach(load_model(folder, torch.float32, "cpu", "-p"))
    with torch.no_grad():
        first = model(IDS).logits
        model.model.layers[1].mlp.up_proj.updates[0].up.mul_(3)
        second = model(IDS).logits
    assert not torch.allclose(first, second, atol=1e-3)


def test_numbers_trained_are_rank_times_the_widths(make_tiny_llama):
    folder = make_tiny_llama()
    model = started(folder, "lora").attach(load_model(folder, torch.float32, "cpu", "-p"))
    widths = 2 * (24 + 48) + 2 * (24 + 16) + 3 * (24 + 56)  # q, o; k, v; gate, up, down
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 3 * widths
