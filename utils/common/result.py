"""Results in a user's folders: nothing is replaced that a run didn't write, nor before what replaces it stands."""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from utils.common.disk import check_writable, writing
from utils.common.errors import OutOfRoom, UserError
from utils.common.files import read_json, write_json, write_text
from utils.common.lock import check_free, locked
from utils.common.temporary import remove_abandoned

WRITTEN = "logs/written.json"
"""In a run's folder: names every file that the run wrote there: all that -overwrite removes."""

LOCK = ".restorelcc-lock"
STAGING = ".restorelcc-partial"
"""In an output folder: where a result is written until it is whole. Inside, so that a disk that is mounted there, or a
link that leads there, takes all of it."""

_WHOLE = ".whole"
"""In STAGING: all is written, and what is still there has only to be put in place."""

_REPLACED = ".replaced"
"""In STAGING: what stood where the new result now is."""


def check_apart(output: Path, inputs: dict[str, Path | str | None], flag: str = "-output_dir") -> None:
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
                raise UserError(f"{flag}: {output} {how} what {name} names ({value}); give another folder")


class Result:
    """What a command writes to `final`, where other files and an earlier result may lie.

    It writes to `folder`, inside the final one, and `finish` exchanges that for the earlier result: each entry takes
    the place of what the earlier one's record names, and the rest of what that names goes. What no record names stays.

    record: the JSON object in the result, by its path in it, that gets the list "files" of all that belongs to it.
    resumable: a file that makes an unfinished result worth keeping for a later run to continue; None if none does.
    """

    def __init__(self, final: Path, record: str, resumable: str | None = None, flag: str = "-output_dir"):
        self.final, self.record, self.resumable = final, record, resumable
        self._flag, self._what = flag, f"{flag}: {final}"
        self._place = Path(os.path.realpath(final.expanduser()))
        self.folder = self._place / STAGING
        self._kept = False
        self.continues = False
        """Whether this command goes on with the unfinished result; its user decides."""
        self.done = False
        """Whether the result that this command would make was whole, but for its place; its user decides."""

    @property
    def interrupted(self) -> bool:
        """Whether there is an unfinished result to continue."""
        return self.resumable is not None and (self.folder / self.resumable).is_file()

    def check(self, overwrite: bool, names: Collection[str] = ()) -> None:
        """Raise UserError unless a new result may be written here.

        A whole result that a kill kept from its place is put there first. names: what the command may write at the top
        of the folder, as far as it knows; with `overwrite`, none of it may be there without the record saying so.
        """
        self.complete()
        check_writable(self._place, self._flag)
        held = self._held()
        if held and not overwrite:
            raise UserError(
                f"{self._what} already holds files; give another folder, or -overwrite to replace an earlier result"
            )
        owned = written(self._place, self.record)
        if held and not owned and not self.interrupted:
            raise UserError(
                f"{self._what} holds files that are no result of this project (there is no {self.record} that names "
                "them), which -overwrite won't replace; give another folder"
            )
        for name in sorted(held.intersection(names)):
            files = set(_paths(self._place, name))
            if files and not files & owned:
                raise UserError(
                    f"{self._what}: {name} in it was not written by the run that {self.record} tells of, and "
                    "-overwrite won't replace it; move it, or give another folder"
                )

    def complete(self) -> bool:
        """Put a whole result in place that a kill kept from it; UserError if another process is at work here.

        Returns whether there was one.
        """
        if self._place.exists() and not self._place.is_dir():
            raise UserError(f"{self._what} is a file; give a folder")
        if self._place.is_dir():
            check_free(self._place / LOCK, self._what)
        whole = (self.folder / _WHOLE).is_file()
        if whole:
            with locked(self._place / LOCK, self._what):
                self._exchange()
        return whole

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block the output folder is this process's; UserError if it is another's, or can't be written.

        An unfinished result is kept only if it can be continued; folders made for it go with it.
        """
        made = [folder for folder in (self._place, *self._place.parents) if not folder.exists()]
        check_writable(self._place, self._flag)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutOfRoom(f"{self._what} cannot be written ({error.strerror}); give another folder") from error
        try:
            with locked(self._place / LOCK, self._what):
                remove_abandoned(self._place)
                try:
                    if not self.interrupted:
                        self.clear()
                    yield
                finally:
                    if not (self.interrupted or self._kept):
                        shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def clear(self) -> None:
        """Begin anew: what an interrupted run left is dropped."""
        for folder in (self.folder, *self._leftovers()):
            shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir()

    def finish(self) -> None:
        """Write the record, and put the result in the place of the earlier one.

        Raises UserError, and keeps the result where it is, if a file that no record names stands in its way.
        """
        for leftover in list(self.folder.rglob(".*.partial-*")):  # of a process that was killed
            shutil.rmtree(leftover) if _is_folder(leftover) else leftover.unlink()
        new = {*_files(self.folder), self.record}
        file = self.folder / self.record
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        write_json(file, {**content, "files": sorted(new)})
        if taken := self._in_the_way(new):
            self._kept = True
            raise UserError(
                f"{self._what}: {taken} in it came from elsewhere, and the result has a file of that name; the result "
                f"is whole in {self.folder}: move it from there"
            )
        write_text(self.folder / _WHOLE, "")
        self._exchange()

    def _held(self) -> set[str]:
        entries = self._place.iterdir() if self._place.is_dir() else ()
        names = {entry.name for entry in entries if not entry.name.startswith(LOCK)}
        return names - {STAGING} - {folder.name for folder in self._leftovers()}

    def _leftovers(self) -> list[Path]:
        """What `whole_folder(self.folder)` leaves of a process that is killed."""
        return list(self._place.glob(f".{STAGING}.partial-*"))

    def _in_the_way(self, new: set[str]) -> str | None:
        """A file of the user's that has the name of a new one, is a folder to it, or lies in what is now a file."""
        owned = written(self._place, self.record)
        folders = {str(parent) for path in new for parent in PurePosixPath(path).parents}
        for name in sorted({PurePosixPath(path).parts[0] for path in new}):
            for path in _paths(self._place, name):
                inside = any(str(parent) in new for parent in PurePosixPath(path).parents)
                if path not in owned and (path in new or path in folders or inside):
                    return path
        return None

    def _exchange(self) -> None:
        """Put what is staged in place. Killed anywhere, it can be called again: the record comes last."""
        last = PurePosixPath(self.record).parts[0]
        names = sorted({entry.name for entry in self.folder.iterdir()} - {_WHOLE, _REPLACED})
        if last in names:
            owned, new = written(self._place, self.record), written(self.folder, self.record)
            with writing(self._place):
                for name in names:
                    if name != last:
                        self._put(name, owned)
                for path in owned - new:
                    if PurePosixPath(path).parts[0] != last:
                        self._remove(path)
                self._put(last, owned)
        shutil.rmtree(self.folder)

    def _put(self, name: str, owned: set[str]) -> None:
        """Exchange one entry; what the earlier one held and its record does not name goes over to the new one."""
        target, source = self._place / name, self.folder / name
        if _is_folder(target):
            for path in _files(target):
                if f"{name}/{path}" not in owned and not os.path.lexists(source / path):
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    _link(target / path, source / path)
        if os.path.lexists(target):
            (self.folder / _REPLACED).mkdir(exist_ok=True)
            target.rename(self.folder / _REPLACED / name)
        source.rename(target)

    def _remove(self, path: str) -> None:
        """Remove a file of the earlier result, and the folders that are empty then."""
        file = self._place / path
        if path not in _paths(self._place, PurePosixPath(path).parts[0]):
            return  # it is gone, or lies behind a link that the user made
        file.unlink()
        for folder in file.parents:
            if folder == self._place or any(folder.iterdir()):
                break
            folder.rmdir()


def written(folder: Path, record: str) -> set[str]:
    """The files of the result in `folder` as its record names them, relative and with "/"; empty without a record."""
    try:
        names = read_json(folder / record)["files"]
        return {name for name in names if isinstance(name, str) and _inside(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _files(folder: Path) -> list[str]:
    """Every file and link below `folder`, relative and with "/"; links are not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return found


def _paths(folder: Path, name: str) -> list[str]:
    """What `_files` finds of one entry of `folder`, relative to `folder`."""
    if _is_folder(folder / name):
        return [f"{name}/{path}" for path in _files(folder / name)]
    return [name] if os.path.lexists(folder / name) else []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(source: Path, target: Path) -> None:
    """The same file at a second place, so that at no moment it is at none; a copy where the disk has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)
