"""Both pages of a run and its pictures as files, drawn from its record alone."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from utils.common.errors import UserError, first_line
from utils.common.files import read_json, whole_file, write_text
from utils.report.figures import style
from utils.report.html import page, pictures_of, write_pictures
from utils.report.page import report

FIGURES, MARKDOWN, HTML = "figures", "report.md", "report.html"

HISTORY, EXAMPLES = "logs/history.jsonl", "logs/examples.json"
"""In a run's folder: the loss by step, and answers to held-out prompts. Either may be missing."""


@dataclass(frozen=True)
class Record:
    """What a run left: results.json, run.json, the history of its loss, and its examples (None if it kept none)."""

    results: dict
    run: dict
    history: list[dict]
    examples: dict | None

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """The record in `folder`; UserError if it is no run's, or a file of it is damaged."""
        objects = [_object(folder, name) for name in ("results.json", "run.json")]
        path = folder / HISTORY
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            history = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a run's history ({first_line(error)})") from error
        return cls(*objects, history, _object(folder, EXAMPLES) if (folder / EXAMPLES).is_file() else None)


def _object(folder: Path, name: str) -> dict:
    try:
        found = read_json(folder / name)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {name} cannot be read ({first_line(error)}); give the folder of a run") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder / name}: holds no JSON object; give the folder of a run")
    return found


def _png(figure: Figure) -> bytes:
    image = BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def write_report(folder: Path, record: Record) -> list[Path]:
    """Write report.html, report.md and figures/ to `folder`; returns the files, the page to look at first.

    Pages and pictures each appear whole or not at all, the pictures first. A picture of an earlier version of this
    project that the record no longer tells enough of stays.
    """
    drawn = pictures_of(record.results, record.run, record.history)
    text, pictures = report(record.results, record.run, record.history)
    html = page(record.results, record.run, record.history, record.examples, drawn)
    figures = folder / FIGURES
    if drawn or pictures:
        with style():
            images = {f"{name}.png": _png(draw()) for name, draw in pictures.items()}
        for name, image in images.items():
            with whole_file(figures / name) as partial:
                partial.write_bytes(image)
        write_pictures(figures, list(drawn.values()))
    write_text(folder / MARKDOWN, text)
    write_text(folder / HTML, html)
    names = [f"{name}.png" for name in pictures] + [f"{name}.{kind}" for name in drawn for kind in ("svg", "csv")]
    return [folder / HTML, folder / MARKDOWN, *(figures / name for name in names)]
