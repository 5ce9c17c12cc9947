"""Expected peak memory and seconds of each stage of a run, from the model's shapes and counts of tokens alone.

Pure arithmetic: a configuration, the run's sizes as plain numbers and a machine go in, a row a stage comes out. Memory
is what a stage holds at its fullest moment, time is floating-point operations and bytes over the machine's rates; all
that was measured rather than derived is in `Machine`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from transformers import LlamaConfig

from pruning.streaming import BATCH_TOKENS as PRUNING_TOKENS
from utils.activations import CPU_TOKENS_A_BATCH, TOKENS_A_BATCH
from utils.common.record import STAGES, stage_name
from utils.evaluation.model import CPU_TOKENS, GPU_TOKENS
from utils.evaluation.token_scores import CHUNK as SCORED_CHUNK
from utils.losses import CHUNK
from utils.negatives import BATCH_SIZE as ENCODER_BATCH
from utils.negatives import LONGEST as ENCODER_LONGEST
from utils.probing import EPOCHS as PROBE_EPOCHS
from utils.probing import TRAIN_SHARE
from utils.samples import PROOF_SAMPLES
from utils.training import VALID_TOKENS_A_BATCH

ENCODER_BYTES, ENCODER_FLOPS = 91_000_000, 2 * 10_600_000
"""MiniLM-L6 in fp32, and what it computes a token: 6 layers of 12·384² weights (its model card)."""

ENCODER_TOKEN_BYTES = (2 * 1536 + 8 * 384) * 4
"""A layer's bytes a token in the encoder: FFN, q, k, v, streams."""

PROBES_SHARE = 0.16
"""Measured on two cores: the share of the memory's rate that the probes of 270 heads reach."""

RANKING_SECONDS = 2.5
"""Measured: what ranking takes beside its algebra and its probes."""

TASKS_BYTES = 80 * 2**20
"""lm_eval with the rows of its tasks; measured as the difference of runs with and without -eval_tasks none."""

CALIBRATION_PASSES = 4
"""Of a closed form's start: each of two models goes through each layer once for its statistics, once to go on."""

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
    and request_seconds were measured on one run of SmolLM2 and held against others (`python -m benchmarks.plan`), that
    of kernels on those others.
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
    calibration_epochs: how often the method's start trains on the calibration set. learned, trained: how many numbers
    the restoration keeps, and how many of them are trained.
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
    calibration_epochs: int = 0
    learned: int = 0
    trained: int = 0


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
    queries, keys = _widths(config)
    return config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)


def parameters(config: LlamaConfig) -> int:
    """All parameters of the model, as `model.num_parameters()` counts them: a tied head once."""
    queries, keys = _widths(config)
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
    up. Below the lowest trained layer nothing is kept, and of that layer only what follows o_proj.
    """
    tokens = rows * length
    queries, keys = _widths(config)
    norm = FP32 * (config.hidden_size + 1)
    mlp = 3 * config.intermediate_size * dtype_bytes
    attention = (queries + 2 * keys) * dtype_bytes
    attention += (queries * dtype_bytes + FP32 * config.num_attention_heads) * on_card
    above = config.num_hidden_layers - lowest - 1
    # The rotation's cosines and sines are shared by all layers, and by all rows.
    rotation = 2 * config.head_dim * dtype_bytes * length if above else 0
    return tokens * (above * (2 * norm + mlp + attention) + 2 * norm + mlp) + rotation


def restoration_bytes(config: LlamaConfig, heads: int) -> int:
    """β, b, their gradients and AdamW's two moments, V, and the columns of W_O behind the bias (fp32)."""
    width = config.head_dim
    return heads * FP32 * (2 * 4 * width + width * width + config.hidden_size * width)


def kept_activations(config: LlamaConfig, work: Workload, batch: Sequences, on_card: bool) -> int:
    """What is kept of a batch's forward pass until the backward pass, with or without gradient checkpointing."""
    saved = saved_bytes(config, work.dtype_bytes, batch.rows, batch.longest, on_card=on_card)
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
    return saved + loss + logits + backward + restoration_bytes(config, work.heads)


