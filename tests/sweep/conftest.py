"""A sweep of a stand-in for the entry point."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import utils.sweep.__main__ as command
import utils.sweep.loop as loop
from utils.common.commands import run

FORK = multiprocessing.get_context("fork")  # all modules are loaded already

FILE = """
flags: {data_path: SAMPLES, num_train_samples: 20}
seeds: [1, 2]
lr: [1e-3, 1e-2]
configurations:
  - name: ours
  - {name: theirs, method: lora, lora_rank: 2}
"""


@dataclass
class World:
    """Samples, a sweep's file and its output folder."""

    root: Path

    @property
    def file(self) -> Path:
        return self.root / "sweep.yaml"

    @property
    def output(self) -> Path:
        return self.root / "out"

    def write(self, text: str = FILE) -> Path:
        self.file.write_text(text.replace("SAMPLES", str(self.root / "samples.jsonl")))
        return self.file

    def calls(self) -> list[str]:
        """What the entry point was called for, each as `method rate seed how`."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def words(self, *flags: str) -> list[str]:
        return [
            "sweep",
            str(self.file),
            "-output_dir",
            str(self.output),
            "-cache_dir",
            str(self.root / "cache"),
            *flags,
        ]

    def start(self, *flags: str, before: Callable[[], None] = lambda: None) -> multiprocessing.Process:
        """A sweep in a process of its own, which calls `before` first."""

        def main() -> None:
            sys.argv = self.words(*flags)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            before()
            run(command.main)

        process = FORK.Process(target=main, daemon=True)
        process.start()
        return process

    def sweep(self, *flags: str, before: Callable[[], None] = lambda: None) -> int:
        """A sweep's exit status."""
        process = self.start(*flags, before=before)
        process.join()
        return process.exitcode


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    (tmp_path / "samples.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setenv("PYTHONPATH", str(Path(command.__file__).parents[2]))
    monkeypatch.setattr(loop, "ENTRY", Path(__file__).with_name("entry.py"))
    monkeypatch.setattr(loop, "POLL", 0.05)
    made = World(tmp_path)
    made.write()
    return made
