"""The card of the model that a run made: README.md of the merged checkpoint, as the hub reads it."""

from utils.common.names import ANSWER_BITS
from utils.report.metadata import all_scored, metadata
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
from utils.report.tables import DASH, markdown_table, proof_table_markdown, score_rows


def model_card(results: dict, run: dict) -> str:
    """README.md of the merged checkpoint, with the hub's front matter; names folders, never where they lie."""
    proof, arguments = results.get("proof") or {}, run.get("arguments") or {}
    parts = [f"# {title(run, proof)}", what_was_done(results, run)]
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
    if scored := scored_table(results, run):
        parts += ["What was scored:", scored]
    if proof:
        parts += ["## Proof", proof_sentence(proof), proof_table_markdown(proof)]
    parts += ["## What the zeros buy", zeros_buy(proof), *reproducing(run)]
    front = f"---\n{metadata(results, run).to_yaml()}\n---"
    return "\n\n".join([front, hide_home("\n\n".join(parts))]) + "\n"


def scored_table(results: dict, run: dict) -> str:
    """Each task's data set, and how much of it the restored model was scored on; empty if nothing was."""
    lines = []
    for (task, scored), metrics in all_scored(results, run).items():
        data = scored.dataset
        place = ", ".join(f"`{part}`" for part in (data.id, data.config, data.split) if part)
        name = place if data.name == data.id else f"{data.name}<br>{place}"
        part = "" if scored.total in (None, scored.n) else f" of {scored.total:,}"
        amount = DASH if scored.n is None else f"{scored.unit}: {scored.n:,}{part}"
        shots = DASH if scored.shots is None else str(scored.shots)
        named = ", ".join(metric for metric in metrics if metric != ANSWER_BITS)  # `answer_table` has them
        lines.append([f"`{task}`<br>{named}", name, amount, shots])
    return markdown_table(["task", "data set", "scored on", "examples shown"], lines) if lines else ""
