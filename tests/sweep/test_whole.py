"""A small sweep of the entry point itself, on a real Llama of 260,032 parameters."""

from pathlib import Path

import pytest

import utils.sweep.__main__ as command
from utils.sweep.sweep_files import FILE as RUNS_FILE
from utils.sweep.sweep_files import read

FILE = """
flags: {base_model_name: MODEL, prune_method: magnitude, sparsity: 2:4, num_train_samples: 12, num_valid_samples: 4,
  max_length: 96, num_epoch: 1, batch_size: 4, data_path: bundled,
  eval_tasks: "bundled_facts,bundled_arithmetic", eval_limit: 6, dtype: float32, device: cpu}
seeds: [1]
lr: [1e-3, 1e30]
configurations: [{name: LoRA, method: masked_lora}, {name: none, method: none}]
compare_to: none
"""


@pytest.mark.slow
def test_a_rate_that_diverges_is_passed_over_and_the_rest_is_in_the_table(world, stories, monkeypatch):
    monkeypatch.setattr(command, "ENTRY", Path(command.__file__).parents[2] / "RestoreLCC_train.py")
    world.write(FILE.replace("MODEL", str(stories)))
    assert world.sweep() == 0, world.text()
    lora, none = read(world.output / RUNS_FILE)
    assert [(run.rate, run.diverged) for run in lora.searches] == [(1e-3, False), (1e30, True)]
    assert (lora.rate, none.rate, len(lora.outcomes), len(none.outcomes)) == (1e-3, None, 1, 1)
    cells = {cell for row in world.table() for cell in row}
    assert {"LoRA", "none", "inside the mask", "0.001", "100.0 %"} <= cells
    assert " ± " in world.table()[0][8]  # its validation loss against none's, over samples
    assert "at rate 1e+30 diverged (error: -lr: the " in world.text()
