"""The merged checkpoint is the pruned one, tensor by tensor, plus what the saved restoration says; no lie gets past."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from models import merge as merging
from models.checkpoint import Checkpoint, same_bits
from models.compact import in_dense_shapes, write_compact
from models.compact_llama import CompactLlamaConfig
from models.loading import load_config, load_model
from models.merge import PROOF, compact_and_prove, main, merge, merge_and_prove, probe_logits, prove, record_logits
from models.restoration import ABOUT, TENSORS, Restoration, load_restoration, save_restoration
from models.terms import Constant, HeadConstant, LowRank, Term
from tests.builders import HEADS, attached, inputs_of, mistake, orthonormal, rewrite, save_tiny_llama, scaled, shard
from utils.common import methods
from utils.common.errors import UserError
from utils.common.methods import Options, needs_of

TOKENS = [[5, 9, 77, 30, 200, 41, 7, 8, 120, 3, 4, 66], [1, 2, 3], [250, 8]]
FIRST, LAST = (f"model.layers.{layer}.self_attn.o_proj.bias" for layer in (0, 2))
"""What HEADS change."""
SHAPES = {
    "gqa": {}, "biased": {"attention_bias": True}, "biased mlp": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "scaled": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}},
    "mha": {"num_key_value_heads": 6},
}  # fmt: skip
METHODS = {
    "restorelcc": Options(), "magnitudes_only": Options(), "output_bias": Options("both"),
    "restorelcc everywhere": Options("both", train_norms=True), "flap_bias everywhere": Options("all"),
    "bias_only after flap_bias": Options("both", first="flap_bias"),
    "masked_lora after flap_bias": Options("all", first="flap_bias", train_norms=True),
    "flap_bias after eora": Options("all", first="eora", lora_rank=2),
    "output_bias and norms": Options("all", train_norms=True),
    "eora": Options(lora_rank=3),
    "lora after eora": Options("ffn", first="eora", lora_rank=2),
    "lora in places": Options(lora_rank=2, lora_targets="k_proj,down_proj"),
    "dora": Options(lora_rank=3), "masked_dora after flap_bias": Options("all", lora_rank=2, first="flap_bias"),
    "masked_full": Options(), "admm_update": Options(), "admm_residual": Options(),
    "masked_lora after admm_update": Options(first="admm_update", lora_rank=2),
    "output_bias after reconstruct": Options("all", train_norms=True, first="reconstruct"),
    "none": Options(), "none and norms": Options(train_norms=True),
}  # fmt: skip

CASES = [
    (name, list(SHAPES)[(at + turn) % 6], *[(torch.float32, torch.bfloat16)[(at // 6 + at + turn // 3) % 2]] * 2)
    for at, name in enumerate(METHODS)
    for turn in (0, 3)
]
CASES += [
    ("restorelcc everywhere", "gqa", torch.float16, torch.bfloat16),
    ("restorelcc", "gqa", torch.float64, torch.float32), ("output_bias", "gqa", torch.bfloat16, torch.float16),
    ("output_bias", "gqa", torch.float16, torch.float32), ("masked_full", "gqa", torch.float32, torch.float16),
    ("restorelcc", "gqa", torch.float32, torch.bfloat16), ("masked_full", "gqa", torch.float64, torch.bfloat16),
    ("lora in places", "gqa", torch.float16, torch.float16), ("lora in places", "gqa", torch.bfloat16, torch.float32),
]  # fmt: skip
"""Each method in two shapes, one of them in bf16, so that every shape and dtype meets another four of them; then files
of any dtype in a run of any other."""


def drawn(dense: Path, pruned: Path, method: str, options: Options) -> Restoration:
    """A restoration with random values, large enough to see."""
    inputs = inputs_of(dense, pruned, torch.tensor(TOKENS[:1]), seed=1, heads=HEADS, basis=orthonormal())
    return scaled(Restoration.start(method, options, inputs), noise=0.2)


def learned(folder: Path, name: str = "restorelcc") -> Restoration:
    """Of the method with this name in METHODS."""
    return drawn(folder, folder, name.split()[0], METHODS[name])


def asked(folder: Path, restoration: Restoration, dtype: torch.dtype = torch.float32) -> merging.Reference:
    """What the attached model answers."""
    model = attached(folder, restoration, dtype)
    probe_logits(model, TOKENS[1:2])  # as a validation does, before it is known how the files keep each tensor
    return record_logits(model, restoration, Checkpoint(folder), TOKENS, "cpu")


def saved(folder: Path, restoration: Restoration, place: Path) -> Path:
    save_restoration(place / "restoration", restoration, {"pruned_sha256": Checkpoint(folder).fingerprint})
    return place / "restoration"


def merged(folder: Path, place: Path, restoration: Restoration, dtype=torch.float32) -> tuple[merging.Reference, dict]:
    """What a model attached in dtype answers, and the record of the proof of place/merged, with all its tensors."""
    reference, source = asked(folder, restoration, dtype), saved(folder, restoration, place)
    proof = merge_and_prove(folder, source, place / "merged", tokenizer_from=folder, reference=reference)
    return reference, proof.record


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.headers}


@pytest.mark.parametrize(("name", "shape", "stored", "run_dtype"), CASES)
def test_merged_is_attached_and_changes_just_what_has_terms(make_tiny_llama, tmp_path, name, shape, stored, run_dtype):
    """A tensor keeps its file's dtype, whatever config.json says. Where the run's holds that, logits are the same."""
    folder = make_tiny_llama(zeros=0.5, dtype=stored, **SHAPES[shape])
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    said = {"dtype": "float16"} if run_dtype == torch.bfloat16 else {}
    (folder / "config.json").write_text(json.dumps(config | said))
    restoration, equal = learned(folder, name), torch.promote_types(stored, run_dtype) == run_dtype
    _, proof = merged(folder, tmp_path, restoration, run_dtype)
    assert proof["passed"] and proof["logits_must_be_equal"] == equal
    apart, tolerance = proof["logits_relative_difference"], proof["logits_tolerance"]
    assert (apart == 0 and proof["top1_agreement"] == 1) if equal else apart <= tolerance < 0.06
    assert equal or apart > 0 or stored != torch.float32
    again, _ = load_restoration(tmp_path / "restoration")
    assert (again.method, again.zeros, again.heads) == (restoration.method, restoration.zeros, restoration.heads)
    torch.testing.assert_close(again.tensors(), restoration.tensors(), rtol=0, atol=0)
    before, after = tensors_of(folder), tensors_of(tmp_path / "merged")
    assert {tensor.dtype for tensor in after.values()} == {stored}
    differing = {n for n, tensor in before.items() if not same_bits(tensor, after[n])}
    valued = {n for n in set(after) - set(before) if bool((after[n] != 0).any())}
    terms = set(restoration.terms)
    assert differing | valued == terms and (terms or name == "none")
    heads = needs_of(name.split()[0], METHODS[name]).heads and "after" not in name
    assert not heads or {n for n in terms if "o_proj" in n} == {FIRST, LAST}
    dense = name.split()[0] in ("lora", "dora", "eora") or name.endswith("eora")
    assert {n.rsplit(".", 1)[1] for n in set(after) - set(before)} <= {"bias"}
    # A bias may be zero by chance, and is no weight that was pruned.
    lost = sum(int(((before[n] == 0) & (after[n] != 0)).sum()) for n in before if n.endswith("weight"))
    assert lost == proof["zeros_lost"] and (lost > 1000) == dense
    assert proof["zeros"] == ("reported" if dense else "kept")
    assert not any(bool((tensor[tensor == 0].signbit()).any()) for n, tensor in after.items() if n in differing)


def test_what_transformers_generates_and_saves_and_peft_trains_on_is_the_same(make_tiny_llama, tmp_path):
    folder, place, again = make_tiny_llama(zeros=0.5), tmp_path / "merged", tmp_path / "again"
    merged(folder, tmp_path, learned(folder, "restorelcc everywhere"))
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    assert type(model).__module__.startswith("transformers.")
    assert model.config.attention_bias and model.config.mlp_bias
    ids = tokenizer("Once", return_tensors="pt").input_ids
    made = model.generate(ids, do_sample=False, max_new_tokens=7, attention_mask=torch.ones_like(ids))
    text = pipeline("text-generation", model=str(place), device="cpu")("Once", do_sample=False, max_new_tokens=7)
    assert text[0]["generated_text"] == tokenizer.decode(made[0], skip_special_tokens=True)
    model.save_pretrained(again)
    before = tensors_of(place)
    torch.testing.assert_close(tensors_of(again), before, rtol=0, atol=0)
    peft, ids = pytest.importorskip("peft"), torch.tensor([TOKENS[0]])
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1.0)
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    assert model(ids, labels=ids).loss < loss
    assert torch.equal(model.merge_and_unload().get_parameter(LAST), before[LAST]) and before[LAST].abs().max() > 0


def test_the_one_new_bias_is_what_equation_8_gives(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    restoration, weights, names = learned(folder), tensors_of(folder), [FIRST, LAST]
    _, proof = merged(folder, tmp_path, restoration)
    assert proof["nonzero_new_tensors"] == names and len(proof["new_tensors"]) == 3 * 4
    assert proof["tensors_recomputed"] == proof["tensors_touched"] == 2
    for name, heads in zip(names, ([1], [0, 5]), strict=True):
        (term,) = restoration.terms[name]
        assert term.heads.tolist() == heads
        expected = torch.zeros(24, dtype=torch.float64)
        for row, head in enumerate(heads):
            c = term.component[row].double() + term.magnitudes[row].double() @ term.basis[row].double()
            expected += weights[name.replace("bias", "weight")][:, head * 8 :][:, :8].double() @ c
        assert torch.equal(tensors_of(tmp_path / "merged")[name], expected.float())


def test_dropped_buffers_are_listed_and_norms_in_another_dtype_keep_it(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5, dtype=torch.bfloat16)
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(4) for n in range(3)}
    rewrite(folder, lambda tensors: {**{n: t.float() if "norm" in n else t for n, t in tensors.items()}, **buffers})
    _, proof = merged(folder, tmp_path, learned(folder), torch.bfloat16)
    assert proof["passed"] and proof["logits_must_be_equal"]
    after = tensors_of(tmp_path / "merged")
    assert sorted(proof["dropped_buffers"]) == sorted(buffers) and not set(buffers) & set(after)
    assert after["model.norm.weight"].dtype == torch.float32
    assert after["model.layers.0.self_attn.o_proj.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("pickled", [False, True])
def test_shards_stay_shards(make_tiny_llama, tmp_path, pickled):
    folder = make_tiny_llama(zeros=0.5)
    whole, names = tensors_of(folder), shard(folder, pickled)
    assert merged(folder, tmp_path, learned(folder))[1]["passed"] and len(names) > 2
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == names
    after = tensors_of(tmp_path / "merged")
    assert all(torch.equal(tensor, after[name]) for name, tensor in whole.items())
    placed = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(placed) == set(after) and placed[LAST] == placed[LAST.replace("bias", "weight")]


def right_merge(place: Path, name="restorelcc", dtype=torch.float32, change=None, **shape) -> tuple:
    """(pruned, merged, restoration, reference). change: of the pruned checkpoint's tensors."""
    folder = save_tiny_llama(place / "pruned", zeros=0.5, dtype=dtype, **shape)
    if change:
        rewrite(folder, change)
    restoration = learned(folder, name)
    reference = asked(folder, restoration, dtype)
    merge(folder, restoration, place / "merged", folder)
    return folder, place / "merged", restoration, reference


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def proved(request, tmp_path_factory):
    right = right_merge(tmp_path_factory.mktemp("proved"), dtype=request.param)
    assert prove(*right).record["passed"]
    return right


