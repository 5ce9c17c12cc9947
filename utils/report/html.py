"""report.html: the page of a run in one file, from its record alone, and its pictures as SVG with their numbers as CSV.

What comes from a run is data: jinja2 escapes every text of it, and JSON is written so that no text can end its element.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from utils.common.files import without_nan, write_text
from utils.report.charts import (
    NARROW,
    WIDE,
    Picture,
    heads_picture,
    loss_picture,
    scores_picture,
    sparsity_picture,
    spectrum_picture,
)
from utils.report.records import score_name_of
from utils.report.sections import (
    HASH,
    HOW_TO_READ,
    USE,
    hide_home,
    shown_arguments,
    shown_command,
    shown_facts,
)
from utils.report.steps import next_steps
from utils.report.summary import (
    headline,
    proof_sentence,
    sparsity_sentence,
    summary,
    title,
    verdict,
    what_was_done,
    zeros_buy,
)
from utils.report.svg import TEMPLATES, stylesheet
from utils.report.tables import DASH, MODELS, ScoreRow, answers_row, mean_row, proof_rows, score_rows, stage_rows

NUMBERS = (
    "scores", "metrics", "main_metric", "paired", "recovered", "mean", "answers", "agreement", "validation", "proof",
    "heads", "spectrum",
)  # fmt: skip
"""Parts of results.json that the page holds as JSON: all but where the tasks' rows came from."""


def pictures_of(results: dict, run: dict, history: list[dict]) -> dict[str, Picture]:
    """The pictures that can be drawn, by name."""
    proof = results.get("proof") or {}
    found = (
        scores_picture(shown_rows(results)),
        heads_picture(results.get("heads") or {}),
        spectrum_picture(results.get("spectrum"), (run.get("arguments") or {}).get("num_components")),
        loss_picture(history),
        sparsity_picture(proof.get("sparsity_pruned"), proof.get("sparsity_restored")),
    )
    return {picture.name: picture for picture in found if picture}


def shown_rows(results: dict) -> list[ScoreRow]:
    """Each task's main metric, then the means."""
    return [*score_rows(results), *(row for row in (mean_row(results), answers_row(results)) if row)]


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Each picture as NAME.svg with NAME.csv beside it."""
    for picture in pictures:
        write_text(folder / f"{picture.name}.svg", picture.draw(WIDE).alone())
        write_text(folder / f"{picture.name}.csv", picture.csv())


def page(results: dict, run: dict, history: list[dict], examples: dict | None, pictures: dict[str, Picture]) -> str:
    """The whole page. examples: what logs/examples.json holds; None if there is none."""
    proof = results.get("proof") or {}
    rows = score_rows(results)
    content = {
        "title": title(run, proof),
        "verdict": verdict(results, run),
        "failed": bool(proof) and not proof.get("passed"),
        "figures": key_figures(results, run, history),
        "done": what_was_done(results, run),
        "summary": summary(results, run, history),
        "pictures": pictures,
        "rows": [score_cells(row) for row in rows],
        "means": [score_cells(row) for row in shown_rows(results)[len(rows) :]],
        "others": [score_cells(row) for row in score_rows(results, main=False)],
        "how_to_read": HOW_TO_READ,
        "proof": proof_rows(proof) if proof else [],
        "proof_sentence": proof_sentence(proof),
        "sparsity": _sparsity(proof),
        "score_name": score_name_of(results.get("heads") or {}),
        "with_heads": bool(results.get("heads")),
        "examples": shown_examples(examples),
        "stages": shown_stages(run),
        "command": shown_command(run),
        "facts": [(name, value, name.startswith(HASH)) for name, value in shown_facts(run)],
        "arguments": shown_arguments(run),
        "steps": next_steps(results, run),
        "use": USE.format(folder="model").removeprefix("```python\n").removesuffix("\n```"),
        "zeros": zeros_buy(proof),
        "data": without_nan(
            {"results": {name: results[name] for name in NUMBERS if name in results}, "history": history}
            | ({"examples": examples} if examples else {})
        ),
    }
    return hide_home(render("report.html.j2", content))


def render(template: str, content: dict, folder: Path = TEMPLATES) -> str:
    """A template of ours, filled in; folder: where it is, if not here."""
    return environment(folder).get_template(template).render(content)


@cache
def environment(folder: Path) -> Environment:
    """Templates whose every value is escaped, and in which a name that is not there is an error."""
    found = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    found.filters |= {"marked": marked, "both": both_widths, "number": number, "digits": digits}
    found.globals |= {"style": style, "script": script, "models": MODELS, "dash": DASH}
    return found


def style() -> Markup:
    """The stylesheets of a page; they are ours."""
    return Markup(stylesheet("chart.css") + stylesheet("page.css"))


def script() -> Markup:
    """The script of a page; it is ours."""
    return Markup(stylesheet("page.js"))


def marked(text: str) -> Markup:
    """The `code` and **strong** of our sentences as HTML; what stands in them is escaped first."""
    found = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", found))


def number(text: str) -> Markup:
    """A table's number with a true minus, and its standard error smaller."""
    value, plus_minus, error = text.replace("-", "−").partition(" ± ")
    return escape(value) + (Markup(" <small>±\u00a0{}</small>").format(error) if plus_minus else "")


