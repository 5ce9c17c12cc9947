"""Expected peak memory and seconds of each stage of a run, from the model's shapes and counts of tokens alone.

Pure arithmetic: a configuration, the run's sizes as plain numbers and a machine go in, a row a stage comes out. Memory
is what a stage holds at its fullest moment, time is floating-point operations and bytes over the machine's rates; all
that was measured rather than derived is in `Machine`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import LlamaConfig

from models.contract import Needs
from utils.common.record import stage_name
from utils.evaluation.token_scores import CHUNK as SCORED_CHUNK
from utils.losses import CHUNK

FP32 = 4


@dataclass(frozen=True)
class Machine:
    """What a run is planned for. Rates are per second; memory in bytes.

    device: "cpu" or "cuda". memory: of the card, or of the machine if the device is a CPU. host_memory: beside a
    card, None where unknown. flops: dense matrix products in the run's dtype; fp32_flops: the same in fp32, on the
    device. forward_share, backward_share: of `flops`, what a whole decoder layer reaches; own_forward_share: with
    the attention of activations and training, where that is another. host_flops, host_bandwidth:
    fp32 products and memory traffic of the host's CPU. disk: reading or writing weights, hashing included.
    baseline: resident on the host before any weight is, all libraries loaded; device_baseline: taken on a card before
    the first tensor. fragments: of training's activations in a CPU's heap, the holes left between batches of different
    lengths; kept: of the heap a converted model was in, the share that stays resident after it, since a heap shrinks
    from its end only. kernels: what a CPU's library compiles in half precision for every length of a batch, and keeps
    from the first activations on. imports: seconds until all libraries are loaded. request_seconds: lm_eval's own, a
    request. source: where the rates come from, in words. The defaults of baseline, fragments, kept, imports
    and request_seconds were measured on one run of SmolLM2 and held against others (benchmarks/plan.py at commit
    879812d), that of kernels on those others.
    """

    name: str
    device: str
    memory: int
    flops: float
    fp32_flops: float
    forward_share: float
    backward_share: float
    host_memory: int | None = None
    host_flops: float = 100e9
    host_bandwidth: float = 50e9
    disk: float = 1e9
    baseline: int = 480 * 2**20
    fragments: float = 0.4
    kept: float = 0.75
    kernels: int = 200 * 2**20
    own_forward_share: float | None = None
    device_baseline: int = 0
    imports: float = 5.0
    request_seconds: float = 0.002
    source: str = ""


@dataclass(frozen=True)
class Sequences:
    """What goes through the decoder in one stage.

    tokens: with padding. pairs: Σ T² over padded rows, what attention computes. rows, longest: the largest batch.
    scored: tokens whose logits are computed; scored_at_once: the most of them in a batch. masked: T² booleans a row.
    """

    tokens: int = 0
    pairs: int = 0
    rows: int = 0
    longest: int = 0
    scored: int = 0
    scored_at_once: int = 0
    masked: bool = False

    @classmethod
    def by_budget(cls, lengths: Iterable[int], budget: int, scored: int = 0, masked: bool = False) -> "Sequences":
        """Longest first, as many rows a batch as `budget` tokens hold with padding, one at least."""
        ordered = sorted(lengths, reverse=True)
        batches, start = [], 0
        while start < len(ordered):
            size = max(1, budget // max(1, ordered[start]))
            batches.append((len(ordered[start : start + size]), ordered[start]))
            start += size
        return cls._of(batches, scored, min(scored, budget), masked)

    @classmethod
    def by_count(cls, samples: list[tuple[int, int]], size: int, grouped: bool) -> "Sequences":
        """Training batches of `size` samples (prompt tokens, all tokens), sorted by length if grouped."""
        ordered = sorted(samples, key=lambda sample: -sample[1]) if grouped else samples
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        batches = [(len(part), max(length for _, length in part)) for part in parts]
        labelled = [sum(length - prompt for prompt, length in part) for part in parts]
        return cls._of(batches, sum(labelled), max(labelled, default=0), False)

    @classmethod
    def _of(cls, batches: list[tuple[int, int]], scored: int, at_once: int, masked: bool) -> "Sequences":
        rows, longest = max(batches, key=lambda batch: batch[0] * batch[1], default=(0, 0))
        tokens = sum(count * length for count, length in batches)
        pairs = sum(count * length**2 for count, length in batches)
        return cls(tokens, pairs, rows, longest, scored, at_once, masked)


@dataclass(frozen=True)
class TaskTokens:
    """A task's reading: rows of its split, and per row tokens read (padding included), Σ T², tokens scored, requests.

    A context that several choices share is read once.
    """

    rows: int
    tokens: float
    pairs: float
    scored: float
    requests: float
    longest: int

    def limited(self, limit: int | None) -> "TaskTokens":
        """The first `limit` rows of it."""
        return TaskTokens(min(limit or self.rows, self.rows), *list(vars(self).values())[1:])


@dataclass(frozen=True)
class Workload:
    """A run's sizes. dtype_bytes: of a parameter in memory; stored_bytes: of one in the dense checkpoint's files;
    converted: whether they are of another dtype than the run.

    pruner: the method of -prune_method, None where a pruned checkpoint is given; calibration: its (windows, tokens).
    samples, valid: (prompt tokens, all tokens) of each sample. probes: samples that train the probes, 0 for none.
    heads: how many are trained, 0 for a method that has none. tasks: by name, already limited. calibrations: how many
    parts of the method start from the calibration set. teacher_bytes: under distillation, what the dense
    model's states may take before it runs beside instead; None for another loss. scale_epochs: of LoFiT's first
    step, 0 where heads are ranked otherwise. activations: whether any are read; of a method without heads, none are.
    needs: of the method and what the options add to it. learned, trained: how many numbers the restoration keeps, and
    how many of them are trained. changed: weights of the matrices that may change.
    """

    dtype_bytes: int
    stored_bytes: int
    converted: bool
    pruner: str | None
    calibration: tuple[int, int]
    samples: list[tuple[int, int]]
    valid: list[tuple[int, int]]
    probes: int
    heads: int
    epochs: float
    batch_size: int
    grouped: bool = True
    gradient_checkpointing: bool = False
    tasks: dict[str, TaskTokens] = field(default_factory=dict)
    calibrations: int = 0
    teacher_bytes: float | None = None
    scale_epochs: float = 0
    activations: bool = True
    needs: Needs = field(default_factory=Needs)
    learned: int = 0
    trained: int = 0
    changed: int = 0


@dataclass(frozen=True)
class StagePlan:
    """One stage: its key in STAGES, tokens through a decoder, seconds, peak bytes of the host and of the card."""

    key: str
    tokens: int
    seconds: float
    host_bytes: int
    device_bytes: int | None

    @property
    def name(self) -> str:
        """The stage's name in run.json."""
        return stage_name(self.key)

    def bytes_on(self, machine: Machine) -> int:
        """Peak of the memory that `machine.memory` counts."""
        return self.host_bytes if machine.device == "cpu" else self.device_bytes


