"""A sweep that is stopped, or has a run that fails, loses at most that run; the table comes from files alone."""

import gzip
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

import utils.sweep.__main__ as command
from tests.sweep.conftest import FILE
from utils.common.names import DIVERGED
from utils.sweep.sweep_files import FILE as RUNS_FILE
from utils.sweep.sweep_files import _named, read

RUNS = [
    "restorelcc 0.001 1", "restorelcc 0.01 1", "restorelcc 0.01 2", "lora 0.001 1", "lora 0.01 1", "lora 0.001 2",
]  # fmt: skip
"""Two rates with the first seed, then the other seed at the better one; a search without flags of its own is a run."""


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.05)


def test_each_method_runs_all_seeds_at_its_own_best_rate_once_and_one_file_gives_the_same_table(world):
    assert world.sweep() == 0 and world.calls() == RUNS
    ours, theirs = world.table()
    assert ours[:2] == ["ours", "wanda 0.5"] and ours[5:8] == ["0.01", "n=2", "2.015 ± 0.005"]
    assert theirs[5:7] == ["0.001", "n=2"]
    assert "the best of 2 in validation loss, with one seed." in world.text()
    whole, kept = world.text(), (world.output / RUNS_FILE).read_bytes()
    text = gzip.decompress(kept).decode()  # without this machine's folders
    assert str(world.root) not in text and str(Path.home()) + "/" not in text and '"samples.jsonl"' in text
    assert _named({"x": ["../a/b", "owner/model"]}) == {"x": ["b", "owner/model"]}
    (world.output / "table.md").unlink()
    assert world.sweep() == 0 and world.text() == whole and world.calls() == RUNS
    assert (world.output / RUNS_FILE).read_bytes() == kept and kept[4:8] == bytes(4)  # no time
    assert {path.name for path in world.output.glob("*/*")} == {"run.json", "results.json"}
    # Results of other arguments are not the run's, and the entry point does not write over them.
    (folder,) = world.output.glob("lora-lr0.001-seed2-*/")
    run = json.loads((folder / "run.json").read_text())
    run["arguments"]["lora_rank"] = 3
    (folder / "run.json").write_text(json.dumps(run))
    assert world.sweep() == 1 and world.table()[1][6] == "n=1 of 2"
    (world.root / "moved.json.gz").write_bytes(kept)
    world.file = world.root / "moved.json.gz"
    shutil.rmtree(world.output)
    assert world.sweep() == 0 and world.text() == whole and len(world.calls()) == 7
    world.output = world.file
    assert world.sweep() == 2 and world.file.read_bytes() == kept


def test_a_mistake_ends_the_command_before_anything_is_written(world, capfd):
    world.write(FILE.replace("lora,", "lorra,"))
    assert world.sweep() == 2 and not world.output.exists()
    world.write(FILE.replace("ROOT/s", "ROOT/no-s"))
    assert world.sweep() == 2 and not world.calls()
    for wrong in ("sparsity: '1.5'", "eval_data_dir: ROOT/model, eval_tasks: no-such", "eval_data_dir: ROOT"):
        world.write(FILE.replace("eval_tasks: none", wrong))
        assert world.sweep() == 2 and not world.calls()
    (world.output / "results.json").touch()
    assert world.sweep() == 2
    (world.output / "results.json").rename(world.output / "table.md").write_text("years of work")
    assert world.sweep() == 2 and world.text() == "years of work"
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {world.file}: configuration 2: -method") and len(lines) == 7
    assert lines[2].startswith("error: ours: -sparsity: '1.5' is neither") and "unknown task 'no-such'" in lines[3]
    assert lines[4].startswith("error: ours: -output_dir: ") and "lies in what -eval_data_dir names" in lines[4]
    assert lines[5].startswith(f"error: -output_dir: {world.output} is the folder of a run")
    assert lines[6].startswith(f"error: -output_dir: {world.output}/table.md is not a sweep's table")
    assert lines[1].startswith(f"error: ours: -data_path: {world.root}/no-samples.jsonl does not exist")


