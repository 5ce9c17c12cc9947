"""How speed and memory grow with hidden size, layers, samples and heads, on random Llamas.

python -m benchmarks.scaling -json scaling.json
"""

import argparse
import copy
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.extraction import contrastive_trees
from benchmarks.inference import DECODE, NEW
from benchmarks.inference import measure as inference
from benchmarks.profiling import profile_training
from benchmarks.timing import matmul_rate, say, spread, turn_by_turn
from benchmarks.training import grouped_batches, restoring_loop, useful_flops, visible_restoration
from models.loading import DTYPES, usable_device
from utils.activations import last_token_activations
from utils.common.commands import Parser, run
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.record import device_name, peak_memory, reset_peak_memory, versions
from utils.prompts import Encoded
from utils.report.tables import markdown_table

VOCABULARY = 8192
GROUPED = 2000
"""Samples that are grouped by length, as in a real run; `Point.samples` of them are measured."""

SHORTEST, LONGEST = 20, 120
"""Tokens in a sample: lengths are drawn evenly between these."""


@dataclass(frozen=True)
class Point:
    """A random Llama and its samples. heads: query heads, 64 wide each, on half as many KV heads."""

    hidden: int = 256
    layers: int = 6
    samples: int = 64
    heads: int = 4


CURVES = {
    "hidden": (256, 1024, 2048),
    "layers": (3, 6, 12),
    "samples": (32, 64, 128),
    "heads": (2, 4, 8),
}
"""Three values of each; what is not varied stays as in Point(), but for a wider model's heads."""


def main(argv: list[str] | None = None) -> None:
    """Measure every point of every curve, print each at once and the table at the end."""
    began = time.perf_counter()
    args = parser().parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"-repeats: {args.repeats} is too few; give 1 or more")
    if args.json and args.json.is_dir():
        raise UserError(f"-json: {args.json} is a folder; give a file")
    device = usable_device(args.device)
    if args.profile:
        model, samples = made(Point(), device, args.dtype, args.seed)
        profile_training(model, samples, Point.samples, args.seed)
        return
    points = list(dict.fromkeys(varied(name, value) for name in CURVES for value in CURVES[name]))
    say(f"{device_name(device)}, {args.dtype}: {len(points)} random Llamas")
    found = measure_all(points, device, args)
    rows = {name: [{name: value, **found[varied(name, value)]} for value in values] for name, values in CURVES.items()}
    print(f"\n{table(rows)}\n")
    if args.json:
        about = {"device": device_name(device), "dtype": args.dtype, "repeats": args.repeats, "seed": args.seed}
        write_json(args.json, {**rows, "about": {**about, "fixed": asdict(Point()), "versions": versions()}})
    where = f", written to {args.json}" if args.json else ""
    say(f"{len(points)} points in {time.perf_counter() - began:.0f} s{where}")


