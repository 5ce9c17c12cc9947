"""What is written is read by transformers 4 as by transformers 5: the same ids, the same model; nothing of a user's
tokenizer is changed.

Those that ask transformers 4 itself need RESTORELCC_OLD_PYTHON, a python with torch and transformers 4.57:
python -m venv OLD; OLD/bin/pip install torch 'transformers==4.57.*'; RESTORELCC_OLD_PYTHON=OLD/bin/python.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma3TextConfig

from models.compact import write_compact
from models.loading import load_config, load_model, tokenizer_files
from models.portable import portable, save_tokenizer
from pruning.prune_model import prune_into
from tests.builders import byte_tokenizer, save_tiny_llama
from tests.models.test_merge import learned, merged

OLD_PYTHON = "RESTORELCC_OLD_PYTHON"

ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 7.0},
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "original_max_position_embeddings": 32}
    | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"rope_type": "longrope", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 64}
    | {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]},
}

TEXTS = ["In 1984, 12,345\n\n1. of 67 %", "def f(x):\n    return x[12:345]  # " * 4]

ASK = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.57.")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
# A compact checkpoint brings its own class.
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], torch_dtype=torch.float32, trust_remote_code=True).eval()
ids = [tokenizer(text).input_ids for text in json.loads(sys.argv[1])]
print(json.dumps([ids, [model(torch.tensor([each])).logits[0].tolist() for each in ids]]))
"""


@pytest.fixture(scope="module", params=ROPES)
def world(request, tmp_path_factory) -> tuple[Path, list[Path]]:
    """A user's checkpoint, its tokenizer's files written as nobody here would, and all that is made of it: the pruned
    one, the merged one and its compact form.
    """
    work = tmp_path_factory.mktemp("portable")
    dense, pruned = save_tiny_llama(work / "dense", rope_parameters=ROPES[request.param]), work / "pruned"
    save_tokenizer(byte_tokenizer(), dense)
    path = dense / "tokenizer_config.json"
    path.write_text(json.dumps({"their_own": [1, 2], **json.loads(path.read_text())}, indent=7))
    calibration = {"calib_data": "bundled", "calib_samples": 1, "calib_length": 16}
    prune_into(dense, pruned, "magnitude", "0.5", **calibration, dtype=torch.float32, device="cpu", seed=1)
    merged(pruned, work, learned(pruned))
    write_compact(work / "merged", work / "compact")
    return dense, [pruned, work / "merged", work / "compact"]


def test_the_rope_is_told_in_words_of_transformers_4_and_a_users_tokenizer_passes_through(world):
    dense, made = world
    files = tokenizer_files(dense)
    assert len(files) >= 2
    for folder in made:
        settings = json.loads((folder / "config.json").read_text())
        assert "rope_parameters" not in settings and "rope_theta" in settings
        assert load_config(folder, "it").rope_parameters == load_config(dense, "it").rope_parameters
        assert [file.name for file in tokenizer_files(folder)] == [file.name for file in files]
        generation = (place / "generation_config.json" for place in (folder, made[0]))
        assert len({file.read_bytes() for file in generation}) == 1
        assert all((folder / file.name).read_bytes() == file.read_bytes() for file in files)


@pytest.mark.skipif(OLD_PYTHON not in os.environ, reason=f"{OLD_PYTHON} names no python with transformers 4.57")
def test_transformers_4_has_the_same_ids_and_the_same_logits(world):
    for folder in world[1]:
        command = [os.environ[OLD_PYTHON], "-c", ASK, json.dumps(TEXTS), str(folder)]
        old = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=folder).stdout)
        tokenizer, model = AutoTokenizer.from_pretrained(folder), load_model(folder, torch.float32, "cpu", "it")
        assert old[0] == [tokenizer(text).input_ids for text in TEXTS]
        for ids, logits in zip(*old, strict=True):
            torch.testing.assert_close(torch.tensor(logits), model(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4)


def test_of_two_ropes_the_one_that_transformers_5_takes_is_told():
    """rope_scaling, where it is said; its base is its own, else the one beside it. Older words alone stay."""
    both = {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}
    assert portable({**both, **newer}) == both and portable(both) is both
    assert portable(newer) == {"rope_theta": 9.0, "rope_scaling": None}


def test_a_tokenizer_of_ours_has_a_class_that_both_versions_know(tmp_path):
    tokenizer = byte_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids == tokenizer(TEXTS).input_ids


def test_ropes_of_two_types_of_layers_are_told_in_version_4s_words():
    ropes = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    written = portable({"rope_parameters": ropes | {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}})
    linear = {"rope_type": "linear", "factor": 8.0}
    assert written == {"rope_local_base_freq": 1e4, "rope_theta": 1e6, "rope_scaling": linear}
    again = Gemma3TextConfig(**written).rope_parameters
    assert again["full_attention"] == ropes["full_attention"] and again["sliding_attention"]["rope_theta"] == 1e4
