"""Many configurations, each at its own best rate and with the same seeds, in one table.

    python -m utils.sweep FILE -output_dir OUT
    python -m utils.sweep FILE -plan                 how many hours that will take
    python -m utils.sweep -table -output_dir OUT     the table once more, from the runs' files alone

What a run is called, when it is done and what is left of one that was killed: utils.sweep.runs and utils.sweep.loop.
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.files import without_nan, write_json, write_text
from utils.common.record import versions
from utils.common.result import check_apart
from utils.sweep.collect import collect
from utils.sweep.file import read_sweep
from utils.sweep.loop import Loop
from utils.sweep.runs import FAILED, ROWS, Ledger, Member, Row, code_digest, planned, read_json
from utils.sweep.shown import csv_text, markdown
from utils.sweep.table import build_table


def build_parser() -> Parser:
    """The parser of `python -m utils.sweep`."""
    parser = Parser(
        prog="utils.sweep",
        usage="python -m utils.sweep FILE [-flag value …]",
        description="Run every configuration of FILE at its best rate with every seed, and write one table of them.",
    )
    parser.add_argument("file", nargs="?", type=folder_path, metavar="FILE", help="the sweep, a yaml file")
    parser.flag(
        "output_dir", type=folder_path, default=Path("sweep"), metavar="DIR", help="a folder a run, and the table"
    )
    parser.flag("cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="that all runs share")
    parser.switch("table", "run nothing: write the table once more, from what lies in -output_dir")
    parser.switch("plan", "run nothing: print how long the runs that are left will take on -card")
    parser.flag("card", default="here", metavar="CARD", help="what -plan is for: this machine (here), H100-80GB, …")
    parser.flag(
        "collect",
        type=folder_path,
        metavar="DIR",
        help="run nothing: copy the table and the small files behind it to DIR, without this machine's paths",
    )
    parser.switch("retry_failed", "try those runs again that failed before")
    parser.switch("accept_other_code", "count runs of other versions or other code as done; the table says so")
    parser.switch("keep_models", "keep each run's model/, compact/ and restoration/, which are removed otherwise")
    return parser


def main() -> None:
    """One sweep, from its file to its table."""
    args = build_parser().parse_args()
    output, quiet = args.output_dir, args.table or args.collect is not None
    if args.file is None:
        if not quiet:
            raise UserError("FILE: give a sweep's yaml file; docs/running.md says what is in it")
        content = read_json(output / ROWS)
        if content is None:
            raise UserError(f"-output_dir: {output} holds no {ROWS} of a sweep; give the sweep's file too")
        rows = [Row.from_json(each) for each in content["rows"]]
        write(output, rows, lambda member: True, None)
        _collect(output, rows, args.collect)
        return
    sweep = read_sweep(args.file)
    for each in sweep.configurations:
        check_apart(output, {**each.args.inputs(), "-cache_dir": args.cache_dir})
    rows, commands = planned(sweep)
    ledger = Ledger(output, versions(), code_digest(), args.accept_other_code or quiet)
    loop = Loop(rows, commands, ledger, args.cache_dir, args.keep_models, lambda: tabulate())
    if args.plan:
        from utils.sweep.plan import plan_text

        print(plan_text(rows, loop.left(), args.card))
        return

    def tabulate() -> None:
        now = {"versions": ledger.versions, "code": ledger.code}
        write(output, rows, lambda member: ledger.done(commands[member.id]), now)

    output.mkdir(parents=True, exist_ok=True)
    write_json(output / ROWS, {"rows": [asdict(row) for row in rows]})
    failed = []
    if not quiet:
        if args.retry_failed:
            for name in commands:
                (output / name / FAILED).unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, _stop)
        failed = loop.work()
    tabulate()
    _collect(output, rows, args.collect)
    if failed:
        what = f"{len(failed)} run{'s' * (len(failed) > 1)} failed"
        print(f"{what}: their error.json says how; -retry_failed tries again", file=sys.stderr)
        sys.exit(1)


def write(output: Path, rows: list[Row], counts: Callable[[Member], bool], now: dict | None) -> None:
    """The table, from what lies in `output`; arguments as `build_table` takes them."""
    table = without_nan(build_table(output, rows, counts, now))
    write_json(output / "table.json", table)
    write_text(output / "table.csv", csv_text(table))
    write_text(output / "table.md", markdown(table))


def _collect(output: Path, rows: list[Row], target: Path | None) -> None:
    if target is None:
        print(f"table: {output / 'table.md'}")
        return
    count = collect(output, rows, target)
    write_json(target / ROWS, {"rows": [asdict(row) for row in rows]})
    write(target, rows, lambda member: True, None)
    print(f"{count} runs, without this machine's paths: {target / 'table.md'}")


def _stop(number: int, _frame: object) -> None:
    print("stopped", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    run(main)
