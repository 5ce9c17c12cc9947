"""What killed processes left is removed by the next one, and nothing else is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from utils.common.lock import locked
from utils.common.result import LOCK, Result
from utils.common.temporary import remove_abandoned, stamp, workspace

from utils.common import temporary
from utils.common.commands import check_cache
from utils.common.files import whole_file, whole_folder

ROOT = Path(temporary.__file__).parents[2]

WRITING = {
    "a file": "with whole_file(place / 'kind' / 'f.json') as partial: partial.write_text('half'); die()",
    "a folder": "with whole_folder(place / 'kind' / 'folder') as partial: (partial / 'f').write_text('half'); die()",
    "a tree": "Cache(place).tree('kind', {}, lambda folder: (folder.mkdir(parents=True), die()), str)",
    "a workspace": "with workspace('merge', place) as folder: (folder / 'f').write_text('half'); die()",
    "temporary": "with workspace('eval') as folder: (folder / 'f').write_text('half'); die()",
}

KILLED = """
import os, signal, sys
from pathlib import Path
from utils.common.cache import Cache
from utils.common.files import whole_file, whole_folder
from utils.common.temporary import workspace
place = Path(sys.argv[1])
def die(): os.kill(os.getpid(), signal.SIGKILL)
"""


def everything(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if not path.is_dir() or not any(path.iterdir())]


@pytest.mark.parametrize("case", WRITING)
def test_what_a_killed_process_was_writing_goes_with_the_next_command(tmp_path, monkeypatch, case):
    cache, other = tmp_path / "cache", tmp_path / "tmp"
    (cache / "kind").mkdir(parents=True)
    other.mkdir()
    monkeypatch.setenv("TMPDIR", str(other))
    monkeypatch.setattr(tempfile, "tempdir", None)
    subprocess.run([sys.executable, "-c", KILLED + WRITING[case], str(cache)], cwd=ROOT)
    assert [path for path in everything(cache, other) if path.name in ("f", "folder") or "-" in path.name]
    check_cache(cache)
    assert everything(cache, other) == [cache / "kind"]


def test_what_others_write_or_keep_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = temporary._host()
    stay = [
        ".f.partial-elsewhere-1.json", f".f.partial-{host}-{os.getpid()}.json", ".f.partial-abc", ".lock",
        f"thesis.partial-{host}-{gone.pid}", f"deep/er/.f.partial-{host}-{gone.pid}", f"f-{host}-{gone.pid}",
    ]  # fmt: skip
    go = [
        f".f.partial-{host}-{gone.pid}.json", f"kind/.f.partial-{host}-{gone.pid}-x_1", f".{LOCK}-{host}-{gone.pid}",
        f"restorelcc-eval-{host}-{gone.pid}-abc", f"kind/.g.making-{host}-{gone.pid}",
    ]  # fmt: skip
    for name in (*stay, *go):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    remove_abandoned(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / name for name in stay}


def test_a_number_that_went_to_a_later_process_is_not_the_one_that_wrote(tmp_path):
    file = tmp_path / f".f.partial-{stamp()}"
    file.write_text("half")
    began = psutil.Process().create_time()
    os.utime(file, (began + 60, began + 60))
    remove_abandoned(tmp_path)
    assert file.exists()
    os.utime(file, (began - 60, began - 60))
    remove_abandoned(tmp_path)
    assert not file.exists()


def test_names_in_use_say_whose_they_are(tmp_path):
    with whole_file(tmp_path / "a.png") as file, whole_folder(tmp_path / "b") as folder:
        assert all(stamp() in path.name and temporary._NAMED.match(path.name) for path in (file, folder))
        assert file.suffix == ".png"
        file.write_text("whole")
    with workspace("eval") as place:
        assert temporary._NAMED.match(place.name)
    assert not place.exists()


def test_half_a_lock_of_a_killed_process_holds_nothing(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{LOCK}-{temporary._host()}-{gone.pid}").write_text("half")
    result = Result(tmp_path / "out", "record.json")
    result.check(False)
    with result.working():
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOCK, result.folder.name]
    assert not list((tmp_path / "out").iterdir())


def test_a_lock_is_never_there_without_its_owner(tmp_path, monkeypatch):
    seen = []
    link = os.link
    monkeypatch.setattr(os, "link", lambda *paths: (seen.append((tmp_path / LOCK).exists()), link(*paths)))
    with locked(tmp_path / LOCK, "x"):
        assert seen == [False] and str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not list(tmp_path.iterdir())


def test_a_disk_without_hard_links_has_locks(tmp_path, monkeypatch):
    def link(*_) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with locked(tmp_path / LOCK, "x"):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())
