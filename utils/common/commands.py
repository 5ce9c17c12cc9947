"""What all command lines of this project share."""

import argparse
import io
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from difflib import get_close_matches
from pathlib import Path

from utils.common.errors import OutOfRoom, Stopped, UserError, explain, refusal, shortage, shortened
from utils.common.methods import LINEAR_NAMES
from utils.common.processes import is_main_process

HOME = os.path.expanduser("~")  # stays "~" for a user without a home
DEFAULT_CACHE = Path(tempfile.gettempdir() if HOME == "~" else HOME, ".cache", "restorelcc")  # what can be made again
ENDING = (signal.SIGTERM, signal.SIGUSR1)  # signals that end a command in order, beside Ctrl-C
PATIENCE = 30  # seconds that a process which prints nothing outlives a mistake, unless its launcher ends it before
MOST = 10**9  # the largest count or size that a flag takes: beyond it, sizes overflow inside libraries
WIDTH = 100  # columns that all output to a terminal keeps to
TF32 = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # set by some images: torch then rounds factors of fp32 products to 10 bits


class Parser(argparse.ArgumentParser):
    """Flags with one or two dashes, in groups, defaults shown; a wrong one is a UserError, not a page of usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)
        self._target: argparse._ArgumentGroup | Parser = self

    def flag(self, name: str, group: str | None = None, **options) -> None:
        """-name and --name, a switch if its default is False. group: begins a group with this title. A type's
        attribute `metavar` is what --help calls the value; the other options are argparse's."""
        if group:
            self._target = self.add_argument_group(group)
        if options.get("default") is False:
            options["action"] = "store_true"
        else:
            options = {"type": text, "metavar": getattr(options.get("type"), "metavar", None), **options}
        self._target.add_argument(f"-{name}", f"--{name}", **options)

    def _get_option_tuples(self, option_string: str) -> list:
        """Refuse abbreviations with one dash too, which `allow_abbrev=False` still accepts."""
        return []

    def error(self, message: str) -> None:
        if unknown := message.partition("unrecognized arguments: ")[2].split():
            flags = [action.option_strings[0][1:] for action in self._actions if action.option_strings]
            given = unknown[0].lstrip("-").partition("=")[0]
            near = get_close_matches(given, flags, 1)
            message += f"; did you mean -{near[0]}?" if near else "; --help has all flags"
        raise UserError(re.sub(r"(-\w+)/-\1", r"\1", message).replace("argument ", "", 1))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Show flags with one dash only, and each default beside its help."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy(action)
        shown.option_strings = action.option_strings[:1]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, allowed = action.help or "", getattr(action.type, "allowed", "")
        has_default = action.option_strings and action.default not in (None, False, argparse.SUPPRESS)
        if has_default and " (default" not in text:
            text += " (default: %(default)s)"
        if not allowed:
            return text
        return text.replace(" (default", f" ({allowed}; default") if " (default" in text else f"{text} ({allowed})"


def run(main: Callable[[], None], then: str = "", lighter: str = "") -> None:
    """Call `main`; a UserError, a full disk or memory that runs out becomes one line on stderr and exit status 2.

    Ctrl-C, SIGTERM and SIGUSR1 (with which SLURM may warn) become a line and exit status 128 + the signal's number. A
    closed pipe (`| head -1`) exits with 141. Characters that the terminal can't encode are printed as "?".
    then: what to do after a signal, for that line. lighter: flags to lower if memory runs out, in words.
    """
    os.environ.pop(TF32, None)  # full fp32, in this process and its children: the tolerances of proofs assume it
    if torch := sys.modules.get("torch"):  # it has read the variable at import
        torch.set_float32_matmul_precision("highest")
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # closed by the shell (`>&-`)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Flush each line in a log too, where Python would buffer whole blocks.
            stream.reconfigure(errors="replace", line_buffering=True)
    for number in ENDING:
        signal.signal(number, _stop)
    try:
        try:
            with explain("the current folder is gone", "change to another", FileNotFoundError):
                os.getcwd()
            main()
        finally:
            for number in ENDING:
                signal.signal(number, signal.SIG_DFL)
            sys.stdout.flush()
    except (KeyboardInterrupt, Stopped) as end:
        number, then = getattr(end, "number", signal.SIGINT), getattr(end, "then", "") or then
        if is_main_process():
            print(f"stopped ({signal.Signals(number).name}){then and f'; {then}'}", file=sys.stderr)
        sys.exit(128 + number)
    except BrokenPipeError:
        _let_go_of_stdout()
        sys.exit(141)
    except Exception as error:
        if isinstance(error, OutOfRoom):
            said = str(error)
        elif reason := refusal(error):
            # It was not raised in one of our writers: a library's own file, or this process's output.
            _let_go_of_stdout()
            said = (
                f"a file cannot be written ({reason}): one of those that libraries keep, such as temporary ones in "
                f"{tempfile.gettempdir()} (TMPDIR), or what this command prints; make room there"
            )
        elif reason := shortage(error):
            said = f"out of memory ({reason}); " + (f"lower {lighter}" if lighter else "take a machine with more")
        elif isinstance(error, UserError):
            said = str(error)
        elif isinstance(error, PermissionError) and error.filename and is_main_process():
            said = f"{error.filename}: {error.strerror}; change its permissions, or name another"
        else:
            raise
        if is_main_process():
            print(f"error: {said}", file=sys.stderr)
        else:  # a launcher ends all once one has ended, so after this time the main process has not met the mistake
            time.sleep(PATIENCE)
            print(f"error: process {os.environ['RANK']}: {said}", file=sys.stderr)
        sys.exit(2)


