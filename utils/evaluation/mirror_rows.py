"""Copied into every mirror: how its YAML files find their rows, wherever the mirror lies."""

import json
from pathlib import Path

import datasets

MIRROR = Path(__file__).resolve().parents[1]


def load(files: dict[str, str], **_metadata: object) -> dict[str, datasets.Dataset]:
    """Split -> rows. files: split -> jsonl file, relative to the mirror."""
    splits = {}
    for split, file in files.items():
        # Not splitlines(): rows may hold other line separators of Unicode.
        lines = (MIRROR / file).read_text(encoding="utf-8").split("\n")
        splits[split] = datasets.Dataset.from_list([json.loads(line) for line in lines if line.strip()])
    return splits
