"""A -config file: flags and their values, which are checked as those of the command line are."""

import argparse
import json
from pathlib import Path

from utils.common.errors import UserError, first_line, shortened
from utils.common.files import parse_json
from utils.common.plain_yaml import read_yaml

NOT_REPEATED = ("overwrite", "plan", "config", "push_to_hub")
"""Flags that say how this once a run is started: never kept in run.json, never taken from a -config file."""


def read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    """The flags in a JSON object or YAML mapping, or a run.json's "arguments"; their values are not yet checked."""
    content = _content(path)
    of_run = isinstance(content, dict) and isinstance(content.get("arguments"), dict)
    given = content["arguments"] if of_run else content
    if not isinstance(given, dict):
        raise UserError(f"-config: {path} holds no flags; give a JSON object or YAML mapping of them, or a run.json")
    if of_run:  # those of earlier versions name these too
        given = {name: value for name, value in given.items() if name not in NOT_REPEATED}
    if once := [name for name in given if name in NOT_REPEATED]:
        raise UserError(f"-config: {path}: {', '.join(once)}: given on the command line only; take it out of the file")
    known = {action.dest for action in parser._actions} - {"help"}
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"-config: {path} names unknown flags: {', '.join(unknown)}")
    return given


def as_words(values: dict, parser: argparse.ArgumentParser) -> list[str]:
    """The flags as they would be typed; UserError for a value that nobody can type. None is a default of that name."""
    actions, words = {action.dest: action for action in parser._actions}, []
    for name, value in values.items():
        switch = actions[name].nargs == 0
        if value is None and not switch and actions[name].default is None:
            continue
        if switch != isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "a switch is true or false" if switch else "give a number or a text, as on the command line"
            raise UserError(f"{name} is {shortened(json.dumps(value))}; {kind}")
        words += [f"-{name}"] * value if switch else [f"-{name}={value}"]
    return words


def _content(path: Path) -> object:
    if path.suffix in (".yaml", ".yml"):
        found = read_yaml(path, "flags and their values, or a run.json", "-config: ")
        # Its texts are for the flags to read, as on the command line, but for what no flag's text can say.
        words = {"true": True, "false": False, "null": None}
        if not isinstance(found, dict):
            return found
        return {name: words.get(each, each) if isinstance(each, str) else each for name, each in found.items()}
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise UserError(
            f"-config: cannot read {path} ({first_line(error)}); give a JSON object of flags, or a run.json"
        ) from error


def _once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; ValueError if it names something twice, of which json would take the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return found
