"""A disk that takes no more: asked for room before, and one line when it ends, with nothing half-written left."""

import errno
import gzip
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.builders import byte_tokenizer
from utils.common import disk
from utils.common.cache import Cache
from utils.common.commands import check_cache
from utils.common.disk import Need, Unwritten, as_bytes, check_room, check_writable, refusal, told, writing
from utils.common.errors import UserError
from utils.common.files import whole_file, whole_folder, write_json
from utils.common.lock import holder, locked
from utils.common.result import LOCK, Result

ROOT = Path(disk.__file__).parents[2]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Within it, the system refuses to write a file beyond that many bytes, as a full disk does; nothing is printed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


NUMBERS = torch.arange(50_000.0)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 50_000),
    "json": lambda path: write_json(path, ["x" * 50_000]),
    "gzip": lambda path: path.write_bytes(gzip.compress(os.urandom(50_000))),
    "safetensors": lambda path: save_file({"a": NUMBERS}, path),
    "torch.save": lambda path: torch.save({"a": NUMBERS}, path),
    "torch.save of many": lambda path: torch.save([NUMBERS[:200].clone() for _ in range(20)], path),
    "a copy": lambda path: shutil.copy(__file__, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, writer):
    with no_file_above(3000), pytest.raises(Unwritten) as found, whole_file(tmp_path / "f") as partial:
        WRITERS[writer](partial)
    assert str(found.value).startswith(str(tmp_path)) and "are free" in str(found.value)
    assert "\n" not in str(found.value) and not list(tmp_path.iterdir())
    with whole_file(tmp_path / "f") as partial:
        WRITERS[writer](partial)
    assert (tmp_path / "f").stat().st_size > 3000


FOLDERS: dict[str, Callable[[Path, Path], object]] = {
    "a model": lambda path, model: AutoModelForCausalLM.from_pretrained(model).save_pretrained(path),
    "a tokenizer": lambda path, _: byte_tokenizer().save_pretrained(path),
    "a copy": lambda path, model: shutil.copytree(model, path / "model"),
}


@pytest.mark.parametrize("writer", FOLDERS)
def test_a_folder_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, make_tiny_llama, writer):
    model = make_tiny_llama()
    with no_file_above(3000), pytest.raises(Unwritten) as found, whole_folder(tmp_path / "folder") as partial:
        FOLDERS[writer](partial, model)
    assert str(found.value).startswith(str(tmp_path)) and "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["tensors", "document", "tree"])
def test_a_cache_on_a_full_disk_keeps_nothing_of_it(tmp_path, kind):
    def tree(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "f").write_text("x" * 50_000)

    ask = {
        "tensors": lambda: Cache(tmp_path).tensors("z", {}, lambda: {"z": NUMBERS}),
        "document": lambda: Cache(tmp_path).document("z", {}, lambda: {"z": "x" * 50_000}),
        "tree": lambda: Cache(tmp_path).tree("z", {}, tree, lambda folder: "digest"),
    }[kind]
    with no_file_above(3000), pytest.raises(Unwritten, match=str(tmp_path / "z")):
        ask()
    assert not list((tmp_path / "z").iterdir())
    ask()
    assert list((tmp_path / "z").iterdir())


def test_a_lock_that_cannot_be_written_is_nobodys(tmp_path):
    with no_file_above(0), pytest.raises(Unwritten, match=str(tmp_path)), locked(tmp_path / LOCK, "x"):
        raise AssertionError
    assert holder(tmp_path / LOCK) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EDQUOT, "quota"), "Disk quota exceeded"),
        (OSError(errno.EROFS, "x", "file"), "Read-only file system"),
        (Exception("No space left on device (os error 28)"), "No space left on device"),
        (Exception("Error while serializing: I/O error: … (os error 122)"), "Disk quota exceeded"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "to its end"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "to its end"),
        (OSError(errno.ENOENT, "No such file"), None),
        (Exception("Permission denied (os error 13)"), None),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), None),
        (ValueError("28"), None),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_known(error, told):
    found = refusal(error)
    assert found is None if told is None else found.endswith(told)
    later = ValueError("An error occurred while generating the dataset")
    later.__cause__ = error
    assert refusal(later) == found
    with pytest.raises(Unwritten if told else type(error)), writing(Path("/tmp")):
        raise error
    with pytest.raises(Unwritten if told else UserError), writing(Path("/tmp")):
        raise UserError("a broken file; copy it again") from error