def _let_go_of_stdout() -> None:
    """Redirect stdout to /dev/null: Python flushes it again at exit, and would report the same error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(number: int, _) -> None:
    raise Stopped(number)


def text(given: str) -> str:
    """An argparse type: a text that can be written to a file."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("is not UTF-8 text; rename what it names") from error
    if "\0" in given:  # possible in a -config file
        raise argparse.ArgumentTypeError("holds a NUL character, which no name has")
    return given


def name_or_path(given: str) -> str:
    """An argparse type: a name, or a path with its ~ resolved, so that one place has one spelling."""
    path = os.path.expanduser(text(given))
    if not path.strip():
        raise argparse.ArgumentTypeError("is empty; name something, or leave it out")
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > 224 or len(path.encode()) > 4000:  # bytes that file systems take, with room for ends such as .partial
        raise argparse.ArgumentTypeError(f"is longer than a path can be: {shortened(given)}")
    return path


def folder_path(given: str) -> Path:
    """An argparse type: a path with its ~ resolved."""
    return Path(name_or_path(given))


def _number(
    kind: Callable[[str], float], holds: Callable[[float], bool], what: str, allowed: str = ""
) -> Callable[[str], float]:
    """Make an argparse type. what: describes valid values in an error; allowed: the range that --help shows."""

    def convert(text: str) -> float:
        with suppress(ValueError):
            if holds(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be a {what}, not {shortened(text)}")

    convert.metavar, convert.allowed = "N", allowed
    return convert


def at_least(bound: float) -> Callable[[str], float]:
    """An argparse type: a number not below `bound`, nor above MOST; a whole one if the bound is an int."""
    kind = "whole number" if isinstance(bound, int) else "number"
    return _number(type(bound), lambda n: bound <= n <= MOST, f"{kind}, {bound:g} to {MOST}", f"at least {bound:g}")


rate = _number(float, lambda value: 0 < value < 3.4e37, "number above 0", "above 0")
"""An argparse type: a number above 0 that fp32 holds, with room for what an optimizer makes of it."""

seed_number = _number(int, lambda value: 0 <= value < 2**32, f"whole number, 0 to {2**32 - 1}")
"""An argparse type: a whole number that every library takes for a seed."""

count_or_share = _number(
    lambda text: int(text) if text.strip().isdecimal() else float(text),
    lambda value: 1 <= value <= MOST if isinstance(value, int) else 0 < value <= 1,
    "count of heads (1 or more) or a share above 0, at most 1.0",
)
"""An argparse type: a whole number of at least 1, or with a point (1.0 too) a share in (0, 1]."""


def linear_names(text: str) -> str:
    """An argparse type: some of LINEAR_NAMES, separated by commas; returned in the order of LINEAR_NAMES."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [repr(name) for name in names if name not in LINEAR_NAMES]:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(LINEAR_NAMES)}, not {', '.join(unknown)}")
    return ",".join(name for name in LINEAR_NAMES if name in names)


def hub_id(text: str) -> str:
    """An argparse type: a model's name on the hub, `owner/name` or `name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # a tenth of a second, for this flag only

    try:
        validate_repo_id(text if text.isascii() and text == text.strip() else "")  # earlier versions accept more
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"must be owner/name or name, as the hub has them ({error})") from error
    return text


count_or_share.metavar, linear_names.metavar, hub_id.metavar = "COUNT|SHARE", "NAMES", "NAME"
name_or_path.metavar, folder_path.metavar = "NAME|PATH", "DIR"
