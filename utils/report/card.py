"""The card of the model that a run made: README.md of the merged checkpoint."""

import re
from pathlib import Path

from huggingface_hub import ModelCardData
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


def model_card(results: dict, run: dict) -> str:
    """README.md of the merged checkpoint, with the hub's front matter. Folders are named without their paths.

    Values are escaped, so a name that somebody else chose is never markup.
    """
    content = told(results, run) | {"front": Markup(metadata(run).to_yaml().replace("<", ""))}
    return render("card.md.j2", content, as_markdown)


def as_markdown(value: object) -> Markup:
    """Escape HTML and Markdown in a value, and put it on one line; `Markup`, which is ours, stays as it is."""
    if isinstance(value, Markup):
        return value
    text = str(escape(" ".join(str(value).split()))).replace("± ", "±\u00a0")
    text = text.replace("&#34;", '"').replace("&#39;", "'")  # quotes are markup in attributes only
    return Markup(re.sub(r"[\[\]|`\\*]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", text))


def metadata(run: dict) -> ModelCardData:
    """The card's front matter, with a base model only if it has a hub id, and a licence only if it is known."""
    models = run.get("models") or {}
    pruned, dense = (_hub_id(models.get(name)) for name in ("pruned", "dense"))
    base, licensed = pruned or dense, dense or pruned or ""
    return ModelCardData(
        base_model=base,
        language="en",
        library_name="transformers",
        license=next((name for start, name in LICENSES.items() if licensed.startswith(start)), None),
        pipeline_tag="text-generation",
        tags=[run.get("family") or "llama", "pruned", "restorelcc"],
        **({"base_model_relation": "finetune"} if base and not summary.restores_nothing(run) else {}),
    )


def _hub_id(name: str | None) -> str | None:
    """The hub id owner/name behind a model's name; None for a local folder or file."""
    full = EMBEDDED_ID if (name or "").lower() == EMBEDDED else hub_name(name or "")
    is_local = any(Path(each).exists() for each in (name or "", full)) or full.endswith(".gguf")
    return full if re.fullmatch(r"\w[\w.-]*/[\w.-]+", full, re.ASCII) and not is_local else None
