"""`-plan CARD`: from flags to a table of what each stage will take, without reading a weight or writing a file."""

import math
import textwrap
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, LlamaConfig, PreTrainedTokenizerBase

import pruning
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
)
from utils.common.commands import WIDTH
from utils.common.disk import as_bytes
from utils.common.errors import UserError, first_line
from utils.common.flags import Arguments
from utils.common.hub import no_waiting
from utils.common.methods import Options, needs_of, parts_of
from utils.common.names import BUNDLED, DISTILL, EMBEDDED
from utils.distillation import GB, check_loss
from utils.evaluation.spec_tasks import load_texts, tell_unused
from utils.evaluation.task_loading import TASKS_FLAG, task_names
from utils.evaluation.tasks import TOKENS_ONLY, WIKITEXT
from utils.plan.costs import Machine, StagePlan, TaskTokens, Workload, parameters
from utils.plan.counts import changed_weights, numbers
from utils.plan.disk import written
from utils.plan.machine import FITS, GIB, machine
from utils.plan.planner import plan
from utils.samples import Samples, read_samples

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
"""Rows of the scored splits as published (data set cards), and what a row takes, the mean over the bundled rows or over
the first 250 (rte 150) rows of the hub's split: benchmarks/plan.py at commit 879812d, SmolLM2's tokenizer.
"""

WIKITEXT_TOKENS, WIKITEXT_WORDS, WIKITEXT_PAGES = 304_986, 241_211, 62
"""WikiText-2's test text as `utils.evaluation.perplexity` joins it, by the same count."""

PAGE_PADDING = 1.11
"""Tokens of the pages' windows with padding, by the same count, over tokens."""

ALPACA_PROMPT, ALPACA_RESPONSE = 30, 143
"""Mean tokens of the original release's 2,000 Alpaca training samples, cut at 500, with SmolLM2's tokenizer; 38 of them
reach 500. Llama's own vocabulary is smaller and makes some 10 to 15 % more."""


def print_plan(args: Arguments) -> None:
    """Check the flags, count what will be read, and print expected time and memory; UserError as a run would raise it.

    Samples are read where they and the tokenizer are at hand.
    """
    config, tokenizer, stored = read_model(args.base_model_name)
    if args.pruned_model_path:
        check_name(args.pruned_model_path, "-pruned_model_path")
    else:
        pruning.check(args.prune_method, args.sparsity, args.calib_data, args.calib_samples, args.calib_length, config)
    target = machine(args.plan, config, DTYPES[args.dtype], args.device)
    samples, valid, counted = count_samples(args, tokenizer)
    tasks, unknown = count_tasks(args)
    work = workload(args, config, stored, samples, valid, tasks)
    print(
        f"{parameters(config) / 1e9:.2f} B parameters, {args.dtype}, on {target.name} ({target.memory / GIB:.0f} GiB)"
    )
    notes = [target.source, counted, "evaluation: mean tokens of a row times the rows of the split"]
    notes.append(f"training: {args.method}" + (f", {work.heads} heads" if work.heads else ""))
    disks = written(config, work)
    notes.append(
        f"on disk: up to {as_bytes(disks.output)} in -output_dir, {as_bytes(sum(disks.cache.values()))} in -cache_dir"
    )
    if args.base_model_name == EMBEDDED or args.base_model_name.endswith(".gguf"):
        notes.append("not planned: a GGUF file is unpacked to fp32 in the first run that reads it")
    if unknown:
        notes.append(f"not planned, since their size is not known here: {', '.join(unknown)}")
    for note in notes:
        print(textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    "))
    stages = plan(config, work, target)
    print(f"\n{plan_table(stages, target)}")
    for line in advice(config, work, target, stages):
        print(textwrap.fill(line, WIDTH, subsequent_indent="  "))


def read_model(name: str) -> tuple[LlamaConfig, PreTrainedTokenizerBase | None, torch.dtype]:
    """(configuration, tokenizer if it is at hand, dtype of the stored parameters): nothing else is read.

    name: as -base_model_name takes it; of a hub id the configuration alone is asked for.
    """
    flag = "-base_model_name"
    full = hub_name(name)
    path = embedded_file(flag) if name == EMBEDDED else Path(full).expanduser()
    if path.is_file():
        check_gguf(path, flag)
        try:
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name), gguf_tokenizer(path), torch.float32
        except Exception as error:  # whatever a damaged file makes gguf or transformers raise
            raise UserError(f"{flag}: cannot read {path.name} ({first_line(error)}); copy it again") from error
    if path.is_dir():
        config = load_config(path, flag)
        return config, load_tokenizer(path, flag) if has_tokenizer(path) else None, _stored(config)
    try:
        with no_waiting():
            file = hf_hub_download(full, "config.json")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag}: cannot get the configuration of '{full}' from the model hub ({first_line(error)}); "
            "check the name and your access, or give a folder that holds its config.json"
        ) from error
    config = load_config(Path(file).parent, flag)
    return config, None, _stored(config)


