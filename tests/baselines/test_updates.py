"""Methods that change weights compute what their papers say, start at the pruned model, and keep what they promise."""

import pytest
import torch

from models.checkpoint import LINEARS, Checkpoint
from models.contract import Given
from models.loading import load_config, load_model
from models.methods import Options, parts_of
from models.modeling_llama import RestoredLinear, keep_columns, numbers_trained
from models.restoration import Restoration
from models.updates import Decomposed, FixedInMask, LowRank
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.names import LINEAR_NAMES

IDS = torch.tensor([[5, 9, 77, 30, 200, 41], [250, 8, 17, 17, 3, 99]])
RANK, ALPHA = 3, 6.0
OPTIONS = Options(lora_rank=RANK, lora_alpha=ALPHA)
DENSE = {"lora", "dora"}
MASKED = {"masked_lora", "masked_dora", "masked_full"}
METHODS = sorted(DENSE | MASKED)


def started(folder, method: str, options: Options = OPTIONS) -> Restoration:
    return Restoration.start(method, options, Given(load_config(folder, "-p"), 7, Checkpoint(folder).read))


def moved(restoration: Restoration, times: float = 1.0) -> Restoration:
    """The same with everything that is trained somewhere else."""
    generator = torch.Generator().manual_seed(4)
    for name, tensor in restoration.state.items():
        if name.endswith(("up", "magnitudes", "change")):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1 * times)
    return restoration


def attached(folder, restoration: Restoration, dtype=torch.float32):
    return restoration.attach(load_model(folder, dtype, "cpu", "-p"))


