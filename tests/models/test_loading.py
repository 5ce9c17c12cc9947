"""Every kind of model name becomes a plain Llama folder, or one clear line."""

import gc
import os
import shutil
import weakref
from unittest.mock import Mock, patch

import pytest
import torch
from accelerate.utils import OffloadedWeightsLoader as Loader
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM

from models.checkpoint import Checkpoint
from models.loading import check_name, head_shape, hub_name, load_model, load_tokenizer, placement, resolve
from models.merge import merge_and_prove, probe_logits, record_logits
from models.model_names import SHORT_NAMES
from models.modeling_llama import restored_layers
from tests.builders import SAMPLES, mistake, save_tiny_llama, shard
from tests.models.test_merge import TOKENS, learned, saved
from utils.activations import last_token_activations
from utils.common.names import EMBEDDED
from utils.evaluation.in_memory_lm import InMemoryLM
from utils.evaluation.perplexity import window_losses
from utils.losses import validate
from utils.packing import PromptWithContinuations

FLAG = "-base_model_name"


def test_short_names_are_the_releases_in_any_case():
    for name, hub in {"LLAMA2_7b": "meta-llama/Llama-2-7b-hf", "llama_13B": "huggyllama/llama-13b"}.items():
        assert hub_name(name) == hub_name(hub) == hub and check_name(name, FLAG) is None


def test_a_folder_at_hand_comes_before_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_tiny_llama(tmp_path / "llama_7B")
    assert check_name("llama_7B", FLAG).absolute() == folder
    (tmp_path / "llama_13B").mkdir()  # which holds no model
    assert check_name("llama_13B", FLAG) is None


def test_a_wrong_name_is_one_line_that_names_the_flag_and_what_there_is(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"0")
    wrong = dict.fromkeys(["./nowhere", "/nowhere/at/all", "a/b/c", "model.gguf", "~/none"], "does not exist")
    wrong |= {str(tmp_path): "holds no config.json", str(tmp_path / "weights.bin"): "is a file but no .gguf"}
    wrong |= {"llama7": ", ".join(SHORT_NAMES), "lama_7B": EMBEDDED}
    for name, words in wrong.items():
        assert words in mistake(f"^{FLAG}: ", check_name, name, FLAG)


def test_a_weight_file_that_was_damaged_since_it_was_checked_is_one_line(make_tiny_llama):
    folder = make_tiny_llama()
    os.truncate(folder / "model.safetensors", 1000)
    mistake("cannot load", load_model, folder, torch.float32, "cpu", FLAG)


def test_models_load_frozen_and_tokenizers_gain_no_token(make_tiny_llama):
    folder = make_tiny_llama()
    model = load_model(folder, torch.bfloat16, "cpu", FLAG)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training and model.dtype == torch.bfloat16
    assert head_shape(model.config) == (3, 6, 8) and len(load_tokenizer(folder, FLAG)) == 258
    # A padding id below zero, as the first Llamas' files have it, is none: no row of the embedding is that of -1.
    assert model.config.pad_token_id == 257
    assert load_model(make_tiny_llama(pad_token_id=-1), torch.float32, "cpu", FLAG).config.pad_token_id is None


def test_a_model_larger_than_memory_is_read_restored_and_proved_as_a_whole(make_tiny_llama, tmp_path, monkeypatch):
    """-device auto: the part that memory does not hold is read from disk."""
    monkeypatch.setattr("models.loading._free_memory", lambda device: 60_000)
    monkeypatch.setattr("models.loading.get_max_memory", lambda: {"cpu": 95_000})  # all of it would take a layer
    folder = make_tiny_llama(zeros=0.5)
    assert placement(folder, torch.float32, "cpu") == "auto"
    whole, spread = (load_model(folder, torch.float32, device, "-b") for device in ("cpu", "auto"))
    assert "disk" in spread.hf_device_map.values()
    assert [name for name, weight in spread.named_parameters() if not weight.is_meta] == ["model.embed_tokens.weight"]
    trees = [PromptWithContinuations([1, 2, 3], [[], [4, 5], [6]]), PromptWithContinuations([7, 8], [[], [9], [1, 1]])]
    assert torch.equal(last_token_activations(spread, trees, ""), last_token_activations(whole, trees, ""))
    requests, tokenizer = [(None, [5, 6, 7], [8]), (None, [5, 6, 7], [9, 10])], load_tokenizer(folder, "-b")
    scores = [InMemoryLM(model, tokenizer, "", None)._loglikelihood_tokens(requests) for model in (spread, whole)]
    assert scores[0] == scores[1]
    windows = torch.arange(40).view(2, 20)
    monkeypatch.setattr("utils.evaluation.perplexity.CHUNK", 8)
    with patch.object(Loader, "__getitem__", autospec=True, side_effect=Loader.__getitem__) as reads:
        assert window_losses(spread, windows, 1, "") == window_losses(whole, windows, 1, "")
    assert [call.args[1] for call in reads.mock_calls].count("lm_head.weight") == 2  # once for each batch
    plain, restoration = probe_logits(whole, TOKENS), learned(folder, "restorelcc everywhere")
    for model in (whole, spread):
        restoration.attach(model)
    for _ in range(2):  # what a whole model keeps of the first time is right the second
        found, expected = probe_logits(spread, TOKENS), probe_logits(whole, TOKENS)
        assert all(map(torch.equal, found, expected)) and not torch.allclose(found[0], plain[0], atol=1e-2)
    assert validate(spread, SAMPLES) == validate(whole, SAMPLES)
    assert [any(layer._kept for layer in restored_layers(model)) for model in (spread, whole)] == [False, True]
    reference = record_logits(spread, restoration, Checkpoint(folder), TOKENS, "auto")
    assert all(map(torch.equal, reference.logits, expected))
    source, common = saved(folder, restoration, tmp_path), {"tokenizer_from": folder, "reference": reference}
    proof = merge_and_prove(folder, source, tmp_path / "merged", **common)
    # The model that was proved would look for its weights under the name that its folder has given up.
    assert proof.record["passed"] and not proof.record["logits_must_be_equal"] and proof.model is None


