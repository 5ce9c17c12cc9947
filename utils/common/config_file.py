"""Files of flags: a -config in JSON or YAML, whose values are checked as those of the command line are."""

import argparse
import json
from pathlib import Path

import yaml

from utils.common.errors import UserError, first_line, shortened
from utils.common.files import parse_json

NOT_REPEATED = ("overwrite", "plan", "config", "push_to_hub")
"""Flags that say how this once a run is started: never kept in run.json, never taken from a -config file."""


class _Loader(yaml.BaseLoader):
    """Every scalar as it is written: YAML would read 2:4 as 124, and 1e-3 as a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if problem := _twice([self.construct_object(key, deep=True) for key, _ in node.value]):
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str, place: str = "") -> object:
    """Mappings, lists and texts of a file; UserError in one line, which begins with `place`, if it is no YAML.

    what: what the file should be, for who gave a wrong one.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}{path}: cannot be read ({first_line(error)}); give {what}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{place}{path}: is no YAML{where} ({problem}); mend it") from error


def read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    """The flags in a JSON object or YAML mapping, or a run.json's "arguments"; their values are not yet checked."""
    if path.suffix in (".yaml", ".yml"):
        content = read_yaml(path, "flags and their values, or a run.json", "-config: ")
    else:
        try:
            content = parse_json(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
        except (OSError, ValueError) as error:
            raise UserError(
                f"-config: cannot read {path} ({first_line(error)}); give a JSON object of flags, or a run.json"
            ) from error
    given, once = content, ()
    if isinstance(content, dict) and isinstance(content.get("arguments"), dict):
        given, once = content["arguments"], NOT_REPEATED  # which those of earlier versions name too
    if not isinstance(given, dict):
        raise UserError(f"-config: {path} holds no flags; give a JSON object or YAML mapping of them, or a run.json")
    given = {name: value for name, value in given.items() if name not in once}
    if found := [name for name in given if name in NOT_REPEATED]:
        raise UserError(f"-config: {path}: {', '.join(found)}: given on the command line only; take it out of the file")
    if unknown := given.keys() - ({action.dest for action in parser._actions} - {"help"}):
        raise UserError(f"-config: {path} names unknown flags: {', '.join(sorted(unknown))}")
    return given


def as_words(values: dict, parser: argparse.ArgumentParser) -> list[str]:
    """The flags as they would be typed; UserError for a value that nobody can type. None is a default of that name."""
    actions, words = {action.dest: action for action in parser._actions}, []
    for name, value in values.items():
        switch = actions[name].nargs == 0
        if isinstance(value, str):  # of YAML, where all is text: what no flag's text can say
            value = {"true": True, "false": False, "null": None}.get(value, value)
        if value is None and not switch and actions[name].default is None:
            continue
        if switch != isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "a switch is true or false" if switch else "give a number or a text, as on the command line"
            raise UserError(f"{name} is {shortened(json.dumps(value))}; {kind}")
        words += [f"-{name}"] * value if switch else [f"-{name}={value}"]
    return words


def _object(pairs: list[tuple[str, object]]) -> dict:
    if problem := _twice([name for name, _ in pairs]):
        raise ValueError(problem)
    return dict(pairs)


def _twice(names: list) -> str | None:
    """What is wrong with names of which one stands there twice: either value would be taken in silence."""
    return next((f"{name!r} stands there twice" for name in names if names.count(name) > 1), None)
