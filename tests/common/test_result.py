"""Nothing of a user's is deleted, and nothing good goes before something better stands."""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from utils.common.lock import holder
from utils.common.result import LOCK, STAGING, Result, check_apart, written

from utils.common import result as module
from utils.common.errors import UserError

RECORD = "logs/written.json"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """Every file below the folder, but the record."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_text() for path in files if path.relative_to(folder) != Path(RECORD)
    }


def finish(output: Path, files: dict[str, str], overwrite: bool = False) -> None:
    result = Result(output, RECORD)
    result.check(overwrite, ("model", "figures", "report.md", "logs"))
    with result.working():
        write(result.folder, files)
        result.finish()


OLD = {"model/config.json": "old", "model/old.safetensors": "old", "compact/config.json": "old", "report.md": "old"}
NEW = {"model/config.json": "new", "model/new.safetensors": "new", "report.md": "new", "figures/loss.png": "new"}
MINE = {"note.txt": "mine", "model/note.txt": "mine", "compact/deep/note.txt": "mine", "logs/mine.log": "mine"}


def test_overwrite_removes_what_the_record_names_and_nothing_else(tmp_path):
    finish(tmp_path / "out", OLD)
    assert content(tmp_path / "out") == OLD
    write(tmp_path / "out", MINE)
    (tmp_path / "out" / "model" / "link").symlink_to(tmp_path)
    finish(tmp_path / "out", NEW, overwrite=True)
    assert (tmp_path / "out" / "model" / "link").is_symlink()
    (tmp_path / "out" / "model" / "link").unlink()
    assert content(tmp_path / "out") == NEW | MINE
    assert written(tmp_path / "out", RECORD) == {*NEW, RECORD}
    finish(tmp_path / "out", OLD, overwrite=True)
    assert content(tmp_path / "out") == OLD | MINE


@pytest.mark.parametrize("mine", ["thesis.tex", "logs/thesis.tex", "config.json", "results.json", "checkpoints/a"])
def test_a_folder_without_a_record_is_refused_even_with_overwrite(tmp_path, mine):
    write(tmp_path / "out", {mine: "mine"})
    with pytest.raises(UserError, match=r"-output_dir: .* already holds files"):
        finish(tmp_path / "out", NEW)
    with pytest.raises(UserError, match=r"-output_dir: .* no result of this project"):
        finish(tmp_path / "out", NEW, overwrite=True)
    assert content(tmp_path / "out") == {mine: "mine"}


@pytest.mark.parametrize("mine", ["figures/holiday.png", "model"])
def test_a_users_own_entry_under_a_results_name_is_refused(tmp_path, mine):
    finish(tmp_path / "out", {"report.md": "old"})
    if mine == "model":
        write(tmp_path / "disk", {"config.json": "mine"})
        (tmp_path / "out" / "model").symlink_to(tmp_path / "disk")
    else:
        write(tmp_path / "out", {mine: "mine"})
    with pytest.raises(UserError, match=rf"{mine.split('/')[0]} in it was not written by the run"):
        finish(tmp_path / "out", NEW, overwrite=True)
    assert (tmp_path / "out" / mine).exists() and (tmp_path / "out" / "report.md").read_text() == "old"


@pytest.mark.parametrize("mine", ["model/new.safetensors", "figures", "model/config.json/note"])
def test_a_file_of_the_users_that_comes_during_the_run_is_kept(tmp_path, mine):
    finish(tmp_path / "out", {"report.md": "old", "model/old": "old"})
    result = Result(tmp_path / "out", RECORD)
    result.check(True, ("model", "figures", "report.md"))
    with pytest.raises(UserError, match="the result is whole in"), result.working():
        write(result.folder, NEW)
        write(tmp_path / "out", {mine: "mine"})
        result.finish()
    assert (tmp_path / "out" / mine).read_text() == "mine" and (tmp_path / "out" / "report.md").read_text() == "old"
    assert {name: text for name, text in content(result.folder).items() if name in NEW} == NEW
    assert holder(tmp_path / "out" / LOCK) is None


def test_the_old_result_stays_when_the_new_one_fails(tmp_path):
    finish(tmp_path / "out", OLD)
    result = Result(tmp_path / "out", RECORD)
    with pytest.raises(FloatingPointError), result.working():
        write(result.folder, {"model/config.json": "half"})
        raise FloatingPointError
    assert content(tmp_path / "out") == OLD
    assert not (tmp_path / "out" / STAGING).exists() and not (tmp_path / "out" / LOCK).exists()


def test_a_record_names_no_file_outside_its_folder(tmp_path):
    finish(tmp_path / "out", {"report.md": "old"})
    write(tmp_path, {"precious": "mine", "disk/precious": "mine"})
    (tmp_path / "out" / "away").symlink_to(tmp_path / "disk")
    names = ["../precious", str(tmp_path / "precious"), "away/precious", "report.md", RECORD, "", 3]
    (tmp_path / "out" / RECORD).write_text(json.dumps({"files": names}))
    finish(tmp_path / "out", {"report.md": "new"}, overwrite=True)
    assert (tmp_path / "precious").read_text() == (tmp_path / "disk" / "precious").read_text() == "mine"


def test_an_unfinished_result_is_kept_only_where_it_can_be_continued(tmp_path):
    def interrupted(resumable: str | None) -> Result:
        result = Result(tmp_path / "out", RECORD, resumable)
        with pytest.raises(KeyboardInterrupt), result.working():
            write(result.folder, {"logs/arguments.json": "{}", "checkpoints/1": "state"})
            raise KeyboardInterrupt
        return result

    assert not interrupted(None).folder.exists() and not (tmp_path / "out").exists()
    result = interrupted("logs/arguments.json")
    assert result.interrupted and [path.name for path in (tmp_path / "out").iterdir()] == [STAGING]
    result.check(False)
    with result.working():
        assert (result.folder / "checkpoints" / "1").read_text() == "state"
        result.clear()
        assert not list(result.folder.iterdir())
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("killed_at", range(9))
def test_a_result_that_was_killed_on_its_way_is_completed(tmp_path, monkeypatch, killed_at):
    """Each step of the exchange in turn is where the process dies; the last of them is its clearing up."""
    finish(tmp_path / "out", OLD)
    write(tmp_path / "out", MINE)
    steps = []

    class Killed(BaseException):
        pass

    def dying(name):
        original = getattr(Path, name)

        def step(self, *args, **kwargs):
            if len(steps) == killed_at:
                raise Killed
            steps.append(name)
            return original(self, *args, **kwargs)

        return step

    result = Result(tmp_path / "out", RECORD)
    with monkeypatch.context() as patch, result.working():
        write(result.folder, NEW)
        original = Result._exchange

        def exchange(self):
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(Path, name, dying(name))
            original(self)

        patch.setattr(Result, "_exchange", exchange)
        patch.setattr(module.shutil, "rmtree", lambda *a, **k: None)
        with suppress(Killed):
            result.finish()
        result._kept = True  # as a killed process leaves it
        patch.undo()
    assert len(steps) <= killed_at
    Result(tmp_path / "out", RECORD).complete()
    assert content(tmp_path / "out") == NEW | MINE
    assert written(tmp_path / "out", RECORD) == {*NEW, RECORD}
    assert not (tmp_path / "out" / STAGING).exists()


def test_output_through_a_link_and_a_relative_spelling_is_the_folder_itself(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path)
    finish(Path("link"), OLD)
    finish(Path("disk/../link"), NEW, overwrite=True)
    assert content(tmp_path / "disk") == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_file_a_loop_and_a_folder_under_a_file_are_refused_in_one_line(tmp_path):
    write(tmp_path, {"file": "mine"})
    (tmp_path / "loop").symlink_to("loop")
    for output in ("file", "file/out", "loop"):
        with pytest.raises(UserError, match=r"^-output_dir: ") as found:
            finish(tmp_path / output, NEW)
        assert "\n" not in str(found.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_process_is_refused_while_the_first_one_lives(tmp_path):
    code = f"""