def test_room_is_summed_by_disk_and_told_with_flags_and_folders(tmp_path, monkeypatch):
    needs = [Need("-output_dir", tmp_path / "not" / "there", 3 * 10**9), Need("-cache_dir", tmp_path, 2 * 10**9)]
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 5 * 10**9)
    check_room(needs)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 5 * 10**9 - 1)
    with pytest.raises(UserError) as found:
        check_room(needs)
    assert str(found.value) == (
        f"-output_dir, -cache_dir: up to 5 GB will be written to {tmp_path}/not/there and {tmp_path}, where 5 GB are "
        "free; make room, or name a folder on another disk"
    )
    check_room([needs[0]])
    assert not (tmp_path / "not").exists()


def test_a_full_disk_is_told_with_its_flag_and_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 12_345)
    (tmp_path / "link").symlink_to(tmp_path)
    needs = [Need("-output_dir", tmp_path / "link" / "out", 3 * 10**9), Need("-cache_dir", tmp_path / "cache", 7)]
    for place, flag, size in (("out/model", "-output_dir", "3 GB"), ("cache/z", "-cache_dir", "7 bytes")):
        says = rf"^{flag}: \S+ cannot be written \(No space left .*; 12.3 kB are free, up to {size} are needed\); make"
        with pytest.raises(Unwritten, match=says), told(needs):
            raise Unwritten(tmp_path / place, "No space left on device")
    with pytest.raises(Unwritten, match=f"^{tmp_path}/else cannot be written"), told(needs):
        raise Unwritten(tmp_path / "else", "No space left on device")


def test_sizes_are_as_people_read_them():
    assert [as_bytes(n) for n in (0, 999, 340_400, 1_237_000_000)] == ["0 bytes", "999 bytes", "340 kB", "1.24 GB"]


def test_a_folder_that_takes_nothing_is_told_at_once(tmp_path):
    for check in (check_cache, lambda folder: check_writable(folder, "-cache_dir")):
        with no_file_above(0), pytest.raises(UserError, match=f"^-cache_dir: {tmp_path} cannot be written"):
            check(tmp_path)
    with no_file_above(0), pytest.raises(UserError, match=r"^-output_dir: \S+ cannot be written \(File too large\)"):
        Result(tmp_path / "out", "record.json").check(False)
    assert not list(tmp_path.iterdir())


RAISES = "from utils.common.commands import run\ndef main():\n    {}\nrun(main, lighter='-calib_samples')"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError(28, 'No space left on device')", "error: a file cannot be written (No space left on device)"),
        (
            "from utils.common.errors import UserError\n    raise UserError('copy it again') from OSError(28, 'x')",
            "error: a file cannot be written (No space left on device)",
        ),
        ("raise MemoryError", "error: out of memory (MemoryError); lower -calib_samples"),
        ("open('/dev/full', 'w').write('x' * 100_000)", "error: a file cannot be written (No space left on device)"),
    ],
)
def test_a_command_ends_in_one_line_whatever_wrote(code, says):
    done = subprocess.run([sys.executable, "-c", RAISES.format(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith(says) and done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("code", ["print('a line')", "[print('a line') for _ in range(100_000)]"])
def test_output_to_a_full_disk_is_one_line(code):
    command = ["bash", "-c", '"$0" -c "$1" > /dev/full', sys.executable, RAISES.format(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: a file cannot be written (No space left on device)")
