"""`-plan CARD`: the seconds and the peak memory that each stage of a run will take, without reading a weight.

Operations and bytes follow from shapes and counts of tokens; rates are a datasheet's or one measured decoder layer's.
"""

import copy
import math
import os
import textwrap
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from torch.utils.benchmark import Timer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

import pruning.calibration
import pruning.prune_model
from models import loading, model_names
from models.contract import linear_shapes
from models.cpu_attention import cpu_attention
from models.families import carried_parts
from models.gguf_reading import read_gguf
from utils.common.commands import WIDTH
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.common.hub import asking
from utils.common.methods import Options
from utils.common.names import BUNDLED, DISTILL, RESPONSE
from utils.common.record import STAGES, device_name
from utils.evaluation.task_loading import load_texts, task_names
from utils.evaluation.tasks import TOKENS_ONLY, WIKITEXT
from utils.losses import CHUNK
from utils.report.tables import text_table
from utils.samples import PROOF_SAMPLES, read_samples

GIB, FP32 = 2**30, 4
HERE = "here"
Lengths = list[tuple[int, int]]  # (prompt tokens, all tokens) of each sample

CARDS = {
    "H100-80GB": (80, 989, 67),
    "H100-PCIe": (80, 756, 51),
    "H200": (141, 989, 67),
    "B200": (180, 2250, 75),
    "A100-40GB": (40, 312, 19.5),
    "A100-80GB": (80, 312, 19.5),
    "A6000": (48, 155, 38.7),
    "L40S": (48, 362, 91.6),
    "L4": (24, 121, 30.3),
    "RTX4090": (24, 165, 82.6),
    "RTX3090": (24, 71, 35.6),
}
"""Memory in 10⁹ bytes, dense TFLOP/s in 16 bit and in fp32, by NVIDIA's datasheets (half of those with sparsity)."""

FITS, REACHED, DISK = 0.95, 0.4, 1e9
"""Assumed: the shares of a memory that may be filled and of a card's rate that decoders reach; a disk's bytes/s."""

PROCESS, CONTEXT, REQUEST = int(0.75 * GIB), int(0.6 * GIB), 0.001
"""Measured on a CPU: a process's bytes without weights, seconds per lm_eval request. Assumed: CUDA's (host: twice)."""

CLOSED_FORMS = {"flap_bias": (2, 0, 0), "eora": (1, 1, 0), "reconstruct": (12, 0, 2 * FP32)}
CLOSED_FORMS |= {"admm_update": (2.5, 1.5, 2 * FP32), "admm_residual": (5, 2, 2 * FP32 + 2)}
"""Forward passes over the calibration set, fp32 passes over it, bytes per weight of its result and a second model."""

MORE = "take more memory, or several GPUs (-device auto; to train, accelerate launch --use_fsdp --fsdp_version 2)"
"""The advice for a stage that does not fit even with lower flags."""


class Texts(NamedTuple):
    """Texts that a decoder reads. rows: how many. Means per text: tokens, scored tokens, lm_eval's requests."""

    rows: float
    tokens: float
    scored: float = 0
    requests: float = 0

    @classmethod
    def of(cls, samples: Lengths) -> "Texts":
        """The texts of these samples, in which the tokens after the prompt are scored."""
        mean, prompt = (sum(sample[place] for sample in samples) / max(1, len(samples)) for place in (1, 0))
        return cls(len(samples), mean, mean - prompt)


TASKS = {
    "bundled_response": Texts(280, 98.1, 61.7, 4),
    "bundled_facts": Texts(373, 10.0, 5.0, 4),
    "bundled_arithmetic": Texts(300, 37.9, 10.7, 4),
    "bundled_heldout": Texts(220, 59.8, 34.5, 1),
    "boolq": Texts(3270, 158.7, 2.0, 2),
    "rte": Texts(277, 87.5, 2.0, 2),
    "hellaswag": Texts(10042, 89.0, 56.2, 4),
    "winogrande": Texts(1267, 38.0, 11.2, 2),
    "arc_easy": Texts(2376, 46.6, 17.4, 4),
    "arc_challenge": Texts(1172, 55.2, 23.9, 4),
    "openbookqa": Texts(500, 27.1, 13.3, 4),
}
"""Rows of the scored splits as published (data set cards). The means per row are over the bundled rows, or the first
250 (rte: 150) rows of the hub's split, counted with SmolLM2's tokenizer."""