import sys
from pathlib import Path
from utils.common.result import Result
with Result(Path({str(tmp_path / "out")!r}), {RECORD!r}).working():
    print("here", flush=True)
    sys.stdin.read()
"""
    root = Path(module.__file__).parents[2]
    first = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, cwd=root)
    try:
        assert first.stdout.readline() == b"here\n"
        result = Result(tmp_path / "out", RECORD)
        with pytest.raises(UserError, match=rf"-output_dir: .* is in use by process {first.pid};"):
            result.check(True)
        with pytest.raises(UserError, match=rf"process {first.pid};"), result.working():
            raise AssertionError
        assert result.folder.is_dir()
    finally:
        first.kill()
        first.stdin.close()
    # A process that is dead and not yet buried holds nothing.
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    finish(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW
    first.wait()


@pytest.mark.parametrize(
    ("owner", "held"),
    [
        ({}, True),
        ({"host": "elsewhere", "pid": 1}, True),
        ({"started": 1.0}, False),  # the number has gone to another process
        ({"pid": 2**22 + 1}, False),
        (None, True),
    ],
)
def test_a_lock_is_stale_only_when_its_process_is_known_to_be_gone(tmp_path, owner, held):
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    (tmp_path / LOCK).write_text("" if owner is None else json.dumps(mine | owner))
    if held:
        with pytest.raises(UserError, match="in use by"):
            finish(tmp_path, NEW)
    else:
        finish(tmp_path, NEW)
        assert not (tmp_path / LOCK).exists()


APART = {
    "the same": ("model", "model", "is"),
    "inside": ("model/out", "model", "lies in"),
    "around": (".", "model", "holds"),
    "around a file": ("data", "data/rows.jsonl", "holds"),
    "another spelling": ("data/../model/./x", "model", "lies in"),
    "output is a link": ("link/out", "model", "lies in"),
    "input is a link": ("model", "link", "is"),
    "input of links": ("model", "linked", "holds"),
}


@pytest.mark.parametrize("case", APART)
def test_an_output_that_is_holds_or_lies_in_an_input_is_refused(tmp_path, monkeypatch, case):
    output, source, how = APART[case]
    write(tmp_path, {"model/config.json": "{}", "data/rows.jsonl": "{}"})
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "config.json").symlink_to(tmp_path / "model" / "config.json")
    monkeypatch.chdir(tmp_path)
    for place in (Path(output), tmp_path / output):
        for given in (source, Path(source)):
            with pytest.raises(
                UserError, match=rf"^-output_dir: \S+ {how} what -data_path names \(\S+\); give another"
            ):
                check_apart(place, {"-cache_dir": None, "-data_path": given})


def test_a_folder_beside_the_inputs_and_hub_names_are_let_through(tmp_path, monkeypatch):
    write(tmp_path, {"model/config.json": "{}", "rows.jsonl": "{}"})
    monkeypatch.chdir(tmp_path)
    inputs = {"-base_model_name": "model", "-data_path": "rows.jsonl", "-calib_data": "bundled", "-x": "owner/name"}
    for output in ("output", "model-2", "rows"):
        check_apart(Path(output), {**inputs, "-cache_dir": tmp_path / "cache"})
    with pytest.raises(UserError, match="-cache_dir"):
        check_apart(Path("cache/out"), {"-cache_dir": tmp_path / "cache"})