def at_a_zero(tensors: dict[str, torch.Tensor], value: float) -> None:
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    weight[tuple((weight == 0).nonzero()[0])] = value


SPOILED = {
    "a zero": lambda t: at_a_zero(t, 1e-9),
    "a zero's sign": lambda t: at_a_zero(t, -0.0),
    "a bit": lambda t: t["model.norm.weight"].view(torch.int16)[3:4].bitwise_xor_(1),
    "an untouched bias": lambda t: t["model.layers.1.self_attn.o_proj.bias"][:1].fill_(1e-3),
    "a query's bias": lambda t: t["model.layers.0.self_attn.q_proj.bias"][:1].fill_(1e-3),
    "all compensations": lambda t: [t[name].zero_() for name in (FIRST, LAST)],
    "a bit of the first compensation": lambda t: t[FIRST].view(torch.int16)[5:6].bitwise_xor_(1),
    "the last compensation": lambda t: t[LAST].mul_(1.01),
    "a dtype": lambda t: t.update({"model.norm.weight": t["model.norm.weight"].half()}),
    "no number": lambda t: t[LAST][:1].fill_(float("nan")),
    "missing": lambda t: t.pop("model.layers.0.self_attn.k_proj.bias"),
    "one more": lambda t: t.update({"model.layers.0.self_attn.extra.weight": torch.zeros(3)}),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_no_tensor_can_differ_from_what_was_promised(proved, tmp_path, spoil):
    folder, right, restoration, reference = proved
    shutil.copytree(right, tmp_path / "merged")
    rewrite(tmp_path / "merged", SPOILED[spoil])
    proof = prove(folder, tmp_path / "merged", restoration, reference)
    assert not proof.record["passed"]
    # By its tensors, not only by the logits they give.
    assert any("tensors" in failure or "zeros" in failure for failure in proof.failures)


def test_a_config_that_says_something_else_fails(proved, tmp_path):
    folder, right, restoration, reference = proved
    place = shutil.copytree(right, tmp_path / "merged") / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "max_position_embeddings": 128}))
    assert "config.json" in prove(folder, tmp_path / "merged", restoration, reference).failures[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None], ids=str)
