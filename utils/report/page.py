"""report.html: the page of a run in one file, from its record alone, with its pictures as files beside it.

What comes from a run is data: every text of it is escaped, and JSON is written so that no text can end its element.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from utils.common.errors import UserError, first_line
from utils.common.files import parse_json, read_json, without_nan, write_text
from utils.report.charts import (
    heads_picture,
    loss_picture,
    score_name_of,
    scores_picture,
    spectrum_picture,
)
from utils.report.summary import (
    headline,
    hide_home,
    hide_path,
    hide_paths,
    proof_sentence,
    restores_nothing,
    shown_arguments,
    shown_facts,
    sparsity_sentence,
    title,
    validation_sentence,
    verdict,
    what_was_done,
)
from utils.report.svg import TEMPLATES, Drawing, read_template
from utils.report.tables import COLUMNS, DASH, MODELS, agreement_rows, mean_rows, proof_rows, score_rows, stage_rows

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
        found = []
        for name in ("results.json", "run.json", HISTORY, EXAMPLES):
            path, is_history = folder / name, name == HISTORY
            if name.startswith("logs/") and not path.is_file():
                found.append([] if is_history else None)
                continue
            try:
                lines = path.read_text(encoding="utf-8").splitlines() if is_history else ()
                content = [parse_json(line) for line in lines] if is_history else read_json(path)
            except (OSError, ValueError) as error:
                said = f"{path}: cannot be read ({first_line(error)})"
                raise UserError(f"{said}; give the whole folder of a run") from error
            if not all(isinstance(each, dict) for each in (content if is_history else [content])):
                raise UserError(f"{path}: holds no JSON object; give the whole folder of a run")
            found.append(content)
        return cls(*found)


def write_report(folder: Path, record: Record) -> Path:
    """Write report.html and figures/NAME.svg to `folder`, each whole or not at all; returns the page.

    Everything is drawn before the first file is written, and no other file is touched.
    """
    pictures = pictures_of(record)
    text = page(record, pictures)
    for name, picture in pictures.items():
        write_text(folder / "figures" / f"{name}.svg", picture.alone())
    write_text(folder / "report.html", text)
    return folder / "report.html"


def pictures_of(record: Record) -> dict[str, Drawing]:
    """The pictures that can be drawn, by name."""
    results = record.results
    components = (record.run.get("arguments") or {}).get("num_components")
    drawn = {
        "scores": scores_picture([*score_rows(results), *mean_rows(results)]),
        "heads": heads_picture(results.get("heads") or {}),
        "spectrum": spectrum_picture(results.get("spectrum"), components),
        "loss": loss_picture(record.history),
    }
    return {name: picture for name, picture in drawn.items() if picture}


def page(record: Record, pictures: dict[str, Drawing]) -> str:
    """The whole page."""
    results, run, history = record.results, record.run, record.history
    proof, heads = results.get("proof") or {}, results.get("heads") or {}
    rows = [row for row in score_rows(results) if row.verdict]
    data = {"results": {name: results[name] for name in NUMBERS if name in results}, "history": history}
    content = {
        **score_tables(results),
        "title": title(run, proof),
        "verdict": verdict(results, run),
        "failed": bool(proof) and not proof.get("passed"),
        "figures": key_figures(results, run, history),
        "done": what_was_done(results, run),
        "pictures": pictures,
        "limit": (run.get("arguments") or {}).get("eval_limit"),
        "one_seed": any("loss" in row for row in history) and bool(rows),
        "proof": proof_rows(proof),
        "proof_sentence": proof_sentence(proof),
        "sparsity": sparsity_sentence(proof),
        "zeros_kept": proof.get("zeros", "kept") == "kept",
        "score_name": score_name_of(heads),
        "with_heads": bool(heads),
        "validation": validation_sentence(results, history),
        "examples": shown_examples(record.examples),
        "stages": stage_rows(run),
        "command": hide_paths(run["command"]) if run.get("command") else "",
        "facts": shown_facts(run),
        "arguments": shown_arguments(run),
        "out": hide_path(str((run.get("arguments") or {}).get("output_dir") or "output")),
        "given": run.get("arguments") or {},
        "dense": hide_path(str((run.get("arguments") or {}).get("base_model_name") or "")),
        "seed": (run.get("seeds") or {}).get("training", run.get("seed")),
        "restores": not restores_nothing(run),
        "device": "cpu" if str(run.get("device") or "cpu").startswith("cpu") else "cuda",
        "try_slower": any(row.verdict == "worse" for row in rows) or not any(row.verdict == "better" for row in rows),
        "data": without_nan(data | ({"examples": record.examples} if record.examples else {})),
    }
    return hide_home(render("report.html.j2", content))


def score_tables(results: dict) -> dict[str, list]:
    """{"rows": each task's main metric, "means" over tasks, "others": other metrics, agreement with the dense one}."""
    others = [*score_rows(results, main=False), *agreement_rows(results)]
    return {"rows": score_rows(results), "means": mean_rows(results), "others": others}


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
    found.filters |= {"marked": marked, "number": number, "p_value": p_value, "quoted": shlex.quote}
    found.globals |= {
        "models": MODELS,
        "columns": COLUMNS,
        "dash": DASH,
        "ours": lambda name: Markup(read_template(name)),
    }
    return found


def escaped(text: object) -> str:
    """A text that is no markup, neither of HTML nor a link or a cell of Markdown."""
    return re.sub(r"[\[\]|\\]", lambda found: f"&#{ord(found[0])};", str(escape(text)))


def marked(text: str) -> Markup:
    """The `code` and **strong** of our sentences as HTML; what stands in them is escaped first."""
    found = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped(text))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", found))


