"""The patch adds Eq. 8 to the chosen heads, trains β and b in fp32, and touches nothing else."""

import pytest
import torch

from models.loading import load_model
from models.modeling_llama import attach, compensated_projections, initial_restoration, read_restoration
from utils.common.flags import METHODS

HEADS = [(2, 5), (0, 1), (2, 0)]
IDS = torch.tensor([[5, 9, 77, 30, 200, 41]])


def orthonormal(layers: int = 3, heads: int = 6, width: int = 8) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(layers, heads, width, width, generator=torch.Generator().manual_seed(9)))[0]


def trained(method: str = "restorelcc"):
    """A restoration with values large enough to see."""
    restoration = initial_restoration(HEADS, orthonormal(), method, seed=1)
    for tensor in (restoration.magnitudes, restoration.component):
        if tensor is not None:
            tensor.mul_(200)
    return restoration


def by_hand(model, restoration) -> torch.Tensor:
    """Logits with the compensation added to each chosen head's slice of o_proj's input, at every token."""
    compensation = restoration.compensation()
    width = model.config.head_dim
    hooks = []
    for (layer, head), vector in zip(restoration.heads, compensation, strict=True):

        def add(_, inputs, head=head, vector=vector):
            z = inputs[0].clone()
            z[..., head * width : (head + 1) * width] += vector
            return (z,)

        hooks.append(model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(add))
    with torch.no_grad():
        logits = model(IDS).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_one_bias_a_step_equals_adding_to_every_head_and_token(make_tiny_llama, method, attention_bias):
    model = load_model(make_tiny_llama(attention_bias=attention_bias), torch.float32, "cpu", "-b")
    restoration = trained(method)
    expected, untouched = by_hand(model, restoration), model(IDS).logits
    with torch.no_grad():
        found = attach(model, restoration)(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert (found - untouched).abs().max() > 1e-2


def test_the_bias_kept_for_inference_follows_every_change(make_tiny_llama):
    model = attach(load_model(make_tiny_llama(), torch.float32, "cpu", "-b"), trained())
    projection = compensated_projections(model)[2]
    z = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = projection(z)
        assert torch.equal(projection(z), first)
        projection.component.add_(1)
        second = projection(z)
        projection.magnitudes.mul_(2)
        third = projection(z)
    assert not torch.allclose(first, second) and not torch.allclose(second, third)
    assert torch.allclose(third, projection(z), atol=1e-5)  # as training computes it


def test_compensation_is_equation_8():
    restoration = trained()
    for row in range(len(HEADS)):
        expected = restoration.component[row].clone()
        for i in range(8):
            expected += restoration.magnitudes[row, i] * restoration.basis[row, i]
        assert torch.allclose(restoration.compensation()[row], expected, atol=1e-5)


def test_each_pair_is_layer_then_head_and_has_its_own_basis(make_tiny_llama):
    basis = orthonormal()
    restoration = initial_restoration(HEADS, basis, "restorelcc", seed=1)
    assert restoration.heads == sorted(HEADS)
    for (layer, head), own in zip(restoration.heads, restoration.basis, strict=True):
        assert torch.equal(own, basis[layer, head])
    model = attach(load_model(make_tiny_llama(), torch.float32, "cpu", "-b"), restoration)
    assert {layer: p.heads.tolist() for layer, p in compensated_projections(model).items()} == {0: [1], 2: [0, 5]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_beta_and_b_train_and_in_fp32(make_tiny_llama, dtype):
    model = attach(load_model(make_tiny_llama(dtype=dtype), dtype, "cpu", "-b"), trained())
    training = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(name.rsplit(".", 1)[1] for name in training) == ["component"] * 2 + ["magnitudes"] * 2
    assert {p.dtype for p in training.values()} == {torch.float32}
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in training)


def test_gradient_equals_autograd_through_the_input_of_o_proj(make_tiny_llama):
    folder = make_tiny_llama()
    restoration = trained()
    patched = attach(load_model(folder, torch.float32, "cpu", "-b"), restoration)
    patched(IDS, labels=IDS).loss.backward()

    plain = load_model(folder, torch.float32, "cpu", "-b")
    component = restoration.component.clone().requires_grad_()
    for row, (layer, head) in enumerate(restoration.heads):
        total = component[row] + restoration.magnitudes[row] @ restoration.basis[row]
        placed = torch.zeros(48).index_add(0, torch.arange(head * 8, head * 8 + 8), total)
        plain.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(lambda _, z, p=placed: (z[0] + p,))
    plain(IDS, labels=IDS).loss.backward()
    found = torch.cat([p.component.grad for p in compensated_projections(patched).values()])
    assert torch.allclose(found, component.grad, rtol=1e-3, atol=1e-6)


def test_what_is_read_back_is_what_was_attached(make_tiny_llama):
    restoration = trained()
    model = attach(load_model(make_tiny_llama(), torch.float32, "cpu", "-b"), restoration)
    found = read_restoration(model)
    assert found.heads == restoration.heads
    for name in ("basis", "magnitudes", "component"):
        assert torch.equal(getattr(found, name), getattr(restoration, name))


def test_zeroed_restores_nothing(make_tiny_llama):
    model = load_model(make_tiny_llama(), torch.float32, "cpu", "-b")
    before = model(IDS).logits
    assert torch.equal(attach(model, trained().zeroed())(IDS).logits, before)


def test_tied_embeddings_stay_tied(make_tiny_llama):
    model = load_model(make_tiny_llama(tie_word_embeddings=True), torch.float32, "cpu", "-b")
    attach(model, trained())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
