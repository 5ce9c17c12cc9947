"""One run after the other until all are done: each claimed, run in a process of its own, and recorded."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean

from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.flags import parse_arguments
from utils.common.lock import holder, locked
from utils.common.result import LOCK, STAGING, Result
from utils.stages.begin import INTERRUPTED, NOT_RESUMED, WRITTEN
from utils.sweep.runs import DONE, FAILED, ROOT, Command, Ledger, Row, best_rate, code_digest, read_json, valid_loss

ENTRY = ROOT / "RestoreLCC_train.py"
CHILD = Path(__file__).with_name("child.py")

BULKY = ("model", "compact", "restoration")
"""Of a run's result, what no table needs."""

POLL = 1.0
"""Seconds between two looks at a run that is another process's."""

PATIENCE = 30
"""Seconds that a run has to end by itself once it was told to."""

LAST_LINES = 20
"""Of what a failed run printed, how many are kept with its failure."""


class Loop:
    """The runs that the rows of a sweep need, as `work` does them.

    keep: whether the runs' models stay. changed: called after each run that ended.
    """

    def __init__(
        self,
        rows: list[Row],
        commands: dict[str, Command],
        ledger: Ledger,
        cache: Path,
        keep: bool,
        changed: Callable[[], None],
    ):
        self.rows, self.commands, self.ledger = rows, commands, ledger
        self.cache, self.keep, self.changed = cache, keep, changed
        self.took: list[tuple[Command, float]] = []
        """Each run done here, and its seconds."""

    def work(self) -> list[Command]:
        """Do all that is needed and not done; returns the runs that failed, now or before.

        A run that another sweep on this folder is at is left to it, and waited for when nothing else is left to do.
        """
        for command in self.commands.values():
            if self.ledger.done(command):
                self._trim(command)
        while pending := self.pending():
            if not any(self._claimed(command) for command in pending):
                time.sleep(POLL)
        return [command for command in self.needed() if self.ledger.failed(command)]

    def pending(self) -> list[Command]:
        """What is known to be needed, and neither done nor failed."""
        return [each for each in self.needed() if not self._settled(each)]

    def needed(self) -> list[Command]:
        """All runs known to be needed by now, in the order of the rows: those of a chosen rate once it is chosen."""
        found: dict[str, Command] = {}
        for row in self.rows:
            members = [*row.searches, *(row.at(self.rate(row)) if self._searched(row) else [])]
            found.update({each.id: self.commands[each.id] for each in members})
        return list(found.values())

    def rate(self, row: Row) -> float | None:
        """The row's rate, as far as its searches are done."""
        done = [each.id for each in row.searches if self.ledger.done(self.commands[each.id])]
        return best_rate(row, {each: valid_loss(self.ledger.output / each) for each in done})

    def expected(self) -> list[Command]:
        """All runs there will be: `needed`, with those of some rate where it isn't chosen yet."""
        found: dict[str, Command] = {}
        for row in self.rows:
            rate = self.rate(row) if self._searched(row) else row.finals[0].rate
            found.update({each.id: self.commands[each.id] for each in (*row.searches, *row.at(rate))})
        return list(found.values())

    def left(self) -> list[Command]:
        """Those of `expected` that are neither done nor failed."""
        return [each for each in self.expected() if not self._settled(each)]

    def _searched(self, row: Row) -> bool:
        """Whether every rate was tried: one that a kill took out of the search must not cost a method its best rate."""
        return all(self.ledger.tried(self.commands[each.id]) for each in row.searches)

    def _settled(self, command: Command) -> bool:
        return self.ledger.done(command) or self.ledger.failed(command)

    def _claimed(self, command: Command) -> bool:
        """Whether the run was this process's to do; then it has ended, one way or the other."""
        lock = self.ledger.output / f".{command.id}.lock"
        if holder(lock):
            return False
        with _claim(lock) as mine:
            if mine and not self._settled(command):
                self._run(command)
            return mine

    def _run(self, command: Command) -> None:
        total = len(self.expected())
        print(f"[{total - len(self.left()) + 1}/{total}] {command.title}{' (search)' * command.search}", flush=True)
        folder, log = self.ledger.output / command.id, self.ledger.output / f"{command.id}.log"
        _wait_until_free(folder)
        began, now = time.time(), {"versions": self.ledger.versions, "code": code_digest()}
        begun = self.ledger.output / f".{command.id}.begun.json"
        same = read_json(begun) == now
        resumes = same and _can_be_continued(command, folder)
        write_json(begun, now)
        # What stands there is of another code, or of a run that failed: from here on it is neither.
        (folder / DONE).unlink(missing_ok=True)
        (folder / FAILED).unlink(missing_ok=True)
        words = [*command.words, "-output_dir", str(folder), "-cache_dir", str(self.cache)]
        words += ["-overwrite", "-resume", "auto" if resumes else "never"]
        if same and _completed(folder):
            status = 0
        else:
            child = [sys.executable, str(CHILD), str(os.getpid()), str(ENTRY), *words]
            status = _call(child, log, "a" if resumes else "w")
        seconds = round(time.time() - began, 1)
        record = {"title": command.title, "arguments": command.arguments, **now, "seconds": seconds}
        self.ledger.here.add(command.id)
        if status == 0 and (folder / "results.json").is_file():
            write_json(folder / DONE, record)
            self._trim(command)
            outcome = "done"
        else:
            if resumes:  # what it went on from may be why: the next try begins anew
                shutil.rmtree(folder / STAGING, ignore_errors=True)
            write_json(folder / FAILED, {**record, "exit_status": status, "output": _last_lines(log)})
            outcome = f"FAILED with exit status {status}, see {log}"
        begun.unlink()
        self.took.append((command, seconds))
        print(f"      {_minutes(seconds)}, {outcome}{self._rest()}", flush=True)
        self.changed()

    def _rest(self) -> str:
        """What is left to do, and how long that may take by what was done here."""
        left = self.left()
        if not left:
            return ""
        every = [seconds for _, seconds in self.took]
        alike = {kind: [took for each, took in self.took if each.search == kind] or every for kind in (True, False)}
        expected = sum(mean(alike[each.search]) for each in left)
        return f"; {len(left)} left, about {_minutes(expected)}"

    def _trim(self, command: Command) -> None:
        if not self.keep:
            for name in BULKY:
                shutil.rmtree(self.ledger.output / command.id / name, ignore_errors=True)


