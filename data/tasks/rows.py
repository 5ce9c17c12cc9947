"""What the YAML files of this folder call: their rows, found from any working directory, and one score."""

import json
import math
from pathlib import Path

import datasets

FOLDER = Path(__file__).resolve().parent


def load(file: str, **_metadata: object) -> dict[str, datasets.Dataset]:
    """The rows of a .jsonl file beside this one, as lm_eval's split "test"."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def likelihood(doc: dict, results: list[tuple[float, bool]]) -> dict[str, object]:
    """How likely one row's response is, given its prompt.

    bits_per_byte: -log2 p(response | prompt) for each UTF-8 byte of the response. lm_eval's own metric of this name
    pools the bytes of all rows and reports no standard error; a mean over rows has one, and can be compared in pairs.
    word_perplexity: (log-likelihood, words), which lm_eval pools over all rows as it does for a whole text.
    """
    log_likelihood, _ = results[0]
    response = doc["response"]
    return {
        "bits_per_byte": -log_likelihood / math.log(2) / len(response.encode()),
        "word_perplexity": (log_likelihood, len(response.split())),
    }
