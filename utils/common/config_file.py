"""A -config file: flags and their values, checked as on the command line."""

import argparse
import json
from pathlib import Path

from utils.common.errors import UserError, first_line, shortened
from utils.common.files import parse_json
from utils.common.plain_yaml import read_yaml

NOT_REPEATED = ("overwrite", "plan", "config", "push_to_hub")
"""Flags that say how this once a run is started: never kept in run.json, never taken from a -config file."""


def read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    """The flags in a JSON object or YAML mapping, or a run.json's "arguments", each checked as on the command line."""
    content = _content(path)
    of_run = isinstance(content, dict) and isinstance(content.get("arguments"), dict)
    given = content["arguments"] if of_run else content
    if not isinstance(given, dict):
        raise UserError(f"-config: {path} holds no flags; give a JSON object or YAML mapping of them, or a run.json")
    if of_run:  # those of earlier versions name these too
        given = {name: value for name, value in given.items() if name not in NOT_REPEATED}
    if once := [name for name in given if name in NOT_REPEATED]:
        raise UserError(f"-config: {path}: {', '.join(once)}: given on the command line only; take it out of the file")
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    if unknown := [name for name in given if name not in actions]:
        raise UserError(f"-config: {path} names unknown flags: {', '.join(unknown)}")
    return {name: _from_json(actions[name], value, f"-config: {path}: {name}") for name, value in given.items()}


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


def _from_json(action: argparse.Action, value: object, place: str) -> object:
    """A flag's value from a file, as the command line would make it from text; UserError that begins with `place`."""
    shown = shortened(json.dumps(value))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{place} is {shown}; a switch is true or false")
        return value
    if value is None and action.default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place} is {shown}; give a number or a text, as on the command line")
    try:
        converted = action.type(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentTypeError) else f"is {shown}, which it can't be"
        raise UserError(f"{place} {reason}") from error
    if action.choices and converted not in action.choices:
        raise UserError(f"{place} is {shown}; choose from {', '.join(action.choices)}")
    return converted
