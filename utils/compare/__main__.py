"""Many runs on one page, with its pictures as SVG and all numbers as CSV beside it.

python -m utils.compare RUN… -output FILE.html
python -m utils.compare SWEEP -output FILE.html       a sweep's folder, or its runs.json.gz
"""

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.files import write_text
from utils.compare.content import compared
from utils.compare.lines import read_lines
from utils.compare.page import csv_text, page, pairs_csv
from utils.compare.pictures import pictures_of
from utils.report.html import write_pictures
from utils.sweep.sweep_files import FILE


def build_parser() -> Parser:
    """The parser of `python -m utils.compare`."""
    parser = Parser(
        prog="utils.compare",
        usage="python -m utils.compare RUN… | SWEEP -output FILE.html",
        description="Compare runs, or the rows of a sweep, on one page: a table, paired differences, and pictures.",
    )
    parser.add_argument("folders", nargs="+", type=folder_path, metavar="RUN", help="folders of runs, or of sweeps")
    beside = "the page; FILE.csv, and its pictures as FILE-….svg, are beside it"
    parser.flag("output", type=folder_path, required=True, metavar="FILE.html", help=beside)
    return parser


def main() -> None:
    """Read, then write the page and its numbers."""
    args = build_parser().parse_args()
    if args.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-output: {args.output} is no page's name; give one that ends in .html")
    for folder in args.folders:
        if not folder.is_dir() and folder.suffix != ".gz":
            raise UserError(f"RUN: {folder} is not a folder; give the -output_dir of runs or of a sweep, or its {FILE}")
    content = compared(*read_lines(args.folders))
    if not content["lines"]:
        raise UserError(f"RUN: no run in {args.folders[0]} is done; wait for one, or give other folders")
    folder, stem = args.output.parent, args.output.stem
    try:
        # The page last: what it links to is there.
        write_text(folder / f"{stem}.csv", csv_text(content))
        if content["pairs"]:
            write_text(folder / f"{stem}-pairs.csv", pairs_csv(content))
        write_pictures(folder, pictures_of(content, stem))
        write_text(args.output, page(content, stem))
    except OSError as error:
        raise UserError(f"-output: {args.output} cannot be written ({error.strerror}); name another file") from error
    print(f"page: {args.output}")


if __name__ == "__main__":
    run(main)
