"""A result's folder: made beside its place, and renamed once, when all of it stands. Nothing of a user's is deleted."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.common.errors import DAMAGED, UserError, explain
from utils.common.files import PARTIAL, check_writable, explain_disk_full, first_free, read_json, take_place, write_json

RESUMED = ("checkpoints", "lofit")  # entries of OUT.partial that a run of RestoreLCC_train.py resumes from
UNFINISHED = "unfinished.json"  # marks OUT.partial as ours, with the command's arguments


@contextmanager
def locked(file: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock `file` on `what`; UserError, or `wait`, if another process has it. It ends with the process."""
    # Our lock files are empty, or begin with a process ID where the file system has no flock.
    with suppress(OSError):  # there is none, its holder removes it just now, or locking it says why
        if (kept := file.read_bytes()[:99]) and not kept.split(b"\n")[0].isdigit():
            raise UserError(f"{what}: its lock file would be {file}, which holds other data; rename that file")
    lock = FileLock(file)
    with explain(f"{what}: cannot lock {file}", "remove or rename that file", OSError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wait:
                raise UserError(f"{what} is in use by another process; wait for its end, or give another") from None
            print(f"      waiting for another process, which is making {what}", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # before it is released: a waiting process sees that, and locks a new file
        lock.release()


class RunFolder:
    """The folder OUT of a command, which writes to `partial`, OUT.partial; `finish` renames that to OUT.

    A folder OUT that is there by then is renamed to OUT.1 (.2, …). One that holds files from the start is refused
    unless `overwrite` is set. A command with the same `arguments` continues an OUT.partial. A `with` block locks the
    folder for this process.

    keep: entries of OUT.partial that a later run resumes from.
    """

    def __init__(self, out: Path, arguments: dict, overwrite: bool = False, keep: tuple[str, ...] = ()):
        self.final = Path(os.path.realpath(os.path.expanduser(out)))
        self.partial = self.final.parent / f"{self.final.name}{PARTIAL}"
        self._arguments, self._overwrite, self._keep = arguments, overwrite, keep
        self._whole = False
        self._what = f"-output_dir: {out}"

    def __enter__(self) -> "RunFolder":
        if os.path.lexists(self.final) and not self.final.is_dir():
            raise UserError(f"{self._what} is not a folder; give one")
        ours = Path(__file__).resolve().is_relative_to(self.final) or (self.final / "__init__.py").exists()
        if ours or os.path.ismount(self.final) or Path.cwd().is_relative_to(self.final):
            raise UserError(f"{self._what} is a mount point, or holds the current folder or code; give another folder")
        check_writable(self.final.parent, "-output_dir")
        with ExitStack() as leaving:
            leaving.enter_context(locked(self.final.parent / f"{self.final.name}.lock", self._what))
            self._begin()
            self._leaving = leaving.pop_all()
        return self

    def __exit__(self, *_) -> None:
        if not self._whole and not self._holds(self._keep):  # of no use to anyone
            shutil.rmtree(self.partial, ignore_errors=True)
        self._leaving.close()

    def finish(self) -> None:
        """Rename the complete result to its final name."""
        self._whole = True
        with explain(f"{self._what}: the result is complete, but still in {self.partial}", "rename that", OSError):
            earlier = take_place(self.partial, self.final)
        (self.final / UNFINISHED).unlink(missing_ok=True)
        for name in self._keep:  # only now: until the rename, a killed run is resumed from them
            shutil.rmtree(self.final / name, ignore_errors=True)
        if earlier:
            print(f"the earlier {self.final} is now {earlier}")

    def _begin(self) -> None:
        """Make OUT.partial, or keep only what a resumed run needs of it; UserError if no result may be written here."""
        before, mark = {}, self.partial / UNFINISHED
        if os.path.lexists(self.partial):
            ours = self.partial.is_dir() and not self.partial.is_symlink()
            if not ours or (any(self.partial.iterdir()) and not mark.is_file()):
                raise UserError(f"{self._what}: {self.partial} already exists; rename it, or give another folder")
            with suppress(*DAMAGED):  # with a damaged mark all flags differ
                before = dict(read_json(mark)["arguments"])
            now = self._arguments
            if not self._keep and self._holds(RESUMED):
                said = "is an interrupted run that can be resumed; rename it, or give another folder"
                raise UserError(f"{self._what}: {self.partial} {said}")
            changed = [name for name in now if name not in before or before[name] != now[name]]
            if changed and self._holds(self._keep):
                raise UserError(
                    f"-{changed[0]}: is {now[changed[0]]}, but was {before.get(changed[0])} in the interrupted run "
                    f"{self.partial}; give that run's flags to resume it, or rename its folder to start over"
                )
        if not self._overwrite and self.final.is_dir() and any(self.final.iterdir()):
            raise UserError(
                f"{self._what} already holds files; give another folder, or -overwrite, which renames it to "
                f"{first_free(self.final).name} when the new result is whole"
            )
        with explain_disk_full(self.final.parent):
            self.partial.mkdir(exist_ok=True)
            for entry in self.partial.iterdir():
                if entry.name not in (*self._keep, UNFINISHED):  # without the mark the run could not be resumed
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            write_json(mark, {"arguments": self._arguments})

    def _holds(self, names: tuple[str, ...]) -> bool:
        # The Trainer makes the folder before there is anything in it.
        return any(any((self.partial / name).glob("*")) for name in names)


def check_apart(args: object, inputs: Iterable[str]) -> None:
    """Raise UserError if -output_dir is, holds or lies in an input, or the target of a link in an input folder.

    inputs: names of flags, whose values are paths, texts or None. A text that is no existing file or folder is taken
    for a hub id, and passes.
    """
    output = args.output_dir
    final = Path(os.path.realpath(os.path.expanduser(output)))
    for name in inputs:
        value = getattr(args, name)
        if value is None or not (isinstance(value, Path) or os.path.exists(value)):
            continue
        path = Path(value)
        links = [entry for entry in path.iterdir() if entry.is_symlink()] if path.is_dir() else []
        for source in (Path(os.path.realpath(each)) for each in (path, *links)):
            within = source in final.parents and not source.is_file()
            if final == source or final in source.parents or within:
                how = "is" if final == source else "lies in" if within else "holds"
                raise UserError(f"-output_dir: {output} {how} what -{name} names ({value}); give another folder")
