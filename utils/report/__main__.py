"""The pages of a run once more, from its record alone: results.json, run.json and logs/.

python -m utils.report OUT
"""

import json
from pathlib import Path

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.lock import locked
from utils.common.result import LOCK, WRITTEN, written
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
    """Draw, and add what was drawn to the run's own list of its files."""
    folder: Path = build_parser().parse_args().folder
    if not folder.is_dir():
        raise UserError(f"OUT: {folder} is not a folder; give the -output_dir of a run")
    record = Record.read(folder)
    try:
        with locked(folder / LOCK, f"OUT: {folder}"):
            files = write_report(folder, record)
            own(folder, files)
    except OSError as error:
        raise UserError(f"OUT: {folder} cannot be written ({error.strerror}); copy it first") from error
    print(f"report: {files[0]}")


def own(folder: Path, files: list[Path]) -> None:
    """So that a later -overwrite takes the files for the run's; nothing where there is no list of them."""
    if known := written(folder, WRITTEN):
        content = json.loads((folder / WRITTEN).read_text(encoding="utf-8"))
        names = {file.relative_to(folder).as_posix() for file in files}
        write_json(folder / WRITTEN, {**content, "files": sorted(known | names)})


if __name__ == "__main__":
    run(main)
