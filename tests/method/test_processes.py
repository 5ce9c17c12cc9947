"""Two processes train what one would, sharded or not; one of them writes and speaks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from models.merge import probe_logits
from tests.builders import learned_in, trained
from tests.method.workers import restored
from tests.runs import ROOT, flags
from utils.common.errors import UserError
from utils.common.processes import Processes

WORKERS = Path(__file__).with_name("workers.py")


def launch(*words, count: int = 2, environment: dict | None = None) -> subprocess.CompletedProcess:
    """`count` processes over gloo; accelerate starts its own the same way, but on GPUs only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nproc_per_node", count, "--master_port", port, *words]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def found_by(*words, environment: dict | None = None) -> dict:
    """What two processes of workers.py kept in the folder that is the second word."""
    done = launch(WORKERS, *words, environment=environment)
    assert done.returncode == 0, done.stderr
    return torch.load(words[1] / "found.pt", weights_only=False)


@pytest.mark.slow
def test_two_processes_of_four_samples_train_what_one_of_eight_does(world, tmp_path):
    """Though an epoch's last step has one sample, and thus nothing for the second process."""
    done, histories, records, results, saved = [], [], [], [], []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        given = {"method": "lofit", "loss": "distill", "use_topk_heads": 4, "eval_tasks": "none", "max_length": 60}
        given |= {"num_train_samples": 17, "batch_size": 8 // processes, "gradient_accumulation": 2}
        words = flags(world, output, cache_dir=tmp_path / "cache", **given)
        done.append(launch(ROOT / "RestoreLCC_train.py", *words, count=processes))
        assert done[-1].returncode == 0, done[-1].stderr
        histories.append([json.loads(line) for line in (output / "logs" / "history.jsonl").read_text().splitlines()])
        records.append(json.loads((output / "run.json").read_text()))
        results.append(json.loads((output / "results.json").read_text()))
        saved.append(load_file(output / "restoration" / "restoration.safetensors"))
    assert "deprecated" not in done[1].stderr
    for name, count in (("loss", 4), ("valid_loss", 3), ("valid_kl", 3)):
        wanted, found = ([row[name] for row in history if name in row] for history in histories)
        assert len(found) == len(wanted) == count and found == pytest.approx(wanted, rel=1e-5)
    assert [record["processes"] for record in records] == [1, 2]
    assert done[1].stdout.count("[1/9]") == done[1].stdout.count("next:") == 1
    # LoFiT's first step chose the same heads, by the norms alone, for b alone.
    assert results[0]["heads"] == results[1]["heads"] and results[1]["proof"]["passed"]
    kept = [load_file(file)["norms"] for file in (tmp_path / "cache" / "lofit").rglob("*.safetensors")]
    assert len(kept) == 2 and torch.allclose(*kept, atol=1e-5)
    best = sorted([*divmod(int(place), 6)] for place in kept[0].flatten().argsort(descending=True)[:4])
    assert results[1]["heads"]["trained"] == best and results[1]["heads"]["selection"] == "lofit"
    assert not {"activations", "components"} & {path.name for path in (tmp_path / "cache").iterdir()}
    assert {name.rpartition(".")[2] for name in saved[1]} == {"heads", "basis", "component"}
    assert all(torch.allclose(tensor, saved[0][name], atol=1e-5) for name, tensor in saved[1].items())


@pytest.mark.slow
def test_two_processes_that_go_on_within_an_epoch_train_what_was_left_of_it(tmp_path, make_tiny_llama):
    found = found_by("cut", tmp_path, make_tiny_llama(zeros=0.5))
    assert found["checkpoints"] == ["checkpoint-6", "checkpoint-8"]
    (wanted, state), (continued, learned) = found["whole"], found["continued"]
    assert continued.history == wanted.history
    assert all(torch.equal(tensor, state[part]) for part, tensor in learned.items())


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What `accelerate launch` sets for the flags that the README gives."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tied", "efficient", "distils"), [("float32", True, "true", True), ("bfloat16", False, "false", False)]
)
def test_sharded_training_equals_unsharded(tmp_path, make_tiny_llama, dtype, tied, efficient, distils):
    folder = make_tiny_llama(zeros=0.5, tie_word_embeddings=tied)
    dense = [make_tiny_llama(seed=5)] * distils
    environment = {**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": efficient}
    found = found_by(dtype, tmp_path, folder, *dense, environment=environment)
    alone = {"place": tmp_path / "whole", "size": 8}
    norms, result, model, samples = restored(trained(), folder, getattr(torch, dtype), *dense, **alone)
    # In bf16, batches of other shapes round differently.
    close = {"rel": 1e-5} if dtype == "float32" else {"rel": 2e-2}
    for name, count in (("loss", 6), ("valid_loss", 3), *[("valid_kl", 3)] * distils):
        sharded, whole = ([row[name] for row in r.history if name in row] for r in (found["result"], result))
        assert len(sharded) == len(whole) == count
        assert sharded == pytest.approx(whole, **close)
        assert abs(whole[-1] - whole[0]) > (0.01 if distils else 0.1)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert torch.allclose(found["norms"], norms, atol=tolerance)
    assert found["restoration"].heads == trained().heads
    for name, tensor in learned_in(model).items():
        assert torch.allclose(found["restoration"].of_heads(name), tensor, atol=tolerance)
    (reattached,), (trained_logits,) = found["logits"], probe_logits(model, [samples[0].ids])
    assert "with the restoration that was gathered and saved the validation loss is" in found["seen"]
    assert torch.allclose(reattached, trained_logits, atol=tolerance * float(trained_logits.abs().max()))


@pytest.mark.slow
def test_a_mistake_is_told_though_the_process_that_tells_it_is_the_last_to_meet_it(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        "import os, time\n"
        "from utils.common.commands import run\n"
        "from utils.common.errors import UserError\n"
        "def main():\n"
        "    time.sleep(4 * (os.environ['RANK'] == '0'))\n"
        "    raise UserError('-lr: wrong')\n"
        "run(main)\n"
    )
    done = launch(script)
    assert done.returncode != 0
    assert done.stderr.count("error: -lr: wrong") == 1


SHARDED = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    ("device", "environment", "said"),
    [
        ("cuda:1", {"WORLD_SIZE": "2"}, "-device: cuda:1 is one device for 2 processes"),
        ("cpu", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP needs several processes"),
        ("cpu", SHARDED, "launch: FSDP version 1.*add --fsdp_version 2"),
        ("cpu", {**SHARDED, "FSDP_VERSION": "1"}, "launch: FSDP version 1.*add --fsdp_version 2"),
        ("cpu", {**SHARDED, "FSDP_VERSION": "2"}, "FSDP shards over GPUs only"),
        ("cpu", {"ACCELERATE_MIXED_PRECISION": "bf16"}, "is 'bf16' .accelerate launch .* --mixed_precision no, or un"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(monkeypatch, device, environment, said):
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(device=torch.device(device)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        Processes(device)
