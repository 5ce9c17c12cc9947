"""A result's folder: made beside its place, and renamed once, when all of it stands. Nothing of a user's is deleted."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.common.disk import check_writable, explain_disk_full
from utils.common.errors import OutOfRoom, UserError
from utils.common.files import PARTIAL, first_free, read_json, share_files, take_place, write_json

UNFINISHED = "unfinished.json"
"""In OUT.partial: the arguments of the command that writes there, and whether only the renaming is left. It marks the
folder as this project's own."""


@contextmanager
def locked(file: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock `file` (flock: it ends with the process) while the block runs.

    wait: until another process lets go, else UserError, which begins with `what` is locked.
    """
    lock = FileLock(file)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise UserError(f"{what} is in use by another process; wait for its end, or give another") from None
            print(f"      waiting for another process, which is making {what}", flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(f"{what}: its lock {file} can't be taken ({error.strerror}); remove or rename that") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who waits for it sees that, and takes a new one
        lock.release()


class RunFolder:
    """OUT, which a command fills: it writes to `partial`, OUT.partial, and `finish` gives that its name.

    What has the name OUT by then is renamed to OUT.1 (.2, …), which `overwrite` allows. The same command, told by
    `arguments`, continues an OUT.partial; what else lies there is renamed to OUT.partial.1. Within a `with` block the
    place is this process's alone.

    keep: entries of OUT.partial that a later run continues from; the rest is written again.
    """

    def __init__(self, out: Path, arguments: dict, overwrite: bool = False, keep: tuple[str, ...] = ()):
        self.final = Path(os.path.realpath(out.expanduser()))
        self.partial = self.final.parent / f"{self.final.name}{PARTIAL}"
        self._arguments, self._overwrite, self._keep = arguments, overwrite, keep
        self._what = f"-output_dir: {out}"
        self.whole = False
        """Whether a kill left nothing to do but to give the result its name."""

    def __enter__(self) -> "RunFolder":
        if os.path.lexists(self.final) and not self.final.is_dir():
            raise UserError(f"{self._what} is no folder; give one")
        if not self.final.name or os.path.ismount(self.final):
            raise UserError(f"{self._what} is where a disk begins, and can't be renamed; give a folder in it")
        self._made = [folder for folder in self.final.parents if not folder.exists()]
        check_writable(self.final.parent, "-output_dir", make=True)
        self._held = locked(self.final.parent / f"{self.final.name}.lock", self._what)
        self._held.__enter__()
        try:
            self._check()
            if not self.whole:
                self._begin()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *_) -> None:
        # What a later run can't continue from is of no use to anyone.
        if not self.whole and self._is_ours() and not self._worth_keeping():
            shutil.rmtree(self.partial, ignore_errors=True)
        self._let_go()

    def _let_go(self) -> None:
        self._held.__exit__(None, None, None)
        for folder in self._made:
            if not any(folder.iterdir()):
                folder.rmdir()

    def finish(self) -> None:
        """All is written: give the result its name. Killed within, the same command goes on here."""
        for leftover in list(self.partial.rglob(f".*{PARTIAL}-*")):  # of a process that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        share_files(self.partial)
        with explain_disk_full(self.partial):
            write_json(self.partial / UNFINISHED, {"arguments": self._arguments, "whole": True})
        self.whole = True
        self._check_free()
        for name in self._keep:  # nothing is left to continue
            shutil.rmtree(self.partial / name, ignore_errors=True)
        try:
            earlier = take_place(self.partial, self.final)
        finally:
            (self.final / UNFINISHED).unlink(missing_ok=True)
        if earlier:
            print(f"what was in {self.final} is in {earlier} now")

    def _check(self) -> None:
        """Raise UserError unless a result may come here; learn whether one has only to be renamed."""
        if not os.path.lexists(self.partial):
            return self._check_free()
        if not self._is_ours():
            raise UserError(f"{self._what}: {self.partial} is in the way; rename it, or give another folder")
        record = self._record()
        changed = self._changed(record.get("arguments"))
        self.whole = bool(record.get("whole")) and changed is None
        self._check_free()
        if self.whole:
            return None
        if changed and self._worth_keeping():
            if not self._overwrite:
                raise UserError(
                    f"{changed}; give the flags of the interrupted run in {self.partial} to continue it, or rename "
                    "that folder to begin anew"
                )
            aside = first_free(self.partial)
            self.partial.rename(aside)
            print(f"the interrupted run's folder is {aside} now; this one begins anew")
        return None

    def _check_free(self) -> None:
        if not self._overwrite and self.final.is_dir() and any(self.final.iterdir()):
            more = f" (the new one is whole in {self.partial})" if self.whole else ""
            raise UserError(
                f"{self._what} already holds files{more}; give another folder, or -overwrite, which renames it to "
                f"{first_free(self.final).name} when the new result is whole"
            )

    def _begin(self) -> None:
        try:
            self.partial.mkdir(exist_ok=True)
        except OSError as error:
            raise OutOfRoom(f"{self._what} cannot be written ({error.strerror}); give another folder") from error
        for entry in self.partial.iterdir():
            if entry.name not in self._keep:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        write_json(self.partial / UNFINISHED, {"arguments": self._arguments, "whole": False})

    def _is_ours(self) -> bool:
        """Whether there is a partial folder, no link, that this project marked; an empty one is as good."""
        if self.partial.is_symlink() or not self.partial.is_dir():
            return False
        return (self.partial / UNFINISHED).is_file() or not any(self.partial.iterdir())

    def _record(self) -> dict:
        with suppress(OSError, ValueError):
            if isinstance(found := read_json(self.partial / UNFINISHED), dict):
                return found
        return {}

    def _worth_keeping(self) -> bool:
        return bool(self._record().get("whole")) or any((self.partial / name).exists() for name in self._keep)

    def _changed(self, before: object) -> str | None:
        """The first flag that differs from those of the interrupted run, in words; None if none does."""
        if not isinstance(before, dict):
            return f"{self._what}: {self.partial / UNFINISHED} can't be read"
        now = self._arguments
        changed = [name for name in now if name not in before or now[name] != before[name]]
        return f"-{changed[0]}: {now[changed[0]]} now, {before.get(changed[0])} before" if changed else None


def check_apart(output: Path, inputs: dict[str, Path | str | None]) -> None:
    """Raise UserError if the folder `output` is, holds or lies in an input, by whatever links or spelling.

    inputs: flag → what it names. A text is taken for a path only where there is such a file or folder, since it may be
    a hub id; a Path always. A folder that holds links is what they lead to as well.
    """
    final = Path(os.path.realpath(output.expanduser()))
    for name, value in inputs.items():
        path = None if value is None else Path(value).expanduser()
        if path is None or not (isinstance(value, Path) or path.exists()):
            continue
        links = [entry for entry in path.iterdir() if entry.is_symlink()] if path.is_dir() else []
        for source in (Path(os.path.realpath(each)) for each in (path, *links)):
            within = source in final.parents and not source.is_file()
            if final == source or final in source.parents or within:
                how = "is" if final == source else "lies in" if within else "holds"
                raise UserError(f"-output_dir: {output} {how} what {name} names ({value}); give another folder")