def number(text: str) -> Markup:
    """A table's number with a true minus, and its standard errors smaller."""
    value, *errors = text.replace("-", "−").split(" ± ")
    return escape(value) + Markup("").join(Markup(" <small>±\u00a0{}</small>").format(error) for error in errors)


def p_value(value: float) -> str:
    """A p-value, or how small it is."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def key_figures(results: dict, run: dict, history: list[dict]) -> list[tuple[str, str]]:
    """(number, what it is): the four that stand for a run, as far as they are known."""
    figures = []
    if found := headline(results):
        figures.append((found[1].texts["recovered"], f"of the gap in {found[0]} recovered"))
    elif any(row.verdict for row in score_rows(results)):
        figures.append((DASH, "no gap beyond noise was recovered"))
    losses = [row["valid_loss"] for row in history if row.get("valid_loss") is not None]
    if losses:
        first = losses[0] if len(losses) > 1 else (results.get("validation") or {}).get("pruned")
        before = "" if first is None else f"{first:.3f} → "
        figures.append((f"{before}{losses[-1]:.3f}", "validation loss, nats a token"))
    proof = results.get("proof") or {}
    if zeros := proof.get("zeros_pruned"):
        kept = f"{100 * (1 - proof.get('zeros_lost', 0) / zeros):.4g} %"
        kept = f"< {kept}" if kept == "100 %" and proof.get("zeros_lost") else kept
        figures.append((kept, f"of {zeros:,} zeros kept"))
    if parameters := (run.get("method") or {}).get("parameters"):
        figures.append((f"{parameters:,}", "trained numbers"))
    return figures


def shown_examples(examples: dict | None) -> dict | None:
    """The prompts without the lines that all of them share, and each model's answer and loss.

    {"most", "before", "after": the shared lines, "prompts": [{"prompt", "response", "answers": [(model, answer)]}]}.
    """
    if not examples or not examples.get("prompts"):
        return None
    asked = [str(each["prompt"]) for each in examples["prompts"]]
    before, after = shared_lines(asked)
    prompts = []
    for each, prompt in zip(examples["prompts"], asked, strict=True):
        lines = prompt.splitlines()
        answers = [(name, each["answers"][name]) for name in MODELS if name in each["answers"]]
        own = "\n".join(lines[len(before) : len(lines) - len(after)]).strip()
        prompts.append({"prompt": own or prompt, "response": each["response"], "answers": answers})
    shared = {"before": "\n".join(before).strip(), "after": "\n".join(after).strip()}
    return {"most": examples.get("most_tokens"), **shared, "prompts": prompts}


def shared_lines(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(first, last) lines that all of several texts have; none of a single text."""
    lines = [text.splitlines() for text in texts]
    if len(lines) < 2:
        return [], []
    first = _same(lines)
    return first, _same([each[len(first) :][::-1] for each in lines])[::-1]


def _same(lines: list[list[str]]) -> list[str]:
    """What all of them begin with."""
    return [each[0] for each in takewhile(lambda each: len(set(each)) == 1, zip(*lines, strict=False))]