def layer_parameters(config: LlamaConfig) -> int:
    """Weights of a decoder layer's seven linear layers."""
    queries, keys = widths(config)
    return config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)


def parameters(config: LlamaConfig) -> int:
    """All parameters of the model, as `model.num_parameters()` counts them: a tied head once."""
    queries, keys = widths(config)
    biases = (queries + 2 * keys + config.hidden_size) * config.attention_bias
    biases += (2 * config.intermediate_size + config.hidden_size) * config.mlp_bias
    layer = layer_parameters(config) + biases + 2 * config.hidden_size
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + config.hidden_size + embeddings


def saved_bytes(
    config: LlamaConfig, dtype_bytes: int, rows: int, length: int, lowest: int = 0, on_card: bool = True
) -> int:
    """What autograd keeps of the decoder for the backward pass of one batch (rows, length), parameters aside.

    The base is frozen, so linear layers keep nothing. A layer keeps the fp32 input of both norms and their 1/rms, q, k
    and v, on a card what its fused kernel keeps too, attention's output and its log-sum-exp, and gate, silu(gate) and
    up. Below the lowest trained layer nothing is kept, and of that layer only what follows o_proj; where more than
    heads is trained, lowest is -1.
    """
    tokens = rows * length
    queries, keys = widths(config)
    norm = FP32 * (config.hidden_size + 1)
    mlp = 3 * config.intermediate_size * dtype_bytes
    attention = (queries + 2 * keys) * dtype_bytes
    attention += (queries * dtype_bytes + FP32 * config.num_attention_heads) * on_card
    above = config.num_hidden_layers - lowest - 1
    # The rotation's cosines and sines are shared by all layers, and by all rows.
    rotation = 2 * config.head_dim * dtype_bytes * length if above else 0
    return tokens * (above * (2 * norm + mlp + attention) + (2 * norm + mlp) * (lowest >= 0)) + rotation


