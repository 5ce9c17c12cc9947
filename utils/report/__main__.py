"""Draw a run's page and pictures again, from its record alone: python -m utils.report OUT"""

from jinja2 import UndefinedError

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError, explain
from utils.report.page import write_report


def main() -> None:
    """Read the record, draw the page."""
    usage, what = "python -m utils.report OUT", "Draw report.html and figures/ of a run again, from what it recorded."
    parser = Parser(prog="utils.report", usage=usage, description=what)
    parser.add_argument("folder", type=folder_path, metavar="OUT", help="the -output_dir of a run")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        raise UserError(f"OUT: {folder} is not a folder; give the -output_dir of a run")
    odd = LookupError, TypeError, AttributeError, ValueError, ArithmeticError, UndefinedError
    unwritable = explain(f"OUT: {folder} cannot be read or written", "copy it first", OSError)
    with unwritable, explain(f"OUT: {folder}: its files are not a run's, or are damaged", "copy the folder again", odd):
        print(f"report: {write_report(folder)}")


if __name__ == "__main__":
    run(main)
