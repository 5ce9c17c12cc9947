"""A sweep of a stand-in for the entry point."""

import multiprocessing
import signal
import sys
from pathlib import Path

import pytest

import utils.sweep.__main__ as command
from tests.builders import write_files
from utils.common.commands import run
from utils.sweep.grid import SweepRow, read_sweep

FILE = """
flags: {base_model_name: ROOT/model, data_path: ROOT/samples.jsonl, num_train_samples: 20, eval_tasks: none}
seeds: [1, 2]
lr: [1e-3, 1e-2]
configurations:
  - name: ours
  - {name: theirs, method: lora, lora_rank: 2}
"""


class World:
    """Samples, a sweep's file and its output folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.file, self.output = root, root / "sweep.yaml", root / "out"
        row = '{"instruction": "a", "output": "b"}\n'
        write_files(root, {"samples.jsonl": row, "model/config.json": "{}", "calls": ""})
        self.write(FILE)

    def write(self, text: str) -> None:
        self.file.write_text(text.replace("ROOT", str(self.root)))

    def rows(self, text: str) -> list[SweepRow]:
        """What a file of this text comes to."""
        self.write(text)
        return read_sweep(self.file)

    def calls(self) -> list[str]:
        """What the entry point was called for, each as `method rate seed`."""
        return (self.root / "calls").read_text().splitlines()

    def text(self) -> str:
        return (self.output / "table.md").read_text()

    def table(self) -> list[list[str]]:
        lines = self.text().split("\n\n")[1].splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]

    def start(self, *flags: str) -> multiprocessing.Process:
        """A sweep in a process of its own."""

        def main() -> None:
            words = [self.file, "-output_dir", self.output, "-cache_dir", self.root / "cache", *flags]
            sys.argv = ["", *map(str, words)]
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            run(command.main)

        process = multiprocessing.get_context("fork").Process(target=main, daemon=True)  # modules are loaded already
        process.start()
        return process

    def sweep(self, *flags: str) -> int:
        """A sweep's exit status."""
        process = self.start(*flags)
        process.join()
        return process.exitcode


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setenv("PYTHONPATH", str(command.ENTRY.parent))
    monkeypatch.setattr(command, "ENTRY", Path(__file__).with_name("entry.py"))
    return World(tmp_path)
