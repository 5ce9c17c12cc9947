"""The page of a run with its pictures, and the card of the model it made."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from models.loading import hub_name
from utils.common.files import whole_folder, write_text
from utils.common.names import EMBEDDED, EMBEDDED_ID
from utils.report import figures
from utils.report.summary import (
    ZEROS,
    findings,
    hide_path,
    hide_paths,
    limited,
    not_trained,
    proof_sentence,
    restored_how,
    shown_name,
    sparsity_sentence,
    summary,
    title,
    what_was_done,
)
from utils.report.tables import (
    markdown_table,
    mean_row,
    proof_table_markdown,
    score_rows,
    score_table_markdown,
    stage_rows,
)

LICENSES = {
    "HuggingFaceTB/SmolLM2-": "apache-2.0",
    "TinyLlama/": "apache-2.0",
    "meta-llama/Llama-2-": "llama2",
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Llama-3.1-": "llama3.1",
    "meta-llama/Llama-3.2-": "llama3.2",
}
"""The hub's names of licences, by the beginning of a model's hub id."""

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""


def write_report(
    folder: Path,
    results: dict,
    run: dict,
    history: list[dict],
    head_scores: Tensor | None,
    heads: Sequence[tuple[int, int]],
    explained: Tensor | None,
) -> Path:
    """Write report.md and figures/*.png to `folder`; returns the page's path.

    results, run: what results.json and run.json hold; any part may be missing. `results["heads"]["score_name"]` names
    the score that heads were ranked by (default: the probe's validation accuracy).
    history: rows with `step` and `loss` (training) or `valid_loss` (validation; step 0 is the pruned model).
    head_scores: (L, H), not finite where a head cannot be restored. heads: the trained (layer, head) pairs.
    explained: (L, H, d), share of the activation gap's energy per direction, largest first.
    Page and pictures each appear whole or not at all, the pictures first.
    """
    proof = results.get("proof") or {}
    rows, others = score_rows(results), score_rows(results, main=False)
    pictures: dict[str, Callable[[], Figure]] = {}
    head_count = None if head_scores is None else head_scores.numel()
    parts = [f"# {title(run, proof)}", summary(results, run, history, heads, head_count)]

    def picture(name: str, alt: str, draw: Callable[[], Figure]) -> None:
        pictures[name] = draw
        parts.append(f"![{alt}](figures/{name}.png)")

    parts.append("## Scores")
    if rows:
        mean = mean_row(rows)
        parts += [score_table_markdown([*rows, mean] if mean else rows), HOW_TO_READ]
        picture("scores", "Scores of the dense, pruned and restored model", lambda: figures.draw_scores(rows))
        if others:
            parts += ["### Other metrics", score_table_markdown(others)]
    else:
        parts.append("No task was evaluated.")
    if history:
        parts.append("## Training")
        picture("loss", "Training and validation loss by step", lambda: figures.draw_history(history))
    if head_scores is not None:
        score_name = _score_name(results)
        parts += ["## Heads", f"Each head's score ({score_name}); the dotted ones were trained."]
        picture("heads", "Score of each head by layer", lambda: figures.draw_heads(head_scores, heads, score_name))
    if explained is not None:
        components = (run.get("arguments") or {}).get("num_components")
        parts += ["## Spectrum of the activation gap", SPECTRUM]
        picture("spectrum", "Share of the gap by directions", lambda: figures.draw_spectrum(explained, components))
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
    parts += ["## Using the model", USE.format(folder="model"), "## What the zeros buy", ZEROS]
    parts += _reproduce(run)

    if pictures:
        with whole_folder(folder / "figures") as partial, figures.style():
            for name, draw in pictures.items():
                draw().savefig(partial / f"{name}.png")
    page = folder / "report.md"
    write_text(page, _no_home("\n\n".join(parts) + "\n"))
    return page


HOW_TO_READ = (
    "Accuracies in %, ± one standard error; ↑ higher is better, ↓ lower is better. `restored - pruned` compares "
    "answers to the same questions; the verdict is better or worse only beyond 2 standard errors of that difference, "
    "and p is McNemar's. The share of the gap between dense and pruned is given only where that gap is beyond noise."
)
SPECTRUM = (
    "How much of the energy of each head's gap between dense and pruned activations its first K singular directions "
    "hold: the fewer hold most of it, the better a few components describe what pruning lost."
)


def model_card(results: dict, run: dict) -> str:
    """README.md of the merged checkpoint, with the hub's front matter; names folders, never where they lie."""
    proof = results.get("proof") or {}
    models, arguments = run.get("models") or {}, run.get("arguments") or {}
    heads = results.get("heads") or {}
    rows = score_rows(results)
    parts = [_front_matter(models), f"# {title(run, proof)}"]
    parts.append(what_was_done(results, run, heads.get("trained"), heads.get("count")))
    if restored_how(run).startswith("RestoreLCC") and not not_trained(run):
        parts.append(METHOD)
    parts += ["## Use", USE.format(folder="path/to/this/folder"), "## Measured"]
    if rows:
        mean = mean_row(rows)
        parts += [" ".join(findings(results)), score_table_markdown([*rows, mean] if mean else rows), HOW_TO_READ]
        if limit := arguments.get("eval_limit"):
            parts.append(limited(limit))
        if others := score_rows(results, main=False):
            parts += ["Other metrics:", score_table_markdown(others)]
    else:
        parts.append("No task was evaluated.")
    if proof:
        parts += ["## Proof", proof_sentence(proof), proof_table_markdown(proof)]
    parts += ["## What the zeros buy", ZEROS, *_reproduce(run)]
    return _no_home("\n\n".join(parts) + "\n")


METHOD = (
    'RestoreLCC (Feng et al., "Restoring Pruned Large Language Models via Lost Component Compensation", NeurIPS '
    "2025) learns one constant vector per chosen attention head. Here they are folded into `o_proj.bias`: every "
    "weight is the pruned checkpoint's own, and each of its zeros is still a zero."
)


def _score_name(results: dict) -> str:
    return (results.get("heads") or {}).get("score_name") or "validation accuracy of the probe"


def _reproduce(run: dict) -> list[str]:
    """Command, seed, versions and hashes of the inputs, as far as they are recorded."""
    parts = []
    if run.get("command"):
        parts.append(f"```bash\n{hide_paths(run['command'])}\n```")
    facts = {
        "seed": run.get("seed"),
        "device": run.get("device"),
        "started": run.get("started"),
        **{f"{name} model": shown_name(value) for name, value in (run.get("models") or {}).items() if value},
        **{f"version of {name}": value for name, value in (run.get("versions") or {}).items()},
        **{f"SHA-256 of {hide_path(str(name))}": f"`{sha}`" for name, sha in (run.get("inputs") or {}).items()},
    }
    lines = [[name, str(value)] for name, value in facts.items() if value is not None]
    if lines:
        parts.append(markdown_table(["what", "value"], lines))
    if run.get("arguments"):
        lines = [[f"`-{name}`", f"`{_shown_value(value)}`"] for name, value in run["arguments"].items()]
        table = markdown_table(["argument", "value"], lines)
        parts.append(f"<details><summary>All arguments</summary>\n\n{table}\n\n</details>")
    return ["## Reproducing it", *parts] if parts else []


def _shown_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(hide_path(str(part)) for part in value)
    return hide_path(str(value))


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


def _no_home(text: str) -> str:
    """A last guard: whatever path slipped through names no home directory."""
    home = str(Path.home())
    return text if home == "/" else re.sub(re.escape(home) + r"(?=[/\s\"'`]|$)", "~", text)
