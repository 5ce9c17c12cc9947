"""`-collect`: what of a sweep a repository can keep, to rebuild its table there, without any machine's paths."""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from utils.common.files import whole_file, write_json, write_text
from utils.evaluation.outcomes import CHOICES
from utils.sweep.differences import COMPARED
from utils.sweep.outcome import Outcome
from utils.sweep.runs import DONE, FAILED, Row, read_json

_PATH = re.compile(r"(?<![\w/.:\-])(?:file://)?(?:~[\w.\-]*|[A-Za-z]:)?[/\\][^\s\"'`,;()\[\]{}<>|]+")
"""A path from the root of a file system, or of a home directory, within a text."""


def collect(output: Path, rows: list[Row], target: Path) -> int:
    """Copy what the table of `rows` is made of from `output` to `target`; returns the number of runs.

    Of each finished run its records and history, and of each question's rows those that the table compares: what its
    `COMPARED` columns are of. Every path in them is cut to its last name.
    """
    ids = list(dict.fromkeys(each.id for row in rows for each in (*row.searches, *row.finals)))
    compared = {each.id for row in rows for each in row.finals}
    count = 0
    for name in ids:
        source, final = output / name, target / name
        record = read_json(source / DONE)
        if record is None:
            if failure := read_json(source / FAILED):
                write_json(final / FAILED, without_paths({**failure, "output": []}))
            continue
        (final / FAILED).unlink(missing_ok=True)
        outcome = Outcome(source, record)
        given = outcome.run.get("arguments") or {}
        known = [value for value in given.values() if isinstance(value, str) and _PATH.match(value)]
        for file, content in (("results.json", outcome.results), ("run.json", outcome.run)):
            write_json(final / file, without_paths(content, known))
        history = source / "logs" / "history.jsonl"
        if history.is_file():
            write_text(final / "logs" / "history.jsonl", history.read_text(encoding="utf-8"))
        if name in compared and (source / "logs" / "rows.json.gz").is_file():
            _copy_rows(outcome, final / "logs" / "rows.json.gz")
        write_json(final / DONE, without_paths(record))  # last: from here on it is done there too
        count += 1
    return count


def without_paths(content: object, known: Sequence[str] = ()) -> object:
    """A JSON value with every absolute path in its texts, names included, cut to its last name.

    known: paths that may hold spaces, where a text does not say by itself how far they go.
    """
    if isinstance(content, dict):
        return {without_paths(name, known): without_paths(value, known) for name, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value, known) for value in content]
    if not isinstance(content, str):
        return content
    for path in sorted(known, key=len, reverse=True):
        content = content.replace(path, _last_name(path))
    return _PATH.sub(lambda found: _last_name(found[0]), content)


def _last_name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name or "path"


def _copy_rows(outcome: Outcome, final: Path) -> None:
    """Rows of what the table holds against each other, as they are in the run's own file."""
    wanted = {each for name in COMPARED for each in outcome.rows_of(name)}
    models = {"dense": {CHOICES}, "pruned": set(), "restored": {CHOICES}}
    content: dict = {}
    questions = outcome.questions
    for model, always in models.items():
        for task, metrics in questions.get(model, {}).items():
            for metric, rows in metrics.items():
                if metric in always or (model != "dense" and (task, metric) in wanted):
                    content.setdefault(model, {}).setdefault(task, {})[metric] = asdict(rows)
    with whole_file(final) as partial:
        partial.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0))
