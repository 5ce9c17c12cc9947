"""Speed of training, activations, probes and inference, as ratios measured side by side in one run.

python benchmarks/run.py -json speed.json

Both sides of a ratio take turns, so that whatever else the machine does falls on both, and must compute the same.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python put this folder first

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks import ways
from data.sources import load_samples
from models.checkpoint import LINEARS
from models.compact import compact
from models.loading import DTYPES, head_shape, load_model, load_tokenizer, resolve, usable_device
from models.merge import merge
from pruning import calibration, magnitude
from pruning.pattern import Pattern
from pruning.slimgpt import plan
from utils.activations import last_token_activations
from utils.common.commands import DEFAULT_CACHE, Parser, at_least, run
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.names import BUNDLED, EMBEDDED
from utils.common.record import device_name, versions
from utils.components import lost_components
from utils.packing import PromptWithContinuations
from utils.probing import TRAIN_SHARE, ProbeScores, probe_heads
from utils.prompts import Encoded, encode_all
from utils.report.tables import markdown_table

TRAIN_SAMPLES, MAX_LENGTH = 2000, 500
PROBE_SAMPLES, COMPONENTS = 300, 10
READ_LENGTH, WRITE_AFTER, NEW = 512, 64, 24
"""Tokens read at once, tokens of the prompt that is written after, and tokens written."""
INFERENCE_TURNS = 3
"""Turns that make one repeat; the best counts, since all that disturbs a turn makes it slower."""


class Disagreement(RuntimeError):
    """Two ways that should compute the same do not, so that a ratio of their times would mean nothing."""


@dataclass(frozen=True)
class Turn:
    """One turn of a piece of work: what it returned, its seconds, and the matrix product's FLOP/s around it."""

    found: object
    seconds: float
    rate: float = 0.0


def timed(work: Callable[[], object]) -> Turn:
    """One turn, the GPU's queue included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start, found, _ = time.perf_counter(), work(), wait()
    return Turn(found, time.perf_counter() - start)


def matmul_rate(model: LlamaForCausalLM) -> float:
    """FLOP/s of a large square matrix product in the model's dtype: the machine's own limit, now."""
    size = 8192 if model.device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=model.device).to(model.dtype) for _ in range(2))
    product = torch.empty_like(left)
    # A weight is stored (out, in), so what the models compute is x Wᵀ.
    return 2 * size**3 / min(timed(lambda: torch.mm(left, right.T, out=product)).seconds for _ in range(8))


def turn_by_turn(
    works: dict[str, Callable[[int], object]], repeats: int, rate: Callable[[], float] = float
) -> dict[str, list[Turn]]:
    """`repeats` turns of each piece of work, given its number; every other turn backwards, so that a drift cancels.

    `rate` is measured just before and just after each piece, and the mean of both kept.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            before, turn = rate(), timed(lambda name=name, number=number: works[name](number))
            turns[name].append(Turn(turn.found, turn.seconds, (before + rate()) / 2))
    return turns


def spread(values: Sequence[float], **more) -> dict:
    """Median, least and greatest of the repeats, the repeats themselves, and whatever else belongs to the row."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": values, **more}


def speedup(slow: list[Turn], fast: list[Turn]) -> list[float]:
    """How many times faster, turn by turn."""
    return [a.seconds / b.seconds for a, b in zip(slow, fast, strict=True)]


def tolerance(dtype: torch.dtype) -> float:
    """How far results may differ, relatively: 1e-4 in fp32, else one unit in the last place."""
    return 1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps


def training_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Rows `training_vs_reference` and `training_vs_limit`, from passes over the same samples."""
    restoration = ways.visible_restoration(model, args.seed)
    batches = ways.grouped_batches(samples, args.samples, args.seed)
    same = [sample for batch in batches for sample in batch]
    tokens = sum(len(sample.ids) for sample in same)
    orders = [torch.Generator().manual_seed(args.seed + number) for number in range(args.repeats)]
    shuffled = [ways.in_batches(same, torch.randperm(len(same), generator=order).tolist()) for order in orders]
    ours, plain = ways.restoring_loop(model, restoration), ways.plain_loop(model, restoration)
    for loop in (plain, ours):
        loop.run(batches[-1:])  # the longest, after which memory is as large as it will be
    works = {"ours": lambda _: ours.run(batches), "reference": lambda number: plain.run(shuffled[number])}
    turns = turn_by_turn(works, args.repeats, lambda: matmul_rate(model))
    expected, labelled, _ = turns["reference"][0].found
    losses = [turn.found[0] for turn in turns["ours"] + turns["reference"]]
    if not all(abs(loss / expected - 1) <= tolerance(model.dtype) for loss in losses):
        raise Disagreement(f"mean training losses {losses}")
    about = {"samples": len(same), "tokens": tokens, "labelled_tokens": labelled, "mean_loss": losses[0]}
    padded = {name: sum(turn.found[2] for turn in found) / len(found) / tokens for name, found in turns.items()}
    flops = ways.useful_flops(model, restoration.heads, tokens, labelled)
    return compared("training", "reference", 2.5, turns, flops, padded_to=padded, **about)


