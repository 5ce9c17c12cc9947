"""The card of the model that a run made: README.md of the merged checkpoint, with what the hub reads of it as data."""

import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup, escape

from models.loading import hub_name
from utils.common.names import EMBEDDED, EMBEDDED_ID
from utils.report import summary
from utils.report.page import render, told

LICENSES = {
    "HuggingFaceTB/SmolLM2-": "apache-2.0",
    "TinyLlama/": "apache-2.0",
    "meta-llama/Llama-2-": "llama2",
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Llama-3.1-": "llama3.1",
    "meta-llama/Llama-3.2-": "llama3.2",
}
"""The hub's names of licences, by the beginning of a model's hub id."""

DATASETS = {
    "boolq": ("aps/super_glue", "BoolQ (SuperGLUE)", "boolq", "validation"),
    "rte": ("nyu-mll/glue", "RTE (GLUE)", "rte", "validation"),
    "hellaswag": ("Rowan/hellaswag", "HellaSwag", None, "validation"),
    "winogrande": ("allenai/winogrande", "WinoGrande", "winogrande_xl", "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "ARC-Challenge", "test"),
    "openbookqa": ("allenai/openbookqa", "OpenBookQA", "main", "test"),
    "wikitext2": ("Salesforce/wikitext", "WikiText-2", "wikitext-2-raw-v1", "test"),
}
"""What lm_eval's definitions of the paper's tasks read: hub id, name for people, configuration, split."""

TEXT, TOKEN_PERPLEXITY = "wikitext2", "token_perplexity"

METRICS = {"acc": "accuracy", **dict.fromkeys(("token_perplexity", "word_perplexity", "byte_perplexity"), "perplexity")}
"""The hub's names of metrics, where they differ from lm_eval's."""


def model_card(results: dict, run: dict) -> str:
    """README.md of the merged checkpoint, with the hub's front matter; names folders, never where they lie.

    A name that somebody else chose is text there, whatever is in it.
    """
    content = {
        **told(results, run),
        "front": Markup(metadata(results, run).to_yaml().replace("<", "")),
        "about": (run.get("method") or {}).get("about"),
        "scored": scored(results, run),
    }
    return summary.hide_home(render("card.md.j2", content, as_markdown))


def as_markdown(value: object) -> Markup:
    """A text that is no markup, neither HTML nor Markdown, in one line; markup of ours as it is."""
    if isinstance(value, Markup):
        return value
    text = str(escape(" ".join(str(value).split()))).replace("± ", "±\u00a0")
    return Markup(re.sub(r"[\[\]|`\\]", lambda found: f"&#{ord(found[0])};", text))


def metadata(results: dict, run: dict) -> ModelCardData:
    """The card's front matter; a base model only by its hub id, a licence only where it is known."""
    models = run.get("models") or {}
    base = next((hub for name in ("pruned", "dense") if (hub := _hub_id(models.get(name)))), None)
    licensed = _hub_id(models.get("dense")) or base or ""
    scores = [result for result, _ in scored(results, run)]
    return ModelCardData(
        base_model=base,
        language="en",
        library_name="transformers",
        license=next((name for start, name in LICENSES.items() if licensed.startswith(start)), None),
        pipeline_tag="text-generation",
        tags=["llama", "pruned", "restorelcc"],
        eval_results=scores or None,
        model_name=summary.hide_home(summary.title(run, results.get("proof") or {})) if scores else None,
        **({"base_model_relation": "finetune"} if base and not summary.restores_nothing(run) else {}),
    )


def scored(results: dict, run: dict) -> list[tuple[EvalResult, str]]:
    """(score, of what it was taken) of the restored model, each task and metric; none that is no finite number.

    What the hub's form has no place for is among a metric's arguments: standard error, number of rows, of how many, and
    of examples shown.
    """
    known = (results.get("provenance") or {}).get("restored") or {}
    local_text = (run.get("arguments") or {}).get("eval_data_dir")  # may be any
    found = []
    for task, metrics in ((results.get("scores") or {}).get("restored") or {}).items():
        own = (task, task, None, None)
        dataset, name, config, split = own if task == TEXT and local_text else DATASETS.get(task, own)
        rows, windows = (known.get("tasks") or {}).get(task) or {}, known.get(TOKEN_PERPLEXITY) or {}
        for metric, score in metrics.items():
            if not _finite((score or {}).get("value")):
                continue
            if metric == TOKEN_PERPLEXITY:
                numbers, unit = {"n": windows.get("windows")}, f"windows of {windows.get('window_tokens')} tokens"
            else:
                numbers, unit = {"n": rows.get("rows"), "n_in_split": rows.get("rows_in_split")}, "pages"
                if task != TEXT:
                    numbers["num_fewshot"], unit = rows.get("num_fewshot"), "rows"
            numbers["stderr"] = score.get("stderr")
            result = EvalResult(
                task_type="text-generation", task_name="Text generation", dataset_type=dataset, dataset_name=name,
                dataset_config=config, dataset_split=split, metric_type=METRICS.get(metric, metric),
                metric_name=f"{task} {metric}", metric_value=score["value"], verified=False,
                metric_args={each: value for each, value in numbers.items() if _finite(value)} or None,
            )  # fmt: skip
            found.append((result, unit))
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hub_id(name: str | None) -> str | None:
    """The hub id owner/name behind a model's name; None for a local folder or file."""
    if not name:
        return None
    full = EMBEDDED_ID if name == EMBEDDED else hub_name(name)
    is_local = full.startswith((".", "/", "~")) or Path(full).exists() or full.endswith(".gguf")
    return full if re.fullmatch(r"[\w.-]+/[\w.-]+", full, re.ASCII) and not is_local else None
