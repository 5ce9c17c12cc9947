"""A sweep's file: common flags, configurations, seeds and rates, checked by the entry point's own parser."""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.common.config_file import NOT_REPEATED
from utils.common.errors import UserError
from utils.common.flag_types import above, seed
from utils.common.flags import Arguments, build_parser, parse_arguments
from utils.common.methods import Options, needs_of
from utils.common.plain_yaml import read_yaml

KEYS = ("flags", "prunings", "configurations", "seeds", "lr", "search", "compare_to")

CONTROL = "dense (control)"
"""The pruned model's name where the dense one stands in its place: rows of it are others' controls, by their names."""

ELSEWHERE = {
    "lr": "stands beside `flags:`, and in a configuration",
    "train_seed": "its values are `seeds:`",
    "output_dir": "each run has a folder of its own in -output_dir",
    "cache_dir": "it is a flag of the sweep's command",
    **dict.fromkeys(NOT_REPEATED, "says how a run is started, and the sweep does that"),
}
"""Flags of the entry point that a sweep's file may not set, and why."""

_NOTHING = ("", "~", "null")


@dataclass(frozen=True)
class Configuration:
    """One row of the table: a way of restoring one pruned model.

    flags: name → text, as on the command line, None for a switch. args: what the entry point makes of them, with the
    first seed. rates: to choose from; none where nothing is trained. search: `flags` with what only searches have.
    """

    name: str
    flags: dict[str, str | None]
    search: dict[str, str | None]
    args: Arguments
    rates: tuple[float, ...]

    @property
    def pruning(self) -> str:
        """The pruned model, in words, without the names of folders around it."""
        args = self.args
        if args.allow_dense:
            return CONTROL
        if args.pruned_model_path:
            return Path(args.pruned_model_path).name
        return f"{args.prune_method} {args.sparsity}"


@dataclass(frozen=True)
class Sweep:
    """What a file asks for. compare_to: name of the configuration that the others are held against."""

    configurations: list[Configuration]
    seeds: tuple[int, ...]
    compare_to: str | None


def read_sweep(path: Path) -> Sweep:
    """The sweep that a file describes.

    Raises UserError, one line that names the file and the configuration, for whatever the entry point would refuse
    before it reads a model, and for what makes configurations not comparable.
    """
    content = _read(path)
    if unknown := [name for name in content if name not in KEYS]:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; a sweep has {', '.join(KEYS)}")
    common, search = (_flags(content.get(name), f"{path}: {name}") for name in ("flags", "search"))
    prunings = [_flags(each, f"{path}: prunings") for each in _list(content.get("prunings"), f"{path}: prunings")]
    entries = _list(content.get("configurations"), f"{path}: configurations")
    if not entries:
        raise UserError(f"{path}: no configurations; give a list of flag sets, such as '- method: restorelcc'")
    seeds = tuple(_number(text, seed, f"{path}: seeds") for text in _list(content.get("seeds"), f"{path}: seeds"))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: give a list of -train_seed values, each once")
    rates = _rates(content.get("lr"), f"{path}: lr")
    found = [
        _configuration(path, number, entry, {**common, **pruning}, search, rates, seeds[0])
        for pruning in prunings or [{}]
        for number, entry in enumerate(entries, start=1)
    ]
    _check_together(path, found)
    compare_to = content.get("compare_to")
    if compare_to is not None and compare_to not in {each.name for each in found}:
        raise UserError(f"{path}: compare_to: no configuration is named {compare_to!r}")
    return Sweep(found, seeds, compare_to)


def command_line(flags: dict[str, str | None], **more: object) -> list[str]:
    """The command line of the entry point for these flags."""
    given = {**flags, **{name: str(value) for name, value in more.items()}}
    words = []
    for name, value in given.items():
        if value is None:
            words.append(f"-{name}")
        else:  # a value that begins with a dash would be taken for a flag
            words += [f"-{name}={value}"] if value.startswith("-") else [f"-{name}", value]
    return words


def trains(args: Arguments) -> bool:
    """Whether a run with these flags trains anything; UserError if its options do not go together."""
    return needs_of(args.method, Options.of(args)).training and args.num_epoch > 0


def _read(path: Path) -> dict:
    content = read_yaml(path, "a sweep's yaml file")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no mapping; a sweep has {', '.join(KEYS)}")
    return content


