"""Stands in for RestoreLCC_train.py: the same flags, files and folder, and numbers made up from the flags.

It notes each call in `calls` beside the samples that -data_path names. Files there tell it what to do: `fail` holds the
name of a method that fails, `hang` makes it wait in the middle of its training.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from utils.common.lock import locked
from utils.common.result import LOCK, STAGING

from utils.common.files import write_json
from utils.common.flags import parse_arguments

TASKS = ("one", "two")


def questions(args, model: str, task: str) -> list[float]:
    """0 or 1 for each of twelve questions; more 1 the better the model."""
    pushed = {"dense": 9, "pruned": 4}.get(model, 5 + args.train_seed % 3 + (args.method == "lora"))
    return [float((question * 7 + len(task)) % 12 < pushed) for question in range(12)]


def kept(values: list, aggregation: str, higher: bool) -> dict:
    return {"values": values, "aggregation": aggregation, "higher_is_better": higher, "sha256": "asked"}


def write_result(folder: Path, args) -> None:
    import gzip

    models, rows = ("dense", "pruned", "restored"), {}
    for model in models:
        tasks = {task: {"acc": kept(questions(args, model, task), "mean", True)} for task in TASKS}
        rows[model] = {**tasks, "text": {"token_perplexity": kept([1.0, 2.0, 1.5], "exp_mean", False)}}
    scores = {
        model: {
            **{task: {"acc": {"value": sum(questions(args, model, task)) / 12}} for task in TASKS},
            "text": {"token_perplexity": {"value": 4.5}},
        }
        for model in models
    }
    main = {**dict.fromkeys(TASKS, "acc"), "text": "token_perplexity"}
    found = {"scores": scores, "main_metric": main, "mean": {"tasks": list(TASKS), "recovered": 0.25}}
    write_json(folder / "results.json", {**found, "proof": {"zeros_pruned": 10, "zeros_lost": 5}})
    method = {"name": args.method, "parameters": 12, "kind": "constants"}
    about = {"command": f"python {Path(sys.argv[0]).resolve()} -data_path {args.data_path}", "method": method}
    write_json(folder / "run.json", {**about, "arguments": args.as_json(), "device": "cpu"})
    best = 0.01 if args.method == "restorelcc" else 0.001
    loss = 2 + abs(args.lr - best) + args.train_seed / 1000
    history = [{"step": 0, "valid_loss": 5.0}, {"step": 1, "loss": 1.0}, {"step": 1, "valid_loss": loss}]
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    (folder / "logs" / "rows.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "weights").write_text("bulky")


def main() -> None:
    args = parse_arguments()
    world = Path(args.data_path).parent
    with (world / "calls").open("a") as calls:
        how = "resume" if args.resume == "auto" else "overwrite" if args.overwrite else "new"
        calls.write(f"{args.method} {args.lr:g} {args.train_seed} {how}\n")
    staging = args.output_dir / STAGING
    assert args.resume == "never" or (staging / "logs" / "arguments.json").is_file()
    (staging / "logs").mkdir(parents=True, exist_ok=True)
    with locked(args.output_dir / LOCK, "the folder"):
        write_json(staging / "logs" / "arguments.json", args.as_json())
        while (world / "hang").exists():
            time.sleep(0.05)
        for name, end in (("die", lambda: os.kill(os.getpid(), signal.SIGKILL)), ("refuse", lambda: sys.exit(2))):
            if (world / name).exists() and f"{args.method} {args.lr:g}" == (world / name).read_text():
                end()
        fails = world / "fail"
        if fails.exists() and args.method == fails.read_text():
            print("about to fail", flush=True)
            sys.exit("it was told to fail")
        write_result(args.output_dir, args)
        for part in (staging / "logs" / "arguments.json", staging / "logs", staging):
            part.unlink() if part.is_file() else part.rmdir()


if __name__ == "__main__":
    main()