def formula(method: str, name: str, weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
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
    """A stock model in fp64, its changed tensors, and the state's tensors that they depend on."""
    model = load_model(folder, torch.float64, "cpu", "-p")
    leaves = {name: tensor.double().requires_grad_() for name, tensor in restoration.state.items()}
    changed = {}
    for name in LINEARS:
        for layer in range(model.config.num_hidden_layers):
            weight = model.get_parameter(f"model.layers.{layer}.{name}.weight").detach()
            stem = f"{name}."
            parts = {k.removeprefix(stem): t[layer] for k, t in leaves.items() if k.startswith(stem)}
            changed[f"model.layers.{layer}.{name}.weight"] = formula(method, name, weight, parts)
    return model, changed, leaves


def dead_rows(folder) -> None:
    """Rows of zeros in two matrices, as structured pruning leaves them."""
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.1.self_attn.q_proj.weight"][5:9] = 0
    tensors["model.layers.2.mlp.up_proj.weight"][-1] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_merged_weights_are_those_of_the_formula(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    dead_rows(folder)
    restoration = moved(started(folder, method))
    model = attached(folder, restoration, torch.float64)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    plain, changed, leaves = by_hand(folder, method, restoration)
    expected = torch.func.functional_call(plain, changed, (IDS,), {"labels": IDS}).loss
    expected.backward()
    assert abs(expected - plain(IDS, labels=IDS).loss) > 1e-3
    assert torch.allclose(loss.detach(), expected.detach(), rtol=1e-5)
    trained = 0
    for name in LINEARS:
        for layer, block in enumerate(model.model.layers):
            linear = block.get_submodule(name)
            for part, parameter in linear.updates[0].named_parameters() if isinstance(linear, RestoredLinear) else ():
                trained += 1
                wanted = leaves[f"{name}.{part}"].grad[layer]
                assert torch.allclose(parameter.grad.double(), wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max()))
    assert trained == sum(1 for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    config, stored = load_config(folder, "-p"), Checkpoint(folder)
    assert set(restoration.touched(config)) == set(changed)
    for name, wanted in changed.items():
        found = restoration.merged(name, config, stored)
        assert found.dtype == torch.float64 and found.isfinite().all()
        assert torch.allclose(found, wanted.detach(), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_at_the_pruned_model_and_goes_back_there(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    dead_rows(folder)
    plain = load_model(folder, torch.float32, "cpu", "-p")(IDS).logits
    for restoration in (started(folder, method), moved(started(folder, method)).neutral(Checkpoint(folder).read)):
        model = attached(folder, restoration)
        assert torch.equal(model(IDS).logits, plain)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, plain)
    model = attached(folder, moved(started(folder, method)))
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            assert not torch.allclose(model(IDS).logits, plain, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_holds_is_read_back_and_a_step_moves_it_off_the_start(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    restoration = moved(started(folder, method))
    model = attached(folder, restoration)
    read = restoration.read_from(model).state
    assert set(read) == set(restoration.state)
    assert all(torch.equal(read[name], tensor) for name, tensor in restoration.state.items())
    keep_columns(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    model(IDS, labels=IDS).loss.backward()
    torch.optim.AdamW(trained, lr=0.1, weight_decay=0.0).step()
    after = restoration.read_from(model).state
    assert not any(torch.equal(after[name], tensor) for name, tensor in restoration.state.items())


@pytest.mark.parametrize("method", sorted(MASKED))
def test_inside_the_mask_no_zero_is_lost_after_any_step(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    restoration = moved(started(folder, method), times=10)
    model = attached(folder, restoration)
    model(IDS, labels=IDS).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, lr=0.3, weight_decay=0.0).step()
    restoration, config, stored = restoration.read_from(model), load_config(folder, "-p"), Checkpoint(folder)
    for name in restoration.touched(config):
        before, after = stored.read(name), restoration.merged(name, config, stored).bfloat16()
        there = after[before == 0]
        assert len(there) and (there == 0).all() and not there.signbit().any(), name
        assert (after != before)[before != 0].any()
    for module in model.modules():
        if isinstance(module, RestoredLinear):
            assert (module.restored_weight()[module.weight == 0] == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [None, "flap_bias"])
def test_what_trains_is_what_is_merged(make_tiny_llama, method, first):
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    dead_rows(folder)
    model = attached(folder, moved(started(folder, method), times=10))
    if first:  # a fixed change before it, as a closed form in the mask makes
        for module in list(model.modules()):
            if isinstance(module, RestoredLinear):
                fixed = FixedInMask(torch.full_like(module.weight, 0.3))
                module.updates.insert(0, fixed)
    linears = [module for module in model.modules() if isinstance(module, RestoredLinear)]
    assert 0 < max(linear.apart() for linear in linears) <= 1
    z = torch.randn(4, 5, linears[-1].in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        merged = linears[-1](z)
    assert torch.allclose(linears[-1](z), merged, atol=1e-5 * float(merged.abs().max()))


@pytest.mark.parametrize(("method", "kind"), [("lora", LowRank), ("dora", Decomposed)])
def test_a_step_that_computes_something_else_than_is_merged_is_found(make_tiny_llama, monkeypatch, method, kind):
    folder = make_tiny_llama(zeros=0.5)
    model = attached(folder, moved(started(folder, method)))
    linear = model.model.layers[1].mlp.down_proj
    through = kind.through
    monkeypatch.setattr(kind, "through", lambda update, z, weight: through(update, z, weight * (1 + 1e-5)))
    assert linear.apart() > 1
    monkeypatch.setattr(kind, "through", through)
    assert linear.apart() <= 1
    monkeypatch.setattr(kind, "forward", lambda update, weight: 1e-5 * weight)
    assert linear.apart() > 1


def test_doras_dead_rows_stay_and_train_nothing(make_tiny_llama):
    folder = make_tiny_llama(zeros=0.5)
    dead_rows(folder)
    for method in ("dora", "masked_dora"):
        restoration = moved(started(folder, method))
        model = attached(folder, restoration)
        model(IDS, labels=IDS).loss.backward()
        update = model.model.layers[1].self_attn.q_proj.updates[0]
        rows = torch.zeros(48, dtype=torch.bool).index_fill(0, torch.arange(5, 9), True)
        for gradient in (update.up.grad, update.magnitudes.grad):
            assert gradient.isfinite().all() and (gradient[rows] == 0).all() and (gradient[~rows] != 0).any()
        merged = restoration.merged("model.layers.1.self_attn.q_proj.weight", model.config, Checkpoint(folder))
        assert (merged[rows] == 0).all() and not merged[rows].signbit().any()


def test_dora_starts_at_the_weight_as_it_is_by_then(make_tiny_llama):
    """Its magnitudes are offsets: another change before it must not be undone by the norms of the pruned weight."""
    weight = load_model(make_tiny_llama(zeros=0.5), torch.float32, "cpu", "-p").model.layers[0].mlp.up_proj.weight
    update = Decomposed(torch.randn(3, 24), torch.zeros(56, 3), torch.zeros(56), 2.0, masked=True)
    assert torch.equal(update(3 * weight.detach()), torch.zeros_like(weight))
    assert torch.equal(update.folded(3 * weight), torch.zeros_like(weight).double())


COUNTS = {
    "lora": RANK * (2 * (24 + 48) + 2 * (24 + 16) + 3 * (24 + 56)),  # q, o; k, v; gate, up, down
    "dora": RANK * (2 * (24 + 48) + 2 * (24 + 16) + 3 * (24 + 56)) + 48 + 16 + 16 + 24 + 56 + 56 + 24,
}
"""Numbers trained in a layer."""


@pytest.mark.parametrize("method", METHODS)
def test_numbers_trained_are_counted(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    restoration = started(folder, method)
    found = numbers_trained(attached(folder, restoration))
    if method == "masked_full":
        read = Checkpoint(folder).read
        names = restoration.touched(load_config(folder, "-p"))
        assert found == sum(int((read(name) != 0).sum()) for name in names) > 10_000
    else:
        assert found == 3 * COUNTS[method.removeprefix("masked_")]


@pytest.mark.parametrize("method", ["masked_lora", "masked_full", "norms_biases"])
def test_what_was_computed_before_training_is_not_counted_as_trained(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    model = attached(folder, started(folder, method))
    expected = numbers_trained(model)
    for layer in (0, 2):
        linear = model.model.layers[layer].mlp.up_proj
        linear.update(FixedInMask(torch.ones_like(linear.weight)))
    assert numbers_trained(model) == expected > 0


# Where.


@pytest.mark.parametrize("method", ["lora", "masked_lora", "dora", "masked_dora"])
def test_targets_and_layers_choose_the_weights_that_change(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5)
    options = Options(lora_rank=2, lora_targets="q_proj,up_proj", lora_layers="2,0")
    restoration = moved(started(folder, method, options))
    config, stored = load_config(folder, "-p"), Checkpoint(folder)
    chosen = {f"model.layers.{n}.{name}.weight" for n in (0, 2) for name in ("self_attn.q_proj", "mlp.up_proj")}
    assert set(restoration.touched(config)) == restoration.promise(config).changed == chosen
    restoration.check(config, "here")
    model = attached(folder, restoration)
    changed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, RestoredLinear)}
    assert changed == chosen
    widths = (24 + 48) + (24 + 56)
    assert numbers_trained(model) == 2 * (2 * widths + (48 + 56 if "dora" in method else 0))
    for name in chosen:
        linear = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(restoration.merged(name, config, stored), linear.folded_weight())
        assert not torch.equal(linear.folded_weight(), stored.read(name).double())
    assert all(torch.equal(t, restoration.state[n]) for n, t in restoration.read_from(model).state.items())


def test_lora_and_dora_fit_the_budget_of_compensated_heads():
    """SmolLM2-135M: a quarter of 270 heads trains 68 · 2 · 64 = 8,704 numbers; seven q_proj of rank 1 train 8,064."""
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    for method, count in (("lora", 7 * 1152), ("dora", 7 * 1728)):
        ((_, part),) = parts_of(method, Options(lora_rank=1, lora_targets="q_proj", lora_layers="0-6"))
        state = part.start(Given(config, 1))
        assert sum(tensor.numel() for tensor in state.values()) == count


def test_layers_that_a_model_does_not_have_are_no_restoration_of_it(make_tiny_llama):
    folder = make_tiny_llama(zeros=0.5)
    restoration = started(folder, "lora", Options(lora_layers="1-2"))
    config = load_config(folder, "-p")
    restoration.check(config, "here")
    config.num_hidden_layers = 2
    with pytest.raises(UserError, match=r"here: .* it changes layer 2 of a model that has 2"):
        restoration.check(config, "here")


def test_flags_name_targets_and_layers():
    args = parse_arguments(["-lora_targets", " down_proj, q_proj", "-lora_layers", "5,0-2"])
    assert (args.lora_targets, args.lora_layers) == ("q_proj,down_proj", "5,0-2")
    args.check_layers(6)
    with pytest.raises(UserError, match=r"^-lora_layers: 5,0-2 names layer 5, but the model has 5; give some of 0-4$"):
        args.check_layers(5)
    assert len(LINEAR_NAMES) == 7 and [name.split(".")[1] for name in LINEARS] == list(LINEAR_NAMES)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("targets", text) for text in ("queries", "q_proj,", "", "Q_PROJ", "self_attn.q_proj")]
    + [("layers", text) for text in ("", "a", "3-1", "1,,2", "-1", "0-", "1.5", "0-99999999999999", "٣")],
)
def test_what_names_no_layer_is_one_line(flag, value):
    with pytest.raises(UserError, match=rf"^-lora_{flag}\b") as found:
        parse_arguments([f"--lora_{flag}={value}"])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("method", ["restorelcc", "masked_full", "none"])
def test_where_is_refused_by_methods_that_do_not_choose(method):
    for flag, value in (("lora_targets", "q_proj"), ("lora_layers", "0")):
        with pytest.raises(UserError, match=rf"^-{flag}: {method} doesn't take it; .* -method .*dora"):
            parts_of(method, Options(**{flag: value}))
