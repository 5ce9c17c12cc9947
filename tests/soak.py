"""Whole runs of a tiny model, killed at random moments: python -m tests.soak -runs 50 -seed 0. Not collected by pytest.

Every run is killed one to three times, by SIGTERM or SIGKILL, then the same command is left to end. It has to end with
the bits of a run that nobody disturbed, and with no file more in its output, its cache or among temporary files; a
process that is told to end has to say so in one line. A table shows where the kills hit. Status 1 if anything differs.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch
from transformers import BertConfig, BertModel

import RestoreLCC_train
import utils.report.charts
import utils.stages.measure
import utils.stages.merge
import utils.stages.prepare
import utils.stages.results
import utils.stages.room
import utils.stages.train  # noqa: F401 - all that a run imports, once for all of its processes
from tests.builders import byte_tokenizer, save_tiny_llama
from utils.common.commands import Parser, run
from utils.common.disk import as_bytes
from utils.common.errors import UserError
from utils.common.files import digest_files
from utils.common.flags import at_least
from utils.common.record import STAGES

PLACES = ("before the stages", *(stage.name for stage in STAGES), "results, report, exchange")
"""Where a kill can hit, in the order of a run."""

_STAGE, _DONE = re.compile(r"\[(\d+)/\d+\] "), re.compile(r"\s+[\d.]+ s, peak memory ")

COMPARED = ("results.json", "model", "restoration/restoration.safetensors", "logs/history.jsonl", "logs/rows.json.gz")
"""In the output folder: what the same command gives again, bit by bit. The rest tells of seconds and of days."""


@dataclass
class Ended:
    """A process of a run: its exit status as waitpid tells, what it printed, and where it was at last.

    peak: bytes of memory. moments: seconds from its start to each of PLACES that it came to.
    """

    status: int
    stderr: str
    place: int
    peak: int
    moments: list[float]


@dataclass
class Tally:
    """What was seen. hits: (place, signal) → how often."""

    hits: Counter = field(default_factory=Counter)
    too_late: int = 0
    faults: list[str] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class World:
    """Inputs, and folders for output, cache and temporary files. All processes of runs are forked from this one."""

    def __init__(self, folder: Path):
        self.folder = folder
        save_tiny_llama(folder / "dense")
        torch.manual_seed(0)
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder / "encoder")
        byte_tokenizer().save_pretrained(folder / "encoder")
        rows = [{"instruction": f"Count to {n}.", "output": f"{n} is {n * n % 97}"} for n in range(40)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "text.txt").write_text("".join(f"Sentence {n} of a text. " for n in range(90)), encoding="utf-8")
        for name in ("out", "cache", "tmp"):
            (folder / name).mkdir()

    def words(self) -> list[str]:
        """The command, the same each time."""
        flags = {
            "base_model_name": "dense", "sentence_encoder": "encoder", "data_path": "samples.jsonl",
            "calib_data": "text.txt", "output_dir": "out", "cache_dir": "cache",
        }  # fmt: skip
        flags = {name: self.folder / value for name, value in flags.items()} | {
            "calib_samples": 4, "calib_length": 64, "num_train_samples": 30, "num_valid_samples": 8,
            "num_probe_samples": 20, "use_topk_heads": 5, "num_epoch": 2, "lr": 1e-2, "dtype": "float32",
            "device": "cpu", "eval_tasks": "bundled_facts", "eval_limit": 4,
        }  # fmt: skip
        return [*(word for name, value in flags.items() for word in (f"-{name}", str(value))), "-overwrite"]

    def process(self, number: int = 0, place: int = 0, delay: float = 0.0) -> Ended:
        """Run the command in a process of its own; send it a signal `delay` seconds after it came to a place."""
        sys.stdout.flush()
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as errors:
            began = time.perf_counter()
            pid = os.fork()
            if not pid:
                self._child(writing, errors.fileno())
            os.close(writing)
            here, moments, reached = 0, [0.0], threading.Event()
            if number and not place:
                reached.set()

            def kill() -> None:
                reached.wait()
                time.sleep(delay)
                with contextlib.suppress(ProcessLookupError):  # it has ended, and was waited for below
                    os.kill(pid, number)

            killer = threading.Thread(target=kill, daemon=True)
            if number:
                killer.start()
            with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if (found := _STAGE.match(line)) or (here == len(STAGES) and _DONE.match(line)):
                        here = int(found[1]) if found else len(STAGES) + 1
                        moments.append(time.perf_counter() - began)
                        if here == place:
                            reached.set()
            reached.set()
            if number:
                killer.join()  # before the process is waited for, so that its number is nobody else's
            _, status, usage = os.wait4(pid, 0)
            moments.append(time.perf_counter() - began)
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        return Ended(status, text, here, usage.ru_maxrss * 1024, moments)

    def _child(self, stdout: int, stderr: int) -> None:
        status = 1
        try:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.environ["TMPDIR"] = str(self.folder / "tmp")
            tempfile.tempdir = None
            sys.argv = ["RestoreLCC_train.py", *self.words()]
            run(RestoreLCC_train.main, then="the same command goes on from here")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def result(self) -> dict[str, str]:
        """Digests of COMPARED."""
        found = {}
        for name in COMPARED:
            path = self.folder / "out" / name
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.suffix != ".md":
                    found[str(file.relative_to(self.folder))] = digest_files([file])
        return found

    def files(self) -> dict[str, int]:
        """Bytes of every file in the three folders, and the empty folders."""
        found = {}
        for name in ("out", "cache", "tmp"):
            for path in (self.folder / name).rglob("*"):
                if path.is_file() or not any(path.iterdir()):
                    found[str(path.relative_to(self.folder))] = path.stat().st_size
        return found

    def empty(self) -> None:
        """A cold cache; the output stays, and is replaced."""
        shutil.rmtree(self.folder / "cache")
        (self.folder / "cache").mkdir()


def kills(draw: random.Random, moments: list[float]) -> Iterator[tuple[int, int, float]]:
    """(signal, place, seconds after it came there) without end: each place in turn, at any moment in it."""
    while True:
        order = list(range(len(PLACES)))
        draw.shuffle(order)
        for place in order:
            lasts = moments[place + 1] - moments[place]
            yield draw.choice((signal.SIGTERM, signal.SIGKILL)), place, draw.uniform(0, lasts)


def one_run(world: World, draws: Iterator[tuple[int, int, float]], times: int, tally: Tally) -> None:
    """Kill the command that many times, then let it end; what is wrong goes to the tally."""
    for _ in range(times):
        number, place, delay = next(draws)
        ended = world.process(number, place, delay)
        if os.WIFEXITED(ended.status) and os.WEXITSTATUS(ended.status) == 0:
            tally.too_late += 1
            break
        tally.hits[ended.place, number] += 1
        said = [line for line in ended.stderr.splitlines() if line.startswith(("stopped", "error"))]
        if number == signal.SIGTERM:
            in_order = os.WIFEXITED(ended.status) and os.WEXITSTATUS(ended.status) == 128 + number and len(said) == 1
        else:
            in_order = os.WIFSIGNALED(ended.status) and os.WTERMSIG(ended.status) == number
        if not in_order or "Traceback" in ended.stderr:
            name = signal.Signals(number).name
            tally.faults.append(f"{name} in '{PLACES[ended.place]}': status {ended.status}\n{ended.stderr[-3000:]}")
    else:
        ended = world.process()
    if ended.status:
        tally.faults.append(f"did not end well: status {ended.status}\n{ended.stderr[-3000:]}")
    tally.memory.append(ended.peak)


def compare(wanted: dict, found: dict, what: str, tally: Tally) -> None:
    """Tell what is missing, new or another."""
    if wanted != found:
        names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        tally.faults.append(f"{what}: {', '.join(sorted(names)[:8])}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.flag("runs", type=at_least(1), default=50, metavar="N", help="of the whole command")
    parser.flag("seed", type=at_least(0), default=0, metavar="N", help="of places, moments and signals")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    draw, tally, began = random.Random(args.seed), Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        world = World(Path(place))
        first = world.process()
        if first.status or len(first.moments) != len(PLACES) + 1:
            raise UserError(f"the undisturbed run failed: {first.stderr[-2000:]}")
        result, files = world.result(), world.files()
        print(
            f"undisturbed: {first.moments[-1]:.0f} s, {len(files)} files, {as_bytes(sum(files.values()))}", flush=True
        )
        draws = kills(draw, first.moments)
        for number in range(args.runs):
            cold = draw.random() < 0.75
            if cold:
                world.empty()
            one_run(world, draws, draw.choice((1, 2, 3)), tally)
            compare(result, world.result(), f"run {number + 1} ended with other bits", tally)
            compare(dict.fromkeys(files), dict.fromkeys(world.files()), f"run {number + 1} left other files", tally)
            tally.disk.append(sum(world.files().values()))
            print(f"{number + 1}/{args.runs}: {tally.hits.total()} kills, {len(tally.faults)} faults", flush=True)
    for fault in tally.faults:
        print(fault, file=sys.stderr)
    print(f"\n{table(tally)}\n{time.perf_counter() - began:.0f} s, seed {args.seed}")
    sys.exit(1 if tally.faults else 0)


def table(tally: Tally) -> str:
    """Where the kills hit, and what was seen beside."""
    columns = (signal.SIGTERM, signal.SIGKILL)
    lines = [f"{'where':<44} {'SIGTERM':>8} {'SIGKILL':>8}"]
    for place, name in enumerate(PLACES):
        lines.append(f"{name:<44} " + " ".join(f"{tally.hits[place, number]:>8}" for number in columns))
    lines.append(f"{'all':<44} " + " ".join(f"{sum(tally.hits[p, n] for p in range(len(PLACES))):>8}" for n in columns))
    disk, memory = ([as_bytes(each) for each in (kept[0], kept[-1])] for kept in (tally.disk, tally.memory))
    lines.append(f"{len(tally.disk)} runs; too late for a kill: {tally.too_late}; faults: {len(tally.faults)}")
    lines.append(
        f"on disk after the first run {disk[0]}, after the last {disk[1]}; peak memory {memory[0]}, {memory[1]}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