def varied(name: str, value: int) -> Point:
    """Point() with one value changed; heads fill the hidden size where that is the one, as in a real Llama."""
    return Point(hidden=value, heads=value // 64) if name == "hidden" else replace(Point(), **{name: value})


def measure_all(points: list[Point], device: str, args: argparse.Namespace) -> dict[Point, dict]:
    """Each point in a process of its own, so that its peak memory holds nothing of the point before it."""
    found = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for point in points:
            asked = pool.submit(measure, point, device, args.dtype, args.repeats, args.seed, torch.get_num_threads())
            found[point] = asked.result()
            say(f"{point}: {_shown(found[point])}")
    return found


def measure(point: Point, device: str, dtype: str, repeats: int, seed: int, threads: int) -> dict:
    """Tokens per second and peak memory of training and of reading activations at one point, and what biases cost.

    Memory in bytes beyond what the process held before the model was made; on a GPU, of its allocator.
    """
    torch.set_num_threads(threads)
    reset_peak_memory()
    before = peak_memory()
    model, samples = made(point, device, dtype, seed)
    restoration = visible_restoration(model, seed)
    loop, batches = restoring_loop(model, restoration), grouped_batches(samples, point.samples, seed)
    samples = [sample for batch in batches for sample in batch]
    trees = contrastive_trees(samples)
    works = {
        "training": lambda _: loop.run(batches),
        "extraction": lambda _: last_token_activations(model, trees, "activations"),
    }
    row: dict[str, object] = {"parameters": model.num_parameters()}
    for name, work in works.items():
        work(0)
        reset_peak_memory()
        turns = turn_by_turn({name: work}, repeats, lambda: matmul_rate(device, model.dtype))[name]
        peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak_memory() - before
        tokens = sum(len(sample.ids) for sample in samples) if name == "training" else sum(map(len, trees))
        row[name] = spread([tokens / turn.seconds for turn in turns], tokens=tokens, peak_memory_bytes=peak)
        if name == "training":
            done = turns[0].found
            flops = useful_flops(model, restoration.heads, done.tokens, done.labelled)
            row[name]["vs_limit"] = spread([flops / turn.seconds / turn.rate for turn in turns])
    prompt = torch.tensor([max((sample.ids for sample in samples), key=len)])
    rates = inference({"pruned": model, "restored": biased(model)}, prompt, NEW, repeats)
    row["inference_decode"] = spread(
        [a / b for a, b in zip(rates["restored"][DECODE], rates["pruned"][DECODE], strict=True)]
    )
    return row


def biased(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with biases on all four projections, as a merged checkpoint has them; speed does not ask for values."""
    config = copy.deepcopy(model.config)
    config.attention_bias = True
    found = LlamaForCausalLM(config).to(model.device, model.dtype).requires_grad_(False).eval()
    found.load_state_dict(model.state_dict(), strict=False)
    return found


def made(point: Point, device: str, dtype: str, seed: int) -> tuple[LlamaForCausalLM, list[Encoded]]:
    """The random Llama of a point, frozen, and random samples to draw from; half of each is its response."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=point.hidden,
        intermediate_size=3 * point.hidden,
        num_hidden_layers=point.layers,
        num_attention_heads=point.heads,
        num_key_value_heads=point.heads // 2,
        head_dim=64,
        max_position_embeddings=2 * LONGEST,
    )
    model = LlamaForCausalLM(config).to(device, DTYPES[dtype]).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (max(GROUPED, point.samples),), generator=generator).tolist()
    return model, [
        Encoded(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist(), length // 2)
        for length in lengths
    ]


def _shown(row: dict) -> str:
    parts = (
        f"{name} {row[name]['median']:,.0f} tokens/s ({row[name]['min']:,.0f} – {row[name]['max']:,.0f}), "
        f"peak {row[name]['peak_memory_bytes'] / 2**20:,.0f} MiB"
        for name in ("training", "extraction")
    )
    return "; ".join([*parts, f"restored ÷ pruned, writing {row['inference_decode']['median']:.3f}"])


def table(rows: dict[str, list[dict]]) -> str:
    """One Markdown row a point, curve after curve; medians of the repeats. Writing: restored ÷ pruned."""
    header = [
        "",
        "parameters",
        "training tokens/s",
        "÷ limit",
        "peak MiB",
        "activations tokens/s",
        "peak MiB",
        "writing",
    ]
    lines = []
    for name, points in rows.items():
        for point in points:
            training, extraction = point["training"], point["extraction"]
            lines.append(
                [
                    f"{name} {point[name]}",
                    f"{point['parameters'] / 1e6:.1f} M",
                    f"{training['median']:,.0f}",
                    f"{training['vs_limit']['median']:.2f}",
                    f"{training['peak_memory_bytes'] / 2**20:,.0f}",
                    f"{extraction['median']:,.0f}",
                    f"{extraction['peak_memory_bytes'] / 2**20:,.0f}",
                    f"{point['inference_decode']['median']:.3f}",
                ]
            )
    return markdown_table(header, lines, right=range(1, len(header)))


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    flags.flag("device", default="auto", help="cpu, cuda, cuda:N; auto takes a GPU if there is one")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="the model's, one of %(choices)s")
    flags.flag("repeats", default=3, type=int, help="turns of each measurement")
    flags.flag("json", type=Path, metavar="FILE", help="JSON file for all figures")
    flags.flag("seed", default=42, type=int, help="of weights, heads and samples")
    flags.switch("profile", "print where training time goes, by operator, and measure nothing else")
    return flags


if __name__ == "__main__":
    run(main)
