"""Methods that change weights compute what their papers say, start at the pruned model, and keep what they promise."""

import pytest
import torch

from models.checkpoint import LINEARS, Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.modeling_llama import max_rounding_error, numbers_trained, restored_layers
from models.restoration import Restoration
from models.terms import DoRA, LowRank, MaskedChange, MaskedDoRA
from tests.builders import rewrite
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.methods import LINEAR_NAMES, Options, parts_of

IDS = torch.tensor([[5, 9, 77, 30, 200, 41], [250, 8, 17, 17, 3, 99]])
RANK, ALPHA = 3, 6.0
OPTIONS = Options(lora_rank=RANK)
DENSE = {"lora", "dora"}
MASKED = {"masked_lora", "masked_dora", "masked_full"}
METHODS = sorted(DENSE | MASKED)


def started(folder, method: str, options: Options = OPTIONS) -> Restoration:
    return Restoration.start(method, options, MethodInputs(load_config(folder, "-p"), 7, Checkpoint(folder).read))


@torch.no_grad()
def moved(restoration: Restoration, times: float = 1.0) -> Restoration:
    """The same with everything that is trained, but A, somewhere else."""
    generator = torch.Generator().manual_seed(4)
    for some in restoration.terms.values():
        for name, parameter in (each for term in some for each in term.named_parameters()):
            if name != "down":
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1 * times)
    return restoration


def attached(folder, restoration: Restoration, dtype=torch.float32):
    return restoration.attach(load_model(folder, dtype, "cpu", "-p"))


