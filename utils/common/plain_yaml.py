"""YAML in which every scalar is the text that stands there: as on a command line, and with no surprises of its own."""

from collections import Counter
from pathlib import Path

import yaml

from utils.common.errors import UserError, first_line


class _Loader(yaml.BaseLoader):
    """Every scalar as it is written: YAML would read 2:4 as 124, and 1e-3 as a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name, count in Counter(name for name in names if isinstance(name, str)).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", node.start_mark)
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
