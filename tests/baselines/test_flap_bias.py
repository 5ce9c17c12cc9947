"""The closed form is the exact minimiser of what it claims, on what the layers of both models are really fed."""

from functools import partial
from pathlib import Path

import pytest
import torch

from baselines.streams import GROUPS
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.merge import merge
from models.modeling_llama import explicit_biases
from models.restoration import Restoration
from utils.common.errors import UserError
from utils.common.methods import SITES, Options, parts_of
from utils.common.names import STREAMS

EPS = torch.finfo(torch.float32).eps
SHAPES = {"plain": {}, "biased": {"attention_bias": True, "mlp_bias": True}}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (5, 23), generator=torch.Generator().manual_seed(2))


def given(dense: Path, pruned: Path, tokens: torch.Tensor) -> MethodInputs:
    loads = [partial(load_model, folder, torch.float32, "cpu", "-b") for folder in (dense, pruned)]
    read, teacher = Checkpoint(pruned).read, Checkpoint(dense).read
    config = load_config(pruned, "-p")
    return MethodInputs(config, 0, read, teacher=teacher, tokens=tokens, dense=loads[0], pruned=loads[1])


def started(dense: Path, pruned: Path, tokens: torch.Tensor, options: Options, method="flap_bias") -> Restoration:
    return Restoration.start(method, options, given(dense, pruned, tokens))


def biases_of(restoration: Restoration, place: int = 0) -> dict[str, torch.Tensor]:
    """The constants by linear layer: of those on a bias, the one at this place."""
    return {
        name.removesuffix(".bias"): some[place].change.detach()
        for name, some in restoration.terms.items()
        if name.endswith(".bias")
    }