def digits(value: float, count: int | None) -> str:
    """A number with `count` decimals, or as it is, and a true minus."""
    return (f"{value:g}" if count is None else f"{value:,.{count}f}").replace("-", "−")


def both_widths(picture: Picture) -> Markup:
    """A picture for wide pages and for narrow ones, of which a page shows one."""
    return picture.draw(WIDE).inline("wide") + picture.draw(NARROW).inline("narrow")


def score_cells(row: ScoreRow) -> dict:
    """A row of the table of scores: texts, and what each column is sorted by."""
    texts, difference, recovered = row.texts()
    values = {name: row.scores[name].value if name in row.scores else None for name in MODELS}
    return {
        "task": row.task,
        "metric": row.label,
        "mean": row.is_mean,
        "cells": [(texts[name], values[name]) for name in MODELS]
        + [(difference, row.difference and row.difference.value), (recovered, row.recovered)],
        "verdict": row.verdict or DASH,
        "p": row.mcnemar_p,
    }


def key_figures(results: dict, run: dict, history: list[dict]) -> list[tuple[str, str]]:
    """(number, what it is): the four that stand for a run, as far as they are known."""
    figures = []
    found = headline(results)
    if found:
        figures.append((found[1].texts()[2], f"of the gap in {found[0]} recovered"))
    elif any(row.verdict for row in score_rows(results)):
        figures.append((DASH, "no gap beyond noise was recovered"))
    losses = [row["valid_loss"] for row in history if row.get("valid_loss") is not None]
    if len(losses) > 1:
        figures.append((f"{losses[0]:.3f} → {losses[-1]:.3f}", "validation loss, nats a token"))
    elif losses:
        pruned = (results.get("validation") or {}).get("pruned")
        before = "" if pruned is None else f"{pruned:.3f} → "
        figures.append((f"{before}{losses[0]:.3f}", "validation loss, nats a token"))
    proof = results.get("proof") or {}
    if proof.get("zeros_pruned"):
        lost = proof.get("zeros_lost", 0)
        kept = proof["zeros_pruned"] - lost
        figures.append((f"{100 * kept / proof['zeros_pruned']:.4g} %", f"of {proof['zeros_pruned']:,} zeros kept"))
    if parameters := (run.get("method") or {}).get("parameters"):
        figures.append((f"{parameters:,}", "trained numbers"))
    return figures


def _sparsity(proof: dict) -> str:
    before, after = proof.get("sparsity_pruned"), proof.get("sparsity_restored")
    return sparsity_sentence(before, after) if before and after else ""


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
    return {
        "most": examples.get("most_tokens"),
        "before": "\n".join(before).strip(),
        "after": "\n".join(after).strip(),
        "prompts": prompts,
    }


def shared_lines(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(first, last) lines that all of several texts have; none of a single text."""
    lines = [text.splitlines() for text in texts]
    if len(lines) < 2:
        return [], []
    shortest = min(map(len, lines))
    first = next((n for n in range(shortest) if len({each[n] for each in lines}) > 1), shortest)
    left = shortest - first
    last = next((n for n in range(left) if len({each[-1 - n] for each in lines}) > 1), left)
    return lines[0][:first], lines[0][len(lines[0]) - last :]


def shown_stages(run: dict) -> dict | None:
    """{"header", "rows": [(cells, share of the longest, what was said of it)], "total": cells} of the stages."""
    stages = run.get("stages") or []
    if not stages:
        return None
    header, rows = stage_rows(run)
    longest = max(stage["seconds"] for stage in stages) or 1
    said = []
    for stage in stages:
        reused = list(dict.fromkeys(stage.get("reused") or []))
        parts = [stage.get("detail") or "", f"from the cache: {', '.join(reused)}" if reused else ""]
        said.append("; ".join(filter(None, parts)))
    shares = [stage["seconds"] / longest for stage in stages]
    return {"header": header, "rows": list(zip(rows[:-1], shares, said, strict=True)), "total": rows[-1]}
