"""Stands in for RestoreLCC_train.py: the same flags and folder, and numbers made up from the flags.

It notes each call in `calls` beside the samples that -data_path names. Files there tell it what to do with the run that
they name (METHOD RATE): `full` ends it as a full disk does, `diverge` as a rate that is too high, `hang` lets it wait.
"""

import sys
import time
from pathlib import Path

from utils.common.files import write_json
from utils.common.flags import parse_arguments
from utils.common.names import DIVERGED


def main() -> None:
    args = parse_arguments()
    world, named = Path(args.data_path).parent, f"{args.method} {args.lr:g}"
    with (world / "calls").open("a") as calls:
        calls.write(f"{named} {args.train_seed}\n")
    while (world / "hang").exists():
        time.sleep(0.05)
    for file, said in (("full", "-output_dir: the disk is full"), ("diverge", f"-lr: the loss {DIVERGED} 3 of 9")):
        if (world / file).exists() and (world / file).read_text() == named:
            print(f"error: {said}; some more words\n", file=sys.stderr)
            sys.exit(2)
    best = 0.01 if args.method == "restorelcc" else 0.001
    loss = 2 + abs(args.lr - best) + args.train_seed / 100
    method = {"parameters": 12, "kind": "constants"}
    about = {"method": method, "arguments": args.as_json(), "seeds": {"training": args.train_seed}}
    args.output_dir.mkdir()
    (args.output_dir / "model").mkdir()
    write_json(args.output_dir / "run.json", about)
    write_json(args.output_dir / "results.json", {"validation": {"restored": loss}})


if __name__ == "__main__":
    main()
