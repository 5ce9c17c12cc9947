"""Pruning speed as ratios to a plain forward pass of the same set, and what compacting buys, in one run.

python -m benchmarks.pruning -calib_samples 64 -calib_length 512
"""

import copy
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from benchmarks.inference import DECODE, PREFILL, measure, plain_forward, slim
from benchmarks.timing import say, timed
from models.compact import compact
from models.loading import DTYPES, load_model, load_tokenizer, resolve
from pruning import Pattern, calibration
from pruning.methods import METHODS
from pruning.statistics import Hessian, relative_error
from pruning.streaming import SITES, Stage, Values, stream
from utils.common.commands import DEFAULT_CACHE, Parser, run
from utils.common.files import write_json
from utils.common.names import BUNDLED, EMBEDDED

UNSTRUCTURED = ("magnitude", "wanda", "sparsegpt")


def main() -> None:
    """Measure, print, and write -output_file if one is named."""
    args = parser().parse_args()
    base = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    model = load_model(base, DTYPES[args.dtype], args.device, "-base_model_name")
    tokenizer = load_tokenizer(base, "-base_model_name")
    tokens, _ = calibration.load(args.calib_data, args.calib_samples, args.calib_length, tokenizer, seed=42)
    found = {
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "dtype": args.dtype,
        "tokens": list(tokens.shape),
        "pruning": pruning_speed(model, tokens, args.methods.split(",")),
        "inference": inference_speed(model, tokens, 0.2),
    }
    if args.errors:
        found["errors"] = layer_errors(model, tokens, Pattern.parse(args.sparsity))
    if args.output_file:
        write_json(args.output_file, found)


def pruning_speed(model: LlamaForCausalLM, tokens: torch.Tensor, methods: list[str]) -> dict:
    """Seconds of each pruner, and as a ratio to the mean of the forward passes just before and just after it."""
    forward = [timed(lambda: plain_forward(model, tokens))]
    say(f"plain forward pass of the set, no output layer: {forward[0]:.1f} s")
    rows = {}
    for name in methods:
        method = METHODS[name]
        pattern = Pattern(0.2 if name == "slimgpt" else 0.5)
        pruned = copy.deepcopy(model)
        start = time.perf_counter()
        layers = stream(pruned, tokens, method.stages(pattern, model.config), model.device)
        seconds = time.perf_counter() - start
        forward.append(timed(lambda: plain_forward(model, tokens)))
        reference = sum(forward[-2:]) / 2
        algebra = sum(layer["algebra_seconds"] for layer in layers)
        rows[name] = {
            "seconds": seconds,
            "algebra_seconds": algebra,
            "forward_seconds": reference,
            "ratio": seconds / reference,
            "ratio_without_algebra": (seconds - algebra) / reference,
        }
        say(
            f"{name:10} {seconds:7.1f} s = {seconds / reference:5.2f} forward passes, "
            f"{algebra:.1f} s of it algebra; without: {(seconds - algebra) / reference:.2f}"
        )
    return rows


def inference_speed(model: LlamaForCausalLM, tokens: torch.Tensor, ratio: float) -> dict:
    """Tokens per second of the dense model and of one as slimgpt leaves it at `ratio`, masked and compact."""
    masked = slim(model, ratio)
    models = {"dense": model, "masked": masked, "compact": compact(masked)}
    rates = measure(models, tokens[:4], new=32, repeats=1)
    rows: dict[str, dict] = {}
    for name, found in rates.items():
        row = rows[name] = {"prefill": found[PREFILL][0], "generate": found[DECODE][0]}
        row["parameters"] = models[name].num_parameters()
        row["bytes"] = sum(p.numel() * p.element_size() for p in models[name].parameters())
        row |= {f"{kind}_ratio": row[kind] / rows["dense"][kind] for kind in ("prefill", "generate")}
        say(
            f"{name:10} {row['parameters'] / 1e6:8.1f} M parameters, {row['bytes'] / 2**20:7.0f} MiB, "
            f"reads {row['prefill']:8.0f} tokens/s ({row['prefill_ratio']:.2f}×), "
            f"writes {row['generate']:6.1f} tokens/s ({row['generate_ratio']:.2f}×)"
        )
    return rows


def layer_errors(model: LlamaForCausalLM, tokens: torch.Tensor, pattern: Pattern) -> list[dict[str, float]]:
    """Per layer and method, ‖WX - ŴX‖² / ‖WX‖², the mean over the seven linear layers, on the dense model's X."""
    rows: list[dict[str, float]] = []

    def compare(layer: torch.nn.Module, values: Values) -> dict[str, float]:
        errors: dict[str, list[float]] = {name: [] for name in UNSTRUCTURED}
        for site, names in SITES.items():
            hessian = values[site]
            known = {"magnitude": None, "wanda": hessian.diagonal().sqrt(), "sparsegpt": hessian}
            for method, value in known.items():
                prepared = None if value is None else METHODS[method].prepare(value)
                for name in names:
                    weight = layer.get_submodule(name).weight.float()
                    pruned = METHODS[method].prune(weight.clone(), prepared, pattern)
                    errors[method].append(relative_error(weight, pruned, hessian))
        rows.append({method: sum(found) / len(found) for method, found in errors.items()})
        return {}

    stages = [[Stage(tuple(SITES), Hessian, compare)]] * model.config.num_hidden_layers
    stream(model, tokens, stages, model.device)
    say(f"relative error at {pattern} by layer: {', '.join(UNSTRUCTURED)}")
    for index, row in enumerate(rows):
        say(f"{index:5} " + " ".join(f"{row[method]:.4f}" for method in UNSTRUCTURED))
    return rows


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m benchmarks.pruning", description=__doc__)
    flags.flag("base_model_name", default=EMBEDDED, help="dense model: folder, hub id, GGUF file or short name")
    flags.flag("methods", default="wanda,sparsegpt,slimgpt", help="pruners to time, separated by commas")
    flags.flag("calib_data", default=BUNDLED, help="'bundled', 'c4' (hub), or a .jsonl, .json or .txt file")
    flags.flag("calib_samples", default=64, type=int, help="calibration windows")
    flags.flag("calib_length", default=512, type=int, help="tokens in a window")
    flags.flag("sparsity", default="0.5", help="what -errors compares the methods at: a share of zeros or N:M")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="the model's, one of %(choices)s")
    flags.flag("device", default="cpu", help="cpu or cuda")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, help="where GGUF models are unpacked")
    flags.flag("output_file", type=Path, help="JSON file for all figures")
    flags.switch("errors", "also the error of magnitude, Wanda and SparseGPT in every layer (one more pass)")
    return flags


if __name__ == "__main__":
    run(main)
