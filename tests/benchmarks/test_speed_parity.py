"""What the benchmarks compare computes the same, so that a ratio of times means something."""

import ast
import json
from pathlib import Path

import pytest
import torch

from benchmarks import run as benchmark
from benchmarks.extraction import contrastive_trees, one_by_one
from benchmarks.probes import all_at_once, check_same_ranking, head_by_head, synthetic
from benchmarks.timing import Disagreement, spread
from benchmarks.training import (
    grouped_batches,
    loss_tolerance,
    random_batches,
    reference_loop,
    restoring_loop,
    useful_flops,
    visible_restoration,
)
from models.loading import load_model
from tests.builders import zeroed
from utils.activations import last_token_activations
from utils.losses import ResponseLoss
from utils.probing import ProbeScores, rank_heads
from utils.prompts import Encoded
from utils.training import Collator

PROMISED = (
    "training_vs_reference",
    "training_vs_limit",
    "extraction_vs_loop",
    "extraction_vs_limit",
    "probes_vs_loop",
    "inference_prefill",
    "inference_decode",
)


@pytest.fixture
def model(make_tiny_llama):
    return load_model(make_tiny_llama(zeros=0.5), torch.float32, "cpu", "-b")


def samples(count: int) -> list[Encoded]:
    """Random ids of 4 to 40 tokens, a prompt of at least one and a response of at least two."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, 41, (count,), generator=generator).tolist()
    prompts = [1 + int(torch.randint(0, length - 2, (1,), generator=generator)) for length in lengths]
    return [
        Encoded(torch.randint(0, 256, (length,), generator=generator).tolist(), prompt)
        for length, prompt in zip(lengths, prompts, strict=True)
    ]


def gradients(loop, restoration) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of β and b by head in the restoration's order, (n, d) each, whichever way the loop keeps them."""
    found = [parameter.grad for parameter in loop.trained]
    if len(found) == 2 * len(restoration.state["heads"]):
        return torch.stack(found[0::2]), torch.stack(found[1::2])
    return torch.cat(found[0::2]), torch.cat(found[1::2])