WIKITEXT_TOKENS, WIKITEXT_PAGES = 304_986, 1.4
"""WikiText-2's test tokens, counted likewise; tokens read by page per token by window (padded; a word is one token)."""

ALPACA = 30, 143  # mean tokens of prompt and response of 2,000 Alpaca training samples, cut at 500, by the same count


class Machine(NamedTuple):
    """The machine to plan for. memory: bytes of its GPU, else of the host; host_memory: of the host of a GPU, if known.
    inference, training, fp32: FLOP/s of a decoder's forward pass, of its training step, and of fp32 matrix products."""

    name: str
    on_card: bool
    memory: float
    inference: float
    training: float
    fp32: float
    source: str
    host_memory: float = math.inf

    def fits(self, host_bytes: float, card_bytes: float = 0) -> bool:
        """Whether both memories hold a stage."""
        host = self.host_memory if self.on_card else self.memory
        return host_bytes <= FITS * host and card_bytes <= FITS * self.memory


class StagePlan(NamedTuple):
    """The plan of one stage: seconds, peak bytes on the host, peak bytes on the card (0 if there is none)."""

    seconds: float
    host_bytes: float
    card_bytes: float


@dataclass
class Plan:
    """The stages of the run that `args` describe, for a model of this configuration."""

    args: Arguments
    config: LlamaConfig
    machine: Machine
    samples: Lengths
    valid: Lengths
    tasks: list[Texts]  # that the evaluation of one model reads
    stored: int = 2  # bytes of a parameter in the dense checkpoint's files

    def __post_init__(self):
        args, config, shapes = self.args, self.config, linear_shapes(self.config)
        self.size, self.vocabulary = loading.DTYPES[args.dtype].itemsize, config.vocab_size
        self.layers, self.hidden, self.inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        self.queries, self.keys = shapes["self_attn.q_proj"][0], shapes["self_attn.k_proj"][0]
        self.outputs = sum(out for out, _ in shapes.values())
        self.matrices = self.layers * sum(out * width for out, width in shapes.values())
        self.parameters = self.matrices + self.vocabulary * self.hidden * (2 - config.tie_word_embeddings)
        self.weights, self.file = self.parameters * self.size, self.parameters * self.stored
        self.needs = args.needs
        self.heads = args.head_count(self.layers, config.num_attention_heads) if self.needs.heads else 0
        contrastive = self.needs.heads and args.head_selection == "contrastive"
        self.probes = min(args.num_probe_samples, len(self.samples)) if contrastive else 0
        # For methods that train constants an upper bound: they are few.
        self.trained = self.matrices if args.method == "masked_full" else self.layers * self.outputs
        if args.method.endswith(("lora", "dora")):
            self.trained = self.layers * args.lora_rank * sum(map(sum, shapes.values()))
        longest = max((end for _, end in self.valid or self.samples), default=0)
        self.proof = PROOF_SAMPLES * longest * self.vocabulary * FP32  # logits that a merged model is proved on
        self.budget = 16_384 if self.machine.on_card else 4096  # tokens that are read at once

    def operations(self, texts: Texts) -> float:
        """FLOPs of a forward pass: two per weight and token, attention over half the token pairs, output head."""
        decoder = 2 * self.matrices + 2 * self.layers * self.queries * texts.tokens
        return texts.rows * (decoder * texts.tokens + 2 * self.hidden * self.vocabulary * texts.scored)

    def reading_bytes(self, tokens: float) -> float:
        """Peak bytes of a batch in a forward pass: the residual stream, a layer's widest part, two chunks of logits."""
        layer = tokens * (3 * self.inner + 6 * self.hidden) * self.size
        return layer + 2 * CHUNK * self.vocabulary * (self.size + FP32)

    def training_bytes(self) -> float:
        """Peak bytes of a training step, without the weights."""
        args, method, longest = self.args, self.args.method, max(end for _, end in self.samples)
        samples, text = args.batch_size * longest, args.calib_length * (args.loss == DISTILL)
        batch = max(samples, text) if self.machine.on_card else samples + text  # a heap keeps room for both: measured
        # Saved activations: norms' inputs in fp32; gate_proj's output before and after SiLU, up_proj's; q, k, v and z.
        a_token = 2 * FP32 * self.hidden + (3 * self.inner + 2 * self.queries + 2 * self.keys) * self.size
        if method.endswith(("lora", "dora", "masked_full")):  # a weight's gradient needs the layer's input
            a_token += (2 * self.hidden + self.inner) * self.size
        if method.endswith("dora"):  # a magnitude's gradient needs the layer's output
            a_token += self.outputs * self.size
        gemma = self.config.model_type.startswith("gemma")  # whose class adds 1 to a scale
        a_token += 2 * self.hidden * (self.size + FP32 * gemma) * args.train_norms  # a scale's needs the normed input
        kept = self.layers * batch * a_token
        if args.gradient_checkpointing:
            kept = kept / self.layers + self.layers * batch * self.hidden * self.size
        if not self.machine.on_card:  # shorter batches leave gaps in a heap; measured: by 1 - mean / longest
            kept *= 2 - Texts.of(self.samples).tokens / longest
        if method in ("masked_full", "masked_dora"):  # the changed weight and its mask; under DoRA its direction, too
            kept += self.matrices * (self.size + 1 + FP32 * (method == "masked_dora"))
        # What is trained, its gradient, AdamW's two moments; the heads' columns of W_O, which a backward pass needs.
        columns = self.heads * self.hidden * self.config.head_dim
        kept += FP32 * (4 * self.trained + columns / (self.layers if args.gradient_checkpointing else 1))
        return kept + self.reading_bytes(batch) + 2 * CHUNK * self.vocabulary * FP32 * (args.loss == DISTILL)

    def stage(self, seconds: float = 0, host: float = 0, device: float = 0) -> StagePlan:
        """Plan a stage. host: bytes on the host in any case; device: bytes on the card, or on the host without one."""
        if self.machine.on_card:
            return StagePlan(seconds, PROCESS + 2 * CONTEXT + host, CONTEXT + device)
        return StagePlan(seconds, PROCESS + host + device, 0)

    def stages(self) -> list[StagePlan]:
        """One row a stage, in the order of STAGES."""
        lofit = self.needs.heads and self.args.head_selection == "lofit"
        read = self.needs.basis or (self.needs.heads and not lofit)
        count, samples = len(self.samples) * read, Texts.of(self.samples)
        prompt = Texts(count, samples.tokens - samples.scored)
        # A probe's sample is read with both answers. The wrong one is taken to be as long as the right one.
        branched = prompt._replace(tokens=prompt.tokens + 2 * samples.scored * self.probes / max(1, count))
        encoder = {"seconds": 5, "device": GIB / 4} if self.probes else {}  # the sentence encoder
        # Measured on two cores: 200 epochs read the probes' features, seven tenths of them, at 8e9 bytes a second.
        width = self.layers * self.queries * FP32 * self.needs.heads
        ranking = 2.5 * self.needs.heads + 200 * 6 * width * 0.7 * self.probes / 8e9
        ranks = self.stage(ranking, width * (4 * count + 2 * self.config.head_dim))
        if lofit:  # its first step: no closed form, no teacher, no validation
            ranks = replace(self, args=replace(self.args, first=None, loss=RESPONSE), valid=[])._training()
        return [
            self.stage(5, self.file),  # the checkpoint is read and hashed
            self._pruning(),
            self.stage(**encoder),
            self._reading(branched, self.file, count + 2 * self.probes),
            self._reading(prompt, self.weights, count),
            ranks,
            self._training(),
            self.stage(6 * self.weights / DISK, 2 * self.weights + self.proof, self.weights + self.proof),
            self._reading(Texts(0, 0), self.weights, 0),
        ]

    def _pruning(self) -> StagePlan:
        args = self.args
        if args.pruned_model_path:
            return self.stage()
        rows = args.calib_samples * (args.prune_method != "magnitude")
        tokens, scratch = rows * args.calib_length, 6 * FP32 * self.inner * self.hidden
        if args.prune_method in ("sparsegpt", "slimgpt"):  # products of the widest input, and their inverse
            scratch += 9 * FP32 * self.inner**2
        # Each layer runs twice: for its inputs' statistics, and with its zeros. Products of inputs take about a pass.
        passes = 2 / self.machine.inference + (args.prune_method in ("sparsegpt", "slimgpt")) / self.machine.fp32
        seconds = passes * self.operations(Texts(rows, args.calib_length)) + 4 * self.file / DISK
        held = tokens * self.hidden * self.size + self.reading_bytes(min(tokens, self.budget)) + scratch
        held += self.weights / self.layers * self.machine.on_card  # one layer at a time is on the card
        return self.stage(seconds, self.weights + self.file, held)

    def _reading(self, texts: Texts, file: float, activations: int) -> StagePlan:
        """Plan a model that reads `texts` and the tasks. activations: how many z are kept for each head."""
        read = [texts, *self.tasks]
        seconds = 2 * file / DISK + sum(map(self.operations, read)) / self.machine.inference
        seconds += REQUEST * sum(each.rows * each.requests for each in read)
        tokens = sum(each.rows * each.tokens for each in read)
        host = file + activations * self.layers * self.queries * (FP32 + self.size)
        return self.stage(seconds, host, self.weights + self.reading_bytes(min(tokens, self.budget)))

    def _training(self) -> StagePlan:
        args, machine, samples, valid = self.args, self.machine, Texts.of(self.samples), Texts.of(self.valid)
        named = [name for name in (args.method, args.first) if name in CLOSED_FORMS]
        forms, changed = [CLOSED_FORMS[name] for name in named], bool({*named} - {"flap_bias"})
        passes = [args.calib_samples * sum(form[place] for form in forms) for place in (0, 1)]
        read, wide = (self.operations(Texts(each, args.calib_length)) for each in passes)
        step, host = 0.0, sum(self.weights + each * self.matrices for *_, each in forms)  # dense model, results
        trains = args.trains
        # On a card: what a closed form found, then, layer by layer, the weights with it; merged ones, and one in fp64.
        matrices = machine.on_card * self.matrices
        files = FP32 * self.matrices * sum(each > 0 for *_, each in forms)
        found = machine.on_card * bool(trains) * files
        kept = args.method in ("masked_full", "masked_dora")  # the result, as the trained term is in the weight too
        begun = found if kept else matrices * bool(trains and changed) * self.size
        merges = changed or (trains and args.method.endswith(("lora", "dora", "masked_full")))
        held = bool(merges) * (matrices * self.size + 36 * machine.on_card * self.inner * self.hidden)
        device = begun + max(self.reading_bytes(min(valid.rows * valid.tokens, self.budget)) + held, self.proof)
        device = max(device, found + begun / self.layers + 3 * FP32 * matrices / self.layers)
        if trains:
            read += (2 + args.num_epoch) * self.operations(valid)
            taught = [samples]
            device = max(device, begun + self.training_bytes())
            if args.loss == DISTILL:  # each step has a window of text
                text = Texts(args.calib_samples, args.calib_length, args.calib_length)
                a_step = args.batch_size * args.gradient_accumulation
                taught.append(text._replace(rows=math.ceil(samples.rows / a_step)))
                read += sum(map(self.operations, (samples, valid, text)))
                host += sum(each.rows * each.scored for each in (samples, valid, text)) * self.hidden * self.size
            step = (2 + args.gradient_checkpointing) * sum(map(self.operations, taught))
            # Beside both passes, weights' gradients: of all that change, or of the trained terms alone.
            update = 2 * self.matrices if args.method.startswith("masked") else 6 * self.trained
            step += sum(texts.rows * texts.tokens for texts in taught) * update
        seconds = read / machine.inference + wide / machine.fp32 + args.num_epoch * step / machine.training
        seconds += (2 * self.weights + 3 * files) / DISK
        return self.stage(seconds, host, self.weights + device)


