"""Every family, every kind of restoration: merged, proved, and read by the stock class in another process."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from models.checkpoint import Checkpoint, check_weights
from models.families import FAMILIES, carried_parts, dropped_by
from models.loading import load_config, load_model
from models.merge import probe_logits
from models.restoration import Restoration
from pruning.layers import walk
from pruning.prune_model import prune_into
from tests.builders import LOPSIDED, SAMPLES, attached, batch, inputs_of, mistake, save_tiny
from tests.models.test_merge import TOKENS, drawn, merged
from utils.activations import last_token_activations
from utils.common.methods import Options, parts_of
from utils.distillation import Distillation, teacher_states
from utils.evaluation.perplexity import token_scores
from utils.losses import ResponseLoss
from utils.packing import PromptWithContinuations
from utils.prompts import IGNORED
from utils.training import TrainingSettings, train

OWN_HEAD_DIM = {name: value for name, value in LOPSIDED.items() if name != "head_dim"} | {"hidden_size": 48}
"""Of a family whose classes take hidden_size / heads where the config names no head_dim: 8."""

SETTINGS = {
    "llama": LOPSIDED | {"attention_bias": True},
    "qwen2": OWN_HEAD_DIM | {"tie_word_embeddings": True},
    "mistral": LOPSIDED | {"sliding_window": None},
    "granite": OWN_HEAD_DIM
    | {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "smollm3": OWN_HEAD_DIM | {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": False},
    "qwen3": LOPSIDED,
    "olmo2": OWN_HEAD_DIM,
    "gemma2": LOPSIDED
    | {"sliding_window": 4, "query_pre_attn_scalar": 5, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": LOPSIDED
    | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
"""Layers ≠ heads ≠ KV heads; head_dim·heads ≠ hidden where the class lets one say so; the traps of each family on."""

FAMILY = pytest.mark.parametrize("family", SETTINGS)
AS_LLAMA = [name for name, family in FAMILIES.items() if family.as_llama is not None]
ATTENTION_ONLY = [name for name, family in FAMILIES.items() if len(family.switches) == 1]

METHODS = {
    "paper": ("restorelcc", Options()),
    "attention biases": ("output_bias", Options("attention")),
    "biases": ("output_bias", Options("all")),
    "inside the mask": ("masked_lora", Options("all", train_norms=True, lora_rank=2)),
    "inside the mask after ADMM": ("masked_lora", Options("all", train_norms=True, lora_rank=2, first="admm_residual")),
}

BIASED = ["model.layers.0.self_attn.o_proj.bias", "model.layers.1.mlp.down_proj.bias"]
DROPPED = {"llama": {"SGLang": "mlp.down_proj"}, "granite": {"SGLang": "self_attn.o_proj, mlp.down_proj"}}
DROPPED |= {"qwen3": {"vLLM": "self_attn.o_proj"}}

ASK = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0] for ids in json.loads(sys.argv[1])]
    save_file({str(n): each.contiguous() for n, each in enumerate(logits)}, folder + "/logits.safetensors")
"""


