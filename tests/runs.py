"""Tiny runs: the flags of a whole run on the inputs of the fixture `world`, its stages, and the run itself."""

import json
import os
import subprocess
from pathlib import Path

import RestoreLCC_train
from utils.common.flags import parse_arguments
from utils.common.processes import Processes
from utils.evaluation.task_loading import EvalPlan
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run
from utils.stages.measure import measure, probe_trees, prompt_trees
from utils.stages.prepare import prepare
from utils.stages.rank import Ranked, rank

ROOT = Path(RestoreLCC_train.__file__).parent
HEADS = 5


def write_samples(path: Path, rows: list[dict], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding=encoding)
    return path


def flags(world: Path, output: Path, **changes) -> list[str]:
    values = {
        "base_model_name": world / "dense", "pruned_model_path": world / "pruned", "data_path": world / "samples.jsonl",
        "num_train_samples": 30, "num_valid_samples": 8, "num_probe_samples": 20, "use_topk_heads": HEADS,
        "num_epoch": 2, "lr": 1e-2, "eval_tasks": "wikitext2", "eval_data_dir": world / "tasks", "ppl_window": 64,
        "dtype": "float32", "device": "cpu", "output_dir": output, "cache_dir": world / "cache",
    }  # fmt: skip
    return in_words(values | changes)


def in_words(values: dict) -> list[str]:
    """Flags as they are typed; None leaves one out, True makes it a switch."""
    given = {name: [] if value is True else [str(value)] for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in (f"-{name}", *value)]


def prepared(arguments: list[str]) -> tuple[Run, Models, Samples, EvalPlan]:
    """What the stages of such a run are given."""
    args = parse_arguments(arguments)
    run = Run(args, Processes(args.device), args.output_dir, args.device)
    return run, *prepare(run)


def ranked(run: Run, models: Models, samples: Samples, plan: EvalPlan) -> Ranked | None:
    """The stages from the samples to the chosen heads."""
    given, trees = (models, samples, plan), probe_trees(run, models, samples)
    dense = measure(LazyModel(run, "dense", models.dense), *given, trees)
    pruned = measure(LazyModel(run, "pruned", models.pruned), *given, prompt_trees(run, samples))
    return rank(run, models, samples, dense.activations, pruned.activations)


def program(*words: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """What a program says in the end that finds this project, with these environment variables besides the present."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def run(monkeypatch, arguments: list[str], main=RestoreLCC_train.main) -> None:
    monkeypatch.setattr("sys.argv", ["RestoreLCC_train.py", *arguments])
    main()
