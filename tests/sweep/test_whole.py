"""A small sweep of the entry point itself, on a real Llama of 260,032 parameters."""

import json

import pytest

import utils.sweep.loop as loop
from utils.sweep.file import read_sweep
from utils.sweep.plan import plan_text
from utils.sweep.runs import ROOT, planned

FILE = """
flags:
  base_model_name: MODEL
  prune_method: magnitude
  sparsity: 2:4
  num_train_samples: 12
  num_valid_samples: 4
  report_prompts: 0
  num_probe_samples: 10
  max_length: 96
  num_epoch: 1
  batch_size: 4
  data_path: bundled
  skip_bad_samples: true
  eval_tasks: bundled_facts,bundled_arithmetic
  eval_limit: 6
  dtype: float32
  device: cpu
seeds: [1, 2]
lr: [1e-3, 1e-2]
configurations:
  - {name: ours, use_topk_heads: 3}
  - {name: biases, method: output_bias, lr: [1e-4, 1e-3]}
"""


@pytest.fixture
def real(world, stories, monkeypatch):
    monkeypatch.setattr(loop, "ENTRY", ROOT / "RestoreLCC_train.py")
    world.write(FILE.replace("MODEL", str(stories)))
    return world


def test_two_configurations_two_rates_two_seeds(real, capfd):
    assert real.sweep() == 0, capfd.readouterr()
    table = json.loads((real.output / "table.json").read_text())
    ours, biases = table["rows"]
    for row in (ours, biases):
        losses = {each["rate"]: each["valid_loss"] for each in row["rates"]}
        assert len(losses) == 2 and row["rate"] == min(losses, key=losses.get)
        assert (row["class"], row["zeros_kept"], row["seeds"]) == ("constants", 1.0, [1, 2])
        assert row["valid_loss"]["stderr"] > 0 and row["task_mean"]["n"] == 2
    assert ours["trained_parameters"] == 3 * 2 * 8 and biases["trained_parameters"] == 5 * 64
    assert biases["against"]["name"] == "ours" and biases["against"]["task_mean"] is not None
    assert len(list(real.output.glob("*/results.json"))) == 6
    assert not list(real.output.glob("*/model"))


def test_a_plan_counts_the_runs_that_are_left_and_what_they_share_once(real):
    rows, commands = planned(read_sweep(real.file))
    every = list(commands.values())
    text = plan_text(rows, every, "H100-80GB").splitlines()
    assert text[0].startswith("8 runs left, on H100-80GB")
    ours, biases = (line.split() for line in text if line.startswith(("ours", "biases")))
    assert ours[3:5] == ["2", "2"] == biases[3:5]
    assert any(line.startswith("pruning, activations") for line in text)
    assert plan_text(rows, every[:1], "H100-80GB").startswith("1 runs left")