def forward_bytes(config: LlamaConfig, dtype_bytes: int, batch: Sequences) -> int:
    """What one batch holds in inference at its fullest: the residual stream and a layer's MLP, masks, and logits."""
    queries, keys = _widths(config)
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
    queries, _ = _widths(config)
    attention = 4 * queries * seen.pairs * (1 if seen.masked else 0.5)
    layers = config.num_hidden_layers * (2 * layer_parameters(config) * seen.tokens + attention)
    return layers + head_flops(config, seen.scored)


def head_flops(config: LlamaConfig, scored: int) -> float:
    """The output layer on the tokens that need it."""
    return 2.0 * config.hidden_size * config.vocab_size * scored


def backward_flops(config: LlamaConfig, seen: Sequences) -> float:
    """Gradients of inputs only, since weights are frozen; attention recomputes its scores, hence 2.5 times forward."""
    queries, _ = _widths(config)
    layers = config.num_hidden_layers * (2 * layer_parameters(config) * seen.tokens + 2.5 * 2 * queries * seen.pairs)
    return layers + head_flops(config, seen.scored)


def plan(config: LlamaConfig, work: Workload, machine: Machine) -> list[StagePlan]:
    """A row for each of STAGES, in their order."""
    return _Planner(config, work, machine).stages()