def test_no_logit_of_any_sequence_can_differ(proved, value):
    folder, right, restoration, reference = proved
    for sequence in range(len(TOKENS)):
        logits = [each.clone() for each in reference.logits]
        last = logits[sequence][-1]
        last[-1] = value if value is not None else last[-1] + 2**-6 * (1 + abs(last[-1]))
        proof = prove(folder, right, restoration, replace(reference, logits=logits))
        assert not proof.record["passed"] and "logits" in proof.failures[0]
        json.dumps(proof.record, allow_nan=False)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_a_failed_proof_leaves_nothing_and_tells_the_cause_that_a_wider_checkpoint_can_be(tmp_path, stored):
    folder = save_tiny_llama(tmp_path / "pruned", zeros=0.5, dtype=stored)
    restoration = learned(folder, "masked_full")
    reference, place = asked(folder, restoration, torch.bfloat16), saved(folder, restoration, tmp_path)
    reference.logits[0].add_(1)
    swallowed = stored == torch.float32
    with pytest.raises(UserError if swallowed else RuntimeError, match=r"failed its proof.*: logits ") as told:
        merge_and_prove(folder, place, tmp_path / "merged", tokenizer_from=folder, reference=reference)
    assert (merging.SWALLOWED in str(told.value)) == swallowed
    assert ("on average by" in str(told.value)) == (not reference.stored)
    assert {path.name for path in tmp_path.iterdir()} == {"pruned", "restoration"}


