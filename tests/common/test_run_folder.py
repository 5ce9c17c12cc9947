"""Nothing of a user's is deleted, and nothing good goes before something better stands."""

import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.builders import mistake, write_files
from tests.runs import ROOT
from utils.common.errors import Stopped, UserError
from utils.common.run_folder import UNFINISHED, RunFolder, check_apart

FLAGS = {"lr": 0.1, "seed": 1}
OLD, NEW = {"model/config.json": "old", "report.html": "old"}, {"model/config.json": "new", "figures/a.svg": "new"}
MINE = {"note.txt": "mine", "model/note.txt": "mine", "figures/holiday.png": "mine"}


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def result(output: Path, flags: dict = FLAGS, **how) -> RunFolder:
    return RunFolder(output, flags, keep=("checkpoints",), **how)


def finish(output: Path, files: dict[str, str], stop: BaseException | None = None, **how) -> None:
    with pytest.raises(type(stop)) if stop else nullcontext(), result(output, **how) as folder:
        write_files(folder.partial, files)
        if stop:
            raise stop
        folder.finish()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_result_is_renamed_once_and_an_earlier_one_is_kept_under_another_name(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)  # an empty folder is as good as none
    (tmp_path / "link").symlink_to(out)
    finish(tmp_path / "deep" / ".." / "link", OLD)  # the folder itself, by whatever name
    write_files(out, MINE)
    mistake(r"^-output_dir: \S+out already holds files; .* -overwrite, which renames", finish, out, NEW)
    assert content(out) == OLD | MINE
    finish(out, NEW, overwrite=True)
    assert content(out) == NEW and content(out.with_name("out.1")) == OLD | MINE
    assert "out is now /" in (told := capsys.readouterr().out) and told.endswith("out.1\n")
    finish(out, OLD, overwrite=True)
    assert content(out.with_name("out.2")) == NEW and names(out.parent) == {"out", "out.1", "out.2"}


@pytest.mark.parametrize("stop", [FloatingPointError(), Stopped(15), UserError("full")])
def test_the_old_result_stays_when_the_new_one_fails_and_what_is_of_no_use_goes(tmp_path, stop):
    finish(tmp_path / "out", OLD)
    finish(tmp_path / "out", NEW, stop, overwrite=True)
    assert content(tmp_path / "out") == OLD and names(tmp_path) == {"out"}
    with pytest.raises(type(stop)), result(tmp_path / "new") as folder:
        (folder.partial / "checkpoints").mkdir()  # as the Trainer does before its first step
        raise stop
    assert names(tmp_path) == {"out"}


