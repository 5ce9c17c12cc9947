"""A cache answers only for the very content it was made from, and with the very bytes that were kept."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from tests.builders import write_files
from utils.common import cache as module
from utils.common.cache import Cache, Kept, cached, code_version, digest_tensors, identity
from utils.common.files import MANIFEST, read_json, read_manifest, sha256, write_manifest

MADE: list[str] = []


class Row(NamedTuple):
    ids: list[int]
    start: int


@cached("tensors", code=(module,), libraries=("torch",))
def tensors(model: object, rows: list[Row], seed: int = 1, *, label: str = "") -> dict[str, Tensor]:
    MADE.append(label)
    return {"z": torch.arange(64.0) + seed, "column": torch.ones(3, 4)[:, 0]}


@cached("document")
def document(model: object, rows: list[Row], seed: int = 1, *, label: str = "") -> dict:
    MADE.append(label)
    return {"value": list(range(64)), "text": "naïve", "none": [None]}


@cached("folder")
def folder_of(folder: Path, model: object, rows: list[Row], seed: int = 1, *, label: str = "") -> None:
    MADE.append(label)
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "deep").mkdir()
    (folder / "deep" / "tokenizer.json").write_text('{"a": 1}')


KINDS = (tensors, document, folder_of)
ROWS = [Row([1, 2], 1), Row([3], 0)]


@pytest.fixture(autouse=True)
def fresh():
    MADE.clear()


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def same(one, other) -> bool:
    return all(map(torch.equal, one.values(), other.values())) if isinstance(one, dict) and "z" in one else one == other


@pytest.mark.parametrize("ask", KINDS)
def test_what_is_kept_is_not_made_again_unless_it_vanishes(tmp_path, monkeypatch, ask):
    clock = chain((0, 0, 100, 200, 300, 330), repeat(400))  # made in 100 s; its other reader waited for 30
    monkeypatch.setattr(module, "time", Mock(perf_counter=lambda: next(clock)))
    cache = Cache(tmp_path)
    first = ask(cache, "a", ROWS, label="first")
    assert same(first, ask(cache, rows=list(ROWS), model="a", seed=1, label="names and bars are no content"))
    kept = ask.later(Cache(tmp_path), "a", ROWS)
    assert same(first, kept()) and MADE == ["first"] and cache.reused == [kept.kind]
    assert (read_json(kept.path / MANIFEST)["seconds"], kept.cache.saved) == (100, 70)
    assert cache.saved == 0, "it made that itself"
    shutil.rmtree(kept.entry())  # between two stages
    assert not kept.known() and same(first, kept()) and kept.known() and len(MADE) == 2


OTHERS = [
    ("b", ROWS), ("a", [ROWS[0], Row([3], 1)]), ("a", ROWS[::-1]), ("a", ROWS, 2), (torch.ones(2), ROWS),
    (torch.ones(2, dtype=torch.float64), ROWS), (list(range(50)), ROWS), (list(range(51)), ROWS),
]  # fmt: skip


def test_nothing_is_reused_for_another_argument_code_or_library(tmp_path, monkeypatch):
    cache, again = Cache(tmp_path), cached("tensors", code=(module,), libraries=("torch",))  # as another process has it
    paths = {tensors.later(cache, *given).entry() for given in [("a", ROWS), *OTHERS]}
    paths.add(again(document.__wrapped__).later(cache, "a", ROWS).entry())
    for name in ("code_version", "version"):
        monkeypatch.setattr(module, name, lambda *_: "other")
        paths.add(again(tensors.__wrapped__).later(cache, "a", ROWS).entry())
    assert len(paths) == len(OTHERS) + 4 == len(MADE)


def test_the_code_in_a_key_is_that_which_runs_whatever_became_of_its_file(tmp_path, monkeypatch):
    text = "import of_maths\nfrom utils.common.cache import cached\n@cached('numbers', code=(of_maths,))\n"
    text += "def twice(n):\n    return {n: 2 * n}\n"
    write_files(tmp_path, {"of_maths/__init__.py": "", "of_maths/deep.py": "factor = 2\n", "of_numbers.py": text})
    monkeypatch.syspath_prepend(tmp_path)
    twice = import_module("of_numbers").twice
    before, code = twice.later(Cache(tmp_path), 5).key, code_version(import_module("of_maths"))
    for file in tmp_path.rglob("*.py"):
        file.write_text(file.read_text().replace("2", "3"))
    assert twice.later(Cache(tmp_path), 5).key == before
    assert code_version(import_module("of_maths")) != code, "of a package all files count"


def test_what_stands_for_itself_in_a_key(make_tiny_llama, tmp_path):
    folders = make_tiny_llama(zeros=0.5), make_tiny_llama(zeros=0.5), make_tiny_llama(zeros=0.5, seed=1)
    one, same, other = (identity(Checkpoint(folder)) for folder in folders)
    assert one == same == [Checkpoint(folders[0]).fingerprint, sha256(folders[0] / "generation_config.json")] != other
    (folders[1] / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert identity(Checkpoint(folders[1])) != one
    kept = tensors.later(Cache(tmp_path), "a", ROWS)
    assert identity([kept]) == [kept.key] and not MADE
    assert repr(frozenset([0, 8])) != repr(frozenset([8, 0])) and identity({8, 0}) == identity({0, 8}) == [0, 8]
    zeros = torch.zeros(4).half(), torch.zeros(4).bfloat16(), torch.zeros(2, 2).half()
    assert len({digest_tensors({"": each}) for each in zeros}) == 3
    for unknown in (tmp_path, object(), lambda: None):
        with pytest.raises(TypeError, match="can't be in a key"):
            identity({"a": [unknown]})


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 4
    file.write_bytes(content)


SPOILS = {
    "flip": flip,
    "cut": lambda file, at: file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)]),
    "no object": lambda file, _: file.write_text("null"),
    "unlink": lambda file, _: file.unlink(),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("ask", KINDS)
def test_whatever_is_damaged_is_told_and_made_again(tmp_path, capsys, ask, spoil):
    cache, times = Cache(tmp_path), 1
    first = ask(cache, "a", ROWS)
    for file in files(tmp_path):
        # A bit of the key that a manifest tells changes no result.
        for at in () if file.name == MANIFEST and spoil is flip else (0, 0.5, 0.98):
            before = file.read_bytes()
            spoil(file, at)
            times += 1
            assert same(ask(cache, "a", ROWS), first) and len(MADE) == times and not cache.reused, file
            assert f"{file.parent}".startswith(capsys.readouterr().out.split()[1]), file
            assert file.name == MANIFEST or file.read_bytes() == before
    assert same(ask(cache, "a", ROWS), first) and len(MADE) == times and cache.reused


def test_a_file_that_its_disk_does_not_give_is_damaged(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("whole")
    write_manifest(tmp_path)
    monkeypatch.setattr("utils.common.files.sha256", Mock(side_effect=OSError(5, "Input/output error")))
    with pytest.raises(ValueError, match=r"^is damaged \(a\)$"):
        read_manifest(tmp_path)


def test_two_that_want_the_same_make_it_once_and_neither_removes_the_others(tmp_path, monkeypatch):
    begun, waits, go_on = threading.Event(), threading.Event(), threading.Event()

    def make(folder: Path) -> None:
        MADE.append("")
        (folder / "a").write_text("whole")
        begun.set()
        assert go_on.wait(30)

    def told(line: str, **_) -> None:
        assert "waiting for another process" in line
        waits.set()

    # Not capsys: a line that is printed while another thread reads what was printed can be lost.
    monkeypatch.setattr("utils.common.run_folder.print", told, raising=False)
    kept = Kept(Cache(tmp_path), "kind", {}, make)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(kept.entry)]
        assert begun.wait(30)
        found.append(pool.submit(kept.entry))
        assert waits.wait(30)
        go_on.set()
    assert {each.result() for each in found} == {kept.path} == set((tmp_path / "kind").iterdir())
    assert (kept.path / "a").read_text() == "whole" and len(MADE) == 1


def test_what_a_killed_process_was_making_goes_and_what_a_living_one_makes_stays(tmp_path, monkeypatch):
    def stop(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    stopped = Kept(Cache(tmp_path), "kind", {}, stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.entry()
    assert not files(tmp_path), "what is stopped removes it itself"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        stopped.entry()
    assert [file.name for file in files(tmp_path)] == ["half"]

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())
        Cache(tmp_path).clean()
        assert folder.is_dir()

    for key in ({"other": 1}, {}):
        Kept(Cache(tmp_path), "kind", key, make).entry()
    assert [file.name for file in files(tmp_path)] == [MANIFEST] * 2
