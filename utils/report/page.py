"""report.html: the page of a run in one file, from its record alone, with its pictures as files beside it."""

import shlex
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.common.errors import UserError, explain
from utils.common.files import parse_json, write_text
from utils.report import charts, summary, tables
from utils.report.svg import TEMPLATES, Drawing, read_template

HISTORY, EXAMPLES = "logs/history.jsonl", "logs/examples.json"  # losses, and answers to held-out prompts, if kept


class Record(NamedTuple):
    """What a run left; examples is None if it kept none."""

    results: dict
    run: dict
    history: list[dict]
    examples: dict | None


def read_record(folder: Path) -> Record:
    """The record in `folder`; UserError if it is no run's, or a file of it is damaged."""
    results, run = (_objects(folder / name)[0] for name in ("results.json", "run.json"))
    if not {"scores", "proof"} <= results.keys():
        raise UserError(f"{folder}/results.json: has no scores and no proof; give the whole folder of a run")
    history = _objects(folder / HISTORY, in_lines=True) if (folder / HISTORY).is_file() else []
    return Record(results, run, history, _objects(folder / EXAMPLES)[0] if (folder / EXAMPLES).is_file() else None)


def _objects(path: Path, in_lines: bool = False) -> list[dict]:
    with explain(f"{path}: cannot be read", "give the whole folder of a run", (OSError, ValueError)):
        text = path.read_text(encoding="utf-8-sig")
        found = [parse_json(each) for each in (text.splitlines() if in_lines else [text])]
    if not all(isinstance(each, dict) for each in found):
        raise UserError(f"{path}: holds no JSON object; give the whole folder of a run")
    return found


def write_report(folder: Path) -> Path:
    """Write report.html and figures/NAME.svg of the run in `folder`, drawn before any is written; returns the page."""
    text, pictures = draw(read_record(folder))
    for name, picture in pictures.items():
        write_text(folder / "figures" / f"{name}.svg", picture.svg(alone=True))
    write_text(folder / "report.html", text)
    return folder / "report.html"


def draw(record: Record) -> tuple[str, dict[str, Drawing]]:
    """(page, the pictures that can be drawn by name)."""
    results, run, history, examples = record
    content = told(results, run)
    drawn = {
        "scores": charts.scores_picture([*content["rows"], *content["means"]]),
        "heads": charts.heads_picture(results.get("heads") or {}),
        "spectrum": charts.spectrum_picture(results.get("spectrum"), content["given"].get("num_components")),
        "loss": charts.loss_picture(history),
    }
    pictures = {name: picture for name, picture in drawn.items() if picture}
    content |= {"headline": summary.headline(results), "history": history, "pictures": pictures}
    return render("report.html.j2", content | {"examples": shown_examples(examples)}), pictures


def told(results: dict, run: dict) -> dict:
    """The template values that the page of a run and the card of its model share."""
    proof = results.get("proof") or {}
    return {
        "results": results, "run": run, "given": run.get("arguments") or {}, "proof": proof,
        "title": summary.title(run, proof), "verdict": summary.verdict(results, run),
        "pruned_how": summary.pruned_how(run, proof), "restored_how": summary.restored_how(run, proof),
        "restores": not summary.restores_nothing(run), "zeros_kept": proof.get("zeros", "kept") == "kept",
        "weights_changed": any(name.endswith("weight") for name in proof.get("changed_tensors", [])),
        "verdicts": summary.verdicts_of(results),
        "rows": tables.score_rows(results), "means": tables.mean_rows(results),
        "others": [*tables.score_rows(results, main=False), *tables.agreement_rows(results)],
        "promises": tables.proof_rows(proof), "facts": summary.shown_facts(run),
        "command": summary.hide_paths(run.get("command") or ""),
        "arguments": [(f"-{flag}", summary.hide_path(f"{own}")) for flag, own in (run.get("arguments") or {}).items()],
    }  # fmt: skip


def render(template: str, content: dict, finalize: Callable[[object], object] | None = None) -> str:
    """Render a template of ours. finalize: applied to every value before it is escaped."""
    return summary.hide_home(environment(finalize).get_template(template).render(content))


@cache
def environment(finalize: Callable[[object], object] | None) -> Environment:
    """The Jinja environment: every value is escaped, and an undefined name is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=finalize,
    )  # fmt: skip
    found.filters |= {"quoted": shlex.quote, "hidden": summary.hide_path}
    found.filters |= {"shown_name": summary.shown_name, "share": tables.share_text}
    found.globals |= {"columns": tables.COLUMNS, "dash": tables.DASH}
    found.globals["ours"] = lambda name: Markup(read_template(name))
    return found


def shown_examples(examples: dict | None) -> dict | None:
    """The examples, with the first and last lines that all of several prompts share moved to "before" and "after"."""
    if not examples:
        return None
    texts = [each["prompt"].splitlines() for each in examples["prompts"]]
    several = texts if len(texts) > 1 else [[]]
    before = _same_start(several)
    after = _same_start([lines[len(before) :][::-1] for lines in several])[::-1]
    prompts = []
    for each, lines in zip(examples["prompts"], texts, strict=True):
        own = "\n".join(lines[len(before) : len(lines) - len(after)]).strip()
        prompts.append({**each, "prompt": own or each["prompt"]})
    return {**examples, "prompts": prompts, "before": "\n".join(before).strip(), "after": "\n".join(after).strip()}


def _same_start(texts: list[list[str]]) -> list[str]:
    return [lines[0] for lines in takewhile(lambda lines: len(set(lines)) == 1, zip(*texts, strict=False))]
