"""The patch adds Eq. 8 to the chosen heads, trains β and b in fp32, and touches nothing else."""

from collections.abc import Callable

import pytest
import torch

from models.loading import load_model
from models.terms import HeadConstant, learned_compensation
from tests.builders import HEADS, orthonormal, trained

IDS = torch.tensor([[5, 9, 77, 30, 200, 41]])


def terms_of(restoration) -> dict[int, HeadConstant]:
    """By layer."""
    return {int(name.split(".")[2]): term for name, (term,) in restoration.terms.items()}


def add(model, heads: list[tuple[int, int]], learned: Callable[[], torch.Tensor]) -> None:
    """From now on c of each head (n, d) is added to its slice of o_proj's input, at every token."""
    for row, (layer, head) in enumerate(heads):

        def change(_, inputs, row=row, own=slice(head * 8, head * 8 + 8)):
            z = inputs[0].clone()
            z[..., own] += learned()[row]
            return (z,)

        model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(change)


@pytest.mark.parametrize(
    ("method", "attention_bias"), [("restorelcc", True), ("bias_only", False), ("magnitudes_only", True)]
)
def test_one_bias_a_step_equals_adding_to_every_head_and_token(make_tiny_llama, method, attention_bias):
    folder, restoration = make_tiny_llama(attention_bias=attention_bias), trained(method)
    plain, model = (load_model(folder, torch.float32, "cpu", "-b") for _ in range(2))
    learned = learned_compensation(*map(restoration.of_heads, ("basis", "magnitudes", "component"))).detach()
    with torch.no_grad():
        untouched, found = plain(IDS).logits, restoration.attach(model)(IDS).logits
        add(plain, restoration.heads, lambda: learned)
        expected = plain(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert (found - untouched).abs().max() > 1e-2


def test_the_bias_kept_for_inference_follows_every_change(make_tiny_llama):
    restoration = trained()
    model = restoration.attach(load_model(make_tiny_llama(), torch.float32, "cpu", "-b"))
    projection, term = model.model.layers[2].self_attn.o_proj, terms_of(restoration)[2]
    z = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = projection(z)
        assert torch.equal(projection(z), first)
        term.component.add_(1)
        second = projection(z)
        term.magnitudes.mul_(2)
        third = projection(z)
    assert not torch.allclose(first, second) and not torch.allclose(second, third)
    assert torch.allclose(third, projection(z), atol=1e-5)  # as training computes it


@pytest.mark.parametrize(("optimizer", "equal"), [("SGD", True), ("AdamW", False)])
def test_under_sgd_beta_and_b_are_b_alone_at_twice_the_rate(make_tiny_llama, optimizer, equal):
    """A step moves c by -lr (V Vᵀ + I) g, and V Vᵀ = I: what Eq. 8 adds to a bias is the optimizer's."""
    heads, rate = sorted(HEADS), 0.05
    basis = torch.linalg.qr(torch.stack([orthonormal()[layer, head].double() for layer, head in heads])).Q
    folder = make_tiny_llama()

    def learned(factor: int, magnitudes: torch.Tensor | None) -> torch.Tensor:
        model = load_model(folder, torch.float32, "cpu", "-b").double().requires_grad_(False)
        component = torch.zeros(len(heads), 8, dtype=torch.float64, requires_grad=True)
        parts = [component] if magnitudes is None else [component, magnitudes.requires_grad_()]
        steps = getattr(torch.optim, optimizer)(parts, lr=factor * rate)
        add(model, heads, lambda: learned_compensation(basis, magnitudes, component))
        for _ in range(6):
            steps.zero_grad()
            model(IDS, labels=IDS).loss.backward()
            steps.step()
        return learned_compensation(basis, magnitudes, component).detach()

    both, alone = learned(1, torch.zeros(len(heads), 8, dtype=torch.float64)), learned(2, None)
    assert both.abs().max() > 1e-3
    assert torch.allclose(both, alone, rtol=1e-9, atol=1e-12) == equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_beta_and_b_train_and_in_fp32(make_tiny_llama, dtype):
    restoration, basis = trained(), orthonormal()
    assert restoration.heads == sorted(HEADS)
    for (layer, head), own in zip(sorted(HEADS), restoration.of_heads("basis"), strict=True):
        assert torch.equal(own, basis[layer, head])
    model = restoration.attach(load_model(make_tiny_llama(dtype=dtype), dtype, "cpu", "-b"))
    training = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(name.rsplit(".", 1)[1] for name in training) == ["component"] * 2 + ["magnitudes"] * 2
    assert {id(p) for p in training.values()} == {id(p) for t in terms_of(restoration).values() for p in t.parameters()}
    assert {p.dtype for p in training.values()} == {torch.float32}
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in training)


def test_gradient_equals_autograd_through_the_input_of_o_proj(make_tiny_llama):
    restoration, folder = trained(), make_tiny_llama()
    restoration.attach(load_model(folder, torch.float32, "cpu", "-b"))(IDS, labels=IDS).loss.backward()
    component, magnitudes, basis = map(restoration.of_heads, ("component", "magnitudes", "basis"))
    component = component.clone().requires_grad_()
    plain = load_model(folder, torch.float32, "cpu", "-b")
    add(plain, restoration.heads, lambda: component + torch.einsum("nd,nde->ne", magnitudes, basis))
    plain(IDS, labels=IDS).loss.backward()
    found = torch.cat([term.component.grad for term in terms_of(restoration).values()])
    assert torch.allclose(found, component.grad, rtol=1e-3, atol=1e-6)


def test_without_what_is_trained_nothing_is_restored_and_tied_embeddings_stay_tied(make_tiny_llama):
    model = load_model(make_tiny_llama(tie_word_embeddings=True), torch.float32, "cpu", "-b")
    before = model(IDS).logits
    assert torch.equal(trained().untrained().attach(model)(IDS).logits, before)
    assert not torch.equal(trained().attach(model)(IDS).logits, before)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
