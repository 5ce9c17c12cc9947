"""Stands in for RestoreLCC_train.py: the same flags and folder, and numbers made up from the flags.

It notes each call in `calls` beside the samples that -data_path names. Files there tell it what to do: `fail` names a
run (METHOD RATE) and, in a line of its own, what it ends with; with `hang` it waits.
"""

import signal
import sys
import time
from pathlib import Path

from utils.common.files import write_json
from utils.common.flags import parse_arguments


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    args = parse_arguments()
    world, named = Path(args.data_path).parent, f"{args.method} {args.lr:g}"
    with (world / "calls").open("a") as calls:
        calls.write(f"{named} {args.train_seed}\n")
    while (world / "hang").exists():
        time.sleep(0.05)
    run, _, said = (world / "fail").read_text().partition("\n") if (world / "fail").exists() else ("", "", "")
    if run == named:
        print(f"error: {said}; some more words\n", file=sys.stderr)
        sys.exit(2)
    best = 0.01 if args.method == "restorelcc" else 0.001
    loss = 2 + abs(args.lr - best) + args.train_seed / 100
    about = {"method": {"parameters": 12, "kind": "constants"}, "seeds": {"training": args.train_seed}}
    about |= {"models": {"pruned": f"{world}/pruned"}, "pruning": {"a": [{"b": str(Path.home() / "kept")}]}}
    args.output_dir.mkdir()
    for name in ("model", "compact", "restoration"):
        (args.output_dir / name).mkdir()
    write_json(args.output_dir / "run.json", about | {"arguments": args.as_json()})
    write_json(args.output_dir / "results.json", {"validation": {"restored": loss}})


if __name__ == "__main__":
    main()