def _stored(config: LlamaConfig) -> torch.dtype:
    """The dtype of the checkpoint's files, as its configuration says; fp16, Llama's, if it says nothing."""
    return config.dtype or torch.float16


def count_samples(
    args: Arguments, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], str]:
    """(prompt tokens, all tokens) of the training and the validation samples, and in words where they are from."""
    sources = [args.data_path, args.valid_data_path]
    at_hand = all(source in (None, BUNDLED) or Path(source).expanduser().exists() for source in sources)
    if args.spec_task:
        at_hand = args.eval_data_dir is not None
    if tokenizer is not None and at_hand:
        samples = read_samples(args, tokenizer, load_texts(args))
        return *lengths(samples), "samples: counted"
    tell_unused(args)
    count, held_out = args.num_train_samples, args.num_valid_samples
    if args.spec_task:
        prompt = round(TASKS[args.spec_task].tokens)
        longest = min(args.max_length, TASKS[args.spec_task].longest)
        mean, held_out, named = min(args.max_length, prompt + 2), 0, f"those of {args.spec_task}'s evaluation rows"
    else:
        prompt, longest, named = ALPACA_PROMPT, args.max_length, "Alpaca's"
        mean = min(args.max_length, ALPACA_PROMPT + ALPACA_RESPONSE)
    prompt = min(prompt, mean - 1)
    # One sample as long as any may be: the largest batch decides about memory.
    rows = [[(prompt, longest)] + [(prompt, mean)] * (number - 1) for number in (count, held_out)]
    said = f"samples: not at hand with a tokenizer, taken to be as long as {named}: {prompt} + {mean - prompt} tokens"
    return rows[0], rows[1] if held_out else [], said


def lengths(samples: Samples) -> list[list[tuple[int, int]]]:
    """(prompt tokens, all tokens) of the training and of the validation samples."""
    parts = (samples.train, samples.valid)
    return [[(sample.prompt_length, len(sample.ids)) for sample in part] for part in parts]


def count_tasks(args: Arguments) -> tuple[dict[str, TaskTokens], list[str]]:
    """What one model's evaluation reads, by task, and the names of tasks whose size is not known."""
    known, unknown = {}, []
    for name in task_names(args.eval_tasks, TASKS_FLAG):
        members = [task for task in TASKS if task.startswith(f"{BUNDLED}_")] if name == BUNDLED else [name]
        for task in members:
            if task in (WIKITEXT, TOKENS_ONLY):
                known[task] = wikitext(args.ppl_windows or args.eval_limit, args.ppl_window, task == WIKITEXT)
            elif task in TASKS:
                known[task] = TASKS[task].limited(args.eval_limit)
            else:
                unknown.append(task)
    return known, unknown


