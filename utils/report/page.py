"""report.html: the page of a run in one file, from its record alone, with its pictures as files beside it.

Every text of a run is escaped, and JSON is written so that no text can end its element.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from utils.common.errors import UserError, first_line
from utils.common.files import parse_json, without_nan, write_text
from utils.report import charts, summary, tables
from utils.report.svg import TEMPLATES, Drawing, read_template

HISTORY, EXAMPLES = "logs/history.jsonl", "logs/examples.json"
"""In a run's folder: the loss by step, and answers to held-out prompts. Either may be missing."""

NUMBERS = (
    "scores", "metrics", "main_metric", "paired", "recovered", "mean", "answers", "agreement", "validation", "proof",
    "heads", "spectrum",
)  # fmt: skip
"""Parts of results.json that the page holds as JSON: all but where the tasks' rows came from."""


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
        results, run = (_objects(folder / name)[0] for name in ("results.json", "run.json"))
        history = _objects(folder / HISTORY, in_lines=True) if (folder / HISTORY).is_file() else []
        examples = _objects(folder / EXAMPLES)[0] if (folder / EXAMPLES).is_file() else None
        return cls(results, run, history, examples)


def _objects(path: Path, in_lines: bool = False) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = [parse_json(each) for each in (text.splitlines() if in_lines else [text])]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); give the whole folder of a run") from error
    if not all(isinstance(each, dict) for each in found):
        raise UserError(f"{path}: holds no JSON object; give the whole folder of a run")
    return found


def write_report(folder: Path, record: Record) -> Path:
    """Write report.html and figures/NAME.svg to `folder`, each whole or not at all; returns the page.

    Everything is drawn before the first file is written, and no other file is touched.
    """
    pictures = pictures_of(record)
    text = page(record, pictures)
    for name, picture in pictures.items():
        write_text(folder / "figures" / f"{name}.svg", picture.svg(alone=True))
    write_text(folder / "report.html", text)
    return folder / "report.html"


def pictures_of(record: Record) -> dict[str, Drawing]:
    """The pictures that can be drawn, by name."""
    results, given = record.results, record.run.get("arguments") or {}
    drawn = {
        "scores": charts.scores_picture([*tables.score_rows(results), *tables.mean_rows(results)]),
        "heads": charts.heads_picture(results.get("heads") or {}),
        "spectrum": charts.spectrum_picture(results.get("spectrum"), given.get("num_components")),
        "loss": charts.loss_picture(record.history),
    }
    return {name: picture for name, picture in drawn.items() if picture}


def page(record: Record, pictures: dict[str, Drawing]) -> str:
    """The whole page."""
    results, run, history = record.results, record.run, record.history
    given, heads = run.get("arguments") or {}, results.get("heads") or {}
    verdicts = {row.verdict for row in tables.score_rows(results)}
    data = {"results": {name: results[name] for name in NUMBERS if name in results}, "history": history}
    content = {
        **told(results, run),
        "headline": summary.headline(results),
        "losses": [row["valid_loss"] for row in history if row.get("valid_loss") is not None],
        "pruned_loss": (results.get("validation") or {}).get("pruned"),
        "pictures": pictures,
        "one_seed": any("loss" in row for row in history) and any(verdicts),
        "score_name": charts.score_name_of(heads),
        "examples": shown_examples(record.examples),
        "stages": tables.stage_rows(run),
        "out": summary.hide_path(str(given.get("output_dir") or "output")),
        "dense": summary.hide_path(str(given.get("base_model_name") or "")),
        "seed": (run.get("seeds") or {}).get("training", run.get("seed")),
        "device": "cpu" if str(run.get("device") or "cpu").startswith("cpu") else "cuda",
        "try_slower": "worse" in verdicts or "better" not in verdicts,
        "data": without_nan(data | ({"examples": record.examples} if record.examples else {})),
    }
    return summary.hide_home(render("report.html.j2", content))


def told(results: dict, run: dict) -> dict:
    """What the page of a run and the card of its model both tell."""
    proof = results.get("proof") or {}
    return {
        "results": results, "run": run, "given": run.get("arguments") or {}, "proof": proof,
        "title": summary.title(run, proof), "verdict": summary.verdict(results, run),
        "pruned_how": summary.pruned_how(run, proof), "restored_how": summary.restored_how(run),
        "restores": not summary.restores_nothing(run), "zeros_kept": proof.get("zeros", "kept") == "kept",
        "weights_changed": any(name.endswith("weight") for name in proof.get("changed_tensors", [])),
        "rows": tables.score_rows(results), "means": tables.mean_rows(results),
        "others": [*tables.score_rows(results, main=False), *tables.agreement_rows(results)],
        "promises": tables.proof_rows(proof), "facts": summary.shown_facts(run),
        "command": summary.hide_paths(run.get("command") or ""), "arguments": summary.shown_arguments(run),
    }  # fmt: skip


def render(template: str, content: dict, finalize: Callable[[object], object] | None = None) -> str:
    """A template of ours, filled in; finalize: what every value goes through before it is escaped."""
    return environment(finalize).get_template(template).render(content)


@cache
def environment(finalize: Callable[[object], object] | None) -> Environment:
    """Templates whose every value is escaped, and in which a name that is not there is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=finalize,
    )  # fmt: skip
    found.filters |= {"number": number, "quoted": shlex.quote, "shown_name": summary.shown_name}
    found.filters["p_value"] = lambda value: "< 0.001" if value < 0.001 else f"= {value:.3f}"
    found.filters |= {"share": summary.share_text, "span": summary.span_text}
    found.globals |= {"columns": tables.COLUMNS, "dash": tables.DASH, "selections": summary.SELECTIONS}
    found.globals["ours"] = lambda name: Markup(read_template(name))
    return found


def number(text: str) -> Markup:
    """A table's number with a true minus, and its standard errors smaller."""
    value, *errors = text.replace("-", "−").split(" ± ")
    return escape(value) + Markup("").join(Markup(" <small>±\u00a0{}</small>").format(error) for error in errors)


def shown_examples(examples: dict | None) -> dict | None:
    """The prompts without the lines that all of them share, and each model's answer and loss.

    {"most", "before", "after": the shared lines, "prompts": [{"prompt", "response", "answers": [(model, answer)]}]}.
    """
    if not examples or not examples.get("prompts"):
        return None
    before, after = shared_lines([str(each["prompt"]) for each in examples["prompts"]])
    prompts = []
    for each in examples["prompts"]:
        lines = str(each["prompt"]).splitlines()
        answers = [(name, each["answers"][name]) for name in tables.MODELS if name in each["answers"]]
        own = "\n".join(lines[len(before) : len(lines) - len(after)]).strip()
        prompts.append({"prompt": own or each["prompt"], "response": each["response"], "answers": answers})
    shared = {"before": "\n".join(before).strip(), "after": "\n".join(after).strip()}
    return {"most": examples.get("most_tokens"), **shared, "prompts": prompts}


def shared_lines(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(first, last) lines that all of several texts have; none of a single text."""
    lines = [text.splitlines() for text in texts] if len(texts) > 1 else []
    first = _same(lines)
    return first, _same([each[len(first) :][::-1] for each in lines])[::-1]


def _same(lines: list[list[str]]) -> list[str]:
    return [each[0] for each in takewhile(lambda each: len(set(each)) == 1, zip(*lines, strict=False))]
