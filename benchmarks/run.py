"""Speed of training, activations, probes and inference, as ratios measured side by side in one run.

python benchmarks/run.py -json speed.json
"""

import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file: Python put this folder first, whose pruning.py would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time

import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.attention import attention_speed
from benchmarks.extraction import extraction_speed
from benchmarks.inference import READ_LENGTH, inference_speed
from benchmarks.probes import probes_speed
from benchmarks.profiling import profile_training
from benchmarks.timing import Disagreement, matmul_rate, say
from benchmarks.training import training_speed
from data.loading import load_samples
from models.loading import DTYPES, check_name, head_shape, load_model, load_tokenizer, resolve, usable_device
from pruning import calibration
from utils.common.commands import DEFAULT_CACHE, Parser, run
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.names import BUNDLED, EMBEDDED
from utils.common.record import device_name, versions
from utils.plan.machine import CARDS, find_card
from utils.prompts import Encoded, encode_all
from utils.report.tables import markdown_table

PARTS = ("training", "extraction", "probes", "inference", "attention")

MEANING = {
    "training_vs_reference": "training, ÷ plain loop",
    "training_vs_limit": "training, ÷ matrix-product limit",
    "extraction_vs_loop": "activations, ÷ one sequence at a time",
    "extraction_vs_limit": "activations, ÷ matrix-product limit",
    "probes_vs_loop": "components and probes, ÷ head by head",
    "inference_prefill": "restored ÷ pruned, reading",
    "inference_decode": "restored ÷ pruned, writing",
    "attached_prefill": "attached (not merged) ÷ pruned, reading",
    "attached_decode": "attached (not merged) ÷ pruned, writing",
    "slimgpt_compact_prefill": "SlimGPT 20 % compact ÷ dense, reading",
    "slimgpt_compact_decode": "SlimGPT 20 % compact ÷ dense, writing",
}


def main(argv: list[str] | None = None) -> None:
    """Measure what is asked for, print each result at once and the table at the end; write -json if it is named."""
    began = time.perf_counter()
    args = parser().parse_args(argv)
    parts = checked_parts(args)
    device = usable_device(args.device)
    if not args.only and not device.startswith("cuda"):
        parts.remove("attention")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    tokenizer = load_tokenizer(base, "-base_model_name")
    samples = encoded_samples(args, tokenizer)
    model = load_model(base, DTYPES[args.dtype], device, "-base_model_name")
    about = {
        "model": args.base_model_name,
        "device": device_name(device),
        "dtype": args.dtype,
        "repeats": args.repeats,
        "seed": args.seed,
        "matmul_flops_per_second": matmul_rate(device, model.dtype),
        "versions": versions(),
    }
    say(f"{about['device']}, {args.dtype}: matrix product {about['matmul_flops_per_second'] / 1e12:.3f} TFLOP/s")
    if args.profile:
        profile_training(model, samples, args.samples, args.seed)
        return

    measured: dict[str, Callable[[], dict[str, dict]]] = {
        "training": lambda: training_speed(model, samples, args.samples, args.repeats, args.seed),
        "extraction": lambda: extraction_speed(model, samples[: args.samples], args.repeats),
        "probes": lambda: probes_speed(head_shape(model.config), args.repeats, args.seed),
        "inference": lambda: inference_speed(model, base, prompt(model, tokenizer, args.seed), args.repeats, args.seed),
        "attention": lambda: attention_speed(
            model, samples, args.samples, prompt(model, tokenizer, args.seed), args.repeats, args.seed
        ),
    }
    rows: dict[str, dict] = {}
    refused = []
    for number, part in enumerate(parts, start=1):
        say(f"[{number}/{len(parts)}] {part}")
        try:
            rows |= measured[part]()
        except Disagreement as error:
            refused.append(part)
            say(f"{part}: no ratio, because the two ways do not compute the same: {error}")
    if "training_vs_limit" in rows and device.startswith("cuda"):
        say(utilization(rows["training_vs_limit"], about["device"]))
    print(f"\n{table(rows)}\n")
    if args.json:
        write_json(args.json, {**rows, "about": about, "refused": refused})
    where = f", written to {args.json}" if args.json else ""
    say(f"{len(rows)} ratios, {args.repeats} repeats each, in {time.perf_counter() - began:.0f} s{where}")
    if refused:
        sys.exit(1)


