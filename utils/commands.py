"""What all command lines of this project share."""

import sys
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError

DEFAULT_CACHE = Path("~/.cache/restorelcc").expanduser()
"""Where what can be made again is kept between runs, keyed by content."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C a line and 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


RESULT_MARKS = {"results.json", "run.json", "config.json", "pruning.json", "restoration", "checkpoints", "logs"}
"""A folder that holds one of these is the result of a run or a checkpoint; -overwrite replaces nothing else."""


def check_output(folder: Path, overwrite: bool, flag: str = "-output_dir") -> None:
    """Raise UserError if `folder` already holds something, unless it is a result that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag}: {folder} is a file; give a folder")
    held = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if held and not overwrite:
        raise UserError(f"{flag}: {folder} already holds files; give another folder, or -overwrite to replace them")
    if held and not held & RESULT_MARKS:
        raise UserError(
            f"{flag}: {folder} holds files that are no result of this project; -overwrite won't replace them"
        )
