"""Files are whole and anybody's; a disk that takes no more, and memory that runs out, is one line."""

import errno
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import torch
from safetensors.torch import save_file

from utils.common.cache import Cache, Kept
from utils.common.errors import OutOfRoom, UserError, refusal, shortage
from utils.common.files import check_writable, explain_disk_full, whole_file, whole_folder, write_json
from utils.common.run_folder import RunFolder


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


def test_a_result_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    writers = (
        lambda folder: write_json(folder / "f", ["x" * 50_000]),
        lambda folder: save_file({"a": torch.arange(50_000.0)}, folder / "f"),
        lambda folder: shutil.copy(__file__, folder / "f"),
    )
    for write in writers:
        says = rf"^{tmp_path}/kind\S* cannot be written \(File too large; .* are free\); make room, .*$"
        with no_file_above(3000), pytest.raises(OutOfRoom, match=says):
            Kept(Cache(tmp_path), "kind", {}, write).entry()
        assert not list((tmp_path / "kind").iterdir())


def test_what_torch_makes_of_a_full_disk_is_known_by_the_room_that_is_left(tmp_path, monkeypatch):
    full = OutOfRoom, "No space left on device; 999B are free"
    for left, (error, says) in ((999, full), (10**9, (RuntimeError, "unexpected pos"))):
        monkeypatch.setattr("utils.common.files.free_bytes", lambda folder, left=left: left)
        with pytest.raises(error, match=says), explain_disk_full(tmp_path):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def test_a_full_disk_is_known_whatever_a_library_took_it_for(tmp_path):
    for error, says in (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "x", "file"), "Read-only file system"),
        (Exception("Error while serializing: I/O error: … (os error 122)"), "Disk quota exceeded"),
        (OSError(errno.ENOENT, "No such file"), None),
        (Exception("Permission denied (os error 13)"), None),
    ):
        assert refusal(error) == says
        for taken_for in (ValueError("An error occurred while generating the dataset"), UserError("copy it again")):
            with pytest.raises(Exception) as found, explain_disk_full(tmp_path):
                raise taken_for from error
            assert isinstance(found.value, OutOfRoom) if says else found.value is taken_for


def test_a_folder_that_takes_nothing_is_told_at_once(tmp_path):
    with no_file_above(0), pytest.raises(UserError, match=f"^-cache_dir: {tmp_path} cannot be written"):
        check_writable(tmp_path, "-cache_dir")
    with no_file_above(0), pytest.raises(UserError, match=r"^-output_dir: \S+ cannot be written \(File too large\)"):
        RunFolder(tmp_path / "out", {}).__enter__()
    assert not list(tmp_path.iterdir())


def test_memory_that_ran_out_is_known_whatever_a_library_took_it_for():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)  # refused for real
    of_cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")
    taken = UserError("-base_model_name: cannot load it; copy it again")
    taken.__cause__ = MemoryError()
    for error in (real.value, of_cuda, taken, MemoryError()):
        assert "\n" not in shortage(error)
    assert shortage(ValueError("something else")) is None


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
    """safetensors makes its files for their owner alone."""
    (tmp_path / "any").touch()
    (tmp_path / "any-folder").mkdir()
    with whole_folder(tmp_path / "model") as partial:
        (partial / "deep").mkdir()
        save_file({"a": torch.ones(2)}, partial / "deep" / "model.safetensors")
    with whole_file(tmp_path / "a.safetensors") as partial:
        save_file({"a": torch.ones(2)}, partial)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes["a.safetensors"] == modes["model.safetensors"] == modes["any"]
    assert modes["model"] == modes["any-folder"]