def update_bytes(config: LlamaConfig, work: Workload, tokens: int) -> int:
    """What autograd keeps besides where weights are changed.

    Of each layer what its linears are fed, as far as no other operation keeps it, what they give, and changed weights.
    """
    queries, keys = widths(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    fed = (2 * hidden + inner) * work.needs.updates
    given = (queries + 2 * keys + 2 * hidden + 2 * inner) * work.needs.outputs
    changed = work.changed * (work.dtype_bytes + work.needs.weight_bytes) * work.needs.weights
    return config.num_hidden_layers * tokens * (fed + given) * work.dtype_bytes + changed


def restoration_bytes(config: LlamaConfig, work: Workload) -> int:
    """What is learned, the gradients and AdamW's two moments of what is trained, and heads' columns of W_O (fp32)."""
    columns = work.heads * config.hidden_size * config.head_dim
    return FP32 * (work.learned + 3 * work.trained + columns)


def kept_activations(config: LlamaConfig, work: Workload, batch: Sequences, on_card: bool) -> int:
    """What is kept of a batch's forward pass until the backward pass, with or without gradient checkpointing."""
    lowest = 0 if work.heads or work.scale_epochs else -1
    saved = saved_bytes(config, work.dtype_bytes, batch.rows, batch.longest, lowest, on_card)
    saved += update_bytes(config, work, batch.rows * batch.longest)
    if not work.gradient_checkpointing:
        return saved
    # One input a layer, and everything inside the one that is being recomputed.
    tokens, layers = batch.rows * batch.longest, config.num_hidden_layers
    last = FP32 * (config.hidden_size + 1) * tokens
    return layers * tokens * config.hidden_size * work.dtype_bytes + (saved - last) // layers + last


def training_bytes(config: LlamaConfig, work: Workload, batch: Sequences, on_card: bool) -> int:
    """All that a training step holds beside the weights.

    That is saved activations, the restoration, a chunk's logits, and the gradients inside one layer.
    """
    size = work.dtype_bytes
    tokens = batch.rows * batch.longest
    saved = kept_activations(config, work, batch, on_card)
    loss = batch.scored_at_once * config.hidden_size * size * 2
    # Rows that no chunk fills take no memory of the host.
    chunk = CHUNK if on_card else min(batch.scored_at_once, CHUNK)
    logits = chunk * config.vocab_size * (FP32 + (size if size < FP32 else 0))
    backward = tokens * (4 * config.intermediate_size * size + 3 * FP32 * config.hidden_size)
    return saved + loss + logits + backward + restoration_bytes(config, work)


def forward_bytes(config: LlamaConfig, dtype_bytes: int, batch: Sequences) -> int:
    """What one batch holds in inference at its fullest: the residual stream and a layer's MLP, masks, and logits."""
    queries, keys = widths(config)
    tokens = batch.rows * batch.longest
    mlp = 3 * config.intermediate_size * dtype_bytes
    attention = (3 * queries + 2 * keys) * dtype_bytes
    stream = 3 * config.hidden_size * dtype_bytes + 2 * FP32 * config.hidden_size
    # As booleans with their intermediate results, and once more additive in the model's dtype.
    masks = batch.rows * batch.longest**2 * (3 + dtype_bytes) if batch.masked else 0
    chunk = min(batch.scored_at_once, SCORED_CHUNK)
    logits = chunk * config.vocab_size * (dtype_bytes + 2 * FP32)
    return tokens * (stream + max(mlp, attention)) + masks + logits


def activations_bytes(config: LlamaConfig, samples: int, dtype_bytes: int) -> int:
    """z of that many samples and all heads in fp32, and in the model's dtype as it is kept."""
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return samples * width * (FP32 + (dtype_bytes if dtype_bytes < FP32 else 0))


def forward_flops(config: LlamaConfig, seen: Sequences) -> float:
    """Two operations a weight and token; attention's QKᵀ and AV over half the pairs, or all of them under a mask."""
    queries, _ = widths(config)
    attention = 4 * queries * seen.pairs * (1 if seen.masked else 0.5)
    layers = config.num_hidden_layers * (2 * layer_parameters(config) * seen.tokens + attention)
    return layers + head_flops(config, seen.scored)


def update_flops(work: Workload, seen: Sequences) -> float:
    """What trained changes of weights add to a step: the gradient of each changed weight, or the path beside it."""
    if not work.needs.updates:
        return 0.0
    return seen.tokens * (2.0 * work.changed if work.needs.weights else 6.0 * work.trained)


def head_flops(config: LlamaConfig, scored: int) -> float:
    """The output layer on the tokens that need it."""
    return 2.0 * config.hidden_size * config.vocab_size * scored


def backward_flops(config: LlamaConfig, seen: Sequences) -> float:
    """Gradients of inputs only, as if weights were frozen; attention recomputes its scores, hence 2.5 times forward."""
    queries, _ = widths(config)
    layers = config.num_hidden_layers * (2 * layer_parameters(config) * seen.tokens + 2.5 * 2 * queries * seen.pairs)
    return layers + head_flops(config, seen.scored)


def widths(config: LlamaConfig) -> tuple[int, int]:
    """(H·d, KV heads·d)."""
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