def checked_parts(args: argparse.Namespace) -> list[str]:
    """The parts that -only names, in their order; UserError for a flag that can be known to be wrong now."""
    parts = args.only.split(",") if args.only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"-only: no part is called '{unknown[0]}'; give some of {','.join(PARTS)}")
    for name in ("repeats", "samples", "num_train_samples"):
        if getattr(args, name) < 1:
            raise UserError(f"-{name}: {getattr(args, name)} is too few; give 1 or more")
    if args.samples > args.num_train_samples:
        raise UserError(f"-samples: {args.samples} of {args.num_train_samples} samples; raise -num_train_samples too")
    if args.json and args.json.is_dir():
        raise UserError(f"-json: {args.json} is a folder; give a file")
    check_name(args.base_model_name, "-base_model_name")
    return [part for part in PARTS if part in parts]


def encoded_samples(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Token ids of the samples that have room for a response within -max_length."""
    texts = load_samples(args.data_path, args.num_train_samples, 0).train
    samples, _ = encode_all(tokenizer, [t.prompt for t in texts], [t.response for t in texts], args.max_length)
    kept = [sample for sample in samples if sample.prompt_length < len(sample.ids)]
    if len(kept) < args.samples:
        raise UserError(f"-max_length: {len(kept)} samples have a response within {args.max_length} tokens; raise it")
    return kept


def prompt(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int) -> torch.Tensor:
    """One window of the bundled text: (1, T) int64, as long as the model can read up to 512."""
    length = min(READ_LENGTH, model.config.max_position_embeddings)
    return calibration.load(BUNDLED, 1, length, tokenizer, seed)[0]


def utilization(row: dict, card: str) -> str:
    """MFU: the FLOPs that training can't do without, as a share of the card's data sheet."""
    achieved = row["useful_flops_per_second"]["median"]
    known = find_card(card)
    if known is None:
        return f"{card}: {achieved / 1e12:.1f} useful TFLOP/s in training; no data-sheet peak is known for this card"
    peak = CARDS[known].tflops * 1e12
    return f"{card}: MFU of training {achieved / peak:.1%} ({achieved / 1e12:.1f} of {peak / 1e12:.0f} TFLOP/s, bf16)"


def table(rows: dict[str, dict]) -> str:
    """One Markdown row a ratio: median, spread and the repeats themselves."""
    lines = [
        [
            MEANING.get(name, name.replace("_", " ")),
            f"{row['median']:.3f}",
            f"{row['min']:.3f} – {row['max']:.3f}",
            " ".join(f"{value:.3f}" for value in row["repeats"]),
            f"≥ {row['goal']:g}" if "goal" in row else "",
        ]
        for name, row in rows.items()
    ]
    return markdown_table(["ratio", "median", "min – max", "repeats", "goal"], lines, right={1, 2, 3, 4})


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python benchmarks/run.py", description=__doc__.splitlines()[0])
    flags.flag("base_model_name", default=EMBEDDED, help="model: folder, hub id, GGUF file or short name")
    flags.flag("device", default="auto", help="cpu, cuda, cuda:N; auto takes a GPU if there is one")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="of model and matrix product, one of %(choices)s")
    flags.flag("repeats", default=3, type=int, help="turns of each measurement")
    flags.flag("samples", default=32, type=int, help="samples in a pass of training, and of activations")
    flags.flag("data_path", default=BUNDLED, help="samples: bundled, a file, a folder or a hub id")
    flags.flag("num_train_samples", default=2000, type=int, help="samples grouped by length; -samples are of these")
    flags.flag("max_length", default=500, type=int, help="tokens at which a sample is cut")
    flags.flag("only", metavar="NAME[,NAME]", help=f"some of {','.join(PARTS)}; attention is left out without a GPU")
    flags.flag("json", type=Path, metavar="FILE", help="JSON file for all figures")
    flags.flag("seed", default=42, type=int, help="of heads, batches and synthetic activations")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, metavar="DIR", help="where GGUF models are unpacked")
    flags.switch("profile", "print where training time goes, by operator, and measure nothing else")
    return flags


if __name__ == "__main__":
    run(main)
