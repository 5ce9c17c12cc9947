"""A row a stage: the costs of `utils.plan.costs`, put together in the order of a run."""

import math
from dataclasses import replace

from transformers import LlamaConfig

from pruning.streaming import BATCH_TOKENS as PRUNING_TOKENS
from utils.activations import CPU_TOKENS_A_BATCH, TOKENS_A_BATCH
from utils.common.methods import Needs
from utils.common.record import STAGES
from utils.evaluation.in_memory_lm import CPU_TOKENS, GPU_TOKENS
from utils.losses import CHUNK
from utils.negatives import BATCH_SIZE as ENCODER_BATCH
from utils.negatives import LONGEST as ENCODER_LONGEST
from utils.plan.costs import (
    FP32,
    Machine,
    Sequences,
    StagePlan,
    Workload,
    activations_bytes,
    backward_flops,
    forward_bytes,
    forward_flops,
    head_flops,
    kept_activations,
    layer_parameters,
    parameters,
    training_bytes,
    update_flops,
    widths,
)
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
        inner, hidden, (queries, _) = config.intermediate_size, config.hidden_size, widths(config)
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
        hidden, inner, (queries, keys) = self.config.hidden_size, self.config.intermediate_size, widths(self.config)
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
        scales = replace(self.work, heads=0, valid=[], epochs=self.work.scale_epochs, needs=Needs())
        each = self.config.num_hidden_layers * self.config.num_attention_heads * self.config.head_dim
        scales = self._training(key, replace(scales, learned=each, trained=each))
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
        trained = 3 * self.work.needs.calibration_epochs  # backward is twice forward where weights are trained
        once = Sequences(windows * length, windows * length**2)
        seconds = self._forward(fed) + trained * self._forward(once)
        seconds += sum(self._loading(file)[0] for file in (self.dense_file, self.pruned_file))
        batch = Sequences(rows=max(1, min(windows, PRUNING_TOKENS // length)), longest=length)
        held = 2 * windows * length * config.hidden_size * size + forward_bytes(config, size, batch)
        moments = FP32 * (config.intermediate_size**2 + 2 * config.hidden_size**2)
        layers = 2 * layer_parameters(config) * size * self.on_card
        found = FP32 * (self.work.learned - self.work.trained)
        return seconds, fed.tokens, 2 * self.weights + found, held + moments + layers

    def _training(self, key: str, work: Workload) -> StagePlan:
        config, machine = self.config, self.machine
        seconds, host = self._loading(self.pruned_file)
        forward = self._own_forward(self.training)
        again = forward if work.gradient_checkpointing else 0
        operations = backward_flops(config, self.training) + update_flops(work, self.training)
        backward = operations / (machine.flops * machine.backward_share)
        validations = 1 + math.ceil(work.epochs) if work.valid else 0
        asked = validations + 1 if work.valid else 0  # the pruned model too
        seconds += work.epochs * (forward + backward + again) + asked * self._own_forward(self.largest_valid)
        tokens = int(work.epochs * self.training.tokens + asked * self.largest_valid.tokens)
        read = self._calibration()
        seconds, tokens = seconds + read[0], tokens + read[1]
        device = forward_bytes(config, work.dtype_bytes, self.largest_valid)
        if work.valid and work.changed:
            device += work.changed * work.dtype_bytes  # validation computes each changed weight once
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
