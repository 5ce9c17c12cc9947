"""The pages of a run once more, from its record alone: results.json, run.json and logs/.

python -m utils.report OUT
"""

from pathlib import Path

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.run_folder import lock_of, locked
from utils.report.write import Record, write_report


def build_parser() -> Parser:
    """The parser of `python -m utils.report`."""
    parser = Parser(
        prog="utils.report",
        usage="python -m utils.report OUT",
        description="Draw report.html, report.md and figures/ of a run again, from what it recorded.",
    )
    parser.add_argument("folder", type=folder_path, metavar="OUT", help="the -output_dir of a run")
    return parser


def main() -> None:
    """Draw, each file whole or not at all."""
    folder: Path = build_parser().parse_args().folder
    if not folder.is_dir():
        raise UserError(f"OUT: {folder} is not a folder; give the -output_dir of a run")
    record = Record.read(folder)
    try:
        with locked(lock_of(folder), f"OUT: {folder}"):
            files = write_report(folder, record)
    except OSError as error:
        raise UserError(f"OUT: {folder} cannot be written ({error.strerror}); copy it first") from error
    print(f"report: {files[0]}")


if __name__ == "__main__":
    run(main)