def wikitext(limit: int | None, window: int, words: bool = True) -> TaskTokens:
    """Whole windows of WikiText-2 and, with `words`, pages with as many words as these windows have tokens."""
    windows = min(limit or WIKITEXT_TOKENS, max(1, WIKITEXT_TOKENS // window))
    if not words:
        return TaskTokens(1, windows * window, windows * window**2, windows * window, 1, window)
    page = WIKITEXT_TOKENS / WIKITEXT_PAGES
    pages = WIKITEXT_TOKENS
    if limit:
        # The page that reaches the limit is read to its end.
        pages = min(pages, max(2 * page, limit * window * WIKITEXT_TOKENS / WIKITEXT_WORDS + page / 2))
    read = windows * window + PAGE_PADDING * pages
    return TaskTokens(1, read, read * window, windows * window + pages, 2, window)


def workload(
    args: Arguments,
    config: LlamaConfig,
    stored: torch.dtype,
    samples: list[tuple[int, int]],
    valid: list[tuple[int, int]],
    tasks: dict[str, TaskTokens],
) -> Workload:
    """The flags as plain numbers."""
    options = Options.of(args)
    needs = needs_of(args.method, options)
    args.check_layers(config.num_hidden_layers)
    check_loss(args, needs)
    heads = args.head_count(*head_shape(config)[:2]) if needs.heads else 0
    learned, trained = numbers(args.method, options, config, heads)
    contrasts = needs.heads and args.head_selection == "contrastive"
    scales = needs.heads and args.head_selection == "lofit"
    return Workload(
        dtype_bytes=DTYPES[args.dtype].itemsize,
        stored_bytes=stored.itemsize,
        converted=stored != DTYPES[args.dtype],
        pruner=None if args.pruned_model_path else args.prune_method,
        calibration=(args.calib_samples, args.calib_length),
        samples=samples,
        valid=valid,
        probes=min(args.num_probe_samples, len(samples)) if contrasts else 0,
        heads=heads,
        epochs=args.num_epoch if needs.training else 0,
        batch_size=args.batch_size,
        grouped=not args.random_batches,
        gradient_checkpointing=args.gradient_checkpointing,
        tasks=tasks,
        teacher_bytes=args.teacher_cache_gb * GB if args.loss == DISTILL else None,
        scale_epochs=args.num_epoch if scales else 0,
        activations=needs.basis or not scales,
        calibrations=sum(part.needs.calibration for part in parts_of(args.method, options)),
        learned=learned,
        trained=trained,
        changed=changed_weights(args.method, options, config),
        needs=needs,
    )


def plan_table(stages: list[StagePlan], target: Machine) -> str:
    """Terminal table: stage, tokens, expected time, expected peak memory, whether it fits."""
    header = ["stage", "tokens", "time", *(["GPU", "host"] if target.device == "cuda" else ["memory"]), "fits"]
    rows = []
    for stage in stages:
        sizes = [stage.device_bytes, stage.host_bytes] if target.device == "cuda" else [stage.host_bytes]
        tokens = f"{stage.tokens:,}" if stage.tokens else "–"
        rows.append(
            [stage.name, tokens, duration(stage.seconds), *(f"{size / GIB:.2f} GiB" for size in sizes)]
            + ["yes" if _fits(stage, target) else "NO"]
        )
    total = [sum(stage.tokens for stage in stages), sum(stage.seconds for stage in stages)]
    rows.append(["total", f"{total[0]:,}", duration(total[1]), *[""] * (len(header) - 3)])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        numbers = "".join("  " + cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return (cells[0].ljust(widths[0]) + numbers).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])])


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _fits(stage: StagePlan, target: Machine) -> bool:
    host = target.host_memory is None or stage.host_bytes <= FITS * target.host_memory
    return host and stage.bytes_on(target) <= FITS * target.memory


def advice(config: LlamaConfig, work: Workload, target: Machine, stages: list[StagePlan]) -> list[str]:
    """A line for each stage that does not fit with what would help; one line that all is well otherwise."""
    lines = []
    for number, stage in enumerate(stages):
        if _fits(stage, target):
            continue
        cures = []
        if stage.key == "train" or (stage.key == "rank" and work.scale_epochs):
            for options in _lighter(work):
                fits = (flags for flags, other in options if _fits(plan(config, other, target)[number], target))
                if len(cures) < 2 and (mildest := next(fits, None)):
                    cures.append(mildest)
        elif stage.key == "prune":
            cures = ["fewer -calib_samples, a smaller -calib_length", "a -pruned_model_path made elsewhere"]
        elif target.device == "cuda":
            cures = ["-device auto, which spreads the model over several GPUs and the host's memory"]
        if target.device == "cuda" and not cures:
            cures = ["several GPUs, accelerate launch --use_fsdp --fsdp_version 2"]
        lines.append(f"{stage.name}: does not fit; try {', or '.join(cures or ['a machine with more memory'])}")
    return lines or ["all stages fit"]


def _lighter(work: Workload) -> list[list[tuple[str, Workload]]]:
    """Flags that train in less memory with as many samples a step, and the workload with them, the mildest first."""
    sizes = [size for size in (work.batch_size >> shift for shift in range(1, 12)) if size]
    less = replace(work, gradient_checkpointing=True)
    checkpointing = [] if work.gradient_checkpointing else [("-gradient_checkpointing", less)]
    batches, both = [], []
    for size in sizes:
        flags = f"-batch_size {size} -gradient_accumulation {math.ceil(work.batch_size / size)}"
        batches.append((flags, replace(work, batch_size=size)))
        both.append((f"-gradient_checkpointing {flags}", replace(less, batch_size=size)))
    return [checkpointing, batches, both]