def test_benchmarks_import_nothing_of_the_entry_point():
    imported = set()
    for file in Path(benchmark.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    assert "utils.plan.command" in imported
    assert "RestoreLCC_train" not in imported


def test_utilization_is_of_the_cards_own_peak():
    row = {"useful_flops_per_second": {"median": 98.9e12}}
    assert "MFU of training 10.0% (98.9 of 989 TFLOP/s" in benchmark.utilization(row, "NVIDIA H100 80GB HBM3")
    assert "no data-sheet peak is known" in benchmark.utilization(row, "NVIDIA GeForce GT 710")


def test_grouped_and_random_batches_give_each_sample_the_same_loss(model):
    every = samples(29)
    by_sample = []
    for batches in (grouped_batches(every, len(every), seed=1), random_batches(every, seed=2)):
        assert sorted(map(len, batches)) == [5, 8, 8, 8]
        losses = {}
        for batch in batches:
            inputs = Collator(pad_id=257)([{"input_ids": s.ids, "prompt_length": s.prompt_length} for s in batch])
            for row, sample in enumerate(batch):
                labels = torch.full_like(inputs["labels"], -100)
                labels[row] = inputs["labels"][row]
                losses[tuple(sample.ids)] = float(ResponseLoss(model)(inputs["input_ids"], labels)["loss"])
        by_sample.append(losses)
    assert by_sample[0].keys() == by_sample[1].keys() == {tuple(sample.ids) for sample in every}
    for ids, loss in by_sample[0].items():
        assert loss == pytest.approx(by_sample[1][ids], rel=1e-5)


def test_grouping_takes_whole_batches_of_like_length_from_the_whole_set():
    every = samples(384)
    taken = grouped_batches(every, 20, seed=0)
    assert [len(batch) for batch in taken] == [8, 8, 4]
    assert len({id(sample) for batch in taken for sample in batch}) == 20
    spans = [[len(sample.ids) for sample in batch] for batch in taken]
    # Eight random ones would span about 29 of the 37 lengths.
    assert all(max(span) - min(span) <= 8 for span in spans), spans
    assert max(spans[0]) < min(spans[1]) and max(spans[1]) < min(spans[2])
    assert sum(map(len, grouped_batches(every, 384, seed=0))) == 384


@pytest.mark.parametrize("attention_bias", [False, True])
def test_the_plain_loop_and_ours_give_the_same_loss_and_gradients(make_tiny_llama, attention_bias):
    model = load_model(make_tiny_llama(attention_bias=attention_bias), torch.float32, "cpu", "-b")
    restoration = visible_restoration(model, seed=5)
    # Both loops clip: a batch is one step here, so the clipped gradients must be the same too.
    for batch in random_batches(samples(11), seed=0):
        loops = [restoring_loop(model, restoration), reference_loop(model, restoration)]
        ours, theirs = (loop.run([batch]) for loop in loops)
        assert ours.loss / ours.labelled == pytest.approx(theirs.loss / theirs.labelled, rel=1e-5)
        assert (ours.labelled, ours.tokens) == (theirs.labelled, theirs.tokens)
        for mine, other in zip(*(gradients(loop, restoration) for loop in loops), strict=True):
            assert mine.abs().max() > 0
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_a_pass_changes_neither_restoration_nor_model(model):
    restoration = visible_restoration(model, seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for loop in (restoring_loop(model, restoration), reference_loop(model, restoration)):
        first = loop.run(random_batches(samples(11), seed=0))
        again = loop.run(random_batches(samples(11), seed=1))
        assert first.loss == pytest.approx(again.loss, rel=1e-5)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_restoration_of_the_benchmark_shows_in_the_loss(model):
    batch = random_batches(samples(11), seed=0)
    restoration = visible_restoration(model, seed=5)
    restored, plain = (restoring_loop(model, r).run(batch) for r in (restoration, zeroed(restoration)))
    assert abs(restored.loss / plain.loss - 1) > 3 * loss_tolerance(torch.float32)


def test_useful_flops_count_no_backward_below_the_lowest_trained_head(model):
    attention = 24 * (48 + 16 + 16) + 48 * 24
    mlp = 3 * 24 * 56
    head = 300 * 24
    forward = 2 * 3 * (attention + mlp) * 10 + 2 * head * 4
    backward = {0: 3 * mlp + 2 * attention, 1: 2 * mlp + attention, 2: mlp}
    for lowest, weights in backward.items():
        found = useful_flops(model, [(2, 5), (lowest, 1)], tokens=10, labelled=4)
        assert found == forward + 2 * weights * 10 + 2 * head * 4


def test_trees_of_the_benchmark_give_what_one_sequence_at_a_time_gives(model, monkeypatch):
    monkeypatch.setattr("utils.activations.CPU_TOKENS_A_BATCH", 150)
    every = samples(7)
    trees = contrastive_trees(every)
    question = every[3].ids[: every[3].prompt_length]
    wrong = every[4].ids[every[4].prompt_length :]
    assert [trees[3].prompt + ids for ids in trees[3].continuations] == [question, every[3].ids, question + wrong]
    found, expected = last_token_activations(model, trees, "z"), one_by_one(model, trees)
    assert found.shape == expected.shape == (3, 3, 6, 7, 8)
    assert torch.allclose(found, expected, atol=1e-5)


def test_probes_of_all_heads_rank_as_one_head_after_the_other():
    z = synthetic(layers=3, heads=5, samples=130, width=8, seed=1)
    (component, scores), (expected, plain) = all_at_once(z, seed=4), head_by_head(z, seed=4)
    assert torch.allclose(component, expected, atol=1e-4)
    check_same_ranking(scores, plain, samples=130)
    everything = torch.ones(3, 5, dtype=torch.bool)
    assert rank_heads(scores, everything) == rank_heads(plain, everything)
    assert plain.accuracy.max() > plain.accuracy.min() + 0.1


def test_a_ranking_that_differs_is_refused():
    z = synthetic(layers=3, heads=5, samples=130, width=8, seed=1)
    _, scores = all_at_once(z, seed=4)
    with pytest.raises(Disagreement):
        check_same_ranking(ProbeScores(scores.accuracy.flip(1), scores.loss.flip(1)), scores, samples=130)


def test_spread_keeps_the_repeats():
    row = spread([3.0, 1.0, 2.0], goal=2)
    assert row == {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": [3.0, 1.0, 2.0], "goal": 2}


def test_the_benchmark_writes_every_promised_ratio(make_tiny_llama, tmp_path, capsys):
    file = tmp_path / "speed.json"
    folder = make_tiny_llama()
    benchmark.main(
        ["-base_model_name", str(folder), "-device", "cpu", "-samples", "4", "-repeats", "2", "-json", str(file)]
        + ["-num_train_samples", "60", "-dtype", "float32"]
    )
    found = json.loads(file.read_text())
    assert not found["refused"]
    for name in PROMISED:
        row = found[name]
        assert 0 < row["min"] <= row["median"] <= row["max"]
        assert len(row["repeats"]) == 2
    assert {"attached_prefill", "attached_decode", "slimgpt_compact_prefill", "slimgpt_compact_decode"} < found.keys()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 11


def test_no_ratio_is_printed_when_the_losses_differ(make_tiny_llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.training.restoring_loop", lambda model, restoration: restoring_loop(model, zeroed(restoration))
    )
    file = tmp_path / "speed.json"
    arguments = ["-base_model_name", str(make_tiny_llama()), "-device", "cpu", "-samples", "4", "-repeats", "1"]
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([*arguments, "-only", "training", "-dtype", "float32", "-json", str(file)])
    assert stopped.value.code == 1
    found = json.loads(file.read_text())
    assert found["refused"] == ["training"] and not {"training_vs_reference", "training_vs_limit"} & found.keys()
    assert "mean training loss" in capsys.readouterr().out