def test_a_search_with_flags_of_its_own_is_no_run_and_the_table_names_them(world):
    world.write(FILE + "search: {num_train_samples: 10}\n")
    assert world.sweep("-keep_models") == 0
    assert world.calls()[:4] == ["restorelcc 0.001 1", "restorelcc 0.01 1", "restorelcc 0.01 1", RUNS[2]]
    assert len(world.calls()) == 8 == len(list(world.output.glob("*/model")))
    assert "with one seed and num_train_samples 10." in world.text()


@pytest.mark.parametrize("said", ["-lr: no memory", f"-dtype: the loss {DIVERGED} 3"])
def test_what_failed_by_something_else_is_no_rate_that_failed_and_is_tried_again(world, capfd, said):
    (world.root / "fail").write_text(f"restorelcc 0.01\n{said}")  # the best one
    assert world.sweep() == 1
    assert "1 run failed" in capfd.readouterr().err.splitlines()[-1]
    ours, theirs = world.table()
    assert ours[5:7] == ["–", "n=0 of 2"] and theirs[5:7] == ["0.001", "n=2"]
    assert f"failed, and the same command tries it again (error: {said}" in world.text()
    (world.root / "fail").unlink()
    assert world.sweep() == 0
    assert [row[5:7] for row in world.table()] == [["0.01", "n=2"], ["0.001", "n=2"]]
    assert world.calls()[-2:] == RUNS[1:3] and "failed" not in world.text()


def test_a_rate_that_diverged_has_failed_and_is_not_tried_again(world):
    (world.root / "fail").write_text(f"restorelcc 0.01\n-lr: the loss {DIVERGED} 3 of 9")
    for _ in range(2):
        assert world.sweep() == 0
        assert world.table()[0][5:7] == ["0.001", "n=2"] and len(world.calls()) == 6
    assert "at rate 0.01 diverged (error: -lr: the loss" in world.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_second_sweep_is_refused_and_a_stopped_one_goes_on_with_the_same_command(world, number, capfd):
    (world.root / "hang").touch()
    process = world.start()
    wait_for(world.calls)
    if number == signal.SIGTERM:
        assert world.sweep() == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert re.fullmatch(r"error: -output_dir: \S+ is in use by another process; wait for its end, or .*", line)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (-number if number == signal.SIGKILL else 128 + number)
    (world.root / "hang").unlink()
    if number == signal.SIGKILL:  # its run ends by itself, and is done
        wait_for(lambda: list(world.output.glob("*/results.json")))
    else:
        assert [log.read_text() for log in world.output.glob("*.log")] == ["stopped\n"]
    assert world.sweep() == 0
    assert world.calls() == (RUNS if number == signal.SIGKILL else [RUNS[0], *RUNS])
    assert [row[6] for row in world.table()] == ["n=2", "n=2"]


REAL = """
flags: {base_model_name: MODEL, prune_method: magnitude, sparsity: 2:4, num_train_samples: 12, num_valid_samples: 4,
  max_length: 96, num_epoch: 1, batch_size: 4, data_path: bundled,
  eval_tasks: "bundled_facts,bundled_arithmetic", eval_limit: 6, dtype: float32, device: cpu}
seeds: [1]
lr: [1e-3, 1e30]
configurations: [{name: LoRA, method: masked_lora}, {name: none, method: none}]
compare_to: none
"""


@pytest.mark.slow
def test_of_real_runs_a_rate_that_diverges_is_passed_over_and_the_rest_is_in_the_table(world, stories, monkeypatch):
    monkeypatch.setattr(command, "ENTRY", Path(command.__file__).parents[2] / "RestoreLCC_train.py")
    world.write(REAL.replace("MODEL", str(stories)))
    assert world.sweep() == 0, world.text()
    lora, none = read(world.output / RUNS_FILE)
    assert [(run.rate, run.diverged) for run in lora.searches] == [(1e-3, False), (1e30, True)]
    assert (lora.rate, none.rate, len(lora.outcomes), len(none.outcomes)) == (1e-3, None, 1, 1)
    assert {"LoRA", "none", "inside the mask", "0.001", "100.0 %"} <= {cell for row in world.table() for cell in row}
    assert " ± " in world.table()[0][9]  # its validation loss against none's, over samples
    assert "at rate 1e+30 diverged (error: -lr: the " in world.text()