class _Planner:
    def __init__(self, config: LlamaConfig, work: Workload, machine: Machine):
        self.config, self.work, self.machine = config, work, machine
        self.on_card = machine.device != "cpu"
        self.weights = parameters(config) * work.dtype_bytes
        self.dense_file = parameters(config) * work.stored_bytes
        # What is pruned here is saved in the run's dtype; what is given is taken to be too.
        self.pruned_file = self.weights
        self.kept = 0.0
        self.baseline = machine.baseline + (TASKS_BYTES if work.tasks else 0)
        self.budget = GPU_TOKENS if self.on_card else CPU_TOKENS
        self.reads = work.activations and work.heads > 0
        prompts = [prompt for prompt, _ in work.samples] if self.reads else []
        probed = work.samples[: work.probes]
        # A wrong answer is taken to be as long as the right one.
        trees = [prompt + 2 * (length - prompt) for prompt, length in probed]
        at_once = TOKENS_A_BATCH if self.on_card else CPU_TOKENS_A_BATCH
        self.trees = Sequences.by_budget(trees, at_once, masked=True)
        self.rest = Sequences.by_budget(prompts[len(probed) :], at_once)
        self.prompts = Sequences.by_budget(prompts, at_once)
        self.training = Sequences.by_count(work.samples, work.batch_size, work.grouped)
        self.largest_valid = Sequences.by_budget(
            [length for _, length in work.valid], VALID_TOKENS_A_BATCH, sum(n - prompt for prompt, n in work.valid)
        )

    def stages(self) -> list[StagePlan]:
        """In order: on a CPU, what one leaves in the heap is under the next one's peak."""
        steps = {
            "samples": self._reading,
            "prune": self._pruning,
            "negatives": self._negatives,
            "dense": self._dense,
            "pruned": lambda key: self._measure(key, self.pruned_file, [self.prompts]),
            "rank": self._ranking,
            "train": lambda key: self._training(key, self.work),
            "merge": self._merge,
            "restored": lambda key: self._measure(key, self.pruned_file, []),
        }
        return [steps[stage.key](stage.key) for stage in STAGES]

    def _reading(self, key: str) -> StagePlan:
        return self._stage(key, 0, self.machine.imports, self._read_bytes(), 0)

    def _stage(self, key: str, tokens: int, seconds: float, host: float, device: float) -> StagePlan:
        """host: bytes beyond the baseline that are the host's anyway; device: those that are the model's device's."""
        if not self.on_card:
            return StagePlan(key, tokens, seconds, int(self.baseline + self.kept + host + device), None)
        return StagePlan(key, tokens, seconds, int(self.baseline + host), int(self.machine.device_baseline + device))

    def _read_bytes(self) -> float:
        # Counting a given checkpoint's zeros maps all of it.
        return 0 if self.work.pruner else self.pruned_file

    def _loading(self, file: float, converted: bool = False) -> tuple[float, float]:
        """(seconds, host bytes): files are mapped; what has the run's dtype is used where it is mapped, on a CPU."""
        # Read once to be hashed, once to be loaded.
        return 2 * file / self.machine.disk, file if converted or self.on_card else 0

    def _forward(self, seen: Sequences) -> float:
        """Seconds with transformers' attention, as scores have it."""
        return forward_flops(self.config, seen) / (self.machine.flops * self.machine.forward_share)

    def _own_forward(self, seen: Sequences) -> float:
        """Seconds as activations and training go forward."""
        share = self.machine.own_forward_share or self.machine.forward_share
        return forward_flops(self.config, seen) / (self.machine.flops * share)

    def _pruning(self, key: str) -> StagePlan:
        work, config = self.work, self.config
        if not work.pruner:
            return self._stage(key, 0, 0, 0, 0)
        windows, length = work.calibration
        tokens = windows * length if work.pruner != "magnitude" else 0
        inner, hidden, (queries, _) = config.intermediate_size, config.hidden_size, _widths(config)
        inputs = (hidden, queries, hidden, inner)
        seconds, host = self._loading(self.dense_file, work.converted)
        seconds += 2 * self.weights / self.machine.disk  # written, and its digest read
        # Up to down_proj's input for the statistics, then the whole layer with its zeros.
        per_layer = 4 * layer_parameters(config) - 2 * inner * hidden + 4 * queries * length
        seconds += config.num_hidden_layers * tokens * per_layer / (self.machine.flops * self.machine.forward_share)
        algebra = layer_parameters(config) * math.log2(max(2, hidden)) * 2.0  # scores are sorted
        largest = inner * hidden
        scratch = 6 * FP32 * largest
        if work.pruner == "sparsegpt":
            algebra += 2 * tokens * sum(n * n for n in inputs) + sum(3 * n**3 for n in inputs)
            algebra += sum(out * n * n for out, n in self._linears())
            scratch += FP32 * sum(n * n for n in inputs) + 4 * 8 * inner**2
        elif work.pruner == "slimgpt":
            algebra += 2 * tokens * (queries**2 + inner**2) + 3 * (queries**3 + inner**3) + 2 * hidden * inner**2
            scratch += FP32 * inner**2 + 4 * 8 * inner**2
        seconds += config.num_hidden_layers * algebra / self.machine.fp32_flops
        batch = Sequences(rows=max(1, min(windows, PRUNING_TOKENS // length)), longest=length)
        held = tokens * hidden * work.dtype_bytes + (forward_bytes(config, work.dtype_bytes, batch) if tokens else 0)
        if self.on_card:
            layer = layer_parameters(config) * work.dtype_bytes
            return self._stage(key, 2 * tokens, seconds, host + self.weights, layer + held + scratch)
        stage = self._stage(key, 2 * tokens, seconds, self.weights + max(host, held + scratch), 0)
        self.kept = self.machine.kept * self.weights
        return stage

    def _linears(self) -> list[tuple[int, int]]:
        """(out, in) of the seven linear layers."""
        hidden, inner, (queries, keys) = self.config.hidden_size, self.config.intermediate_size, _widths(self.config)
        mlp = [(inner, hidden), (inner, hidden), (hidden, inner)]
        return [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), *mlp]

    def _negatives(self, key: str) -> StagePlan:
        if not self.work.probes:
            return self._stage(key, 0, 0, 0, 0)
        tokens = sum(length - prompt for prompt, length in self.work.samples)
        rate = self.machine.fp32_flops * self.machine.forward_share
        seconds = 1 + ENCODER_BYTES / self.machine.disk + ENCODER_FLOPS * tokens / rate
        longest = min(ENCODER_LONGEST, max(length - prompt for prompt, length in self.work.samples))
        batch = min(ENCODER_BATCH, len(self.work.samples)) * longest * ENCODER_TOKEN_BYTES
        return self._stage(key, 0, seconds, 0, ENCODER_BYTES + batch)

    def _scores(self) -> tuple[float, int, Sequences]:
        """(seconds, tokens, the largest batch) of scoring one model on all tasks."""
        seconds, tokens, largest = 0.0, 0, 0
        for task in self.work.tasks.values():
            read = int(task.rows * task.tokens)
            seen = Sequences(read, int(task.rows * task.pairs), scored=int(task.rows * task.scored))
            seconds += self._forward(seen) + task.rows * task.requests * self.machine.request_seconds
            tokens += read
            largest = max(largest, task.longest)
        if not self.work.tasks:
            return 0.0, 0, Sequences()
        longest = max(1, largest)
        rows = max(1, self.budget // longest)
        return seconds, tokens, Sequences(rows=rows, longest=longest, scored_at_once=self.budget, masked=longest < 1024)

    def _measure(self, key: str, file: float, groups: list[Sequences], converted: bool = False) -> StagePlan:
        seconds, tokens, batch = self._scores()
        if not groups and not tokens:
            return self._stage(key, 0, file / self.machine.disk, 0, 0)
        loading, host = self._loading(file, converted)
        seconds += loading
        device = forward_bytes(self.config, self.work.dtype_bytes, batch) if tokens else 0
        z = 0
        for seen in groups:
            seconds += self._own_forward(seen)
            tokens += seen.tokens
            device = max(device, forward_bytes(self.config, self.work.dtype_bytes, seen))
        if self.reads and groups:
            branches = 3 * self.work.probes if len(groups) == 2 else len(self.work.samples)
            z = activations_bytes(self.config, branches, self.work.dtype_bytes)
        if self.on_card:
            return self._stage(key, tokens, seconds, max(host, z), self.weights + device)
        # Converted weights lie in the heap, where those of an earlier stage were.
        before, self.kept = self.kept, 0 if converted else self.kept
        stage = self._stage(key, tokens, seconds, 0, self.weights + max(host, device + z))
        self.kept = max(before, self.machine.kept * self.weights) if converted else before
        return stage

    def _ranking(self, key: str) -> StagePlan:
        if not self.work.scale_epochs:
            return self._components(key)
        # LoFiT's first step is over, and its model gone, before components are computed.
        scales = self._training(key, replace(self.work, heads=0, valid=[], epochs=self.work.scale_epochs))
        components = self._components(key)
        device = max(scales.device_bytes, components.device_bytes) if self.on_card else None
        host = max(scales.host_bytes, components.host_bytes)
        return StagePlan(key, scales.tokens, scales.seconds + components.seconds, host, device)

    def _components(self, key: str) -> StagePlan:
        config, samples, probes = self.config, len(self.work.samples), self.work.probes
        if not self.reads:
            return self._stage(key, 0, 0, 0, 0)
        width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
        read = width * (2 * samples + 2 * probes) * self.work.dtype_bytes
        # Dense z with its branches, pruned z, and the gap, all in fp32; the dense q part once more as it is joined.
        held = width * (4 * samples + 2 * probes) * FP32
        train = int(TRAIN_SHARE * probes)
        # Each epoch reads shared, right and wrong features twice, in products too small for the memory's whole rate.
        traffic = PROBE_EPOCHS * 2 * 3 * FP32 * width * train / PROBES_SHARE
        algebra = width * config.head_dim * (2 * samples + 20 * config.head_dim)
        bases = width * config.head_dim * FP32
        seconds = RANKING_SECONDS + read / self.machine.disk
        seconds += traffic / self.machine.host_bandwidth + algebra / self.machine.host_flops
        return self._stage(key, 0, seconds, held + 2 * bases, 0)

    def _dense(self, key: str) -> StagePlan:
        if not self.on_card and self.work.dtype_bytes < FP32:
            self.baseline += self.machine.kernels
        seen = [self.trees, self.rest]
        return self._measure(key, self.dense_file, seen, self.work.converted)

    def _calibration(self) -> tuple[float, int, float, float]:
        """(seconds, tokens, bytes of the host, bytes of the device) of closed forms, before the model is loaded."""
        if not self.work.calibrations:
            return 0.0, 0, 0.0, 0.0
        config, size = self.config, self.work.dtype_bytes
        windows, length = self.work.calibration
        passes = CALIBRATION_PASSES * self.work.calibrations
        fed = Sequences(passes * windows * length, passes * windows * length**2)
        trained = 3 * self.work.calibration_epochs  # backward is twice forward where weights are trained
        once = Sequences(windows * length, windows * length**2)
        seconds = self._forward(fed) + trained * self._forward(once)
        seconds += sum(self._loading(file)[0] for file in (self.dense_file, self.pruned_file))
        batch = Sequences(rows=max(1, min(windows, PRUNING_TOKENS // length)), longest=length)
        held = 2 * windows * length * config.hidden_size * size + forward_bytes(config, size, batch)
        moments = FP32 * (config.intermediate_size**2 + 2 * config.hidden_size**2)
        layers = 2 * layer_parameters(config) * size * self.on_card
        return seconds, fed.tokens, 2 * self.weights, held + moments + layers

    def _training(self, key: str, work: Workload) -> StagePlan:
        config, machine = self.config, self.machine
        seconds, host = self._loading(self.pruned_file)
        forward = self._own_forward(self.training)
        again = forward if work.gradient_checkpointing else 0
        backward = backward_flops(config, self.training) / (machine.flops * machine.backward_share)
        validations = (1 + math.ceil(work.epochs)) if work.valid and work.epochs else 0
        seconds += work.epochs * (forward + backward + again) + validations * self._own_forward(self.largest_valid)
        tokens = int(work.epochs * self.training.tokens + validations * self.largest_valid.tokens)
        read = self._calibration()
        seconds, tokens = seconds + read[0], tokens + read[1]
        device = forward_bytes(config, work.dtype_bytes, self.largest_valid)
        if work.epochs:
            device = max(device, training_bytes(config, work, self.training, self.on_card))
        proof = PROOF_SAMPLES * self.training.longest * config.vocab_size * FP32
        teaching, taught, states, beside = self._teaching(validations)
        seconds, tokens, device = seconds + teaching, tokens + taught, device + beside
        if self.on_card:
            host = max(host, proof, read[2]) + states
            return self._stage(key, tokens, seconds, host, max(self.weights + device, read[3]))
        device += states
        saved = kept_activations(config, work, self.training, self.on_card) if work.epochs else 0
        # Activations fill what is free in the heap first, and leave it as large as they made it.
        before, self.kept = self.kept, max(0, self.kept - saved)
        held = max(device + machine.fragments * saved, proof)
        stage = self._stage(key, tokens, seconds, 0, max(self.weights + held, read[2] + read[3]))
        self.kept = max(before, (1 + machine.fragments) * saved)
        return stage

    def _teaching(self, validations: int) -> tuple[float, int, float, float]:
        """(seconds, tokens, host bytes of kept states, bytes beside the student) that distillation adds to training."""
        config, work = self.config, self.work
        if work.teacher_bytes is None or not work.epochs:
            return 0.0, 0, 0, 0
        passes = [(self.training, work.epochs), (self.largest_valid, validations)]
        states = sum(seen.scored for seen, _ in passes) * config.hidden_size * work.dtype_bytes
        softmax = CHUNK * config.vocab_size * FP32
        seconds, _ = self._loading(self.dense_file, work.converted)
        seconds += sum(count * head_flops(config, seen.scored) for seen, count in passes) / (
            self.machine.flops * self.machine.forward_share
        )
        if states > work.teacher_bytes:
            states, beside = 0, softmax + self.weights
        else:
            passes, beside = [(seen, 1) for seen, _ in passes], softmax
        for seen, count in passes:
            seconds += count * self._own_forward(replace(seen, scored=0))
        return seconds, int(sum(count * seen.tokens for seen, count in passes)), states, beside

    def _merge(self, key: str) -> StagePlan:
        # Mapped by the merge, written; counted, compared and loaded again; hashed by whoever asks for its key.
        seconds = 6 * self.pruned_file / self.machine.disk
        longest = max((length for _, length in self.work.valid or self.work.samples), default=0)
        logits = longest * self.config.vocab_size
        kept = 2 * PROOF_SAMPLES * FP32 * logits
        files = 2 * self.pruned_file
        if self.on_card:
            own = self.weights + logits * (self.work.dtype_bytes + FP32)
            return self._stage(key, 0, seconds, files + kept, own)
        return self._stage(key, 0, seconds, max(files, self.weights + kept), 0)


def _widths(config: LlamaConfig) -> tuple[int, int]:
    """(H·d, KV heads·d)."""
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
