"""Whole runs: interrupted, killed, told to end, of other families. Few, since each takes seconds."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import Mock

import pytest
from transformers import AutoModelForCausalLM

import models.merge
import pruning.__main__
from tests.builders import mistake, trained, write_files
from tests.common.test_disk import no_file_above
from tests.common.test_run_folder import content, names
from tests.method.test_training import forward_passes
from tests.models.test_families import made
from tests.models.test_merge import saved
from tests.runs import flags, in_words, program, run, write_samples
from utils.common.commands import run as command
from utils.common.errors import Stopped, UserError
from utils.common.run_folder import UNFINISHED
from utils.evaluation.outcomes import CHOICES, VALIDATION, pair_rows, read_rows
from utils.evaluation.paired_statistics import divergences

SAME = ("results.json", "model/", "restoration/restoration.safetensors", "logs/history.jsonl", "logs/rows.json.gz")
"""What the same command gives again bit by bit; the rest tells of seconds and of days."""


def bits(output: Path) -> dict[str, bytes]:
    files = {str(file.relative_to(output)): file for file in output.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name.startswith(SAME) and "README" not in name}


@contextmanager
def stopped_before_its_place(monkeypatch, output: Path, stop: BaseException) -> Iterator[None]:
    """What happens within it is stopped, as it must be, before a finished folder is renamed to `output`."""
    rename = Path.rename

    def stopping(self, target):
        if Path(target) == output:
            raise stop
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(type(stop)):
        patch.setattr(Path, "rename", stopping)
        yield


def test_an_interrupted_run_goes_on_to_the_same_bits_by_the_same_flags(world, finished, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    with forward_passes(7, Mock(side_effect=KeyboardInterrupt)) as passes:
        with pytest.raises(KeyboardInterrupt):  # in the second epoch
            run(monkeypatch, flags(world, output))
        assert names(tmp_path) == {"out.partial"} and names(tmp_path / "out.partial") == {"checkpoints", UNFINISHED}
        with pytest.raises(UserError, match=r"^-lr: is 0\.001, but was 0\.01 in the interrupted run \S+; give that"):
            run(monkeypatch, flags(world, output, lr=1e-3))
        run(monkeypatch, flags(world, output, cache_dir=tmp_path / "cache", device="cpu:0"))
    assert bits(output) == bits(finished) and names(tmp_path) == {"out", "cache"} and names(output) == names(finished)
    assert len(passes) < 7 + 12, "it went on, and did not begin anew"
    assert capsys.readouterr().out.count("      resuming from checkpoint-") == 1


def test_a_run_prunes_for_itself_and_leaves_what_was_there(world, tmp_path, monkeypatch, capsys):
    """Killed between its two renamings, it is ended by the same command, which trains no more."""
    (output := tmp_path / "out").mkdir()
    (output / "thesis.tex").write_text("years of work")
    changes = {"pruned_model_path": None, "sparsity": "2:4", "num_epoch": 1, "eval_tasks": "none"}
    changes |= {"calib_data": world / "text.txt", "calib_samples": 4, "calib_length": 64}
    given = [*flags(world, output, **changes), "-overwrite"]
    with stopped_before_its_place(monkeypatch, output, KeyboardInterrupt()):
        run(monkeypatch, given)
    assert names(tmp_path) == {"out.1", "out.partial"}
    with forward_passes() as passes:
        run(monkeypatch, given)
    assert not any(passes), "no step"
    assert names(tmp_path) == {"out", "out.1"} and content(tmp_path / "out.1") == {"thesis.tex": "years of work"}
    assert capsys.readouterr().out.count("[1/9] reading samples, tokenizer and tasks\n      on cpu (") == 2
    proof = json.loads((output / "results.json").read_text())["proof"]
    assert proof["passed"] and proof["sparsity_restored"] == [0.5] * 3
    mistake(r"^-output_dir: \S+ already holds files", run, monkeypatch, flags(world, output, **changes))
    (tmp_path / "mine").mkdir()
    text = shutil.copy(world / "text.txt", tmp_path / "mine")
    changes |= {"calib_data": text, "num_epoch": 0, "train_seed": 7}
    run(monkeypatch, flags(world, tmp_path / "again", **changes))
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert record["pruning"]["calibration"]["calib_data"] == str(text)  # of this run, whose pruned model was known
    assert record["seeds"] == {"calibration": 42, "data": 42, "training": 7}


def test_a_task_trains_on_its_own_training_split(world, tmp_path, monkeypatch, capsys):
    for split, count in (("train", 30), ("validation", 6)):
        rows = [{"sentence1": f"It is {n}.", "sentence2": f"It is {n % 3}.", "label": n % 2} for n in range(count)]
        write_samples(tmp_path / "tasks" / "rte" / f"{split}.jsonl", rows)
    changes = {"data_path": None, "spec_task": "rte", "eval_tasks": "rte", "eval_data_dir": tmp_path / "tasks"}
    run(monkeypatch, flags(world, tmp_path / "out", num_epoch=1, num_train_samples=24, **changes))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= results["scores"]["restored"]["rte"]["acc"]["value"] <= 1 and results["validation"] is None
    kept = read_rows(tmp_path / "out" / "logs" / "rows.json.gz")
    assert VALIDATION not in kept["restored"]
    divergence = divergences(*(rows.values for rows in pair_rows(kept["dense"], kept["restored"], "rte", CHOICES)))
    assert len(divergence) == 6 and sum(divergence) > 0
    assert results["agreement"]["restored"]["rte"]["kl"]["value"] == pytest.approx(sum(divergence) / 6)
    changes |= {"data_path": world / "samples.jsonl", "num_train_samples": 31}
    mistake(r"-num_train_samples: asks for 31, but", run, monkeypatch, flags(world, tmp_path / "more", **changes))
    told = "-data_path is not used: -spec_task trains on rte's own training split"
    assert capsys.readouterr().out.count(told) == 1 and not (tmp_path / "more").exists()


def test_a_command_keeps_the_users_files_and_leaves_nothing_on_a_full_disk(world, tmp_path, monkeypatch):
    restoration = saved(world / "pruned", trained(), tmp_path / "in")
    common = {"dtype": "float32", "cache_dir": tmp_path / "in" / "cache"}
    prune = {"base_model_name": world / "dense", "prune_method": "magnitude"}
    merge = {"pruned_model_path": world / "pruned", "restoration": restoration, "tokenizer": world / "dense"}
    for main, own in ((pruning.__main__.main, prune), (models.merge.main, merge)):
        output = tmp_path / main.__module__ / "out"
        given = in_words({**common, **own, "output_dir": output, "overwrite": True})
        with no_file_above(20_000), pytest.raises(UserError, match=r"^\S+ cannot be written \(File too large"):
            main(given)
        assert not list(output.parent.iterdir())
        write_files(output, {"config.json": "mine"})
        with stopped_before_its_place(monkeypatch, output, Stopped(signal.SIGTERM)):
            main(given)
        assert names(output.parent) == {"out.1", "out.partial"}
        main(given)
        assert names(output.parent) == {"out", "out.1"}
        assert content(output.parent / "out.1") == {"config.json": "mine"} and (output / "model.safetensors").is_file()


def test_help_groups_the_flags_with_their_defaults_before_torch_is_imported():
    done = program(sys.executable, "-X", "importtime", "RestoreLCC_train.py", "--help")
    assert done.returncode == 0 and "(above 0; default: 0.001)" in done.stdout and "\ntraining:\n" in done.stdout
    assert "import time" in done.stderr and "torch" not in done.stderr


def forked(monkeypatch, given: list[str], log: Path) -> BaseProcess:
    """A process that does the run; a fork, since importing all of it takes ten times as long."""

    def whole() -> None:
        run(monkeypatch, given)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what comes later changes no status

    def do() -> None:
        with log.open("a") as out, redirect_stdout(out), redirect_stderr(out):
            command(whole, then="the same command goes on from here")

    child = multiprocessing.get_context("fork").Process(target=do)
    child.start()
    return child


def ended(child: BaseProcess) -> int:
    """Its exit status, negative if a signal killed it."""
    child.join(120)
    child.kill()
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(world, finished, tmp_path, monkeypatch, seed):
    """SIGKILL or SIGTERM, once to three times, at moments drawn from a whole run's length; the last one is let end."""
    draw, output, cache, log = random.Random(seed), tmp_path / "out", tmp_path / "cache", tmp_path / "log"
    given = [*flags(world, output, cache_dir=cache), "-overwrite"]
    length = 4 + sum(stage["seconds"] for stage in json.loads((finished / "run.json").read_text())["stages"])
    hits = []
    for _ in range(draw.randint(1, 3)):
        child, number = forked(monkeypatch, given, log), draw.choice([signal.SIGKILL, signal.SIGTERM])
        time.sleep(draw.uniform(0, length))
        os.kill(child.pid, number)
        hits.append((number, ended(child)))
        assert hits[-1][1] in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM), log.read_text()
    assert ended(forked(monkeypatch, given, log)) == 0, log.read_text()
    assert bits(output) == bits(finished) and names(output) == names(finished), hits
    left = names(tmp_path) - {"out", "cache", "log"} - {f"out.{n}" for n in range(1, 4)}
    assert left <= {"out.lock"} and not [path for path in cache.rglob("*") if "partial" in path.name], left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("qwen2", {"recipe": "inside_mask"}),
        ("mistral", {"recipe": "biases", "prune_method": "slimgpt", "sparsity": "0.25"}),
        ("qwen3", {}),
        ("gemma3_text", {"recipe": "inside_mask"}),
    ],
)
def test_another_family_is_pruned_restored_merged_proved_and_scored(world, family, how, tmp_path, monkeypatch, capfd):
    dense = made(tmp_path / "dense", family, max_position_embeddings=256)
    pruning = {"pruned_model_path": None, "prune_method": "wanda", "sparsity": "0.5", **how}
    pruning |= {"calib_data": world / "text.txt", "calib_samples": 6, "calib_length": 24}
    pruning |= {"base_model_name": dense, "cache_dir": tmp_path / "cache", "lr": 3e-2}
    run(monkeypatch, flags(world, tmp_path / "out", **pruning))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["proof"]["passed"] and results["proof"]["zeros_lost"] == 0
    assert results["validation"]["restored"] < results["validation"]["start"]
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config.model_type
    assert written == ("llama" if family in ("qwen2", "mistral") else family)
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert ("written as" in card) == (written != family) and f"- {family}" in card
    assert ("vLLM drops" in capfd.readouterr().out) == (family == "qwen3")