def seen(model, tokens: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """All inputs (tokens, in) and outputs (tokens, out) of the linear layers, by name, one window at a time; fp64."""
    found: dict[str, list] = {}
    hooks = []
    for layer in range(model.config.num_hidden_layers):
        for site in SITES.values():
            name = f"model.layers.{layer}.{site}"
            keep = found.setdefault(name, []).append
            hook = model.get_submodule(name).register_forward_hook(
                lambda _, x, y, keep=keep: keep((x[0][0].double(), y[0].double()))
            )
            hooks.append(hook)
    with torch.no_grad():
        for window in tokens:
            model(window[None])
    for hook in hooks:
        hook.remove()
    return {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}


def linear(read, name: str, inputs: torch.Tensor) -> torch.Tensor:
    output = inputs @ read(f"{name}.weight").double().T
    return output + read(f"{name}.bias").double() if name in BIASED else output


BIASED: set[str] = set()


def best_constant(outputs: torch.Tensor) -> torch.Tensor:
    return torch.linalg.lstsq(torch.ones(len(outputs), 1, dtype=torch.float64), outputs).solution[0]


def by_hand(dense: Path, pruned: Path, tokens: torch.Tensor, sites: set[str], stream: str) -> dict[str, torch.Tensor]:
    """The best constants by name, each from a run of both whole models with the constants before it in place."""
    read, teacher = Checkpoint(pruned).read, Checkpoint(dense).read
    config = load_config(pruned, "-p")
    model = load_model(pruned, torch.float32, "cpu", "-p")
    names = [f"model.layers.{n}.{SITES[site]}" for n in range(config.num_hidden_layers) for site in SITES]
    explicit_biases(model, [f"{name}.bias" for name in names])
    own = seen(load_model(dense, torch.float32, "cpu", "-b"), tokens)
    found = {}
    for layer in range(config.num_hidden_layers):
        for site in [site for group in GROUPS for site in group if site in sites]:
            name = f"model.layers.{layer}.{SITES[site]}"
            inputs = {"dense": own[name][0], "restored": seen(model, tokens)[name][0]}
            of_dense, of_pruned = {
                "dense": ("dense", "dense"),
                "pruned": ("restored", "restored"),
                "sequential": ("dense", "restored"),
            }[stream]
            lost = linear(teacher, name, inputs[of_dense]) - linear(read, name, inputs[of_pruned])
            found[name] = best_constant(lost)
            model.get_submodule(name).bias += found[name].float()
    return found


@pytest.mark.parametrize(
    ("stream", "apply_to", "shape"),
    [
        (None, "both", "plain"),
        ("dense", "all", "biased"),
        ("pruned", "attention", "biased"),
        ("pruned", "all", "plain"),
        ("sequential", "ffn", "plain"),
        ("sequential", "all", "biased"),
    ],
)
def test_the_bias_is_the_best_constant_of_its_stream(make_tiny_llama, tokens, monkeypatch, stream, apply_to, shape):
    # Of another seed, so that norms, embeddings and biases differ too.
    dense, pruned = make_tiny_llama(**SHAPES[shape]), make_tiny_llama(seed=3, zeros=0.5, **SHAPES[shape])
    BIASED.clear()
    BIASED.update(n.removesuffix(".bias") for n in Checkpoint(pruned).headers if n.endswith(".bias"))
    monkeypatch.setattr("baselines.streams.BATCH_TOKENS", 50)
    restoration = started(dense, pruned, tokens, Options(apply_to, stream=stream))
    asked = {"both": {"attention", "ffn"}, "all": set(SITES)}.get(apply_to, {apply_to})
    best = by_hand(dense, pruned, tokens, asked, stream or "dense")
    found = biases_of(restoration)
    assert found.keys() == best.keys() and len(best) == 3 * len(asked)
    for name, wanted in best.items():
        assert wanted.abs().max() > 1e-2
        assert torch.allclose(found[name].double(), wanted, atol=2e-5 * float(wanted.abs().max())), name


@pytest.mark.parametrize("shape", SHAPES)
def test_sequential_gives_every_linear_layer_the_dense_mean(make_tiny_llama, tokens, tmp_path, shape):
    dense, pruned = make_tiny_llama(**SHAPES[shape]), make_tiny_llama(zeros=0.5, **SHAPES[shape])
    restoration = started(dense, pruned, tokens, Options("all", stream="sequential"))
    merge(pruned, restoration, tmp_path / "merged", pruned)
    runs = [seen(load_model(f, torch.float32, "cpu", "-b"), tokens) for f in (dense, pruned, tmp_path / "merged")]
    read = Checkpoint(tmp_path / "merged").read
    before = 0.0
    for computed, (name, (inputs, _)) in enumerate(runs[2].items(), start=1):
        of_dense, of_pruned, of_merged = (run[name][1].mean(0) for run in runs)
        # A dot product rounds once a term, and each layer hands on what those below it have rounded.
        size = read(f"{name}.weight").abs().double() @ inputs.abs().mean(0)
        allowed = EPS * (inputs.shape[1] + 2) * computed * size
        assert ((of_merged - of_dense).abs() <= allowed).all(), name
        before = max(before, float(((of_pruned - of_dense).abs() / allowed).max()))
    assert before > 100


def test_few_passes_over_the_set_and_no_model_that_is_not_read(make_tiny_llama, tokens, monkeypatch):
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    runs = {"dense": (2 * 3 - 1, 0), "pruned": (0, 5 * 3 - 1), "sequential": (2 * 3 - 1, 5 * 3 - 1)}
    for stream, (of_dense, of_pruned) in runs.items():
        start, passes = given(dense, pruned, tokens), {}

        def counting(load, name, passes=passes):
            model = load()
            for layer in model.model.layers:
                layer.register_forward_pre_hook(lambda *_: passes.update({name: passes.get(name, 0) + 1}))
            return model

        for name in ("dense", "pruned"):
            object.__setattr__(start, name, partial(counting, getattr(start, name), name))
        Restoration.start("flap_bias", Options("all", stream=stream), start)
        windows = len(tokens)  # the first layer's input is read from single windows
        for name, wanted in (("dense", of_dense), ("pruned", of_pruned)):
            assert passes.get(name, 0) == (wanted + windows if wanted else 0), (stream, name)


def test_an_overflow_is_one_line_that_names_the_flag(make_tiny_llama, tokens):
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    start = given(dense, pruned, tokens)

    def broken():
        model = load_model(dense, torch.float32, "cpu", "-b")
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("inf")
        return model

    object.__setattr__(start, "dense", broken)
    with pytest.raises(UserError, match=r"^-dtype: the input of self_attn.o_proj is not finite"):
        Restoration.start("flap_bias", Options("attention"), start)


# Free biases that start at the closed form.

STARTED = {
    "output_bias": ("output_bias", Options("both")),
    "norms_biases": ("norms_biases", Options()),
    "constants of LoRA": ("masked_lora", Options("ffn", lora_rank=2)),
    "constants of none": ("none", Options("attention")),
}


@pytest.mark.parametrize(("name", "stream"), zip(STARTED, [None, *STREAMS], strict=True))
def test_a_trained_bias_starts_where_flap_bias_ends_and_is_trained(make_tiny_llama, tokens, name, stream):
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    method, options = STARTED[name]
    options = Options(**{**vars(options), "bias_start": "closed_form", "stream": stream})
    restoration = started(dense, pruned, tokens, options, method)
    flap = biases_of(started(dense, pruned, tokens, Options(options.apply_to or "all", stream=stream)))
    biases = biases_of(restoration)
    assert biases.keys() == flap.keys()
    assert all(torch.equal(tensor, flap[place]) for place, tensor in biases.items())
    assert any(part.needs.training and part.needs.calibration for part in parts_of(method, options))
    assert all(term.change.requires_grad for n, (term,) in restoration.terms.items() if n.endswith(".bias"))
    assert not restoration.untrained().terms
    model = restoration.attach(load_model(pruned, torch.float32, "cpu", "-p"))
    with torch.no_grad():
        plain = load_model(pruned, torch.float32, "cpu", "-p")(tokens).logits
        assert not torch.allclose(model(tokens).logits, plain, atol=1e-2)


def test_a_start_at_zero_reads_nothing(make_tiny_llama, tokens):
    pruned = make_tiny_llama(zeros=0.5)
    for method in ("output_bias", "norms_biases"):
        parts = parts_of(method, Options())
        assert not any(part.needs.calibration or part.needs.teacher for part in parts)
        restoration = Restoration.start(
            method, Options(), MethodInputs(load_config(pruned, "-p"), 0, Checkpoint(pruned).read)
        )
        assert not any(tensor.any() for tensor in restoration.tensors().values())


@pytest.mark.parametrize(("first", "stream"), [("flap_bias", "pruned"), ("eora", "dense"), ("eora", "sequential")])
def test_a_second_closed_form_takes_what_the_first_one_left(make_tiny_llama, tokens, tmp_path, first, stream):
    """As if it were given the checkpoint that a merge of the first one writes."""
    dense, pruned = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    alone = started(dense, pruned, tokens, Options("all", lora_rank=3), first)
    merge(pruned, alone, tmp_path / "merged", pruned)
    expected = started(dense, tmp_path / "merged", tokens, Options("all", stream=stream))
    options = Options("all", lora_rank=3, first=first, stream=stream, bias_start="closed_form")
    if first == "flap_bias":  # the first one's stream is the second one's too
        alone = started(dense, pruned, tokens, Options("all", stream=stream))
        expected = None
    found = started(dense, pruned, tokens, options, "output_bias")
    wanted = biases_of(expected) if expected else None
    for place, tensor in biases_of(found, -1).items():
        assert torch.allclose(tensor, wanted[place] if wanted else torch.zeros_like(tensor), atol=2e-5), place
        assert wanted is None or wanted[place].abs().max() > 1e-2
    closed = {name: some[0] for name, some in alone.terms.items() if first == "flap_bias" or name.endswith("weight")}
    for place, term in closed.items():
        for name, tensor in term.tensors().items():
            assert torch.equal(getattr(found.terms[place][0], name), tensor)


MISTAKES = [
    ("restorelcc", Options(bias_start="closed_form"), r"^-bias_start: restorelcc train no free bias; give "),
    ("flap_bias", Options(bias_start="closed_form"), r"^-bias_start: flap_bias train no free bias; give "),
    ("lora", Options(first="flap_bias", bias_start="closed_form"), r"^-bias_start: flap_bias and lora train "),
    ("lora", Options(stream="pruned"), r"^-stream: lora read no calibration set by a stream of choice; give "),
    ("output_bias", Options(stream="dense"), r"^-stream: output_bias read no calibration"),
    ("eora", Options(stream="dense"), r"^-stream: eora read no calibration"),
]


@pytest.mark.parametrize(("method", "options", "line"), MISTAKES)
def test_what_would_be_ignored_is_refused(method, options, line):
    with pytest.raises(UserError, match=line):
        parts_of(method, options)
