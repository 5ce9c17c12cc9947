"""The patch adds Eq. 8 to the chosen heads, trains β and b in fp32, and touches nothing else."""

import pytest
import torch
from torch import Tensor, nn

from models.loading import load_model
from models.modeling_llama import RestoredLinear, keep_frozen
from models.terms import Constant, LowRank, MaskedChange, MaskedLowRank, learned_compensation, restored
from tests.builders import HEADS, orthonormal, trained

IDS = torch.tensor([[5, 9, 77, 30, 200, 41]])


@pytest.mark.parametrize(("method", "biased"), [("restorelcc", True), ("bias_only", False), ("magnitudes_only", True)])
def test_one_bias_a_step_equals_adding_to_every_token_and_so_do_gradients(make_tiny_llama, method, biased):
    folder, restoration = make_tiny_llama(attention_bias=biased), trained(method)
    plain, model = (load_model(folder, torch.float32, "cpu", "-b") for _ in range(2))
    basis, magnitudes, component = map(restoration.of_heads, ("basis", "magnitudes", "component"))
    learned = learned_compensation(basis, magnitudes, component).detach().requires_grad_()
    untouched, trains = plain(IDS).logits, restoration.attach(model)(IDS, labels=IDS)
    for (layer, head), c in zip(restoration.heads, learned, strict=True):
        own = torch.zeros(48).index_copy(0, torch.arange(head * 8, head * 8 + 8), c)
        plain.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, own=own: inputs[0] + own)
    expected = plain(IDS, labels=IDS)
    with torch.no_grad():
        inferred = model(IDS).logits
    for found in (trains.logits, inferred):
        assert torch.allclose(found, expected.logits, atol=1e-4 * float(expected.logits.detach().abs().max()))
        assert (found - untouched).abs().max() > 1e-2
    trains.loss.backward()
    expected.loss.backward()
    wanted = {"component": learned.grad, "magnitudes": torch.einsum("nde,ne->nd", basis, learned.grad)}
    terms = [term for (term,) in restoration.terms.values()]
    for name in dict(terms[0].named_parameters()):
        assert torch.allclose(torch.cat([getattr(t, name).grad for t in terms]), wanted[name], rtol=1e-3, atol=1e-6)


def test_the_bias_kept_for_inference_follows_every_change(make_tiny_llama):
    restoration = trained()
    model = restoration.attach(load_model(make_tiny_llama(), torch.float32, "cpu", "-b"))
    projection, (_, (term,)) = model.model.layers[2].self_attn.o_proj, restoration.terms.values()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_beta_and_b_train_and_in_fp32(make_tiny_llama, dtype):
    restoration, basis = trained(), orthonormal()
    assert restoration.heads == sorted(HEADS)
    assert torch.equal(restoration.of_heads("basis"), torch.stack([basis[pair] for pair in sorted(HEADS)]))
    model = restoration.attach(load_model(make_tiny_llama(dtype=dtype), dtype, "cpu", "-b"))
    training = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(name.rsplit(".", 1)[1] for name in training) == ["component"] * 2 + ["magnitudes"] * 2
    assert {id(p) for p in training.values()} == {id(p) for (t,) in restoration.terms.values() for p in t.parameters()}
    assert {p.dtype for p in training.values()} == {torch.float32}
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.values())


def test_a_fixed_change_is_folded_into_the_weight_and_a_bias_has_its_gradient_in_fp32():
    drawn = torch.Generator().manual_seed(1)
    linear, change = nn.Linear(24, 40, dtype=torch.bfloat16), torch.randn(40, 24, generator=drawn)
    layer, z = RestoredLinear(linear), torch.randn(3, 500, 24, generator=drawn).bfloat16()
    layer.requires_grad_(False)
    lower = LowRank(torch.randn(2, 24, generator=drawn), torch.randn(40, 2, generator=drawn), torch.tensor(0.5))
    layer.terms["weight"].extend(term.requires_grad_(False) for term in (MaskedChange(change), lower))
    layer.terms["bias"].append(Constant(torch.randn(40, generator=drawn)))
    expected = layer(z)
    keep_frozen(layer)
    assert not layer.beside  # a term that does not train may be on another device
    assert torch.equal(layer.started, (linear.weight + change + 0.5 * lower.up @ lower.down).bfloat16())
    layer.terms["weight"][0].change.fill_(torch.nan)  # which no step reads any more
    output, gradient = layer(z), torch.randn(expected.shape, generator=drawn).bfloat16()
    output.backward(gradient)
    assert torch.equal(output, expected)
    assert torch.equal(layer.terms["bias"][0].change.grad, gradient.flatten(0, 1).sum(0, dtype=torch.float32))


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("before", [False, True], ids=["alone", "after a closed form"])
def test_inside_the_mask_a_step_keeps_no_second_weight_and_has_the_gradients_of_one(dtype, allowed, before):
    drawn = torch.Generator().manual_seed(1)
    shapes = (40, 24), (2, 7, 24), (40, 3), (3, 24), (2, 7, 40), (40, 24)
    weight, z, up, down, wanted, change = (torch.randn(shape, generator=drawn) for shape in shapes)
    linear = nn.Linear(24, 40, bias=False, dtype=dtype)
    linear.weight.data = weight.masked_fill(weight > 0.5, 0).to(dtype)
    layer = RestoredLinear(linear)
    layer.requires_grad_(False)
    term = MaskedLowRank(down=down, up=up, scale=torch.tensor(2.0))
    layer.terms["weight"].extend([MaskedChange(change).requires_grad_(False)] * before + [term])
    z, wanted = z.to(dtype).requires_grad_(), wanted.to(dtype)
    learned, kept = [z, term.up, term.down], []
    keep_frozen(layer)  # the closed form's weight, once

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= weight.numel():
            kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(z)
    assert kept == [(layer.started if before else layer.weight).data_ptr()]
    found = torch.autograd.grad((output * wanted).sum(), learned)
    whole = restored(layer.weight.float(), layer.terms["weight"])
    assert bool((whole[layer.weight == 0] == 0).all())
    exact = z.float() @ whole.T
    expected = torch.autograd.grad((exact * wanted.float()).sum(), learned)
    for mine, other in zip([output, *found], [exact, *expected], strict=True):
        difference = (mine.float() - other.float()).detach()
        assert float(difference.abs().max()) < allowed * float(other.detach().float().abs().max())
