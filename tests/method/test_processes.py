"""Two processes train what one would, sharded or not; one of them writes and speaks."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from baselines.lofit import scale_norms
from models.loading import load_model
from models.merge import probe_logits
from tests.builders import learned_in, save_tiny_llama, trained
from tests.method.test_training import attached, encoded, settings
from tests.method.workers import L1, LOPSIDED, distilling, training
from utils.common.errors import UserError
from utils.common.processes import Processes
from utils.training import train

ROOT = Path(__file__).resolve().parents[2]
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


def losses(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "logs" / "history.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.slow
def test_two_processes_of_four_samples_train_what_one_of_eight_does(tmp_path, make_tiny_llama):
    data = tmp_path / "data.jsonl"
    rows = ({"instruction": f"say {n}" + " w" * (n % 7), "output": "abc " * (n % 5 + 1)} for n in range(66))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"""{ROOT / "RestoreLCC_train.py"} -base_model_name {make_tiny_llama()}
        -pruned_model_path {make_tiny_llama(zeros=0.5)} -data_path {data} -num_train_samples 57 -num_valid_samples 9
        -max_length 60 -eval_tasks none -num_epoch 2 -lr 1e-2 -dtype float32 -device cpu -loss distill -method lofit
        -use_topk_heads 4 -cache_dir {tmp_path / "cache"}""".split()
    two = launch(*common, "-batch_size", 4, "-output_dir", tmp_path / "two")
    assert two.returncode == 0, two.stderr
    assert "deprecated" not in two.stderr
    one = [sys.executable, *common, "-batch_size", "8", "-output_dir", str(tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name, count in (("loss", 16), ("valid_loss", 3), ("valid_kl", 3)):
        found, wanted = losses(tmp_path / "two", name), losses(tmp_path / "one", name)
        assert len(found) == len(wanted) == count and found == pytest.approx(wanted, rel=1e-5)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert [record["processes"] for record in records] == [1, 2]
    assert two.stdout.count("[1/9]") == two.stdout.count("next:") == 1
    # LoFiT's first step chose the same heads, by the norms alone, for b alone.
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["heads"] == results[1]["heads"] and results[1]["proof"]["passed"]
    kept = [load_file(file)["norms"] for file in (tmp_path / "cache" / "lofit").rglob("*.safetensors")]
    assert len(kept) == 2 and torch.allclose(*kept, atol=1e-5)
    best = sorted([*divmod(int(place), 6)] for place in kept[0].flatten().argsort(descending=True)[:4])
    assert results[1]["heads"]["trained"] == best and results[1]["heads"]["selection"] == "lofit"
    assert not {"activations", "components"} & {path.name for path in (tmp_path / "cache").iterdir()}
    saved = load_file(tmp_path / "two" / "restoration" / "restoration.safetensors")
    assert {name.rpartition(".")[2] for name in saved} == {"heads", "basis", "component"}


@pytest.fixture(scope="module")
def parted(tmp_path_factory) -> dict:
    """What two processes of tests.method.workers trained, and the models that they trained on."""
    output = tmp_path_factory.mktemp("parted")
    pruned, dense = save_tiny_llama(output / "pruned", zeros=0.5), save_tiny_llama(output / "dense", seed=5)
    done = launch(WORKERS, "parted", output, pruned, dense)
    assert done.returncode == 0, done.stderr
    return {"pruned": pruned, "dense": dense, **torch.load(output / "found.pt", weights_only=False)}


@pytest.mark.slow
def test_an_epoch_that_does_not_divide_ends_with_the_step_of_one_process(tmp_path, parted):
    count, how = LOPSIDED
    alone = replace(how, batch_size=2 * how.batch_size)
    wanted, state = training(parted["pruned"], parted["dense"], count, alone, tmp_path)
    found, learned = parted["lopsided"]
    assert [row.keys() for row in found.history] == [row.keys() for row in wanted.history]
    for mine, other in zip(found.history, wanted.history, strict=True):
        assert list(mine.values()) == pytest.approx(list(other.values()), rel=1e-5)
    assert all(torch.allclose(learned[part], state[part], atol=1e-5) for part in ("magnitudes", "component"))


@pytest.mark.slow
def test_two_processes_that_go_on_within_an_epoch_train_what_was_left_of_it(parted):
    assert parted["checkpoints"] == ["checkpoint-6", "checkpoint-8"]
    (found, learned), (wanted, state) = parted["continued"], parted["whole"]
    assert found.history == wanted.history
    assert all(torch.equal(learned[part], state[part]) for part in ("magnitudes", "component"))


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
    done = launch(WORKERS, dtype, tmp_path, folder, *dense, environment=environment)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    model, samples = attached(folder, getattr(torch, dtype)), encoded(folder, 24)
    distillation = distilling(dense[0], samples) if distils else None
    how = settings(lr=0.1, batch_size=8)
    result = train(model, samples, samples[:9], how, "cpu", tmp_path / "whole", distillation=distillation)
    scaled = load_model(folder, getattr(torch, dtype), "cpu", "-p")
    norms = scale_norms(scaled, samples, settings(lr=0.05, batch_size=8), L1, "cpu")
    # In bf16, batches of other shapes round differently.
    close = {"rel": 1e-5} if dtype == "float32" else {"rel": 2e-2}
    for name, count in (("loss", 6), ("valid_loss", 3), *[("valid_kl", 3)] * distils):
        sharded, whole = ([row[name] for row in r.history if name in row] for r in (found["result"], result))
        assert len(sharded) == len(whole) == count
        assert sharded == pytest.approx(whole, **close)
        assert abs(whole[-1] - whole[0]) > (0.01 if distils else 0.1)
    after = learned_in(model)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert torch.allclose(found["norms"], norms, atol=tolerance)
    assert found["restoration"].heads == trained().heads
    for name in ("magnitudes", "component"):
        assert torch.allclose(found["restoration"].of_heads(name), after[name], atol=tolerance)
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


SHARDED = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}


@pytest.mark.parametrize(
    ("device", "environment", "said"),
    [
        ("cuda:1", {"WORLD_SIZE": "2"}, "-device: cuda:1 is one device for 2 processes"),
        ("cpu", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP needs several processes"),
        ("cpu", SHARDED, "launch: FSDP version 1.*add --fsdp_version 2"),
        ("cpu", {**SHARDED, "FSDP_VERSION": "1"}, "launch: FSDP version 1.*add --fsdp_version 2"),
        ("cpu", {**SHARDED, "FSDP_VERSION": "2"}, "FSDP shards over GPUs only"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(monkeypatch, device, environment, said):
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(device=torch.device(device)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        Processes(device)


def test_mixed_precision_is_refused_with_who_may_have_asked_for_it(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match=r"is 'bf16' .accelerate launch .* --mixed_precision no, or unset it"):
        Processes("cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    Processes("cpu")