def compared(what: str, other: str, goal: float, turns: dict, flops: float, **about) -> dict[str, dict]:
    """The row of ours over the other way, and that of our FLOP/s over what the matrix product reached around it."""
    ours = turns["ours"]
    rates = {way: spread([about["tokens"] / turn.seconds for turn in turns[way]]) for way in turns}
    about |= {"tokens_per_second": rates["ours"], "useful_flops": flops}
    ratios = [flops / turn.seconds / turn.rate for turn in ours]
    achieved = {"useful_flops_per_second": spread([flops / turn.seconds for turn in ours])}
    achieved["matmul_flops_per_second"] = spread([turn.rate for turn in ours])
    more = {f"{other}_tokens_per_second": rates[other], **about}
    return {
        f"{what}_vs_{other}": spread(speedup(turns[other], ours), goal=goal, **more),
        f"{what}_vs_limit": spread(ratios, goal=0.7, **achieved, **about),
    }


def extraction_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Rows `extraction_vs_loop` and `extraction_vs_limit`: q, q + r⁺ and q + r⁻, which is the next sample's answer.

    The limit is 2 FLOPs a weight of the decoder and distinct token, shared trunks counted once.
    """
    samples = samples[: args.samples]
    answers = [sample.ids[sample.prompt_length :] for sample in samples]
    trees = [
        PromptWithContinuations(sample.ids[: sample.prompt_length], [[], right, wrong])
        for sample, right, wrong in zip(samples, answers, answers[1:] + answers[:1], strict=True)
    ]
    works = {
        "ours": lambda _: last_token_activations(model, trees, "activations"),
        "loop": lambda _: ways.one_by_one(model, trees),
    }
    last_token_activations(model, trees[:1], "warming up")
    ways.one_by_one(model, trees[:1])
    turns = turn_by_turn(works, args.repeats, lambda: matmul_rate(model))
    expected = turns["loop"][0].found
    error = float((turns["ours"][0].found - expected).norm() / expected.norm())
    # fp32's sums differ in order; in half precision each layer rounds, to eight units of the last place in all.
    if not error <= tolerance(model.dtype) * (1 if model.dtype == torch.float32 else 8):
        raise Disagreement(f"activations, relative error {error:.1e}")
    tokens = sum(map(len, trees))
    flops = 2.0 * sum(map(ways.linear_parameters, model.model.layers)) * tokens
    separate = sum(len(tree.prompt) + len(branch) for tree in trees for branch in tree.continuations)
    about = {"samples": len(trees), "tokens": tokens, "tokens_of_separate_passes": separate, "relative_error": error}
    return compared("extraction", "loop", 2.0, turns, flops, **about)


def probes_speed(model: LlamaForCausalLM, args: argparse.Namespace) -> dict[str, dict]:
    """Row `probes_vs_loop`: components and probes of all heads of the model, on the CPU, where activations are kept."""
    layers, heads, width = head_shape(model.config)
    z = ways.synthetic(layers, heads, PROBE_SAMPLES, width, args.seed)

    def ours(dense: Tensor, pruned: Tensor, right: Tensor, wrong: Tensor) -> tuple[Tensor, ProbeScores]:
        component = lost_components(dense - pruned, COMPONENTS).component
        return component, probe_heads(pruned + component.unsqueeze(2), right, wrong, args.seed)

    ours(*(each[:1] for each in z))
    works = {"ours": lambda _: ours(*z), "loop": lambda _: ways.head_by_head(*z, COMPONENTS, args.seed)}
    turns = turn_by_turn(works, args.repeats)
    (component, scores), (expected, plain) = (turns[name][0].found for name in works)
    # One held-out feature may lie on the boundary, and 200 steps of Adam carry fp32 rounding along.
    one = 1.5 / (2 * (PROBE_SAMPLES - int(TRAIN_SHARE * PROBE_SAMPLES)))
    for name, mine, other, bound in (
        ("component", component, expected, 1e-3 * float(expected.abs().max())),
        ("accuracy", scores.accuracy, plain.accuracy, one),
        ("loss", scores.loss, plain.loss, 1e-3),
    ):
        if not (apart := float((mine - other).abs().max())) <= bound:
            raise Disagreement(f"probes: {name} differs by up to {apart:.3g}")
    seconds = {name: spread([turn.seconds for turn in found]) for name, found in turns.items()}
    about = {"heads": layers * heads, "samples": PROBE_SAMPLES, "seconds": seconds}
    return {"probes_vs_loop": spread(speedup(turns["loop"], turns["ours"]), goal=4.0, **about)}


@torch.no_grad()
def slimmed(model: LlamaForCausalLM, ratio: float) -> LlamaForCausalLM:
    """A compact model, with as many heads and channels gone as SlimGPT removes at `ratio`.

    Speed depends on the sizes only, so the first ones are removed, whatever they are worth.
    """
    masked, config = copy.deepcopy(model), model.config
    width = config.head_dim * config.num_attention_heads // config.num_key_value_heads
    for layer, removal in zip(masked.model.layers, plan(config, ratio), strict=True):
        layer.self_attn.o_proj.weight[:, : removal.kv_heads * width] = 0
        layer.mlp.down_proj.weight[:, : removal.channels] = 0
    return compact(masked)


@torch.no_grad()
def restored_forms(model: LlamaForCausalLM, tokenizer_from: Path, seed: int) -> dict[str, LlamaForCausalLM]:
    """`pruned` (magnitude, half the weights), it `restored` (merged, as a user loads it), and `attached` (not merged).

    Where the zeros stand makes no difference to speed, so neither calibration nor training is needed.
    """
    pruned = copy.deepcopy(model)
    for layer in pruned.model.layers:
        for name in LINEARS:
            weight = layer.get_submodule(name).weight
            weight.copy_(magnitude.prune(weight, None, Pattern(0.5)))
    restoration = ways.visible_restoration(pruned, seed)
    with tempfile.TemporaryDirectory() as place:
        folders = Path(place, "pruned"), Path(place, "merged")
        pruned.save_pretrained(folders[0])
        merge(folders[0], restoration, folders[1], tokenizer_from)
        restored = load_model(folders[1], model.dtype, str(model.device), "-base_model_name")
    attached = restoration.attach(ways.sharing_weights(pruned)).requires_grad_(False)
    return {"pruned": pruned, "restored": restored, "attached": attached}


@torch.no_grad()
def inference_speed(
    model: LlamaForCausalLM, base: Path, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> dict[str, dict]:
    """Rows `inference_*` (restored ÷ pruned), `attached_*` (attached ÷ pruned) and `slimgpt_compact_*` (÷ dense).

    prefill: the decoder on all of a prompt. decode: NEW tokens, greedily, after the first WRITE_AFTER of it, whose
    reading is included.
    """
    length = min(READ_LENGTH, model.config.max_position_embeddings)
    prompt = calibration.load(BUNDLED, 1, length, tokenizer, args.seed)[0].to(model.device)
    start = prompt[:, :WRITE_AFTER]
    exactly = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    exactly["attention_mask"] = torch.ones_like(start)
    models = {"dense": model, **restored_forms(model, base, args.seed), "compact": slimmed(model, 0.2)}
    works = {}
    for name, each in models.items():
        works[name, "prefill"] = lambda _, each=each: float(each.model(prompt, use_cache=False)[0][0, 0, 0])
        works[name, "decode"] = lambda _, each=each: each.generate(start, **exactly)
    turn_by_turn(works, 1)  # warming up
    tokens = {"prefill": prompt.numel(), "decode": NEW}
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(args.repeats):
        for key, turns in turn_by_turn(works, INFERENCE_TURNS).items():
            rates[key].append(tokens[key[1]] / min(turn.seconds for turn in turns))
    rows = {}
    pairs = {"inference": ("restored", "pruned"), "attached": ("attached", "pruned")}
    for row, (name, base) in {**pairs, "slimgpt_compact": ("compact", "dense")}.items():
        for kind in tokens:
            mine, other = rates[name, kind], rates[base, kind]
            both = {"tokens_per_second": spread(mine), "base_tokens_per_second": spread(other), "base": base}
            goal = {} if base == "dense" else {"goal": 0.98}
            rows[f"{row}_{kind}"] = spread([a / b for a, b in zip(mine, other, strict=True)], **both, **goal)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure what is asked for, print the table, and write -json if it is named; exit status 1 where ways disagree."""
    args = parser().parse_args(argv)
    device = usable_device(args.device)
    if args.json and args.json.is_dir():
        raise UserError(f"-json: {args.json} is a folder; give a file")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    tokenizer = load_tokenizer(base, "-base_model_name")
    texts = load_samples(BUNDLED, TRAIN_SAMPLES, 0).train
    samples, _ = encode_all(tokenizer, [t.prompt for t in texts], [t.response for t in texts], MAX_LENGTH)
    samples = [sample for sample in samples if sample.prompt_length < len(sample.ids)]
    model = load_model(base, DTYPES[args.dtype], device, "-base_model_name")
    about = {name: getattr(args, name) for name in ("dtype", "repeats", "seed")}
    about |= {"model": args.base_model_name, "device": device_name(device), "versions": versions()}
    about["matmul_flops_per_second"] = matmul_rate(model)
    print(f"{about['device']}, {args.dtype}: matrix product {about['matmul_flops_per_second'] / 1e12:.3f} TFLOP/s")
    parts: dict[str, Callable[[], dict[str, dict]]] = {
        "training": lambda: training_speed(model, samples, args),
        "extraction": lambda: extraction_speed(model, samples, args),
        "probes": lambda: probes_speed(model, args),
        "inference": lambda: inference_speed(model, base, tokenizer, args),
    }
    rows: dict[str, dict] = {}
    refused = []
    for part, measured in parts.items():
        try:
            rows |= measured()
        except Disagreement as error:
            refused.append(part)
            print(f"{part}: no ratio, because the two ways do not compute the same: {error}", flush=True)
    print(f"\n{table(rows)}\n")
    if args.json:
        write_json(args.json, {**rows, "about": about, "refused": refused})
    if refused:
        sys.exit(1)