def test_the_same_command_continues_and_another_one_or_a_damaged_mark_loses_nothing(tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    finish(out, {"checkpoints/1": "state", "model/half": "half"}, KeyboardInterrupt())
    assert content(partial).keys() == {"checkpoints/1", "model/half", UNFINISHED}
    listed = Path.iterdir
    with pytest.MonkeyPatch.context() as patch:  # stopped while it clears, though the mark may come first
        patch.setattr(Path, "iterdir", lambda folder: iter(sorted(listed(folder), key=lambda e: e.name != UNFINISHED)))
        patch.setattr("shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            result(out).__enter__()
    assert UNFINISHED in names(partial)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"^-lr: is 0\.2, but was 0\.1 in the interrupted run \S+; give that"):
            finish(out, NEW, flags={**FLAGS, "lr": 0.2}, overwrite=overwrite)
    mark = (partial / UNFINISHED).read_text()
    mistake(r"^-output_dir: \S+: \S+partial is an interrupted run that can be resumed", RunFolder(out, {}).__enter__)
    for damaged in ("", "[" * 100_000, "3", '{"arguments": 3}'):
        write_files(partial, {UNFINISHED: damaged})
        mistake(r"^-lr: is 0.1, but was None in the interrupted run \S+; give that", finish, out, NEW)
    write_files(partial, {UNFINISHED: mark})
    with result(out) as folder:
        assert content(folder.partial).keys() == {"checkpoints/1", UNFINISHED}, "only what it continues from is kept"
        write_files(folder.partial, NEW)
        folder.finish()
    assert content(out) == NEW and names(tmp_path) == {"out"}


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_renaming_the_same_command_and_no_other_ends_what_was_left(tmp_path, monkeypatch, at, overwrite):
    out, steps, rename = tmp_path / "out", [], Path.rename
    if overwrite:
        finish(out, OLD)

    def dying(*args):
        steps.append(args)
        if len(steps) > at:
            raise KeyboardInterrupt
        return rename(*args)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(RunFolder, "__exit__", lambda self, *_: self._leaving.close())
        with result(out, overwrite=overwrite) as folder:
            write_files(folder.partial, NEW | {"checkpoints/1": "state"})
            patch.setattr(Path, "rename", dying)
            folder.finish()
    if (tmp_path / "out.partial").exists():
        mistake(r"^-seed: is 7, but was 1 in", finish, out, MINE, flags={**FLAGS, "seed": 7}, overwrite=overwrite)
        with result(out, overwrite=overwrite) as folder:
            assert content(folder.partial).keys() == {"checkpoints/1", UNFINISHED}
            write_files(folder.partial, NEW)
            folder.finish()
    assert content(out) == NEW and names(tmp_path) == ({"out", "out.1"} if overwrite else {"out"})
    assert not overwrite or content(tmp_path / "out.1") == OLD


def test_files_that_come_during_the_run_are_kept_and_a_result_that_cannot_take_its_place(tmp_path, monkeypatch):
    with result(tmp_path / "out") as folder:
        write_files(folder.partial, NEW)
        write_files(tmp_path / "out", MINE)
        folder.finish()
    assert content(tmp_path / "out.1") == MINE and content(tmp_path / "out") == NEW
    with pytest.raises(UserError, match=r"but still in .*partial .*; rename"), result(tmp_path / "sticky") as folder:
        write_files(folder.partial, NEW)
        monkeypatch.setattr(Path, "rename", Mock(side_effect=OSError))
        folder.finish()
    assert content(tmp_path / "sticky.partial").items() > NEW.items()


IN_THE_WAY = r".*out.partial already exists; rename it, or give another"
REFUSED = [
    ({"out.partial/thesis.tex": "mine"}, "out", IN_THE_WAY),
    ({"out.partial": "mine"}, "out", IN_THE_WAY),
    *(({"out.partial": Path(link)}, "out", IN_THE_WAY) for link in ("away", "nowhere")),  # a run's folder; nothing
    ({"out.lock": Path("mine")}, "out", r"\S+: cannot lock \S+out.lock \(.*\); remove or"),
    ({"poetry.lock": "mine"}, "poetry", r"\S+: its lock file would be \S+poetry.lock, which holds other data; rename"),
    ({"file": "mine"}, "file", r"\S+ is not a folder"),
    ({"file": "mine"}, "file/out", r"\S+ cannot be written"),
    ({"loop": Path("loop")}, "loop", r"\S+ is not a folder"),
    *(({}, place, f"{place} is a mount point") for place in ("/", "/proc")),
    ({}, "away", r"\S+ is a mount point, or holds the current folder or code"),
    ({"project/utils/__init__.py": ""}, "project", r"\S+ .*, or holds the current folder or code; give an"),
    ({"project/utils/__init__.py": ""}, "project/utils", r"\S+ .*, or holds the current folder or code; give an"),
]


@pytest.mark.parametrize(("there", "output", "says"), REFUSED, ids=range(len(REFUSED)))
def test_what_this_project_did_not_make_is_refused_in_one_line_and_stays(tmp_path, monkeypatch, there, output, says):
    write_files(tmp_path, {f"away/{UNFINISHED}": "{}", **there})
    monkeypatch.setattr("utils.common.run_folder.__file__", str(tmp_path / "project" / "utils" / "code.py"))
    before = names(tmp_path), content(tmp_path)
    monkeypatch.chdir(tmp_path / "away")
    mistake(f"^-output_dir: {says}", finish, tmp_path / output, NEW, overwrite=True)
    assert (names(tmp_path), content(tmp_path)) == before


HOLD = """
import sys
from pathlib import Path
from utils.common.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), {}):
    print("here", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_the_kernel_lets_go_of_a_killed_ones_lock(tmp_path):
    """Whatever their numbers: two containers may have one folder, and each a process 1."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert first.stdout.readline() == b"here\n"
        with pytest.raises(UserError, match=r"^-output_dir: \S+ is in use by another process; wait for its end"):
            finish(tmp_path / "out", NEW, flags={}, overwrite=True)
        assert (tmp_path / "out.partial" / UNFINISHED).is_file()
    finally:
        first.kill()
        first.stdin.close()
        first.wait()
    assert names(tmp_path) == {"out.partial", "out.lock"}
    (tmp_path / "out.lock").write_text("4711\nhost\n")  # as filelock leaves it where there is no flock
    finish(tmp_path / "out", NEW, flags={})
    assert content(tmp_path / "out") == NEW and names(tmp_path) == {"out"}


def test_an_output_that_is_holds_or_lies_in_an_input_is_refused_and_another_is_not(tmp_path, monkeypatch):
    linked = {"link": Path("model"), "linked/config.json": tmp_path / "model" / "config.json"}
    write_files(tmp_path, {"model/config.json": "{}", "data/rows.jsonl": "{}", **linked})
    monkeypatch.chdir(tmp_path)
    for output, source, how in (
        ("model", "model", "is"), ("data", "data/rows.jsonl", "holds"), ("data/../model/./x", "model", "lies in"),
        ("link/out", "model", "lies in"), ("model", "link", "is"), ("model", "linked", "holds"),  # a folder of links
        ("cache/out", Path("cache"), "lies in"),  # which is not there yet
        *((free, each, None) for free in ("output", "model-2", "data/rows") for each in ("model", "data/rows.jsonl")),
        ("a", "a/b", None),  # a name on the hub
    ):  # fmt: skip
        says = rf"^-output_dir: \S+ {how} what -data_path names \(\S+\); give another"
        for place in (Path(output), tmp_path / output):
            with pytest.raises(UserError, match=says) if how else nullcontext():
                check_apart(Namespace(output_dir=place, cache_dir=None, data_path=source), ["cache_dir", "data_path"])