def test_values_that_no_dtype_holds_are_one_line(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5, dtype=torch.float16)
    restoration = learned(folder)
    restoration.terms[LAST][0].component.data.fill_(1e38)
    place = saved(folder, restoration, tmp_path)
    flags = ["-pruned_model_path", str(folder), "-restoration", str(place), "-output_dir", str(tmp_path / "out")]
    for dtype in ("float32", "bfloat16"):
        words = [*flags, "-dtype", dtype, "-cache_dir", str(tmp_path / "cache")]
        mistake(r"^-restoration: .* holds? NaN or infinity.*lower -lr", main, words)
        assert not (tmp_path / "out").exists()
    mistake(f"{LAST} holds NaN or infinity in its dtype", merge, folder, restoration, tmp_path / "merged", folder)


@pytest.mark.parametrize("spoil", [lambda c: c[3].add_(1e-3), lambda c: c.copy_(c.roll(1)), lambda c: c.mul_(1.0001)])
def test_what_was_trained_is_held_against_what_is_merged(tmp_path, monkeypatch, spoil):
    """Inference computes the bias as a merge does; the path of the gradients is another, and could be another bias."""
    folder, place, restoration, _ = right_merge(tmp_path)
    model = attached(folder, restoration)
    right = HeadConstant.forward

    def forward(term: HeadConstant, weight: torch.Tensor) -> torch.Tensor:
        found = right(term, weight)
        return spoil(found.detach()) if found.dtype == torch.float32 else found

    monkeypatch.setattr(HeadConstant, "forward", forward)
    reference = record_logits(model, restoration, Checkpoint(folder), TOKENS, "cpu")
    assert "trained and merged values differ" in prove(folder, place, restoration, reference).failures[0]


