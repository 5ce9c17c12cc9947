"""A sweep that is killed, or has a run that fails, loses at most that run; the table comes from files alone."""

import json
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from utils.common.lock import holder
from utils.common.result import LOCK, STAGING
from utils.stages.begin import INTERRUPTED, WRITTEN

import utils.sweep.__main__ as command
import utils.sweep.loop as loop
import utils.sweep.runs as runs

RUNS = [
    "restorelcc 0.001 1", "restorelcc 0.01 1", "restorelcc 0.01 2", "lora 0.001 1", "lora 0.01 1", "lora 0.001 2",
]  # fmt: skip
"""Two rates with the first seed, then the other seed at the better one; a search without flags of its own is a run."""


def without_time(path: Path) -> dict:
    table = json.loads((path / "table.json").read_text())
    for row in table["rows"]:
        row.pop("minutes")
    return table


def what(calls: list[str]) -> list[str]:
    return [call.rsplit(" ", 1)[0] for call in calls]


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.05)


def test_each_method_runs_all_seeds_at_its_own_best_rate(world):
    assert world.sweep() == 0
    assert what(world.calls()) == RUNS
    ours, theirs = without_time(world.output)["rows"]
    assert (ours["rate"], theirs["rate"]) == (0.01, 0.001)
    assert ours["seeds"] == theirs["seeds"] == [1, 2]
    assert ours["valid_loss"]["value"] == pytest.approx(2.0015)
    assert (world.output / "table.md").read_text().count("| ours |") == 1


def test_what_is_done_is_not_run_again(world):
    world.sweep()
    before = without_time(world.output)
    assert world.sweep() == 0
    assert len(world.calls()) == len(RUNS)
    assert without_time(world.output) == before


def test_a_search_with_flags_of_its_own_is_no_run(world):
    world.write(world.file.read_text() + "search: {num_train_samples: 10}\n")
    world.sweep()
    assert what(world.calls())[:4] == ["restorelcc 0.001 1", "restorelcc 0.01 1", "restorelcc 0.01 1", RUNS[2]]
    assert len(world.calls()) == 8


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_again_and_again_it_ends_with_the_same_table(world, seed):
    assert world.sweep() == 0
    expected, first = without_time(world.output), len(world.calls())
    world.output.rename(world.root / "unharmed")

    draw = random.Random(seed)

    def killed_later(steps: int) -> None:
        """Killed at one of the steps that change anything, before or after it; a run has some thirty."""
        left = [steps]

        def step() -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def watched(owner: object, name: str) -> None:
            original = getattr(owner, name)

            def watching(*args, **options):
                step()
                found = original(*args, **options)
                step()
                return found

            setattr(owner, name, watching)

        for owner, name in ((loop, "_call"), (loop, "write_json"), (loop.Loop, "_trim"), (Path, "unlink")):
            watched(owner, name)
        for name in ("write_json", "write_text", "build_table"):  # the table and what it is rebuilt from
            watched(command, name)

    kills = 0
    while (status := world.sweep(before=partial(killed_later, draw.randint(1, 80)))) == -signal.SIGKILL:
        kills += 1
        assert kills < 40
    assert status == 0 and kills > 2
    assert without_time(world.output) == expected
    assert len(world.calls()) - first <= len(RUNS) + kills


def kill_in_training(world) -> None:
    """A sweep that is killed while its first run trains; returns when that run has ended too."""
    (world.root / "hang").touch()
    process = world.start()
    wait_for(lambda: list(world.output.glob(f"*/{STAGING}/{INTERRUPTED}")))
    (lock,) = world.output.glob(f"*/{LOCK}")
    process.kill()
    process.join()
    wait_for(lambda: holder(lock) is None)
    (world.root / "hang").unlink()


def test_a_killed_sweep_ends_its_run_and_the_next_one_continues_it(world):
    kill_in_training(world)
    assert world.sweep() == 0
    assert world.calls()[:2] == ["restorelcc 0.001 1 overwrite", "restorelcc 0.001 1 resume"]
    assert len(world.calls()) == len(RUNS) + 1
    found = without_time(world.output)
    world.output.rename(world.root / "continued")
    assert world.sweep() == 0 and without_time(world.output) == found


def test_what_other_code_began_is_not_continued(world, monkeypatch):
    kill_in_training(world)
    monkeypatch.setattr(loop, "code_digest", lambda: "another")
    assert world.sweep() == 0
    assert world.calls()[1] == "restorelcc 0.001 1 overwrite"


def test_a_whole_result_that_a_kill_kept_from_its_place_is_not_computed_again(world):
    world.sweep()
    folder = next(world.output.glob("lora-lr0.001-seed2-*/results.json")).parent
    record = json.loads((folder / runs.DONE).read_text())
    (folder / runs.DONE).unlink()
    names = [entry.name for entry in folder.iterdir()]
    (folder / STAGING).mkdir()
    for name in names:
        (folder / name).rename(folder / STAGING / name)
    (folder / STAGING / INTERRUPTED).write_text(json.dumps({}))
    (folder / STAGING / WRITTEN).write_text(json.dumps({"files": []}))
    (folder / STAGING / ".whole").touch()
    begun = {name: record[name] for name in ("versions", "code")}
    (world.output / f".{folder.name}.begun.json").write_text(json.dumps(begun))
    assert world.sweep() == 0
    assert len(world.calls()) == len(RUNS)
    assert without_time(world.output)["rows"][1]["seeds"] == [1, 2]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_stops_its_run_too(world, number, status):
    (world.root / "hang").touch()
    process = world.start()
    wait_for(lambda: list(world.output.glob(f"*/{LOCK}")))
    (lock,) = world.output.glob(f"*/{LOCK}")
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == status
    assert holder(lock) is None
    assert len(world.calls()) == 1
    assert not list(world.output.glob(f"*/{runs.FAILED}"))