def table(rows: dict[str, dict]) -> str:
    """One Markdown row a ratio: median, spread and the repeats themselves."""
    lines = []
    for name, row in rows.items():
        median, least, most, *repeats = (
            f"{value:.3f}" for value in (row["median"], row["min"], row["max"], *row["repeats"])
        )
        goal = f"≥ {row['goal']:g}" if "goal" in row else ""
        lines.append([name, median, f"{least} – {most}", " ".join(repeats), goal])
    return markdown_table(["ratio", "median", "min – max", "repeats", "goal"], lines, right={1, 2, 3, 4})


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python benchmarks/run.py", description=__doc__.splitlines()[0])
    flags.flag("base_model_name", default=EMBEDDED, help="model: folder, hub id, GGUF file or short name")
    flags.flag("device", default="auto", help="cpu, cuda, cuda:N; auto takes a GPU if there is one")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="of model and matrix product, one of %(choices)s")
    flags.flag("repeats", default=3, type=at_least(1), help="turns of each measurement")
    flags.flag("samples", default=24, type=at_least(1), help="bundled samples in a pass, of training in whole batches")
    flags.flag("json", type=Path, metavar="FILE", help="JSON file for all figures")
    flags.flag("seed", default=42, type=int, help="of heads, batches and synthetic activations")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, metavar="DIR", help="where GGUF models are unpacked")
    return flags


if __name__ == "__main__":
    run(main)
