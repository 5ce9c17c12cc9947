"""What a run writes, known before it reads a weight: bytes in its output folder and in its cache, at most."""

from dataclasses import dataclass

from transformers import LlamaConfig

from utils.checkpoints import KEPT
from utils.plan.costs import FP32, Workload, parameters

COPIES = 3
"""Of what is trained, in one of training's checkpoints: its values and AdamW's two moments."""

BESIDE = 32 * 2**20
"""Allowed for, not derived: tokenizer, report, figures, rows and logs. Those of SmolLM2's runs are 6 MB."""

SCORES = 2**20
"""Allowed for, not derived: rows and scores of one task and model."""

EXAMPLES = 2**20
"""Allowed for, not derived: one model's answers to the report's prompts."""

ENCODER_WIDTH = 384
"""Of MiniLM's sentence embeddings."""


@dataclass(frozen=True)
class Written:
    """Bytes: output in -output_dir; cache in -cache_dir, by the folder there."""

    output: int
    cache: dict[str, int]


def written(config: LlamaConfig, work: Workload, pruned: int | None = None) -> Written:
    """What a run with an empty cache writes.

    pruned: bytes of the pruned checkpoint's tensors where they are known; else it is taken to be in the run's dtype.
    Not counted are a GGUF file that is unpacked, a compact checkpoint that is widened, and a compact result.
    """
    model = pruned or parameters(config) * work.dtype_bytes
    checkpoints = (KEPT + 1) * COPIES * FP32 * work.trained if work.epochs else 0
    cache = {"pruned": model if work.pruner else 0, "scores": 3 * SCORES * len(work.tasks), "examples": 3 * EXAMPLES}
    if work.activations and work.heads:
        heads = config.num_hidden_layers * config.num_attention_heads
        prompts = 2 * len(work.samples) + 2 * work.probes
        cache["activations"] = prompts * heads * config.head_dim * work.dtype_bytes
        cache["components"] = heads * (config.head_dim + 4) * config.head_dim * FP32
        cache["embeddings"] = len(work.samples) * ENCODER_WIDTH * FP32 if work.probes else 0
    if work.calibrations:
        cache["starts"] = FP32 * work.learned
    if work.teacher_bytes is not None and work.epochs:
        tokens = sum(length - max(1, prompt) for prompt, length in (*work.samples, *work.valid))
        states = tokens * config.hidden_size * work.dtype_bytes
        cache["teacher"] = states if states <= work.teacher_bytes else 0
    return Written(
        model + FP32 * work.learned + checkpoints + BESIDE, {name: int(size) for name, size in cache.items()}
    )