def test_a_failed_run_is_recorded_and_passed_over_and_tried_again_when_asked(world, capfd):
    (world.root / "fail").write_text("restorelcc")
    assert world.sweep() == 1
    assert what(world.calls()) == [*RUNS[:2], *RUNS[3:]]
    out = capfd.readouterr()
    assert out.out.count("FAILED with exit status 1") == 2
    assert out.err.splitlines()[-1].startswith("2 runs failed") and "-retry_failed" in out.err.splitlines()[-1]
    errors = [json.loads(path.read_text()) for path in world.output.glob(f"*/{runs.FAILED}")]
    assert [(each["exit_status"], each["output"]) for each in errors] == [
        (1, ["about to fail", "it was told to fail"])
    ] * 2
    ours, theirs = without_time(world.output)["rows"]
    assert (ours["rate"], ours["seeds"], ours["failed"]) == (None, [], 2)
    assert theirs["seeds"] == [1, 2]

    (world.root / "fail").unlink()
    assert world.sweep() == 1, "not tried again unasked"
    assert len(world.calls()) == 5
    assert world.sweep("-retry_failed") == 0
    assert what(world.calls())[5:] == RUNS[:3]


def test_a_rate_that_a_kill_took_out_of_the_search_is_missing_until_it_is_tried(world):
    assert world.sweep() == 0
    whole = without_time(world.output)
    shutil.rmtree(world.output)
    (world.root / "die").write_text("restorelcc 0.001")
    assert world.sweep() == 1
    ours, theirs = without_time(world.output)["rows"]
    assert (ours["rate"], ours["seeds"], ours["failed"]) == (None, [], 1) and theirs["seeds"] == [1, 2]
    (world.root / "die").unlink()
    assert world.sweep("-retry_failed") == 0
    assert without_time(world.output)["rows"] == whole["rows"]


def test_a_rate_that_a_run_refuses_is_tried_and_another_is_chosen(world):
    (world.root / "refuse").write_text("restorelcc 0.001")
    assert world.sweep() == 1
    ours = without_time(world.output)["rows"][0]
    assert ours["seeds"] == [1, 2] and ours["rate"] != 0.001 and ours["failed"] == 1


def test_models_go_when_a_run_is_done_unless_they_are_to_stay(world):
    world.sweep()
    assert not list(world.output.glob("*/model"))
    assert len(list(world.output.glob("*/results.json"))) == len(RUNS)
    other = world.root / "kept"
    assert world.sweep("-keep_models", "-output_dir", str(other)) == 0
    assert len(list(other.glob("*/model/weights"))) == len(RUNS)


@pytest.mark.parametrize("what_differs", ["code", "versions"])
def test_other_code_and_other_versions_run_again_unless_they_are_accepted(world, monkeypatch, what_differs):
    import utils.sweep.__main__ as command

    world.sweep()
    if what_differs == "code":
        monkeypatch.setattr(loop, "code_digest", lambda: "another")
        monkeypatch.setattr(command, "code_digest", lambda: "another")
    else:
        present = command.versions()
        monkeypatch.setattr(command, "versions", lambda: {**present, "torch": "0.0.1"})
    assert world.sweep("-accept_other_code") == 0
    assert len(world.calls()) == len(RUNS)
    notes = " ".join(without_time(world.output)["notes"])
    assert ("another" if what_differs == "code" else "torch differs: 0.0.1") in notes
    assert world.sweep() == 0
    assert len(world.calls()) == 2 * len(RUNS)
    assert "differs" not in " ".join(without_time(world.output)["notes"])


def test_two_sweeps_on_one_folder_share_the_runs(world):
    both = [world.start(), world.start()]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(what(world.calls())) == sorted(RUNS)


def test_the_table_is_rebuilt_from_files_without_the_sweeps_file(world):
    world.sweep()
    before = without_time(world.output)
    for name in ("table.json", "table.md", "table.csv"):
        (world.output / name).unlink()
    world.file.unlink()
    command_line = ["sweep", "-table", "-output_dir", str(world.output)]
    world.words = lambda *flags: command_line
    assert world.sweep() == 0
    assert without_time(world.output) == before
    assert len(world.calls()) == len(RUNS)


def test_an_unfinished_sweep_has_a_table_of_what_is_done(world):
    (world.root / "fail").write_text("lora")
    world.sweep()
    text = (world.output / "table.md").read_text()
    assert "| theirs |" in text and "n=0 of 2" in text and "2 runs failed" in text


def test_what_is_collected_names_no_path_and_gives_the_same_table(world):
    world.sweep()
    target = world.root / "collected"
    assert world.sweep("-collect", str(target)) == 0
    assert without_time(target) == without_time(world.output)
    texts = [path.read_bytes().decode(errors="replace") for path in target.rglob("*") if path.is_file()]
    assert len(texts) > 4 * len(RUNS)
    assert not [text for text in texts if str(world.root) in text or "/tmp" in text or str(Path.home()) + "/" in text]
    record = json.loads(next(target.glob("lora*/run.json")).read_text())
    assert record["command"] == "python entry.py -data_path samples.jsonl"
    assert record["arguments"]["data_path"] == "samples.jsonl"
    world.words = lambda *flags: ["sweep", "-table", "-output_dir", str(target)]
    assert world.sweep() == 0
    assert without_time(target) == without_time(world.output)
