"""`-plan CARD`: the seconds and the peak memory that each stage of a run will take, without reading a weight.

Floating-point operations and bytes follow from the model's shapes and from counts of tokens; rates are a card's
datasheet or, for `here`, one measured decoder layer. Where a constant was measured or assumed, it says so.
"""

import os
import re
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, LlamaConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import pruning.prune_model
from models import cpu_attention
from models.gguf_reading import check_gguf, gguf_tokenizer
from models.loading import (
    DTYPES,
    check_name,
    embedded_file,
    has_tokenizer,
    head_shape,
    hub_name,
    load_config,
    load_tokenizer,
    usable_device,
)
from utils.common.commands import WIDTH
from utils.common.errors import UserError, first_line
from utils.common.flags import Arguments
from utils.common.hub import no_waiting
from utils.common.methods import Options, needs_of
from utils.common.names import BUNDLED, DISTILL, EMBEDDED
from utils.common.record import STAGES, device_name
from utils.evaluation.spec_tasks import load_texts
from utils.evaluation.task_loading import TASKS_FLAG, task_names
from utils.evaluation.tasks import TOKENS_ONLY, WIKITEXT
from utils.losses import CHUNK
from utils.samples import PROOF_SAMPLES, read_samples

GIB, MIB, FP32 = 2**30, 2**20, 4
HERE = "here"


@dataclass(frozen=True)
class Card:
    """From the vendor's datasheet: memory in 10⁹ bytes, dense (not sparse) TFLOP/s in 16 bit, and in fp32."""

    memory_gb: float
    tflops: float
    fp32_tflops: float


CARDS = {
    "H100-80GB": Card(80, 989, 67),
    "H100-PCIe": Card(80, 756, 51),
    "H200": Card(141, 989, 67),
    "B200": Card(180, 2250, 75),
    "A100-40GB": Card(40, 312, 19.5),
    "A100-80GB": Card(80, 312, 19.5),
    "A6000": Card(48, 155, 38.7),
    "L40S": Card(48, 362, 91.6),
    "L4": Card(24, 121, 30.3),
    "RTX4090": Card(24, 165, 82.6),
    "RTX3090": Card(24, 71, 35.6),
}
"""NVIDIA's datasheets and architecture papers. Where they give tensor throughput with sparsity only, half of it."""

FITS = 0.95
"""The share of a memory that may be planned for; the rest goes to fragments."""

DISK = 1e9
"""Assumed: bytes a second of reading and hashing weights."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for. Rates are per second, memory in bytes.

    memory: of the card, or of the machine where on_card is False. host_memory: beside a card, None where unknown.
    flops: of matrix products in the run's dtype; fp32_flops: in fp32; forward, backward: the share of flops that a
    whole decoder layer reaches. request_seconds: lm_eval's own for one request.
    """

    name: str
    on_card: bool
    memory: int
    flops: float
    fp32_flops: float
    forward: float
    backward: float
    source: str
    host_memory: int | None = None
    request_seconds: float = 0.002  # measured on two CPU cores