def made(folder: Path, family: str, zeros: float = 0.0, dtype=torch.float32, **changes) -> Path:
    """A random model of the family, its norms and biases random too, in `folder`."""
    return save_tiny(folder, CONFIG_MAPPING[family](**SETTINGS[family] | changes), 3, zeros, dtype, norms=0.2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(family) -> (dense, pruned) folders, made once."""
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: (made(root / family, family), made(root / f"{family}-pruned", family, 0.5)))


@pytest.fixture(scope="module")
def restored(models, tmp_path_factory) -> dict[str, list[tuple[Path, Restoration, dict, list[Tensor]]]]:
    """Of each family: merged folders, restorations, proofs, logits attached; in the folders, those of stock classes."""
    root, found = tmp_path_factory.mktemp("merged"), {}
    for family in SETTINGS:
        dense, pruned = models(family)
        for name in METHODS:
            if name == "biases" and family in ATTENTION_ONLY:
                continue
            restoration, place = drawn(dense, pruned, *METHODS[name]), root / f"{family}-{name}".replace(" ", "-")
            reference, proof = merged(pruned, place, restoration)
            found.setdefault(family, []).append((place / "merged", restoration, proof, reference.logits))
    folders = [str(folder) for some in found.values() for folder, *_ in some]
    subprocess.run([sys.executable, "-c", ASK, json.dumps(TOKENS), *folders], check=True, cwd=root)
    return found


@FAMILY
def test_what_is_restored_is_what_the_stock_class_reads(models, restored, family):
    _, pruned = models(family)
    before = probe_logits(load_model(pruned, torch.float32, "cpu", "-p"), TOKENS)
    assert dropped_by(BIASED, CONFIG_MAPPING[family]()) == DROPPED.get(family, {})
    given = load_file(pruned / "model.safetensors")
    for folder, restoration, proof, reference in restored[family]:
        assert proof["passed"] and proof["logits_must_be_equal"]
        assert proof["zeros"] == "kept" and proof["zeros_lost"] == 0
        assert all((old - new).abs().max() > 1e-3 for old, new in zip(before, reference, strict=True))
        answered = load_file(folder / "logits.safetensors")
        assert all(torch.equal(answered[str(n)], logits) for n, logits in enumerate(reference)), folder
        norms = {name for name in given if "norm" in name} if "inside" in folder.parent.name else set()
        assert norms == {name for name in restoration.terms if "norm" in name}
        tensors = load_file(folder / "model.safetensors")
        assert all(torch.equal(tensors[name], given[name]) for name in given if name not in restoration.terms)
        written = json.loads((folder / "config.json").read_text())
        assert written["model_type"] == ("llama" if family in AS_LLAMA else family)


@FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merge_is_proved_in_half_precision_too(family, dtype, tmp_path):
    pruned = made(tmp_path / "pruned", family, zeros=0.5, dtype=dtype)
    _, proof = merged(pruned, tmp_path, drawn(pruned, pruned, *METHODS["inside the mask"]), dtype)
    assert proof["passed"] and proof["zeros_lost"] == 0


@pytest.mark.parametrize("family", AS_LLAMA)
def test_what_runs_as_llama_has_the_logits_of_its_own_class(models, family, tmp_path):
    dense, _ = models(family)
    own = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    assert own.config.model_type == family
    expected = [own(torch.tensor([ids])).logits[0] for ids in TOKENS]
    assert all(map(torch.equal, probe_logits(load_model(dense, torch.float32, "cpu", "-p"), TOKENS), expected))
    zero = Restoration.start("output_bias", Options("all"), inputs_of(dense, dense, torch.tensor(TOKENS[:1])))
    merged(dense, tmp_path, zero)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert written.config.model_type == "llama"
    assert all(map(torch.equal, probe_logits(written.eval(), TOKENS), expected))


@FAMILY
@pytest.mark.parametrize(
    ("method", "share"), [("magnitude", "0.5"), ("wanda", "0.5"), ("sparsegpt", "0.5"), ("slimgpt", "0.25")]
)
def test_each_pruner_prunes_each_family_or_says_that_it_cannot(models, family, method, share, tmp_path):
    dense, _ = models(family)
    given, how = (dense, tmp_path / "out", method, share), {"dtype": torch.float32, "device": "cpu", "seed": 0}
    how |= {"calib_data": "bundled", "calib_samples": 6, "calib_length": 24}
    if method == "slimgpt" and family not in (*AS_LLAMA, "llama"):
        mistake(f"-prune_method: slimgpt .*{family}.*wanda", prune_into, *given, **how)
        return
    prune_into(*given, **how)
    checkpoint = Checkpoint(tmp_path / "out")
    check_weights(checkpoint, load_config(tmp_path / "out", "-p"))
    zeros, weights = checkpoint.survey().counts()
    assert sum(zeros) / sum(weights) == pytest.approx(float(share), abs=0.1)
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before if "norm" in name or "embed" in name)


@FAMILY
def test_layers_are_walked_and_packed_continuations_read_as_the_model_runs_them(models, family):
    model = load_model(models(family)[0], torch.float32, "cpu", "-b")
    tokens = torch.tensor([TOKENS[0], TOKENS[0][::-1]])
    expected = model.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    seen = [inputs.hidden.clone() for inputs in walk(model, tokens, torch.device("cpu"), "walk")]
    torch.testing.assert_close(seen, list(expected[:3]), rtol=0, atol=1e-5)
    prompt, ends = TOKENS[0], [[9, 8, 7, 6, 5, 4], [30]]
    packed = last_token_activations(model, [PromptWithContinuations(prompt, ends)], "packed")
    for number, end in enumerate(ends):
        alone = last_token_activations(model, [PromptWithContinuations([*prompt, *end], [[]])], "alone")
        torch.testing.assert_close(packed[number], alone[0], rtol=0, atol=1e-5)


@FAMILY
def test_the_loss_the_scores_and_the_divergence_are_those_of_the_stock_logits(models, family):
    model, student = (load_model(folder, torch.float32, "cpu", "-b") for folder in models(family))
    given, scale = batch(SAMPLES), model.model.norm.weight
    scale.requires_grad_(True)
    found = ResponseLoss(model).train()(**{name: given[name] for name in ("input_ids", "labels")})["loss"]
    ours = torch.autograd.grad(found, scale)[0]
    logits = model(given["input_ids"]).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten())
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(ours, torch.autograd.grad(loss, scale)[0], rtol=1e-4, atol=1e-6)
    targets = given["input_ids"][0, 1:]
    scores, _ = token_scores(model, model.model(given["input_ids"]).last_hidden_state[0, :-1].detach(), targets)
    expected = logits[0, :-1].detach().double().log_softmax(-1)
    torch.testing.assert_close(scores, expected.gather(1, targets.unsqueeze(1)).squeeze(1), rtol=0, atol=1e-5)
    taught = ResponseLoss(student, Distillation(1.0, model.lm_head.weight)).train()
    found = taught(**given, teacher=teacher_states(model, SAMPLES, ""))["loss"]
    predicting = given["labels"][:, 1:] != IGNORED
    mine, other = (each(given["input_ids"]).logits[:, :-1][predicting].log_softmax(-1) for each in (student, model))
    torch.testing.assert_close(found, kl_div(mine, other, log_target=True, reduction="batchmean"), rtol=1e-4, atol=1e-6)


LOSSES = {
    "llama": [5.72586, 5.63902, 5.57842, 5.53483, 5.50683], "qwen2": [5.76317, 5.59402, 5.46692, 5.3844, 5.33267],
    "mistral": [5.6896, 5.58188, 5.50694, 5.46306, 5.43461], "granite": [5.71564, 5.65812, 5.61891, 5.59441, 5.58052],
    "smollm3": [5.74441, 5.51791, 5.36196, 5.26351, 5.20452], "qwen3": [5.68895, 5.57193, 5.51269, 5.46964, 5.43886],
    "olmo2": [5.73272, 5.56398, 5.49521, 5.45115, 5.41815], "gemma2": [5.73087, 5.58175, 5.50609, 5.46461, 5.43931],
    "gemma3_text": [5.67209, 5.54563, 5.47127, 5.42505, 5.39631],
}  # fmt: skip
"""Of five steps inside the mask, of the models above."""


@FAMILY
def test_five_steps_of_training_have_the_losses_they_had(models, family, tmp_path):
    dense, pruned = models(family)
    start = Restoration.start(*METHODS["inside the mask"], inputs_of(dense, pruned, torch.tensor(TOKENS[:1]), seed=1))
    settings = TrainingSettings(lr=3e-2, num_epoch=5, batch_size=3)
    history = train(attached(pruned, start), SAMPLES, [], settings, "cpu", tmp_path / "checkpoints").history
    assert [row["loss"] for row in history] == pytest.approx(LOSSES[family], abs=1e-4)


def test_gemma_2_runs_without_a_cap_too(tmp_path):
    folder = made(tmp_path / "it", "gemma2", attn_logit_softcapping=None)
    assert load_model(folder, torch.float32, "cpu", "-p").config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ATTENTION_ONLY)
def test_biases_that_a_family_cannot_carry_are_refused_or_left_out(models, family):
    config = load_config(models(family)[1], "-p")
    for method, sites in [("output_bias", "ffn"), ("output_bias", "all"), ("lora", "both")]:
        mistake(rf"-apply_to: a {family} .*mlp\.down_proj.*inside_mask", carried_parts, method, Options(sites), config)
    says = f"-method: reconstruct supports Llama layers only, .* a {family} model"
    mistake(says, carried_parts, "reconstruct", Options(), config)
    for flap in (("flap_bias", Options()), ("output_bias", Options(first="flap_bias"))):
        assert parts_of(*flap)[0].sites == {"attention", "ffn"}
        assert carried_parts(*flap, config)[0].sites == {"attention"}
    *_, constants, _ = carried_parts(*METHODS["inside the mask"], config)
    assert constants.sites == {"q", "k", "v", "attention"}
