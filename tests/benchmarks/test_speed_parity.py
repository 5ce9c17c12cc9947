"""What the benchmark compares computes the same, so that a ratio of times means something."""

import json
import statistics

import pytest
import torch

from benchmarks import run as benchmark
from benchmarks.run import in_batches, plain_loop, restoring_loop, useful_flops, visible_restoration
from models.loading import load_config, load_model
from utils.prompts import Encoded

PROMISED = {"training_vs_reference", "training_vs_limit", "extraction_vs_loop", "extraction_vs_limit"}
PROMISED |= {"inside_mask_vs_lora", "probes_vs_loop"}
PROMISED |= {f"{of}_{kind}" for of in ("inference", "attached", "slimgpt_compact") for kind in ("prefill", "decode")}


def test_the_plain_loop_and_ours_give_the_same_loss_and_gradients(make_tiny_llama):
    model = load_model(make_tiny_llama(zeros=0.5), torch.float32, "cpu", "-b")
    restoration = visible_restoration(model, seed=5)
    generator = torch.Generator().manual_seed(3)
    samples = [Encoded(torch.randint(0, 256, (n,), generator=generator).tolist(), n // 3) for n in range(4, 40, 4)]
    ours, plain = restoring_loop(model, restoration), plain_loop(model, restoration)
    for batch in in_batches(samples):  # a step each, whose gradients are clipped
        loss, expected = (loop.run([batch]) for loop in (ours, plain))
        assert loss == pytest.approx(expected, rel=1e-5)
        for first in (0, 1):  # of β, of b
            mine = torch.cat([parameter.grad for parameter in ours.trained[first::2]])
            other = torch.stack([parameter.grad for parameter in plain.trained[first::2]])
            assert mine.abs().max() > 0
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_useful_flops_count_no_backward_below_the_lowest_trained_head(make_tiny_llama):
    config = load_config(make_tiny_llama(), "-b")
    attention, mlp, head = 24 * (48 + 16 + 16) + 48 * 24, 3 * 24 * 56, 300 * 24
    for lowest, backward in {0: 3 * mlp + 2 * attention, 1: 2 * mlp + attention, 2: mlp}.items():
        found = useful_flops(config, tokens=10, lowest=lowest, labelled=4)
        assert found == 2 * (3 * (attention + mlp) + backward) * 10 + 4 * head * 4
    # Of the last layer z, and no more.
    assert useful_flops(config, tokens=10) == 2 * (3 * attention - 48 * 24 + 2 * mlp) * 10


@pytest.mark.slow
def test_every_promised_ratio_is_written_and_none_where_the_losses_differ(make_tiny_llama, tmp_path, monkeypatch):
    base, file = make_tiny_llama(), tmp_path / "speed.json"
    words = f"-base_model_name {base} -device cpu -dtype float32 -samples 4 -repeats 1 -json {file}".split()
    benchmark.main(words)
    found = json.loads(file.read_text())
    assert found.keys() == {*PROMISED, "about", "refused"} and found["refused"] == []
    for name in PROMISED:
        assert statistics.median(found[name]["repeats"]) == found[name]["median"] and found[name]["min"] > 0
    another = visible_restoration(load_model(base, torch.float32, "cpu", "-b"), seed=7)
    monkeypatch.setattr(benchmark, "restoring_loop", lambda model, _: restoring_loop(model, another))
    for part in ("inside_mask", "extraction", "probes", "inference"):
        monkeypatch.setattr(benchmark, f"{part}_speed", lambda *_: {})
    with pytest.raises(SystemExit):
        benchmark.main(words)
    found = json.loads(file.read_text())
    assert found["refused"] == ["training"] and found.keys() == {"about", "refused"}