def test_a_term_that_says_it_keeps_zeros_and_does_not_fails(tmp_path, monkeypatch):
    folder, place, restoration, reference = right_merge(tmp_path, "lora in places")
    assert prove(folder, place, restoration, reference).record["passed"]
    monkeypatch.setattr(LowRank, "keeps_zeros", True)
    monkeypatch.setattr(LowRank, "forward", lambda term, weight: (term.scale * term.up) @ term.down)
    assert "zeros" in prove(folder, place, restoration, reference).failures[0]


def mask_units(tensors: dict[str, torch.Tensor]) -> None:
    """A KV group of layer 1 and channels of layer 2 that nothing reads."""
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 3 * 8 :] = 0
    tensors["model.layers.2.mlp.down_proj.weight"][:, 10:16] = 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compact_is_proved_like_the_model_and_fails_if_it_differs_or_lost_a_value(tmp_path, dtype):
    *_, whole, _, reference = right_merge(tmp_path, dtype=dtype, change=mask_units, attention_bias=True)
    proof = compact_and_prove(whole, tmp_path / "compact", reference).record
    assert proof["passed"] and proof["tensors_identical"] == proof["tensors_compared"]
    assert proof["zeros_restored"] + proof["zeros_left_out"] == sum(Checkpoint(whole).survey().zeros.values())
    assert proof["weights_left_out"] > 0 and proof["logits_relative_difference"] <= proof["logits_tolerance"] < 0.06
    for name in (FIRST, "model.layers.2.mlp.down_proj.weight", "model.norm.weight"):
        spoiled = shutil.copytree(tmp_path / "compact", tmp_path / name)
        rewrite(spoiled, lambda tensors, name=name: tensors[name].view(-1)[:1].add_(1))
        assert not merging.prove_compact(whole, spoiled, reference).record["passed"]
    with pytest.raises(RuntimeError, match="failed its proof"):
        compact_and_prove(whole, tmp_path / "again", replace(reference, logits=[one + 1 for one in reference.logits]))
    assert not (tmp_path / "again").exists()
    far = [each.float() + 1 for each in reference.logits]
    beyond = merging.prove_compact(whole, tmp_path / "compact", replace(reference, logits=far)).record
    allowed = beyond["logits_tolerance"] * max(float(each.abs().max()) for each in far)
    for count, share in ((None, 0.3), (1, 1.7)):  # all logits, which only the mean forbids; one, which it allows
        moved = [each.float().clone() for each in reference.logits]
        for each in moved[:count]:
            each.view(-1)[:count].add_(share * allowed)
        record = merging.prove_compact(whole, tmp_path / "compact", replace(reference, logits=moved)).record
        kept = record["logits_relative_difference"] <= record["logits_tolerance"], record["logits_roundings"] <= 2
        assert kept == (count is None, count == 1) and not record["passed"]
    rewrite(whole, lambda t: t["model.layers.1.self_attn.o_proj.weight"][:, -1].fill_(1))
    assert not merging.prove_compact(whole, tmp_path / "compact", reference).record["passed"]


def test_heads_of_a_saved_restoration_are_in_the_order_of_their_layers(tmp_path):
    terms = {}
    for n in (2, 10):
        term = HeadConstant(torch.full((1, 4), n / 1), None, torch.tensor([n % 3]), torch.eye(4)[None])
        terms[f"model.layers.{n}.self_attn.o_proj.bias"] = [term]
    save_restoration(tmp_path / "restoration", Restoration("restorelcc", terms), {})
    found, _ = load_restoration(tmp_path / "restoration")
    assert found.heads == [(2, 2), (10, 1)] and found.of_heads("magnitudes")[:, 0].tolist() == [2, 10]