@pytest.mark.parametrize("pickled", [False, True])
def test_a_repository_of_shards_is_downloaded_whole(make_tiny_llama, tmp_path, monkeypatch, pickled):
    """Both kinds of index are among the first files that come; the .bin shards come only where they are needed."""
    whole, here = make_tiny_llama(), tmp_path / "snapshot"
    shard(whole, pickled)
    names = [file.name for file in whole.iterdir()]
    (whole / "consolidated.safetensors").touch()
    names += [] if pickled else ["consolidated.safetensors"]

    def download(hub_id: str, allow_patterns: list[str], ignore_patterns: list[str] | None = None) -> str:
        here.mkdir(exist_ok=True)
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            shutil.copy(whole / name, here)
        return str(here)

    monkeypatch.setattr("models.loading.snapshot_download", download)
    folder = resolve("owner/model", FLAG, tmp_path / "cache")
    assert len(Checkpoint(folder, FLAG).files) > 2 and not list(folder.glob("consolidated*"))
    assert Checkpoint(folder, FLAG).survey().sha256 == Checkpoint(whole, FLAG).survey().sha256


@pytest.mark.parametrize(
    ("dtype", "more", "placed"), [("float32", 1, "cpu"), ("float32", -1, "auto"), ("bfloat16", -1, "cpu")]
)
def test_a_model_that_fits_stays_on_its_device(make_tiny_llama, monkeypatch, dtype, more, placed):
    folder = make_tiny_llama()
    parameters = load_model(folder, torch.float32, "cpu", "-b").num_parameters()
    monkeypatch.setattr("models.loading._free_memory", lambda device: 4 * parameters / 0.8 + more)
    assert placement(folder, getattr(torch, dtype), "cpu") == placed


def test_what_an_earlier_stage_let_go_of_counts_as_free(make_tiny_llama, monkeypatch):
    """The allocator holds a model's blocks after it is gone, and a model whose parts name each other goes late."""
    folder = make_tiny_llama()
    needed = 4 * load_model(folder, torch.float32, "cpu", "-b").num_parameters()
    earlier = torch.nn.Module()
    earlier.itself = [earlier]
    gone, held = weakref.ref(earlier), [needed]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gone() or held.clear())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * needed - sum(held), 2 * needed))
    gc.disable()
    try:
        del earlier
        assert placement(folder, torch.float32, "cuda:0") == "cuda:0"
    finally:
        gc.enable()


def test_a_model_that_is_spread_is_no_model_of_fsdps(make_tiny_llama, monkeypatch):
    """Under FSDP's variable transformers would leave it without hooks. It finds what an earlier one had taken free."""
    seen, name, emptied = {}, "FSDP_CPU_RAM_EFFICIENT_LOADING", Mock()
    load = AutoModelForCausalLM.from_pretrained

    def note(folder, device_map: str, **options):
        seen[device_map] = os.environ[name], emptied.called
        return load(folder, **options)

    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    monkeypatch.setenv(name, "true")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", note)
    for device in ("cpu", "auto"):
        load_model(make_tiny_llama(), torch.float32, device, "-p")
    assert seen == {"cpu": ("true", False), "auto": ("false", True)} and os.environ[name] == "true"
