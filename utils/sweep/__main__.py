"""Many configurations, each at its own best rate and with the same seeds, in one table.

    python -m utils.sweep FILE -output_dir OUT
    python -m utils.sweep FILE -plan                 how many hours that will take
    python -m utils.sweep -table -output_dir OUT     the table once more, from the runs' files alone

What a run is called, when it is done and what is left of one that was killed: utils.sweep.runs and utils.sweep.loop.
"""

import signal
import sys
from dataclasses import asdict
from pathlib import Path

from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.files import without_nan, write_json, write_text
from utils.common.record import versions
from utils.common.result import check_apart
from utils.sweep.file import read_sweep
from utils.sweep.loop import Loop
from utils.sweep.runs import FAILED, Ledger, Row, code_digest, planned, read_json
from utils.sweep.shown import csv_text, markdown
from utils.sweep.table import build_table

ROWS = "sweep.json"
"""In OUT: what the rows of the table are, so that it can be rebuilt without the sweep's file."""


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
    parser.switch("retry_failed", "try those runs again that failed before")
    parser.switch("accept_other_code", "count runs of other versions or other code as done; the table says so")
    parser.switch("keep_models", "keep each run's model/, compact/ and restoration/, which are removed otherwise")
    return parser


def main() -> None:
    """One sweep, from its file to its table."""
    args = build_parser().parse_args()
    if args.table and args.file is None:
        content = read_json(args.output_dir / ROWS)
        if content is None:
            raise UserError(f"-table: {args.output_dir} holds no {ROWS}; give the sweep's file too")
        write_table(args.output_dir, [Row.from_json(each) for each in content["rows"]], None)
        return
    if args.file is None:
        raise UserError("FILE: give a sweep's yaml file (docs/running.md says what is in it)")
    sweep = read_sweep(args.file)
    for each in sweep.configurations:
        check_apart(args.output_dir, {**each.args.inputs(), "-cache_dir": args.cache_dir})
    rows, commands = planned(sweep)
    ledger = Ledger(args.output_dir, versions(), code_digest(), args.accept_other_code or args.table)

    def tabulate() -> None:
        write_table(args.output_dir, rows, ledger, commands)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / ROWS, {"rows": [asdict(row) for row in rows]})
    if not args.table:
        if args.retry_failed:
            for name in commands:
                (args.output_dir / name / FAILED).unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, _stop)
        failed = Loop(rows, commands, ledger, args.cache_dir, args.keep_models, tabulate).work()
    tabulate()
    print(f"table: {args.output_dir / 'table.md'}")
    if not args.table and failed:
        print(f"{len(failed)} runs failed; -retry_failed tries them again", file=sys.stderr)
        sys.exit(1)


def write_table(output: Path, rows: list[Row], ledger: Ledger | None, commands: dict | None = None) -> None:
    """table.json, table.csv and table.md, from what lies in `output`; without a ledger, every finished run counts."""
    now = {"versions": ledger.versions, "code": ledger.code} if ledger else None
    table = build_table(output, rows, lambda each: ledger is None or ledger.done(commands[each.id]), now)
    write_json(output / "table.json", without_nan(table))
    write_text(output / "table.csv", csv_text(table))
    write_text(output / "table.md", markdown(table))


def _stop(number: int, _frame: object) -> None:
    print("stopped", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    run(main)