@contextmanager
def _claim(lock: Path) -> Iterator[bool]:
    """Within the block, whether `lock` is this process's; False if another one was faster."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, str(lock)))
        except UserError:
            yield False
            return
        yield True


def _wait_until_free(folder: Path) -> None:
    """Until what an earlier sweep had begun there has ended: it ends when it sees that the sweep is gone."""
    told = False
    while folder.is_dir() and (named := holder(folder / LOCK)):
        if not told:
            print(f"      waiting for {named}, which is at work in {folder}", flush=True)
            told = True
        time.sleep(POLL)


def _can_be_continued(command: Command, folder: Path) -> bool:
    """Whether there is an interrupted training with the same flags; paths must be the same too."""
    before = read_json(folder / STAGING / INTERRUPTED)
    now = parse_arguments(command.words).as_json()
    return before is not None and all(before.get(name) == now[name] for name in now if name not in NOT_RESUMED)


def _completed(folder: Path) -> bool:
    """Whether all there was left to do was to put a whole result in its place; then it is there now."""
    result = Result(folder, WRITTEN, INTERRUPTED)
    interrupted = result.interrupted
    result.complete()
    return interrupted and not result.interrupted and (folder / "results.json").is_file()


def _call(words: list[str], log: Path, mode: str) -> int:
    """Run a command to its end, its output to `log`; its exit status. It is told to stop when this process is."""
    with log.open(mode, encoding="utf-8") as output:
        environment = {"TQDM_MININTERVAL": "30", **os.environ}  # a log needs no bar that moves
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is this process's, which hands it on
        )
        try:
            return child.wait()
        except BaseException as stop:
            child.send_signal(signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


def _last_lines(log: Path) -> list[str]:
    # Of a bar, what it showed last.
    lines = [
        line.rstrip().rsplit("\r", 1)[-1] for line in log.read_text(encoding="utf-8", errors="replace").split("\n")
    ]
    return [line for line in lines if line.strip()][-LAST_LINES:]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