def formula(method: str, weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """W', as the papers have it: by autograd, in the dtype of what it is given."""
    mask = (weight != 0).to(weight.dtype)
    if method == "masked_full":
        return weight + mask * parts["change"]
    product = parts["up"] @ parts["down"]
    direction = weight + ALPHA / RANK * product * (mask if method.startswith("masked") else 1)
    if not method.endswith("dora"):
        return direction
    before, after = (t.detach().square().sum(1, keepdim=True).sqrt() for t in (weight, direction))
    magnitude = before + parts["magnitudes"][:, None]
    # A norm of zero is not divided by: what follows is not chosen, but its gradient would be no number.
    return torch.where(before > 0, magnitude / (after + (before == 0)) * direction, weight)


def by_hand(folder, method: str, restoration: Restoration):
    """A stock model in fp64, its changed tensors, and the numbers that they depend on, by tensor and part."""
    model, changed, leaves = load_model(folder, torch.float64, "cpu", "-p"), {}, {}
    for name, (term,) in restoration.terms.items():
        leaves[name] = {part: t.detach().double().requires_grad_() for part, t in term.named_parameters()}
        changed[name] = formula(method, model.get_parameter(name).detach(), leaves[name])
    return model, changed, leaves


def dead_rows(folder) -> None:
    """Rows of zeros in two matrices, as structured pruning leaves them."""

    def change(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][5:9] = 0
        tensors["model.layers.2.mlp.up_proj.weight"][-1] = 0

    rewrite(folder, change)


@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_merged_weights_are_those_of_the_formula(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    dead_rows(folder)
    restoration = moved(started(folder, method))
    plain, changed, leaves = by_hand(folder, method, restoration)
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
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    for name, wanted in changed.items():
        (term,), found = restoration.terms[name], restoration.merged(name, Checkpoint(folder).read)
        assert found.dtype == torch.float64 and found.isfinite().all()
        assert torch.allclose(found, wanted.detach(), rtol=1e-9, atol=1e-12), name
        dead = (plain.get_parameter(name) == 0).all(1)  # such a row stays, and trains nothing
        if method.endswith("dora") and dead.any():
            assert (found[dead] == 0).all() and not found[dead].signbit().any()
            assert all((g.grad[dead] == 0).all() for g in (term.up, term.magnitudes))


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_at_the_pruned_model_and_moves_off_it(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    dead_rows(folder)
    plain = load_model(folder, torch.float32, "cpu", "-p")(IDS).logits
    restoration = started(folder, method)
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


@pytest.mark.parametrize("method", sorted(MASKED))
def test_inside_the_mask_no_zero_is_lost_after_any_step(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    restoration = moved(started(folder, method), times=10)
    model = attached(folder, restoration)
    model(IDS, labels=IDS).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, lr=0.3, weight_decay=0.0).step()
    stored = Checkpoint(folder)
    for name in restoration.terms:
        before, after = stored.read(name), restoration.merged(name, stored.read).bfloat16()
        there = after[before == 0]
        assert len(there) and (there == 0).all() and not there.signbit().any(), name
        assert (after != before)[before != 0].any()
    for layer in restored_layers(model):
        assert (layer.trained("weight")[layer.weight == 0] == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [False, True])
def test_what_trains_is_what_is_merged(make_tiny_llama, method, after):
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    dead_rows(folder)
    restoration = moved(started(folder, method), times=10)
    if after:  # a fixed change before it, as a closed form in the mask makes
        for name, some in restoration.terms.items():
            some.insert(0, MaskedChange(torch.full_like(Checkpoint(folder).read(name), 0.3)).requires_grad_(False))
    model = attached(folder, restoration)
    assert 0 < max_rounding_error(model) <= 1
    linear = restored_layers(model)[-1]
    z = torch.randn(4, 5, linear.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        merged = linear(z)
    assert torch.allclose(linear(z), merged, atol=1e-5 * float(merged.abs().max()))


@pytest.mark.parametrize(("method", "kind"), [("lora", LowRank), ("dora", DoRA)])
def test_a_step_that_computes_something_else_than_is_merged_is_found(make_tiny_llama, monkeypatch, method, kind):
    folder = make_tiny_llama(zeros=0.5)
    model = attached(folder, moved(started(folder, method)))
    through, forward = kind.through, kind.forward
    monkeypatch.setattr(kind, "through", lambda term, z, weight: through(term, z, weight * (1 + 3e-5)))
    assert max_rounding_error(model) > 1
    monkeypatch.setattr(kind, "through", through)
    assert max_rounding_error(model) <= 1
    wrong = {torch.float32: 3e-5, torch.float64: 0}
    monkeypatch.setattr(kind, "forward", lambda term, weight: forward(term, weight) + wrong[weight.dtype] * weight)
    assert max_rounding_error(model) > 1
    monkeypatch.setattr(kind, "forward", lambda term, weight: forward(term, weight) * float("nan"))
    assert not max_rounding_error(model) <= 1


def test_dora_starts_at_the_weight_as_it_is_by_then(make_tiny_llama):
    """Its magnitudes are offsets: another change before it must not be undone by the norms of the pruned weight."""
    weight = 3 * load_model(make_tiny_llama(zeros=0.5), torch.float32, "cpu", "-p").model.layers[0].mlp.up_proj.weight
    term = MaskedDoRA(torch.randn(3, 24), torch.zeros(56, 3), torch.zeros(56), torch.tensor(2.0))
    for found in (term(weight), term.exact()(weight.double())):
        assert torch.equal(found, torch.zeros_like(found))


COUNT = RANK * (2 * (24 + 48) + 2 * (24 + 16) + 3 * (24 + 56))  # q, o; k, v; gate, up, down
ROWS = 48 + 16 + 16 + 24 + 56 + 56 + 24


@pytest.mark.parametrize("method", [*METHODS, "norms_biases"])
def test_numbers_trained_are_counted_without_what_was_computed_before(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    restoration, read = started(folder, method), Checkpoint(folder).read
    count = 3 * (COUNT + ROWS * method.endswith("dora"))
    if method == "masked_full":
        count = sum(int((read(name) != 0).sum()) for name in restoration.terms)
    elif method == "norms_biases":
        count = 3 * (ROWS + 2 * 24) + 24
    assert numbers_trained(attached(folder, restoration)) == count
    fixed = MaskedChange(torch.ones(56, 24)).requires_grad_(False)
    restoration.terms.setdefault("model.layers.2.mlp.up_proj.weight", []).insert(0, fixed)
    assert numbers_trained(attached(folder, restoration)) == count
    assert restoration.untrained().terms == {"model.layers.2.mlp.up_proj.weight": [fixed]}


# Where.


@pytest.mark.parametrize("method", ["lora", "masked_dora"])
def test_targets_choose_the_weights_that_change(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    restoration = started(folder, method, Options(lora_rank=2, lora_targets="q_proj,up_proj"))
    chosen = {f"model.layers.{n}.{name}.weight" for n in range(3) for name in ("self_attn.q_proj", "mlp.up_proj")}
    assert set(restoration.terms) == chosen
    widths = (24 + 48) + (24 + 56)
    assert numbers_trained(attached(folder, restoration)) == 3 * (2 * widths + (48 + 56 if "dora" in method else 0))
    config = load_config(folder, "-p")
    restoration.check(config, "here")
    config.num_hidden_layers = 2
    with pytest.raises(UserError, match=r"here: no restoration of this model \(model.layers.2"):
        restoration.check(config, "here")


def test_the_flag_names_targets_or_is_answered_in_one_line():
    assert parse_arguments(["-lora_targets", " down_proj, q_proj"]).lora_targets == "q_proj,down_proj"
    assert len(LINEAR_NAMES) == 7 and [name.split(".")[1] for name in LINEARS] == list(LINEAR_NAMES)
    for value in ("queries", "q_proj,", "", "Q_PROJ", "self_attn.q_proj"):
        with pytest.raises(UserError, match=r"^-lora_targets\b") as found:
            parse_arguments([f"--lora_targets={value}"])
        assert "\n" not in str(found.value)
    for method in ("restorelcc", "masked_full", "none"):
        with pytest.raises(UserError, match=rf"^-lora_targets: {method} doesn't take it; .* -method .*dora"):
            parts_of(method, Options(lora_targets="q_proj"))
