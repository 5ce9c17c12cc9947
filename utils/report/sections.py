"""What the page of a run and the card of its model both say."""

import re
from pathlib import Path

from utils.common.names import ANSWER_BITS
from utils.report.summary import hide_path, hide_paths, shown_name
from utils.report.tables import (
    answer_table_markdown,
    markdown_table,
    mean_row,
    score_rows,
    score_table_markdown,
)

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""

HOW_TO_READ = (
    "Accuracies in %, ± one standard error; ↑ higher is better, ↓ lower is better; without an arrow that is not known, "
    "and nothing is judged. `restored - pruned` compares answers to the same questions; the verdict is better or worse "
    "only beyond 2 standard errors of that difference, and p is McNemar's. The share of the gap between dense and "
    "pruned is given only where that gap is beyond noise."
)


def score_tables(results: dict) -> tuple[list[str], list[str]]:
    """(each task's main metric and their mean, all other metrics), as paragraphs; the second may be empty."""
    rows = score_rows(results)
    others = [row for row in score_rows(results, main=False) if row.metric != ANSWER_BITS]  # `answer_table` has them
    if not rows:
        return ["No task was evaluated."], []
    mean = mean_row(results)
    main = [score_table_markdown([*rows, mean] if mean else rows), HOW_TO_READ]
    return main, [score_table_markdown(others)] if others else []


HOW_TO_READ_ANSWERS = (
    "Dense, pruned and restored: bits a byte of the right answers. Flipped are the answers that are not the dense "
    "model's, whether right or wrong; KL, in nats, is how far the distribution over the choices is from the dense "
    "model's. Both are given as pruned → restored. Lower is better in all of them."
)


def answer_table(results: dict) -> list[str]:
    """The right answers' likelihood and the agreement with the dense model, as paragraphs; none without choices."""
    table = answer_table_markdown(results)
    return [table, HOW_TO_READ_ANSWERS] if table else []


def reproducing(run: dict) -> list[str]:
    """Command, seed, versions and hashes of the inputs, as far as they are recorded."""
    parts = []
    if command := shown_command(run):
        parts.append(f"```bash\n{command}\n```")
    if facts := shown_facts(run):
        lines = [[name, f"`{value}`" if name.startswith(HASH) else value] for name, value in facts]
        parts.append(markdown_table(["what", "value"], lines))
    if arguments := shown_arguments(run):
        lines = [[f"`-{name}`", f"`{value}`"] for name, value in arguments]
        table = markdown_table(["argument", "value"], lines)
        parts.append(f"<details><summary>All arguments</summary>\n\n{table}\n\n</details>")
    return ["## Reproducing it", *parts] if parts else []


HASH = "SHA-256 of "


def shown_command(run: dict) -> str | None:
    """The command of the run, without this machine's folders."""
    return hide_paths(run["command"]) if run.get("command") else None


def shown_facts(run: dict) -> list[tuple[str, str]]:
    """(what, value): seed, device, models, versions, and hashes of the inputs, whose names begin with HASH."""
    facts = {
        "seed": run.get("seed"),
        "device": run.get("device"),
        "started": run.get("started"),
        **{f"{name} model": shown_name(value) for name, value in (run.get("models") or {}).items() if value},
        **{f"version of {name}": value for name, value in (run.get("versions") or {}).items()},
        **{f"{HASH}{hide_path(str(name))}": sha for name, sha in (run.get("inputs") or {}).items()},
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def shown_arguments(run: dict) -> list[tuple[str, str]]:
    """(flag without its dash, value), without this machine's folders."""
    return [(name, _shown_value(value)) for name, value in (run.get("arguments") or {}).items()]


def _shown_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(hide_path(str(part)) for part in value)
    return hide_path(str(value))


def hide_home(text: str) -> str:
    """A last guard: whatever path slipped through names no home directory."""
    home = str(Path.home())
    return text if home == "/" else re.sub(re.escape(home) + r"(?=[/\s\"'`]|$)", "~", text)
