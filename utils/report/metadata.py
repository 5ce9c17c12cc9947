"""What the hub reads of a model's card: what it is made from, its licence, and its scores as data."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from models.loading import hub_name
from utils.common.names import EMBEDDED, EMBEDDED_ID
from utils.report.sections import hide_home
from utils.report.summary import restores_nothing, title

LICENSES = {
    "HuggingFaceTB/SmolLM2-": "apache-2.0",
    "TinyLlama/": "apache-2.0",
    "meta-llama/Llama-2-": "llama2",
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Llama-3.1-": "llama3.1",
    "meta-llama/Llama-3.2-": "llama3.2",
}
"""The hub's names of licences, by the beginning of a model's hub id."""

TAGS = ["llama", "pruned", "restorelcc"]


@dataclass(frozen=True)
class Dataset:
    """A data set as the hub knows it: its id, a configuration and a split of it, and its name for people."""

    id: str
    name: str
    config: str | None = None
    split: str | None = None


DATASETS = {
    "boolq": Dataset("aps/super_glue", "BoolQ (SuperGLUE)", "boolq", "validation"),
    "rte": Dataset("nyu-mll/glue", "RTE (GLUE)", "rte", "validation"),
    "hellaswag": Dataset("Rowan/hellaswag", "HellaSwag", None, "validation"),
    "winogrande": Dataset("allenai/winogrande", "WinoGrande", "winogrande_xl", "validation"),
    "arc_easy": Dataset("allenai/ai2_arc", "ARC-Easy", "ARC-Easy", "test"),
    "arc_challenge": Dataset("allenai/ai2_arc", "ARC-Challenge", "ARC-Challenge", "test"),
    "openbookqa": Dataset("allenai/openbookqa", "OpenBookQA", "main", "test"),
}
"""What lm_eval's definitions of the paper's seven tasks read."""

WIKITEXT, TOKEN_PERPLEXITY = "wikitext2", "token_perplexity"

HUB_WIKITEXT = Dataset("Salesforce/wikitext", "WikiText-2", "wikitext-2-raw-v1", "test")
"""Where `wikitext2` comes from without -eval_data_dir; with it, it is whatever text the folder holds."""

METRICS = {
    "acc": "accuracy",
    "token_perplexity": "perplexity",
    "word_perplexity": "perplexity",
    "byte_perplexity": "perplexity",
}
"""The hub's names of metrics, where they differ from lm_eval's."""


@dataclass(frozen=True)
class Scored:
    """What a score is of. n: number of `unit`; total: of all there are; shots: examples shown. None: not recorded."""

    dataset: Dataset
    n: int | None = None
    total: int | None = None
    unit: str = "rows"
    shots: int | None = None


def metadata(results: dict, run: dict) -> ModelCardData:
    """The card's front matter; a base model only by its hub id, a licence only where it is known."""
    models = run.get("models") or {}
    base = next((hub for name in ("pruned", "dense") if (hub := _hub_id(models.get(name)))), None)
    licensed = _hub_id(models.get("dense")) or base or ""
    tuned = base and not restores_nothing(run)
    scores = eval_results(results, run)
    return ModelCardData(
        base_model=base,
        language="en",
        library_name="transformers",
        license=next((name for start, name in LICENSES.items() if licensed.startswith(start)), None),
        pipeline_tag="text-generation",
        tags=TAGS,
        eval_results=scores or None,
        model_name=hide_home(title(run, results.get("proof") or {})) if scores else None,
        **({"base_model_relation": "finetune"} if tuned else {}),
    )


def eval_results(results: dict, run: dict) -> list[EvalResult]:
    """The restored model's scores, one for each task and metric: values as measured, none that is no finite number.

    What the hub's form has no place for is among a metric's arguments: standard error, number of rows, of how many, and
    of examples shown.
    """
    found = []
    for task, metric, score in _restored(results):
        scored = scored_on(results, run, task, metric)
        numbers = {
            "n": scored.n,
            "n_in_split": scored.total,
            "num_fewshot": scored.shots,
            "stderr": score.get("stderr"),
        }
        found.append(
            EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=scored.dataset.id,
                dataset_name=scored.dataset.name,
                dataset_config=scored.dataset.config,
                dataset_split=scored.dataset.split,
                metric_type=METRICS.get(metric, metric),
                metric_name=f"{task} {metric}",
                metric_value=score["value"],
                metric_args={name: value for name, value in numbers.items() if _finite(value)} or None,
                verified=False,
            )
        )
    return found


def scored_on(results: dict, run: dict, task: str, metric: str) -> Scored:
    """What a metric of a task was measured on, as far as it is recorded."""
    known = (results.get("provenance") or {}).get("restored") or {}
    dataset = DATASETS.get(task, Dataset(task, task))
    if task == WIKITEXT and not (run.get("arguments") or {}).get("eval_data_dir"):
        dataset = HUB_WIKITEXT
    if metric == TOKEN_PERPLEXITY:
        windows = known.get(TOKEN_PERPLEXITY) or {}
        length = windows.get("window_tokens")
        return Scored(dataset, windows.get("windows"), unit=f"windows of {length} tokens" if length else "windows")
    rows = (known.get("tasks") or {}).get(task) or {}
    unit = "pages" if task == WIKITEXT else "rows"
    shots = None if task == WIKITEXT else rows.get("num_fewshot")
    return Scored(dataset, rows.get("rows"), rows.get("rows_in_split"), unit, shots)


def all_scored(results: dict, run: dict) -> dict[tuple[str, Scored], list[str]]:
    """(task, what it was scored on) → the metrics that are of it, in order."""
    found: dict[tuple[str, Scored], list[str]] = {}
    for task, metric, _ in _restored(results):
        found.setdefault((task, scored_on(results, run, task, metric)), []).append(metric)
    return found


def _restored(results: dict) -> Iterator[tuple[str, str, dict]]:
    """(task, metric, score) of the restored model, of those that are finite numbers."""
    for task, metrics in ((results.get("scores") or {}).get("restored") or {}).items():
        for metric, score in metrics.items():
            if _finite((score or {}).get("value")):
                yield task, metric, score


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hub_id(name: str | None) -> str | None:
    """The hub id owner/name behind a model's name; None for a local folder or file."""
    if not name:
        return None
    full = EMBEDDED_ID if name == EMBEDDED else hub_name(name)
    is_local = full.startswith((".", "/", "~")) or Path(full).exists() or full.endswith(".gguf")
    return full if re.fullmatch(r"[\w.-]+/[\w.-]+", full, re.ASCII) and not is_local else None