@dataclass(frozen=True)
class Batches:
    """What goes through a decoder. tokens: with padding. pairs: Σ T² of padded rows. rows, longest: the largest batch.
    scored: tokens whose logits are computed; scored_at_once: the most of them in one batch."""

    tokens: float = 0
    pairs: float = 0
    rows: int = 0
    longest: int = 0
    scored: float = 0
    scored_at_once: int = 0

    @classmethod
    def of(cls, samples: Iterable[tuple[int, int]], size: int = 0, budget: int = 0, scores: bool = True) -> "Batches":
        """Batches of similar lengths: `size` samples each, or as many as a budget of padded tokens holds.

        samples: (prompt tokens, all tokens); the tokens after a prompt are scored.
        """
        ordered = sorted(samples, key=lambda sample: -sample[1])
        tokens = pairs = scored = at_once = rows = longest = start = 0
        while start < len(ordered):
            length = ordered[start][1]
            batch = ordered[start : start + (size or max(1, budget // length))]
            labelled = sum(end - prompt for prompt, end in batch) if scores else 0
            tokens, pairs = tokens + len(batch) * length, pairs + len(batch) * length**2
            scored, at_once = scored + labelled, max(at_once, labelled)
            if len(batch) * length > rows * longest:
                rows, longest = len(batch), length
            start += len(batch)
        return cls(tokens, pairs, rows, longest, scored, at_once)


@dataclass(frozen=True)
class TaskTokens:
    """A task: rows of its split; per row tokens read with padding, Σ T², tokens scored, requests; the longest row."""

    rows: int
    tokens: float
    pairs: float
    scored: float
    requests: float
    longest: int


TASKS = {
    "bundled_response": TaskTokens(280, 98.1, 6535, 61.7, 4, 147),
    "bundled_facts": TaskTokens(373, 10.0, 130, 5.0, 4, 25),
    "bundled_arithmetic": TaskTokens(300, 37.9, 1443, 10.7, 4, 44),
    "bundled_heldout": TaskTokens(220, 59.8, 3836, 34.5, 1, 96),
    "boolq": TaskTokens(3270, 158.7, 31792, 2.0, 2, 784),
    "rte": TaskTokens(277, 87.5, 9894, 2.0, 2, 221),
    "hellaswag": TaskTokens(10042, 89.0, 7652, 56.2, 4, 165),
    "winogrande": TaskTokens(1267, 38.0, 948, 11.2, 2, 38),
    "arc_easy": TaskTokens(2376, 46.6, 2813, 17.4, 4, 167),
    "arc_challenge": TaskTokens(1172, 55.2, 3740, 23.9, 4, 177),
    "openbookqa": TaskTokens(500, 27.1, 868, 13.3, 4, 86),
}
"""Rows of the scored splits as published (data set cards), and a row's means over the bundled rows or the first 250
(rte 150) of the hub's split, counted with SmolLM2's tokenizer."""

WIKITEXT_TOKENS, WIKITEXT_PAGES_SHARE = 304_986, 1.4
"""WikiText-2's test text by the same count, and what its pages read beside the windows: padding, words as tokens."""

ALPACA_PROMPT, ALPACA_RESPONSE = 30, 143
"""Mean tokens of the original release's 2,000 Alpaca training samples, cut at 500, by the same count. Llama's own
smaller vocabulary makes 10 to 15 % more."""

CPU_BASELINE = 760 * MIB
"""Measured: what a run holds before any weight: libraries, their compiled kernels, lm_eval."""

CARD_BASELINE, CARD_HOST_BASELINE = int(0.6 * GIB), 2 * GIB
"""Assumed: CUDA's context and workspaces on the card, and what a process with CUDA's libraries holds of the host."""

FRAGMENTS = 1.4
"""Measured: what batches of different lengths make of training's activations in a CPU's heap."""

SCORING_TOKENS = {True: 16_384, False: 4_096}
"""Padded tokens of a scoring batch, on a card and on a CPU."""

COPIES = {"dora": 3, "masked_lora": 2.5, "masked_dora": 3.5, "masked_full": 2.5}
"""Methods that compute changed weights whole, and how many copies of all weights a step keeps."""

PASSES = {"flap_bias": 2, "eora": 2, "admm_update": 6, "reconstruct": 20}
"""Closed forms, and how many forward passes over the calibration set their time is worth."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: its name, tokens through a decoder, seconds, peak bytes of the host, and of a card if there is one."""

    name: str
    tokens: float
    seconds: float
    host_bytes: float
    card_bytes: float | None

    def fits(self, machine: Machine) -> bool:
        """Whether both memories hold it."""
        on_host = machine.host_memory if machine.on_card else machine.memory
        host = on_host is None or self.host_bytes <= FITS * on_host
        return host and (self.card_bytes is None or self.card_bytes <= FITS * machine.memory)


class Plan:
    """The stages of the run that `args` describe, for a model of this configuration.

    samples, valid: (prompt tokens, all tokens) of each. tasks: what one model's evaluation reads. stored: bytes of a
    parameter in the dense checkpoint's files.
    """

    def __init__(self, args: Arguments, config: LlamaConfig, machine: Machine, samples, valid, tasks, stored: int = 2):
        self.args, self.config, self.machine = args, config, machine
        self.samples, self.valid, self.tasks = samples, valid, tasks
        self.size = DTYPES[args.dtype].itemsize
        self.layers, self.hidden, self.inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        self.queries = config.num_attention_heads * config.head_dim
        self.keys = config.num_key_value_heads * config.head_dim
        self.matrices = self.layers * (self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.inner))
        self.parameters = self.matrices + config.vocab_size * self.hidden * (1 if config.tie_word_embeddings else 2)
        self.weights, self.dense_file = self.parameters * self.size, self.parameters * stored
        self.with_heads = needs_of(args.method, Options.of(args)).heads
        self.heads = args.head_count(*head_shape(config)[:2]) if self.with_heads else 0
        self.probes = min(args.num_probe_samples, len(samples)) if self.with_heads else 0
        self.probes *= args.head_selection == "contrastive"
        self.trained, self.changed = self.trained_numbers()

    def trained_numbers(self) -> tuple[float, float]:
        """(numbers that are trained, weights of matrices that may change)."""
        args, outputs = self.args, self.queries + 2 * self.keys + 2 * self.hidden + 2 * self.inner
        updates = args.method.endswith(("lora", "dora"))
        numbers = self.heads * self.config.head_dim * (2 if args.method == "restorelcc" else 1)
        biases = {"attention": self.hidden, "ffn": self.hidden, "both": 2 * self.hidden, "all": outputs, None: 0}
        method_biases = {"norms_biases": outputs, "output_bias": self.hidden}.get(args.method, 0)
        numbers += self.layers * (biases[args.apply_to] or method_biases)
        if updates:
            inputs = 5 * self.hidden + self.queries + self.inner
            numbers += self.layers * (args.lora_rank * (inputs + outputs) + outputs * args.method.endswith("dora"))
        if args.method == "masked_full":
            numbers += self.matrices
        return numbers, self.matrices if updates or args.method == "masked_full" else 0

    def forward(self, seen: Batches) -> float:
        """Seconds of a forward pass: two operations a weight and token, attention over half the pairs, and the head."""
        operations = 2 * self.matrices * seen.tokens + 2 * self.layers * self.queries * seen.pairs
        operations += 2 * self.hidden * self.config.vocab_size * seen.scored
        return operations / (self.machine.flops * self.machine.forward)

    def backward(self, seen: Batches) -> float:
        """Seconds of a backward pass: gradients of inputs, and of what is trained where weights change."""
        operations = 2 * self.matrices * seen.tokens + 5 * self.layers * self.queries * seen.pairs
        operations += 2 * self.hidden * self.config.vocab_size * seen.scored
        if self.changed:
            beside = self.args.method == "lora"
            operations += seen.tokens * (6 * self.trained if beside else 2 * self.changed)
        return operations / (self.machine.flops * self.machine.backward)

    def inference_bytes(self, seen: Batches) -> float:
        """What one batch holds at its fullest: the residual stream, a layer's widest part, masks, a chunk of logits."""
        widest = max(3 * self.inner, 3 * self.queries + 2 * self.keys) + 3 * self.hidden
        logits = min(seen.scored_at_once, CHUNK) * self.config.vocab_size * (self.size + 2 * FP32)
        masks = seen.rows * seen.longest**2 * (3 + self.size) if seen.longest < 1024 else 0
        return seen.rows * seen.longest * (widest * self.size + 2 * FP32 * self.hidden) + masks + logits

    def saved_bytes(self, seen: Batches) -> float:
        """What autograd keeps for the backward pass of the largest batch, the changed weights of a step included."""
        norms = 2 * FP32 * (self.hidden + 1)
        attention = self.queries * (2 if self.machine.on_card else 1) + 2 * self.keys
        a_token = norms + (3 * self.inner + attention) * self.size
        if self.changed:
            inputs = 2 * self.hidden + self.inner
            outputs = (self.queries + 2 * self.keys + 2 * self.hidden + 2 * self.inner) * ("dora" in self.args.method)
            a_token += (inputs + outputs) * self.size
        tokens = seen.rows * seen.longest
        kept = self.layers * tokens * a_token
        if self.args.gradient_checkpointing:
            kept = self.layers * tokens * self.hidden * self.size + kept / self.layers
        return kept

    def training_bytes(self, seen: Batches) -> tuple[float, float]:
        """(what is kept for the backward pass, all else that a training step holds beside the weights)."""
        tokens = seen.rows * seen.longest
        rows = CHUNK if self.machine.on_card else min(seen.scored_at_once, CHUNK)
        held = rows * self.config.vocab_size * (FP32 + self.size) + 2 * seen.scored_at_once * self.hidden * self.size
        held += tokens * (4 * self.inner * self.size + 3 * FP32 * self.hidden)  # gradients within one layer
        # What is trained, its gradient, AdamW's two moments; the heads' columns of W_O; the changed weights.
        held += FP32 * (4 * self.trained + self.heads * self.hidden * self.config.head_dim)
        held += COPIES.get(self.args.method, 0) * self.changed * self.size
        return self.saved_bytes(seen), held

    def stage(self, key: str, tokens: float = 0, seconds: float = 0, host: float = 0, device: float = 0) -> StagePlan:
        """host: bytes of the host in any case; device: of the card, or of the host where there is none."""
        name = next(stage.name for stage in STAGES if stage.key == key)
        if self.machine.on_card:
            return StagePlan(name, tokens, seconds, CARD_HOST_BASELINE + host, CARD_BASELINE + device)
        return StagePlan(name, tokens, seconds, CPU_BASELINE + host + device, None)

    def stages(self) -> list[StagePlan]:
        """One row a stage, in the order of a run."""
        prompts = [(prompt, prompt) for prompt, _ in self.samples] if self.with_heads else []
        # A prompt, and both answers after it; the wrong answer is taken to be as long as the right one.
        branches = [(2 * end - prompt, 2 * end - prompt) for prompt, end in self.samples[: self.probes]]
        return [
            self.stage("samples", seconds=5),
            self._pruning(),
            self._negatives(),
            self._reading("dense", branches + prompts[self.probes :], self.dense_file),
            self._reading("pruned", prompts, self.weights),
            self._ranking(),
            self._training(),
            self.stage("merge", seconds=6 * self.weights / DISK, device=2 * self.weights + self._proof_bytes()),
            self._reading("restored", [], self.weights),
        ]

    def _proof_bytes(self) -> float:
        longest = max((end for _, end in self.valid or self.samples), default=0)
        return 2 * PROOF_SAMPLES * longest * self.config.vocab_size * FP32

    def _pruning(self) -> StagePlan:
        args = self.args
        if args.pruned_model_path:
            return self.stage("prune")
        length = args.calib_length
        tokens = args.calib_samples * length * (args.prune_method != "magnitude")
        # Each layer runs twice: for its inputs' statistics, and with its zeros.
        seconds = 2 * self.forward(Batches(tokens, tokens * length)) + 4 * self.dense_file / DISK
        algebra, scratch = 0.0, 24 * self.inner * self.hidden
        if args.prune_method in ("sparsegpt", "slimgpt"):
            widths = 3 * self.hidden**2 + self.inner**2
            cubes = 3 * (3 * self.hidden**3 + self.inner**3)
            algebra = self.layers * (2 * tokens * widths + cubes) + self.matrices * self.inner
            scratch += FP32 * widths + 32 * self.inner**2
        seconds += algebra / self.machine.fp32_flops
        batch = Batches(rows=max(1, 8192 // length), longest=length)
        held = tokens * self.hidden * self.size + self.inference_bytes(batch) * (tokens > 0) + scratch
        if self.machine.on_card:
            return self.stage("prune", 2 * tokens, seconds, self.weights, self.weights / self.layers + held)
        return self.stage("prune", 2 * tokens, seconds, self.weights + max(held, self.dense_file))

    def _negatives(self) -> StagePlan:
        if not self.probes:
            return self.stage("negatives")
        tokens = sum(end - prompt for prompt, end in self.samples)
        encoder = 2 * 10_600_000 * tokens / (self.machine.fp32_flops * self.machine.forward)  # MiniLM-L6
        return self.stage("negatives", seconds=1 + encoder, device=250 * MIB)

    def _reading(self, key: str, texts: list[tuple[int, int]], file: float) -> StagePlan:
        """A model that reads texts for its activations, and the tasks."""
        budget = SCORING_TOKENS[self.machine.on_card]
        seen = Batches.of(texts, budget=budget)
        seconds, tokens = 2 * file / DISK + self.forward(seen), seen.tokens
        held = self.inference_bytes(seen) if texts else 0
        held += len(texts) * self.layers * self.queries * FP32 * (3 if key == "dense" else 1)
        for task in self.tasks:
            read = Batches(task.rows * task.tokens, task.rows * task.pairs, scored=task.rows * task.scored)
            seconds += self.forward(read) + task.rows * task.requests * self.machine.request_seconds
            tokens += read.tokens
            at_once = Batches(0, 0, max(1, budget // task.longest), task.longest, 0, budget)
            held = max(held, self.inference_bytes(at_once))
        host = file if self.machine.on_card else 0
        return self.stage(key, tokens, seconds, host, self.weights + held)

    def _ranking(self) -> StagePlan:
        width = self.layers * self.queries
        if not self.with_heads:
            return self.stage("rank")
        if self.args.head_selection == "lofit":
            return replace(self._training(), name=self.stage("rank").name)
        held = width * FP32 * (4 * len(self.samples) + 2 * self.probes + 2 * self.config.head_dim)
        # Measured on two cores: 200 epochs of all probes read their features at 8e9 bytes a second.
        seconds = 2.5 + 200 * 6 * FP32 * width * 0.7 * self.probes / 8e9
        return self.stage("rank", seconds=seconds, host=held)

    def _training(self) -> StagePlan:
        args = self.args
        seen = Batches.of(self.samples, size=args.batch_size)
        checked = Batches.of(self.valid, budget=4096)
        calibration = args.calib_samples * args.calib_length
        passes = sum(PASSES.get(name, 0) for name in (args.method, args.first))
        seconds = passes * self.forward(Batches(calibration, calibration * args.calib_length))
        tokens = passes * calibration
        read = self.weights + 2 * calibration * self.hidden * self.size + 2 * FP32 * self.inner**2 if passes else 0
        device = self.inference_bytes(checked)
        epochs = args.num_epoch if self.trained else 0
        if epochs:
            step = self.forward(seen) * (1 + args.gradient_checkpointing) + self.backward(seen)
            seconds += epochs * step + (2 + epochs) * self.forward(checked)
            tokens += epochs * seen.tokens + (2 + epochs) * checked.tokens
            saved, held = self.training_bytes(seen)
            device = max(device, held + saved * (1 if self.machine.on_card else FRAGMENTS))
            if args.loss == DISTILL:
                seconds += self.forward(seen) + self.forward(checked)
                device += CHUNK * self.config.vocab_size * FP32
                device += (seen.scored + checked.scored) * self.hidden * self.size * (not self.machine.on_card)
        host = self.weights if self.machine.on_card else 0
        seconds += 2 * self.weights / DISK
        device = max(device, self._proof_bytes() * (not self.machine.on_card), read)
        return self.stage("train", tokens, seconds, host, self.weights + device)


def print_plan(args: Arguments) -> None:
    """Check the flags, count what will be read, print each stage's time and memory; UserError as a run raises it."""
    config, tokenizer, stored = read_shape(args.base_model_name)
    if args.pruned_model_path:
        check_name(args.pruned_model_path, "-pruned_model_path")
    else:
        pruning.prune_model.check(
            args.prune_method, args.sparsity, args.calib_data, args.calib_samples, args.calib_length, config
        )
    target = target_machine(args, config)
    samples, valid, counted = count_samples(args, tokenizer)
    tasks, unknown = count_tasks(args)
    plan = Plan(args, config, target, samples, valid, tasks, stored)
    memory = f"{target.memory / GIB:.0f} GiB"
    print(f"{plan.parameters / 1e9:.2f} B parameters, {args.dtype}, on {target.name} ({memory})")
    notes = [target.source, counted, f"training: {args.method}" + (f", {plan.heads} heads" if plan.heads else "")]
    notes += [f"not planned, since their size is not known: {', '.join(unknown)}"] if unknown else []
    for note in notes:
        print(textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    "))
    stages = plan.stages()
    print(f"\n{plan_table(stages, target)}")
    for line in advice(plan, stages):
        print(textwrap.fill(line, WIDTH, subsequent_indent="  "))


def read_shape(name: str) -> tuple[LlamaConfig, PreTrainedTokenizerBase | None, int]:
    """(configuration, tokenizer if it is at hand, bytes of a stored parameter) of what -base_model_name names."""
    flag = "-base_model_name"
    full = hub_name(name)
    path = embedded_file(flag) if name == EMBEDDED else Path(full).expanduser()
    if path.is_file():
        check_gguf(path, flag)
        try:
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name), gguf_tokenizer(path), FP32
        except Exception as error:  # whatever a damaged file makes gguf or transformers raise
            raise UserError(f"{flag}: cannot read {path.name} ({first_line(error)}); copy it again") from error
    tokenizer = None
    if path.is_dir():
        tokenizer = load_tokenizer(path, flag) if has_tokenizer(path) else None
    else:
        try:
            with no_waiting():
                path = Path(hf_hub_download(full, "config.json")).parent
        except (OSError, ValueError) as error:
            raise UserError(
                f"{flag}: cannot get the configuration of '{full}' from the model hub ({first_line(error)}); "
                "check the name and your access, or give a folder that holds its config.json"
            ) from error
    config = load_config(path, flag)
    return config, tokenizer, (config.dtype or torch.float16).itemsize


def count_samples(
    args: Arguments, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], str]:
    """(prompt tokens, all tokens) of the training and the validation samples, and in words where they are from."""
    at_hand = args.data_path in (None, BUNDLED) or Path(args.data_path).expanduser().exists()
    if args.spec_task:
        at_hand = args.eval_data_dir is not None
    if tokenizer is not None and at_hand:
        samples = read_samples(args, tokenizer, load_texts(args))
        parts = (samples.train, samples.valid)
        return *([(sample.prompt_length, len(sample.ids)) for sample in part] for part in parts), "samples: counted"
    prompt, response, named = ALPACA_PROMPT, ALPACA_RESPONSE, "Alpaca's"
    if args.spec_task:
        prompt, response, named = round(TASKS[args.spec_task].tokens), 2, f"those of {args.spec_task}"
    mean = min(args.max_length, prompt + response)
    prompt = min(prompt, mean - 1)
    # One sample as long as any may be: the largest batch decides about memory.
    counts = (args.num_train_samples, 0 if args.spec_task else args.num_valid_samples)
    rows = [([(prompt, args.max_length)] + [(prompt, mean)] * (count - 1)) if count else [] for count in counts]
    said = f"samples: not at hand with a tokenizer, taken to be as long as {named}: {prompt} + {mean - prompt} tokens"
    return rows[0], rows[1], said


def count_tasks(args: Arguments) -> tuple[list[TaskTokens], list[str]]:
    """What one model's evaluation reads, and the names of tasks whose size is not known."""
    known, unknown = [], []
    for name in task_names(args.eval_tasks, TASKS_FLAG):
        members = [task for task in TASKS if task.startswith(f"{BUNDLED}_")] if name == BUNDLED else [name]
        for task in members:
            if task in (WIKITEXT, TOKENS_ONLY):
                window = args.ppl_window
                windows = min(args.ppl_windows or args.eval_limit or WIKITEXT_TOKENS, WIKITEXT_TOKENS // window or 1)
                read = windows * window * (1 + WIKITEXT_PAGES_SHARE * (task == WIKITEXT))
                known.append(TaskTokens(1, read, read * window, read, 2, window))
            elif task in TASKS:
                known.append(replace(TASKS[task], rows=min(args.eval_limit or TASKS[task].rows, TASKS[task].rows)))
            else:
                unknown.append(task)
    return known, unknown


def find_card(name: str) -> str | None:
    """The one of CARDS that `name` is, as a user or the card's driver writes it; None if it is none of them."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    held = {*words, *(first + second for first, second in pairwise(words))}
    return next((card for card in CARDS if set(card.lower().split("-")) <= held), None)


def target_machine(args: Arguments, config: LlamaConfig) -> Machine:
    """The machine that -plan names: `here`, or what `find_card` finds; UserError for others."""
    if args.plan.lower() == HERE:
        return measured_machine(config, DTYPES[args.dtype], usable_device(args.device))
    known = find_card(args.plan)
    if known is None:
        raise UserError(f"-plan: unknown card '{args.plan}'; give {HERE} or one of {', '.join(CARDS)}")
    card = CARDS[known]
    flops = (card.fp32_tflops if args.dtype == "float32" else card.tflops) * 1e12
    forward, backward = 0.45, 0.40
    source = f"datasheet: {flops / 1e12:g} TFLOP/s dense; assumed, not measured: {forward:.0%} of it forward, "
    source += f"{backward:.0%} backward, disk at 1 GB/s"
    memory = int(card.memory_gb * 1e9)
    return Machine(known, True, memory, flops, card.fp32_tflops * 1e12, forward, backward, source, None, 0.0005)


def measured_machine(config: LlamaConfig, dtype: torch.dtype, device: str) -> Machine:
    """This machine: its memory, and its rates on one random decoder layer of this configuration."""
    rows, length = 4, 128  # about as long as samples and questions are
    on_card = device.startswith("cuda")
    single = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1}, attn_implementation="sdpa")
    single._attn_implementation = "sdpa" if on_card else cpu_attention.NAME  # as activations and training have it
    with torch.device("meta"):
        layer = LlamaDecoderLayer(single, 0)
    layer = layer.to(dtype).to_empty(device=device).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_(0, 0.02)
    hidden = torch.randn(rows, length, config.hidden_size, dtype=dtype, device=device, requires_grad=True)
    rotation = LlamaRotaryEmbedding(single).to(device)(hidden, torch.arange(length, device=device)[None])
    weight = layer.mlp.down_proj.weight
    products = [torch.randn(rows * length, weight.shape[1], device=device).to(kind) for kind in (dtype, torch.float32)]
    wide = weight.float()
    with torch.no_grad():
        operations = 2 * rows * length * weight.numel()
        flops = operations / _fastest(lambda: products[0] @ weight.T, device)
        fp32_flops = operations / _fastest(lambda: products[1] @ wide.T, device)
        forward_seconds = _fastest(lambda: layer(hidden, position_embeddings=rotation), device)

    def both() -> None:
        layer(hidden, position_embeddings=rotation).sum().backward()

    backward_seconds = max(_fastest(both, device) - forward_seconds, forward_seconds / 4)
    queries = config.num_attention_heads * config.head_dim
    weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() > 1)
    products_done, attention = 2 * weights * rows * length, 2 * queries * rows * length**2
    forward = (products_done + attention) / forward_seconds
    backward = (products_done + 2.5 * attention) / backward_seconds
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    source = f"measured now: {flops / 1e9:.0f} GFLOP/s in matrix products, of which a decoder layer reaches "
    source += f"{forward / flops:.0%} forward and {backward / flops:.0%} backward; assumed: disk at 1 GB/s"
    return Machine(
        name=torch.cuda.get_device_name(device) if on_card else f"this machine's {device_name(device)}",
        on_card=on_card,
        memory=torch.cuda.get_device_properties(device).total_memory if on_card else ram,
        flops=flops,
        fp32_flops=fp32_flops,
        forward=forward / flops,
        backward=backward / flops,
        source=source,
        host_memory=ram if on_card else None,
    )


def _fastest(work: Callable[[], object], device: str, seconds: float = 0.3) -> float:
    """Seconds of the fastest of several calls: what else runs on the machine only ever slows one down."""
    best, began, calls = float("inf"), time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def plan_table(stages: list[StagePlan], target: Machine) -> str:
    """Terminal table: stage, tokens, expected time, expected peak memory, whether it fits."""
    rows = [["stage", "tokens", "time", *(["GPU", "host"] if target.on_card else ["memory"]), "fits"]]
    for stage in stages:
        sizes = [*([stage.card_bytes] if target.on_card else []), stage.host_bytes]
        row = [stage.name, f"{stage.tokens:,.0f}" if stage.tokens else "–", duration(stage.seconds)]
        rows.append([*row, *(f"{size / GIB:.2f} GiB" for size in sizes), "yes" if stage.fits(target) else "NO"])
    total = ["total", f"{sum(stage.tokens for stage in stages):,.0f}", duration(sum(stage.seconds for stage in stages))]
    rows.append(total + [""] * (len(rows[0]) - 3))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:-1], rule, lines[-1]])


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def advice(plan: Plan, stages: list[StagePlan]) -> list[str]:
    """A line for each stage that does not fit with what would help; one line that all is well otherwise."""
    lines = []
    for number, stage in enumerate(stages):
        if stage.fits(plan.machine):
            continue
        key = STAGES[number].key
        cures = ["several GPUs, accelerate launch --use_fsdp --fsdp_version 2"] if plan.machine.on_card else []
        if key == "train":
            cures = _lighter_flags(plan, number)[:2] or cures
        elif key == "prune":
            cures = ["fewer -calib_samples, a smaller -calib_length", "a -pruned_model_path made elsewhere"]
        elif plan.machine.on_card:
            cures = ["-device auto, which spreads the model over several GPUs and the host's memory"]
        lines.append(f"{stage.name}: does not fit; try {', or '.join(cures or ['a machine with more memory'])}")
    return lines or ["all stages fit"]


def _lighter_flags(plan: Plan, number: int) -> list[str]:
    """Flags with which training fits, with as many samples a step, the mildest first."""
    size, found = plan.args.batch_size, []
    smaller = [(size >> shift, -(-size // (size >> shift))) for shift in range(1, size.bit_length())]
    batches = {f"-batch_size {rows} -gradient_accumulation {steps}": {"batch_size": rows} for rows, steps in smaller}
    checkpointing = {"-gradient_checkpointing": {"gradient_checkpointing": True}}
    both = {
        f"-gradient_checkpointing {flags}": {**less, "gradient_checkpointing": True} for flags, less in batches.items()
    }
    for kind in (checkpointing, batches, both):
        for flags, changes in kind.items():
            lighter = Plan(
                replace(plan.args, **changes), plan.config, plan.machine, plan.samples, plan.valid, plan.tasks
            )
            if lighter.stages()[number].fits(plan.machine):
                found.append(flags)
                break
    return found