def test_kinds_of_terms_are_those_of_the_method_and_of_the_first_one(tmp_path, monkeypatch):
    terms, place = {LAST: [Constant(torch.ones(24))]}, tmp_path / "restoration"
    save_restoration(place, Restoration("lora", terms), {"arguments": {"first": "own"}})
    monkeypatch.delitem(Term.kinds, "Constant")
    mistake("^-restoration: .* terms of a kind unknown here .*Constant", load_restoration, place)
    own = SimpleNamespace(function=lambda: Term.kinds.update(Constant=Constant))  # as the import of its module does
    monkeypatch.setitem(methods.METHODS, "own", own)
    assert torch.equal(load_restoration(place)[0].terms[LAST][0].change, torch.ones(24))


DAMAGED = {
    "half a json": (ABOUT, b"{", "is not a restoration folder"),
    "no method": (ABOUT, b'{"format": 3}', "does not match its manifest.json"),
    "an earlier format": (ABOUT, b'{"format": 2}', "format 2, .* merge it with the version that wrote"),
    "a bit": (TENSORS, None, "does not match its manifest.json .*copy it again"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_restoration_is_one_line(make_tiny_llama, tmp_path, case):
    """A bit of a value makes no file that can't be read: the digest in the json tells."""
    folder = make_tiny_llama(zeros=0.5)
    place = saved(folder, learned(folder), tmp_path)
    name, instead, line = DAMAGED[case]
    content = (place / name).read_bytes()
    (place / name).write_bytes(instead or content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    mistake(rf"^-restoration: .* {line}", load_restoration, place)


def test_a_later_merge_deletes_nothing_and_takes_no_other_model(make_tiny_llama, tmp_path, monkeypatch, capsys):
    folder, run = make_tiny_llama(zeros=0.5), tmp_path / "run"
    saved(folder, learned(folder), run)
    flags = ["-pruned_model_path", str(folder), "-restoration", str(run / "restoration"), "-dtype", "float32"]
    (tmp_path / "link").symlink_to(run)
    for output in (run, tmp_path / "link", run / "restoration" / "merged", folder, folder.parent):
        with pytest.raises(UserError, match=r"^-output_dir: .* what -(restoration|pruned_model_path) names"):
            main([*flags, "-output_dir", str(output), "-overwrite"])
    assert load_restoration(run / "restoration")[1]["pruned_sha256"] == Checkpoint(folder).fingerprint
    output = tmp_path / "out"
    with pytest.raises(UserError, match="is not the pruned checkpoint"):
        main(["--pruned_model_path", str(make_tiny_llama(zeros=0.5, seed=3)), *flags[2:], "-output_dir", str(output)])
    assert not output.exists()
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    main([*flags, "-output_dir", str(output)])
    assert not capsys.readouterr().err
    assert json.loads((output / PROOF).read_text())["passed"]


def test_a_later_merge_takes_the_compact_checkpoint_that_was_trained_on(make_tiny_llama, tmp_path):
    write_compact(rewrite(make_tiny_llama(zeros=0.5), mask_units), tmp_path / "small")
    folder, _ = in_dense_shapes(tmp_path / "small", tmp_path / "cache")
    about = {"pruned_sha256": Checkpoint(tmp_path / "small").fingerprint, "arguments": {"dtype": "float32"}}
    about |= {"expanded_sha256": Checkpoint(folder).fingerprint}
    save_restoration(tmp_path / "restoration", learned(folder), about)
    flags = ["-restoration", str(tmp_path / "restoration"), "-cache_dir", str(tmp_path / "cache")]
    main(["-pruned_model_path", str(tmp_path / "small"), "-output_dir", str(tmp_path / "out"), *flags])
    assert isinstance(load_config(tmp_path / "out", "-o"), CompactLlamaConfig)
    assert json.loads((tmp_path / "out" / PROOF).read_text())["dtype"] == "float32"  # the run's
    found = probe_logits(load_model(tmp_path / "out", torch.float32, "cpu", "-o"), TOKENS)
    for logits, expected in zip(found, asked(folder, learned(folder)).logits, strict=True):
        assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))
