"""report.md: the page of a run in Markdown, and its pictures."""

from collections.abc import Callable

from matplotlib.figure import Figure

from utils.report import figures
from utils.report.records import score_map, score_name_of
from utils.report.sections import USE, answer_table, hide_home, reproducing, score_tables
from utils.report.summary import sparsity_sentence, summary, title, zeros_buy
from utils.report.tables import markdown_table, proof_table_markdown, score_rows, stage_rows


def report(results: dict, run: dict, history: list[dict]) -> tuple[str, dict[str, Callable[[], Figure]]]:
    """(report.md, its pictures by name, each drawn when it is called).

    results, run: what results.json and run.json hold; any part may be missing.
    history: rows with `step` and `loss` (training) or `valid_loss` (validation; step 0 is before training).
    """
    proof = results.get("proof") or {}
    rows = score_rows(results)
    pictures: dict[str, Callable[[], Figure]] = {}
    heads, spectrum = results.get("heads") or {}, results.get("spectrum")
    parts = [f"# {title(run, proof)}", summary(results, run, history)]

    def picture(name: str, alt: str, draw: Callable[[], Figure]) -> None:
        pictures[name] = draw
        parts.append(f"![{alt}](figures/{name}.png)")

    main, others = score_tables(results)
    parts += ["## Scores", *main]
    if rows:
        picture("scores", "Scores of the dense, pruned and restored model", lambda: figures.draw_scores(rows))
    if answers := answer_table(results):
        parts += ["### Likelihood of the right answers, and agreement with the dense model", *answers]
    if others:
        parts += ["### Other metrics", *others]
    if any("loss" in row for row in history):
        parts.append("## Training")
        picture("loss", "Training and validation loss by step", lambda: figures.draw_history(history))
    if heads.get("scores"):
        score_name = score_name_of(heads)
        parts += ["## Heads", f"Each head's score ({score_name}); the dotted ones were trained."]
        picture("heads", "Score of each head by layer", lambda: figures.draw_heads(*score_map(heads), score_name))
    if spectrum:
        components = (run.get("arguments") or {}).get("num_components")
        parts += ["## Spectrum of the activation gap", SPECTRUM]
        picture("spectrum", "Share of the gap by directions", lambda: figures.draw_spectrum(spectrum, components))
    if proof:
        parts += ["## Proof", proof_table_markdown(proof)]
        before, after = proof.get("sparsity_pruned"), proof.get("sparsity_restored")
        if before and after:
            parts.append(sparsity_sentence(before, after))
            if list(before) != list(after):
                picture("sparsity", "Zeros by layer", lambda: figures.draw_sparsity(before, after))
    if run.get("stages"):
        header, stages = stage_rows(run)
        parts += ["## Time and memory", markdown_table(header, stages, right=range(1, len(header)))]
    parts += ["## Using the model", USE.format(folder="model"), "## What the zeros buy", zeros_buy(proof)]
    parts += reproducing(run)

    return hide_home("\n\n".join(parts) + "\n"), pictures


SPECTRUM = (
    "How much of the energy of each head's gap between dense and pruned activations its first K singular directions "
    "hold: the fewer hold most of it, the better a few components describe what pruning lost."
)
