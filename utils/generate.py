"""What a run's models answer: dense, pruned and restored side by side, or a talk with the restored one.

python -m utils.generate OUT -prompt "Name three rivers."
python -m utils.generate OUT -chat
"""

import sys
import textwrap
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path

from data.loading import alpaca_prompt
from utils.common.commands import DEFAULT_CACHE, WIDTH, Parser, folder_path, name_or_path, run
from utils.common.errors import UserError
from utils.common.flag_types import at_least
from utils.common.flags import Arguments, parse_arguments
from utils.common.names import DTYPE_NAMES

GAP = "  "
"""Between columns."""

NEW = "/new"
"""In a talk: forget what was said."""


def build_parser() -> Parser:
    """The parser of `python -m utils.generate`."""
    parser = Parser(
        prog="utils.generate",
        usage="python -m utils.generate OUT [-flag value …]",
        description="Show what the dense, the pruned and the restored model of a run answer, or talk to the restored.",
    )
    parser.add_argument("out", type=folder_path, metavar="OUT", help="-output_dir of a finished run")
    parser.flag(
        "prompt",
        action="append",
        metavar="TEXT",
        help="an instruction, put into the template of the training samples; may be given again (default: a line each "
        "from stdin)",
    )
    parser.switch("raw", "prompts are texts to go on with, without a template")
    parser.switch("chat", f"talk to the restored model alone; {NEW} forgets what was said, Ctrl-D ends")
    parser.flag("max_new_tokens", type=at_least(1), default=128, metavar="N", help="tokens of an answer at most")
    parser.flag("base_model_name", type=name_or_path, metavar="MODEL", help="the dense model (default: the run's)")
    parser.flag("pruned_model_path", type=name_or_path, metavar="MODEL", help="the pruned one (default: the run's)")
    parser.flag("dtype", choices=DTYPE_NAMES, help="that models run in (default: the run's)")
    parser.flag("device", default="auto", help="cpu, cuda, cuda:N, …")
    parser.flag("cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="that the run used")
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    given = build_parser().parse_args(argv)
    arguments = of_run(given)
    if given.chat and (given.prompt or given.raw):
        raise UserError("-chat: asks for prompts itself, in the template; leave -prompt and -raw out")
    if given.chat:
        talk(arguments, given)
        return
    prompts = given.prompt or [line.strip() for line in sys.stdin if line.strip()]
    if not prompts:
        raise UserError("-prompt: nothing to answer; give an instruction, or a line each on stdin")
    print(side_by_side(prompts, answers(arguments, given, prompts), WIDTH))


def of_run(given) -> Arguments:
    """The flags of the run in OUT, with what was given here in their place."""
    record = given.out / "run.json"
    if not record.is_file() or not (given.out / "model").is_dir():
        raise UserError(f"OUT: {given.out} holds no result of a run (run.json and model/); give its -output_dir")
    names = ("base_model_name", "pruned_model_path", "dtype", "device", "cache_dir")
    more = [word for name in names if getattr(given, name) for word in (f"-{name}", str(getattr(given, name)))]
    return parse_arguments(["-config", str(record), *more])


def answers(arguments: Arguments, given, prompts: list[str]) -> dict[str, list[str]]:
    """Model → its greedy answer to each prompt; one model in memory at a time."""
    found = {}
    for label, folder in folders(arguments, given.out).items():
        answer = answering(arguments, folder, given)
        found[label] = [answer(text if given.raw else alpaca_prompt(text)) for text in prompts]
    return found


def answering(arguments: Arguments, folder: Path, given) -> Callable[[str], str]:
    """Gives the greedy answer to a text of the model in `folder`, which it holds; the tokenizer is the result's."""
    from models.loading import DTYPES, load_model, load_tokenizer, usable_device
    from utils.examples import ends_of, greedy

    tokenizer = load_tokenizer(given.out / "model", "OUT")
    model = load_model(folder, DTYPES[arguments.dtype], usable_device(arguments.device), "OUT")

    def answer(text: str) -> str:
        made, _ = greedy(model, tokenizer(text).input_ids, given.max_new_tokens, ends_of(model))
        return tokenizer.decode(made, skip_special_tokens=True).strip()

    return answer


def folders(arguments: Arguments, out: Path) -> dict[str, Path]:
    """Where the three models lie; without the pruned one where the run made it and the cache has it no more."""
    from models.loading import resolve

    found = {"dense": resolve(arguments.base_model_name, "-base_model_name", arguments.cache_dir)}
    if pruned := pruned_folder(arguments, found["dense"]):
        found["pruned"] = pruned
    else:
        print(f"pruned: no more in {arguments.cache_dir}, where the run made it; give -cache_dir", file=sys.stderr)
    return {**found, "restored": out / "model"}


def pruned_folder(arguments: Arguments, dense: Path) -> Path | None:
    """The pruned checkpoint that was given, or the one that the run pruned, if it is still kept."""
    from models.compact import in_dense_shapes
    from models.loading import load_config, load_tokenizer, resolve, usable_device
    from utils.common.processes import Processes
    from utils.stages.context import Models, Run
    from utils.stages.prune import at_hand

    if arguments.pruned_model_path:
        pruned = resolve(arguments.pruned_model_path, "-pruned_model_path", arguments.cache_dir)
        return in_dense_shapes(pruned, arguments.cache_dir)[0]
    flag = "-base_model_name"
    models = Models(dense, None, None, load_config(dense, flag), load_tokenizer(dense, flag), dense)
    return at_hand(Run.of(arguments, Processes(arguments.device), None, usable_device(arguments.device)), models)


def side_by_side(prompts: Iterable[str], found: dict[str, list[str]], width: int) -> str:
    """Each prompt, and below it the models' answers in columns."""
    column = (width - len(GAP) * (len(found) - 1)) // len(found)
    parts = []
    for row, prompt in enumerate(prompts):
        cells = [[label, "-" * column, *wrapped(each[row], column)] for label, each in found.items()]
        lines = (GAP.join(cell.ljust(column) for cell in line).rstrip() for line in zip_longest(*cells, fillvalue=""))
        parts.append("\n".join([*(f"> {line}" for line in wrapped(prompt, width - 2)), "", *lines]))
    return "\n\n".join(parts)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, with its own line breaks."""
    return [part for line in text.expandtabs(4).splitlines() for part in textwrap.wrap(line, width) or [""]]


def talk(arguments: Arguments, given) -> None:
    """Answer line after line with the restored model, what was said before each included."""
    answer = answering(arguments, given.out / "model", given)
    asks = sys.stdin.isatty()
    if asks:
        print(f"the restored model of {given.out}; {NEW} forgets what was said, Ctrl-D ends")
    said = ""
    while (line := asked(asks)) is not None:
        if line == NEW:
            said = ""
        elif line:
            said += alpaca_prompt(line)
            told = answer(said)
            print(told)
            said += f" {told}\n\n"


def asked(shown: bool) -> str | None:
    """The next line of who talks; None at the end."""
    try:
        return input("> " if shown else "").strip()
    except EOFError:
        if shown:
            print()
        return None


if __name__ == "__main__":
    run(main)
