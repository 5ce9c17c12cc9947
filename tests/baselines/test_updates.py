"""Methods that change weights compute what their papers say, start at the pruned model, and keep what they promise."""

import pytest
import torch

from models.checkpoint import LINEARS, Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.modeling_llama import max_rounding_error, numbers_trained, restored_layers
from models.restoration import Restoration
from models.terms import DoRA, LowRank, MaskedChange
from tests.builders import attached, rewrite, scaled
from utils.common.flags import parse_arguments
from utils.common.methods import LINEAR_NAMES, Options, parts_of

IDS = torch.tensor([[5, 9, 77, 30, 200, 41], [250, 8, 17, 17, 3, 99]])
RANK, ALPHA = 3, 6.0
OPTIONS = Options(lora_rank=RANK)
MASKED = ("masked_lora", "masked_dora", "masked_full")
METHODS = ("lora", "dora", *MASKED)


def started(folder, method: str, options: Options = OPTIONS) -> Restoration:
    return Restoration.start(method, options, MethodInputs(load_config(folder, "-p"), 7, Checkpoint(folder).read))


def formula(method: str, weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """W', as the papers have it: by autograd, in the dtype of what it is given."""
    mask = (weight != 0).to(weight.dtype)
    if method == "masked_full":
        return weight + mask * parts["change"]
    direction = weight + ALPHA / RANK * (parts["up"] @ parts["down"]) * (mask if method.startswith("masked") else 1)
    if not method.endswith("dora"):
        return direction
    before, after = (t.detach().square().sum(1, keepdim=True).sqrt() for t in (weight, direction))
    magnitude = before + parts["magnitudes"][:, None]
    # A norm of zero is not divided by: what follows is not chosen, but its gradient would be no number.
    return torch.where(before > 0, magnitude / (after + (before == 0)) * direction, weight)


@pytest.fixture
def folder(make_tiny_llama):
    """A pruned tiny Llama with rows of zeros in two matrices, as structured pruning leaves them."""

    def change(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][5:9] = 0
        tensors["model.layers.2.mlp.up_proj.weight"][-1] = 0

    return rewrite(make_tiny_llama(zeros=0.5, seed=1, attention_bias=True), change)


@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_merged_weights_are_those_of_the_formula(folder, method):
    restoration = scaled(started(folder, method), noise=0.1)
    plain, leaves = load_model(folder, torch.float64, "cpu", "-p"), {}
    for name, (term,) in restoration.terms.items():
        leaves[name] = {part: tensor.detach().double().requires_grad_() for part, tensor in term.named_parameters()}
    changed = {name: formula(method, plain.get_parameter(name), parts) for name, parts in leaves.items()}
    assert set(changed) == {f"model.layers.{n}.{name}.weight" for n in range(3) for name in LINEARS}
    model = attached(folder, restoration, torch.float64)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    expected = torch.func.functional_call(plain, changed, (IDS,), {"labels": IDS}).loss
    expected.backward()
    assert abs(expected - plain(IDS, labels=IDS).loss) > 1e-3
    assert torch.allclose(loss.detach(), expected.detach(), rtol=1e-5)
    for name, (term,) in restoration.terms.items():
        for part, parameter in term.named_parameters():
            wanted = leaves[name][part].grad
            assert torch.allclose(parameter.grad.double(), wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max()))
    assert sum(p.requires_grad for p in model.parameters()) == sum(map(len, leaves.values()))
    for name, wanted in changed.items():
        (term,), found = restoration.terms[name], restoration.merged(name, Checkpoint(folder).read)
        assert found.dtype == torch.float64 and found.isfinite().all()
        assert torch.allclose(found, wanted.detach(), rtol=1e-9, atol=1e-12), name
        dead = (plain.get_parameter(name) == 0).all(1)  # such a row stays, and trains nothing
        if method.endswith("dora") and dead.any():
            assert (found[dead] == 0).all() and not found[dead].signbit().any()
            assert all((g.grad[dead] == 0).all() for g in (term.up, term.magnitudes))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_steps_numbers_and_merged_weights_are_pefts(make_tiny_llama, method):
    """With the same numbers in it, PEFT is an independent reading of the papers."""
    peft = pytest.importorskip("peft")
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    restoration, model = scaled(started(folder, method), noise=0.1), load_model(folder, torch.float32, "cpu", "-p")
    plain, own = model(IDS, labels=IDS).loss, {"r": RANK, "lora_alpha": ALPHA, "use_dora": method == "dora"}
    theirs = peft.get_peft_model(model, peft.LoraConfig(target_modules=LINEAR_NAMES, task_type="CAUSAL_LM", **own))
    for name, (term,) in restoration.terms.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.lora_A["default"].weight.data.copy_(term.down)
        layer.lora_B["default"].weight.data.copy_(term.up)
        if method == "dora":
            layer.lora_magnitude_vector["default"].weight.data.add_(term.magnitudes)
    ours, found = attached(folder, restoration), []
    for each in (ours, theirs):
        loss = each(IDS, labels=IDS).loss
        loss.backward()
        trained = [p for p in each.parameters() if p.requires_grad]
        found.append((loss.item(), sum(p.numel() for p in trained), sorted(float(p.grad.norm()) for p in trained)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6) and abs(plain - found[1][0]) > 1e-3
    assert found[0][1] == found[1][1] and found[0][2] == pytest.approx(found[1][2], rel=1e-3)
    merged, read = theirs.merge_and_unload(), Checkpoint(folder).read
    for name in restoration.terms:
        wanted = merged.get_parameter(name)
        assert torch.allclose(restoration.merged(name, read).float(), wanted, rtol=1e-5, atol=1e-6), name
        assert not torch.allclose(read(name), wanted, rtol=1e-3), name


@pytest.mark.parametrize("method", [*METHODS, "output_bias", "output_bias everywhere"])
def test_it_starts_at_the_pruned_model_reads_nothing_and_moves_off_it(folder, method):
    """DoRA's magnitudes are offsets: another change before it must not be undone by the norms of the pruned weight."""
    plain = load_model(folder, torch.float32, "cpu", "-p")(IDS).logits
    method, _, everywhere = method.partition(" ")
    options = Options("all", train_norms=True) if everywhere else OPTIONS
    assert not any(part.spec.needs.calibration for part in parts_of(method, options))
    restoration = started(folder, method, options)
    for name, (term,) in restoration.terms.items() if method in METHODS else ():
        changed = 3 * Checkpoint(folder).read(name)
        assert not term(changed).any() and not term.exact(changed.device)(changed.double()).any()
    model = attached(folder, restoration)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            assert torch.equal(model(IDS).logits, plain)
    trained, before = [p for p in model.parameters() if p.requires_grad], restoration.gathered().tensors()
    for _ in range(2):  # A moves once B is not zero
        model(IDS, labels=IDS).loss.backward()
        torch.optim.AdamW(trained, lr=0.1, weight_decay=0.0).step()
    after = restoration.tensors()
    assert all(torch.equal(tensor, after[name]) == name.endswith("scale") for name, tensor in before.items())
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, plain, atol=1e-2)  # what inference keeps follows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [False, True])
def test_what_trains_is_what_is_merged_and_inside_the_mask_no_zero_is_lost(folder, method, after):
    restoration, stored = scaled(started(folder, method), noise=1.0), Checkpoint(folder)
    if after:  # a fixed change before it, as a closed form in the mask makes
        for name, some in restoration.terms.items():
            some.insert(0, MaskedChange(torch.full_like(stored.read(name), 0.3)).requires_grad_(False))
    model = attached(folder, restoration)
    assert 0 < max_rounding_error(model) <= 1
    linear = restored_layers(model)[-1]
    z = torch.randn(4, 5, linear.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        merged = linear(z)
    assert torch.allclose(linear(z), merged, atol=1e-5 * float(merged.abs().max()))
    for name in restoration.terms if method in MASKED else ():
        layer, zero = model.get_submodule(name.removesuffix(".weight")), stored.read(name) == 0
        for weight in (layer.trained("weight"), restoration.merged(name, stored.read).bfloat16()):
            assert (weight[zero] == 0).all() and not weight[zero].signbit().any(), name


@pytest.mark.parametrize(("method", "kind"), [("lora", LowRank), ("dora", DoRA)])
def test_a_step_that_computes_something_else_than_is_merged_is_found(folder, monkeypatch, method, kind):
    model, through, forward = attached(folder, scaled(started(folder, method), noise=0.1)), kind.through, kind.forward
    wrong = {torch.float32: 3e-5, torch.float64: 0}
    broken = [
        ("through", lambda term, z, weight: through(term, z, weight * (1 + 3e-5))),
        ("forward", lambda term, weight: forward(term, weight) + wrong[weight.dtype] * weight),
        ("forward", lambda term, weight: forward(term, weight) * float("nan")),
    ]
    for name, other in broken:
        assert max_rounding_error(model) <= 1
        with monkeypatch.context() as patched:
            patched.setattr(kind, name, other)
            assert not max_rounding_error(model) <= 1


SIZES = {"q": (48, 24), "k": (16, 24), "v": (16, 24), "o": (24, 48), "gate": (56, 24), "up": (56, 24), "down": (24, 56)}
"""(out, in) of each linear layer of a tiny Llama."""


@pytest.mark.parametrize(
    ("method", "targets"),
    [*((method, None) for method in (*METHODS, "output_bias")), ("lora", "up, q"), ("masked_dora", "up, q")],
)
def test_numbers_trained_are_those_of_the_targets_without_what_was_computed_before(folder, method, targets):
    names, typed = (("q", "up"), ["-lora_targets", " up_proj, q_proj"]) if targets else (tuple(SIZES), [])
    typed += ["-apply_to", "all", "-train_norms"] * (method == "output_bias")
    options = Options.of(parse_arguments(["-lora_rank", str(RANK), *typed]))
    restoration, read = started(folder, method, options), Checkpoint(folder).read
    rows = sum(SIZES[name][0] for name in names)
    count = 3 * (RANK * sum(sum(SIZES[name]) for name in names) + rows * method.endswith("dora"))
    if method == "masked_full":
        count = sum(int((read(name) != 0).sum()) for name in restoration.terms)
    elif method == "output_bias":
        count = 3 * (rows + 2 * 24) + 24
    else:
        assert {name.split(".")[-2] for name in restoration.terms} == {f"{name}_proj" for name in names}
    assert numbers_trained(attached(folder, restoration)) == count
    fixed = MaskedChange(torch.ones(56, 24)).requires_grad_(False)
    restoration.terms.setdefault("model.layers.2.mlp.up_proj.weight", []).insert(0, fixed)
    assert numbers_trained(attached(folder, restoration)) == count
    assert restoration.untrained().terms == {"model.layers.2.mlp.up_proj.weight": [fixed]}
