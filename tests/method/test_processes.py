"""Two processes train what one would, sharded or not; one of them writes and speaks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baselines.lofit import scale_norms
from models.loading import load_model
from models.proof import probe_logits
from tests.builders import trained
from tests.method.sharded_worker import L1, distilling
from tests.method.test_training import encoded, settings
from utils.common.errors import UserError
from utils.common.processes import Processes
from utils.training import train

ROOT = Path(__file__).resolve().parents[2]


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


def flags(tmp_path: Path, make_tiny_llama) -> list:
    data = tmp_path / "data.jsonl"
    rows = [
        {"instruction": f"say {n}" + " w" * (n % 7), "input": "", "output": "abc " * (n % 5 + 1)} for n in range(65)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"""-base_model_name {make_tiny_llama()} -pruned_model_path {make_tiny_llama(zeros=0.5)} -data_path {data}
        -num_train_samples 56 -num_valid_samples 9 -max_length 60 -head_selection gap -eval_tasks none -num_epoch 2
        -lr 1e-2 -dtype float32 -device cpu -cache_dir {tmp_path / "cache"}"""
    return words.split()


def losses(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "logs" / "history.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.parametrize("loss", ["response", "distill"])
def test_two_processes_of_four_samples_train_what_one_of_eight_does(tmp_path, make_tiny_llama, loss):
    common = [*flags(tmp_path, make_tiny_llama), "-loss", loss]
    entry = ROOT / "RestoreLCC_train.py"
    two = launch(entry, *common, "-batch_size", 4, "-output_dir", tmp_path / "two")
    assert two.returncode == 0, two.stderr
    one = [sys.executable, str(entry), *common, "-batch_size", "8", "-output_dir", str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name, count in (("loss", 14), ("valid_loss", 3), ("valid_kl", 3 * (loss == "distill"))):
        found, wanted = losses(tmp_path / "two", name), losses(tmp_path / "one", name)
        assert len(found) == len(wanted) == count
        assert found == pytest.approx(wanted, rel=1e-5)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert records[0]["training"]["tokens"] == records[1]["training"]["tokens"]
    assert [record["processes"] for record in records] == [1, 2]
    assert two.stdout.count("[1/9]") == two.stdout.count("next:") == 1
    assert json.loads((tmp_path / "two" / "results.json").read_text())["proof"]["passed"]


def fsdp_environment(ram_efficient: bool) -> dict:
    """What `accelerate launch` sets for the flags that the README gives."""
    return {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(ram_efficient).lower(),
    }


@pytest.mark.parametrize(
    ("dtype", "tied", "ram_efficient", "distils"),
    [("float32", False, True, False), ("bfloat16", True, False, False), ("float32", True, True, True)],
)
def test_sharded_training_equals_unsharded(tmp_path, make_tiny_llama, dtype, tied, ram_efficient, distils):
    folder = make_tiny_llama(zeros=0.5, tie_word_embeddings=tied)
    worker = ROOT / "tests" / "method" / "sharded_worker.py"
    dense = [make_tiny_llama(seed=5)] * distils
    done = launch(worker, folder, dtype, tmp_path, *dense, environment=fsdp_environment(ram_efficient))
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    model = trained().attach(load_model(folder, getattr(torch, dtype), "cpu", "-p"))
    samples = encoded(folder, 24)
    distillation = distilling(dense[0], samples) if distils else None
    rates, place = settings(lr=0.1, batch_size=8), tmp_path / "whole"
    result = train(model, samples, samples[:9], rates, "cpu", place, False, distillation=distillation)
    scaled = load_model(folder, getattr(torch, dtype), "cpu", "-p")
    norms = scale_norms(scaled, samples, settings(lr=0.05, batch_size=8), L1, "cpu")
    # In bf16, batches of other shapes round differently.
    close = {"rel": 1e-5} if dtype == "float32" else {"rel": 2e-2}
    for name, count in (("loss", 6), ("valid_loss", 3), *[("valid_kl", 3)] * distils):
        sharded, whole = ([row[name] for row in r.history if name in row] for r in (found["result"], result))
        assert len(sharded) == len(whole) == count
        assert sharded == pytest.approx(whole, **close)
        assert abs(whole[-1] - whole[0]) > (0.01 if distils else 0.1)
    assert found["result"].tokens == result.tokens
    after = trained().read_from(model)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert torch.allclose(found["norms"], norms, atol=tolerance)
    assert found["restoration"].state["heads"].tolist() == after.state["heads"].tolist()
    for name in ("magnitudes", "component"):
        assert torch.allclose(found["restoration"].state[name], after.state[name], atol=tolerance)
    (reattached,), (trained_logits,) = found["logits"], probe_logits(model, [samples[0].ids])
    assert torch.allclose(reattached, trained_logits, atol=tolerance * float(trained_logits.abs().max()))


def test_a_mistake_is_told_once(tmp_path, make_tiny_llama):
    missing, output = tmp_path / "missing", tmp_path / "output"
    done = launch(ROOT / "RestoreLCC_train.py", "-base_model_name", missing, "-device", "cpu", "-output_dir", output)
    assert done.returncode != 0
    assert done.stderr.count("error: -base_model_name") == 1


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


def test_one_gpu_named_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="-device: cuda:1 is one device for 2 processes"):
        Processes("cuda:1")


def test_sharding_with_a_single_process_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP needs several processes"):
        Processes("cpu")


def test_sharding_on_cpus_is_refused_and_not_left_out_silently(tmp_path, make_tiny_llama):
    done = launch(
        ROOT / "RestoreLCC_train.py",
        *flags(tmp_path, make_tiny_llama),
        "-output_dir",
        tmp_path / "out",
        environment={"ACCELERATE_USE_FSDP": "true"},
    )
    assert "FSDP shards over GPUs only" in done.stderr
    assert not (tmp_path / "out").exists()
