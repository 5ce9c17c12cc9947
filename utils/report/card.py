"""The card of the model that a run made: README.md of the merged checkpoint, as the hub reads it."""

import re
from pathlib import Path

from models.loading import hub_name
from utils.common.names import EMBEDDED, EMBEDDED_ID
from utils.report.sections import USE, answer_table, hide_home, reproducing, score_tables
from utils.report.summary import (
    findings,
    limited,
    proof_sentence,
    restores_nothing,
    title,
    what_was_done,
    zeros_buy,
)
from utils.report.tables import proof_table_markdown, score_rows

LICENSES = {
    "HuggingFaceTB/SmolLM2-": "apache-2.0",
    "TinyLlama/": "apache-2.0",
    "meta-llama/Llama-2-": "llama2",
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Llama-3.1-": "llama3.1",
    "meta-llama/Llama-3.2-": "llama3.2",
}
"""The hub's names of licences, by the beginning of a model's hub id."""


def model_card(results: dict, run: dict) -> str:
    """README.md of the merged checkpoint, with the hub's front matter; names folders, never where they lie."""
    proof = results.get("proof") or {}
    models, arguments = run.get("models") or {}, run.get("arguments") or {}
    parts = [_front_matter(models), f"# {title(run, proof)}"]
    parts.append(what_was_done(results, run))
    if (about := (run.get("method") or {}).get("about")) and not restores_nothing(run):
        parts.append(about)
    main, others = score_tables(results)
    parts += ["## Use", USE.format(folder="path/to/this/folder"), "## Measured"]
    measured = bool(score_rows(results))
    if measured:
        parts.append(" ".join(findings(results)))
    parts += main
    if measured and (limit := arguments.get("eval_limit")):
        parts.append(limited(limit))
    if answers := answer_table(results):
        parts += ["Likelihood of the right answers, and agreement with the dense model:", *answers]
    if others:
        parts += ["Other metrics:", *others]
    if proof:
        parts += ["## Proof", proof_sentence(proof), proof_table_markdown(proof)]
    parts += ["## What the zeros buy", zeros_buy(proof), *reproducing(run)]
    return hide_home("\n\n".join(parts) + "\n")


def _front_matter(models: dict) -> str:
    """The YAML that the Hugging Face hub reads; a base model only by its hub id, a licence only where it is known."""
    base = next((hub for name in ("pruned", "dense") if (hub := _hub_id(models.get(name)))), None)
    licensed = _hub_id(models.get("dense")) or base or ""
    license = next((name for start, name in LICENSES.items() if licensed.startswith(start)), None)
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "language: en"]
    lines += [f"base_model: {base}"] if base else []
    lines += [f"license: {license}"] if license else []
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in TAGS), "---"])


TAGS = ("llama", "pruned", "restorelcc")


def _hub_id(name: str | None) -> str | None:
    """The hub id owner/name behind a model's name; None for a local folder or file."""
    if not name:
        return None
    full = EMBEDDED_ID if name == EMBEDDED else hub_name(name)
    is_local = full.startswith((".", "/", "~")) or Path(full).exists() or full.endswith(".gguf")
    return full if re.fullmatch(r"[\w.-]+/[\w.-]+", full) and not is_local else None
