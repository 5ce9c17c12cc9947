"""Pruning speed as ratios to a plain forward pass of the same set, and what compacting buys, in one run.

python -m benchmarks.pruning -calib_samples 64 -calib_length 512
"""

import copy
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from models.loading import DTYPES, load_model, load_tokenizer, resolve
from pruning import Pattern, calibration, compact
from pruning.methods import METHODS
from pruning.slimgpt import plan
from pruning.statistics import Hessian, relative_error
from pruning.streaming import SITES, Stage, Values, stream
from utils.commands import DEFAULT_CACHE, Parser, run
from utils.files import write_json

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
    """Tokens per second of the dense model and of one as slimgpt leaves it at `ratio`, masked and compact.

    Speed depends on the sizes only, so the first heads and channels are removed, whatever they are worth.
    """
    masked = copy.deepcopy(model)
    shared = model.config.num_attention_heads // model.config.num_key_value_heads
    for layer, removal in zip(masked.model.layers, plan(model.config, ratio), strict=True):
        layer.self_attn.o_proj.weight[:, : removal.kv_heads * shared * model.config.head_dim] = 0
        layer.mlp.down_proj.weight[:, : removal.channels] = 0
    models = {"dense": model, "masked": masked, "compact": compact(masked)}
    # Turn by turn, so that whatever else the machine does falls on all of them; the best turn counts.
    rows = {name: {"prefill": 0.0, "generate": 0.0} for name in models}
    prompt, new = tokens[:4], 32
    for _, (name, candidate) in itertools.product(range(5), models.items()):
        reading = prompt.numel() / timed(lambda candidate=candidate: plain_forward(candidate, prompt))
        writing = new / timed(lambda candidate=candidate: generate(candidate, prompt[:1, :64], new))
        rows[name]["prefill"] = max(rows[name]["prefill"], reading)
        rows[name]["generate"] = max(rows[name]["generate"], writing)
    for name, row in rows.items():
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


@torch.no_grad()
def plain_forward(model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    """The decoder on the whole set, in the batches that pruning uses."""
    for batch in tokens.split(max(1, 4096 // tokens.shape[1])):
        model.model(batch.to(model.device), use_cache=False)


def generate(model: LlamaForCausalLM, prompt: torch.Tensor, new: int) -> None:
    """Exactly `new` tokens, greedily."""
    model.generate(
        prompt.to(model.device),
        attention_mask=torch.ones_like(prompt).to(model.device),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )


def say(line: str) -> None:
    """Print at once: a run takes minutes, and what is measured should survive being stopped."""
    print(line, flush=True)


def timed(work: Callable[[], None]) -> float:
    """Seconds, the GPU's queue included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m benchmarks.pruning", description=__doc__)
    flags.flag("base_model_name", default="embedded", help="dense model: folder, hub id, GGUF file or short name")
    flags.flag("methods", default="wanda,sparsegpt,slimgpt", help="pruners to time, separated by commas")
    flags.flag("calib_data", default="bundled", help="'bundled', 'c4' (hub), or a .jsonl, .json or .txt file")
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