def print_plan(args: Arguments) -> None:
    """Check the flags, count what will be read, print each stage's time and memory; UserError as a run raises it."""
    loading.quiet_libraries()
    config, tokenizer, stored = read_shape(args.base_model_name)
    carried_parts(args.method, Options.of(args), config)
    if args.pruned_model_path:
        model_names.check_name(args.pruned_model_path, "-pruned_model_path")
    else:
        pruning.prune_model.check(args.prune_method, args.sparsity, args.calib_data, args.calib_length, config)
    if args.calibrates:
        pruning.calibration.check(args.calib_data, args.calib_length, config.max_position_embeddings)
    machine = target_machine(args, config)
    samples, valid, counted = count_samples(args, tokenizer)
    tasks, unknown = count_tasks(args)
    plan = Plan(args, config, machine, samples, valid, tasks, stored)
    print(f"{plan.parameters / 1e9:.2f} B parameters, {args.dtype}, on {machine.name} ({machine.memory / GIB:.0f} GiB)")
    notes = [machine.source, counted, f"training: {args.method}" + (f", {plan.heads} heads" if plan.heads else "")]
    notes += [f"not planned, since their size is not known: {', '.join(unknown)}"] if unknown else []
    cures, rows, stages = [], [], plan.stages()
    least = replace(args, batch_size=1, gradient_checkpointing=True, calib_length=1)
    smallest = replace(plan, args=least).stages()
    for known, (seconds, host, card), (_, least_host, least_card) in zip(STAGES, stages, smallest, strict=True):
        fits, enough = machine.fits(host, card), known.key == "prune" or machine.fits(least_host, least_card)
        cure = f"lower {known.lighter}" if enough and known.lighter else MORE
        cures += [] if fits else [f"{known.name}: does not fit; {cure}"]
        sizes = [f"{size / GIB:.2f} GiB" for size in ([card, host] if machine.on_card else [host])]
        rows.append([known.name, f"{timedelta(seconds=round(seconds))}", *sizes, "yes" if fits else "NO"])
    total = timedelta(seconds=round(sum(stage.seconds for stage in stages)))
    rows.append(["total", f"{total}", *[""] * (len(rows[0]) - 2)])
    header = ["stage", "time", *(["GPU", "host"] if machine.on_card else ["memory"]), "fits"]
    for note in notes:
        print(textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    "))
    print(f"\n{text_table(header, rows)}")
    for line in cures or ["all stages fit"]:
        print(textwrap.fill(line, WIDTH, subsequent_indent="  "))


def read_shape(name: str) -> tuple[LlamaConfig, PreTrainedTokenizerBase | None, int]:
    """(configuration, tokenizer if it is available, bytes of a stored parameter) of the model -base_model_name."""
    flag, full = "-base_model_name", model_names.hub_name(name)
    path = model_names.check_name(name, flag)
    if path and path.is_file():
        return *read_gguf(path, flag), FP32
    tokenizer = loading.load_tokenizer(path, flag) if path and loading.has_tokenizer(path) else None
    if path is None:
        what = f"the configuration of '{full}' from the model hub"
        with asking(flag, what, "check the name and your access, or give a folder"):
            path = Path(hf_hub_download(full, "config.json")).parent
    config = loading.load_config(path, flag)
    return config, tokenizer, (config.dtype or torch.float16).itemsize


def count_samples(args: Arguments, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Lengths, Lengths, str]:
    """(lengths of the training samples, of the validation samples, a message that says where they are from)."""
    at_hand = args.data_path in (None, BUNDLED) or Path(args.data_path).exists()
    if tokenizer is not None and (args.eval_data_dir is not None if args.spec_task else at_hand):
        samples = read_samples(args, tokenizer, load_texts(args))
        parts = (samples.train, samples.valid)
        return *([(sample.prompt_length, len(sample.ids)) for sample in part] for part in parts), "samples: counted"
    mean = min(args.max_length, sum(ALPACA))
    prompt = min(ALPACA[0], mean - 1)
    # One sample has the maximum length, since the largest batch determines the memory.
    counts = (args.num_train_samples, 0 if args.spec_task else args.num_valid_samples)
    train, valid = (([(prompt, args.max_length)] + [(prompt, mean)] * count)[:count] for count in counts)
    said = f"samples: no local data and tokenizer; assumed as long as Alpaca's: {prompt} + {mean - prompt} tokens"
    return train, valid, said


def count_tasks(args: Arguments) -> tuple[list[Texts], list[str]]:
    """What one model's evaluation reads, and the names of tasks whose size is not known."""
    names = task_names(args.eval_tasks)
    names = [name for name in names if name != TOKENS_ONLY or WIKITEXT not in names]
    bundled = [name for name in TASKS if name.startswith(f"{BUNDLED}_")] if BUNDLED in names else []
    windows = min(args.ppl_windows or args.eval_limit or math.inf, WIKITEXT_TOKENS // args.ppl_window or 1)
    text = Texts(windows, args.ppl_window, args.ppl_window)
    sizes = {name: task._replace(rows=min(args.eval_limit or math.inf, task.rows)) for name, task in TASKS.items()}
    sizes |= {TOKENS_ONLY: text, WIKITEXT: text._replace(rows=(1 + WIKITEXT_PAGES) * windows)}
    known = [sizes[name] for name in dict.fromkeys(names + bundled) if name in sizes]
    return known, [name for name in names if name not in {*sizes, BUNDLED}]


def target_machine(args: Arguments, config: LlamaConfig) -> Machine:
    """The machine that -plan names: `here`, or one of CARDS; UserError for others."""
    if args.plan.lower() == HERE:
        return measured_machine(config, loading.DTYPES[args.dtype], loading.usable_device(args.device))
    cards = {name.upper(): card for name, card in CARDS.items()}
    if args.plan.upper() not in cards:
        raise UserError(f"-plan: unknown card '{args.plan}'; give {HERE} or one of {', '.join(CARDS)}")
    memory, half, fp32 = cards[args.plan.upper()]
    rate = fp32 if args.dtype == "float32" else half
    source = f"datasheet: {rate:g} TFLOP/s dense; assumed, not measured: {REACHED:.0%} of it, disk at 1 GB/s"
    return Machine(args.plan, True, memory * 1e9, *[REACHED * each * 1e12 for each in (rate, rate, fp32)], source)


def measured_machine(config: LlamaConfig, dtype: torch.dtype, device: str) -> Machine:
    """This machine: its memory, and its rates on one random decoder layer of this configuration."""
    single = copy.deepcopy(config)
    single.num_hidden_layers, single.vocab_size, single.pad_token_id = 1, 8, None
    if hasattr(config, "layer_types"):
        single.layer_types = config.layer_types[:1]
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(single, dtype=dtype).requires_grad_(False)
        hidden = torch.randn(4, 128, config.hidden_size, dtype=dtype, requires_grad=True)  # about as long as samples
        side = torch.randn(2048, 2048)
    operations = 2 * hidden[..., 0].numel() * sum(out * width for out, width in linear_shapes(config).values())
    timer = {"globals": {"model": model.model, "hidden": hidden, "side": side}, "num_threads": torch.get_num_threads()}
    work = "model(inputs_embeds=hidden, use_cache=False)[0]"
    with cpu_attention(model):
        steps = Timer(f"{work}.sum().backward()", **timer).blocked_autorange(min_run_time=0.3)
        with torch.no_grad():
            passes = Timer(work, **timer).blocked_autorange(min_run_time=0.3)
        products = Timer("side @ side", **timer).blocked_autorange(min_run_time=0.3)
    # From the fastest repeats, since other load on the machine only slows a repeat down.
    speed = operations / min(passes.times), 2 * operations / min(steps.times), 2 * 2048**3 / min(products.times)
    rates = f"{speed[0] / 1e9:.0f} GFLOP/s forward, {speed[1] / 1e9:.0f} in a training step"
    source = f"measured now: a decoder layer reaches {rates}; assumed: disk at 1 GB/s"
    ram, name = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), f"this machine's {device_name(device)}"
    if not device.startswith("cuda"):
        return Machine(name, False, ram, *speed, source)
    memory = torch.cuda.get_device_properties(device).total_memory
    return Machine(name, True, memory, *speed, source, ram)