def _configuration(
    path: Path, number: int, entry: object, common: dict, search: dict, rates: tuple[float, ...], first_seed: int
) -> Configuration:
    place = f"{path}: configuration {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{place}: is no set of flags; write '- method: NAME', and other flags below it")
    own = dict(entry)
    given = own.pop("name", None)
    if given is not None and (not isinstance(given, str) or given in _NOTHING):
        raise UserError(f"{place}: its name is {_shown(given)}; give a text")
    place = f"{place} ({given})" if given else place
    rates = _rates(own.pop("lr"), f"{place}: lr") if "lr" in own else rates
    own = _flags(own, place)
    whole, searched = _merged(common, own), _merged(common, own, search)
    args, search_args = (_parsed(flags, first_seed, place) for flags in (whole, searched))
    try:
        trained = trains(args)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    if trained and not rates:
        raise UserError(f"{place}: is trained, and has no rate; give 'lr: [RATE, …]', in it or for all")
    if trained and len(rates) > 1 and (search_args.spec_task or search_args.num_valid_samples == 0):
        why = "-spec_task has no validation samples" if search_args.spec_task else "num_valid_samples is 0"
        raise UserError(f"{place}: rates are chosen on validation loss, and {why}; give one rate, or such samples")
    name = given or " ".join(
        [args.method, *(f"{flag}={text or 'true'}" for flag, text in own.items() if flag != "method")]
    )
    return Configuration(name, whole, searched, args, rates if trained else ())


def _merged(*sets: dict) -> dict[str, str | None]:
    """Flags of all sets, later ones first in rank; what is set to nothing is left out, a switch has no value."""
    whole = {name: value for flags in sets for name, value in flags.items()}
    whole = {name: whole[name] for name in whole if whole[name] is not False}
    return {name: None if value is True else value for name, value in whole.items()}


def _flags(content: object, place: str) -> dict[str, str | bool]:
    """Flags as a file has them: texts, and True or False of a switch; False for a flag that is set to nothing."""
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{place}: is no set of flags; write 'flag: value' lines")
    switches = {action.dest: action.nargs == 0 for action in build_parser()._actions if action.dest != "help"}
    found: dict[str, str | bool] = {}
    for name, value in content.items():
        if not isinstance(name, str) or name not in switches:
            raise UserError(f"{place}: unknown flag {_shown(name)}; flags are RestoreLCC_train.py's, without dashes")
        if name in ELSEWHERE:
            raise UserError(f"{place}: {name}: {ELSEWHERE[name]}; take it out")
        if not isinstance(value, str):
            raise UserError(f"{place}: {name} is {_shown(value)}; give one value, as on the command line")
        if switches[name] and value.lower() not in ("true", "false"):
            raise UserError(f"{place}: {name} is {_shown(value)}; a switch is true or false")
        found[name] = value.lower() == "true" if switches[name] else False if value in _NOTHING else value
    return found


def _parsed(flags: dict[str, str | None], train_seed: int, place: str) -> Arguments:
    try:
        return parse_arguments(command_line(flags, train_seed=train_seed))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _check_together(path: Path, found: list[Configuration]) -> None:
    """Raise UserError where two configurations could not be told apart, or were not searched alike."""
    names = Counter((each.name, each.pruning) for each in found)
    for (name, pruning), count in names.items():
        if count > 1:
            raise UserError(
                f"{path}: {name!r} on {pruning} stands there twice; give each configuration its own 'name:'"
            )
    searched = [each for each in found if each.rates]
    for each in searched[1:]:
        if len(each.rates) != len(searched[0].rates):
            raise UserError(
                f"{path}: {each.name} chooses from {len(each.rates)} rates, {searched[0].name} from "
                f"{len(searched[0].rates)}; a fair comparison gives every one the same number"
            )


def _rates(content: object, place: str) -> tuple[float, ...]:
    if content is None:
        return ()
    rates = tuple(
        _number(text, above(0), place) for text in ([content] if isinstance(content, str) else _list(content, place))
    )
    if not rates or len(set(rates)) < len(rates):
        raise UserError(f"{place}: give a rate, or a list of rates, each once")
    return rates


def _list(content: object, place: str) -> list:
    if content is None or content == "":
        return []
    if not isinstance(content, list):
        raise UserError(f"{place}: is {_shown(content)}; give a list")
    return content


def _number(text: object, convert: Callable[[str], float], place: str) -> float:
    if not isinstance(text, str):
        raise UserError(f"{place}: {_shown(text)} is no number")
    try:
        return convert(text)
    except ValueError as error:
        raise UserError(f"{place}: {_shown(text)} is no number") from error
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{place}: {error}") from error


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return f"'{text[:60]}…'" if len(text) > 60 else f"'{text}'"
