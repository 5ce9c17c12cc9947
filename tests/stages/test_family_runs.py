"""Whole runs on models of other families: pruned, restored, merged, proved and scored."""

import json

import pytest
from transformers import AutoModelForCausalLM

from tests.models.test_families import made
from tests.runs import flags, run

RUNS = {
    "qwen2": {"recipe": "inside_mask_admm"},
    "mistral": {"recipe": "biases", "prune_method": "slimgpt", "sparsity": "0.25"},
    "qwen3": {},
    "gemma3_text": {"recipe": "inside_mask"},
}
"""What each is restored with: the paper's method, or a recipe."""


@pytest.mark.slow
@pytest.mark.parametrize("family", RUNS)
def test_a_whole_run_ends_with_the_proof(world, family, tmp_path, monkeypatch, capfd):
    dense = made(tmp_path / "dense", family, max_position_embeddings=256)
    pruning = {"prune_method": "wanda", "sparsity": "0.5"} | RUNS[family]
    calibration = {"calib_data": world / "text.txt", "calib_samples": 6, "calib_length": 24}
    changes = {"base_model_name": dense, "pruned_model_path": None, "cache_dir": tmp_path / "cache", "lr": 3e-2}
    run(monkeypatch, flags(world, tmp_path / "out", **changes | pruning | calibration))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["proof"]["passed"] and results["proof"]["zeros_lost"] == 0
    assert results["validation"]["restored"] < results["validation"]["start"]
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config.model_type
    assert written == ("llama" if family in ("qwen2", "mistral") else family)
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert ("written as" in card) == (written != family) and f"- {family}" in card
    warned = "vLLM drops" in capfd.readouterr().out
    assert warned == (family == "qwen3")
