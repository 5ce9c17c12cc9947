"""From a dense model's folder to a pruned one's: the functions behind `python -m pruning`."""

import resource
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.compact import RECORD, compact
from models.compact_llama import CompactLlamaConfig
from models.loading import check_model, copy_tokenizer, load_config, load_model, usable_device
from models.portable import make_portable
from pruning import calibration
from pruning.layers import BATCH_TOKENS, check_cast, finite, walk
from pruning.methods import METHODS, Stage, share_of_zeros
from pruning.pattern import Pattern
from utils.common.disk import explain_disk_full
from utils.common.errors import UserError
from utils.common.files import whole_folder, write_json, write_text
from utils.common.progress import progress
from utils.common.run_folder import check_apart

MODES = ("masked", "compact")
"""What slimgpt leaves of removed heads and channels: zeros in a model of the old shape, or nothing."""


def check(
    method: str,
    sparsity: str,
    calib_data: str,
    calib_samples: int,
    calib_length: int,
    config: LlamaConfig,
    mode: str = "masked",
) -> Pattern:
    """The pattern asked for; UserError naming the flag if anything can be known to be wrong beforehand.

    method: one of METHODS. sparsity: the text of -sparsity, a share of zeros or N:M. config: the dense model's.
    mode: one of MODES.
    """
    if method not in METHODS:
        raise UserError(f"-prune_method: unknown method '{method}'; give one of {', '.join(METHODS)}")
    if config.model_type == CompactLlamaConfig.model_type:
        raise UserError("-base_model_name: the model is compact already, slimgpt pruned it; give the dense model")
    if mode not in MODES:
        raise UserError(f"-mode: unknown mode '{mode}'; give one of {', '.join(MODES)}")
    if mode == "compact" and method != "slimgpt":
        raise UserError(f"-mode: only slimgpt makes a model smaller; {method} gives 'masked'")
    pattern = Pattern.parse(sparsity)
    METHODS[method].check(pattern, config)
    if METHODS[method].statistic:
        calibration.check(calib_data, calib_samples, calib_length, config.max_position_embeddings)
    return pattern


def prune(base: Path, output_dir: Path, method: str, sparsity: str, **options) -> dict:
    """`prune_into` a new folder, which has its name once it is whole. options: those of `prune_into`."""
    check_apart(output_dir, {"-base_model_name": base})
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise UserError(f"-output_dir: {output_dir} already holds files; give another folder, or -overwrite")
    with whole_folder(output_dir) as partial:
        return prune_into(base, partial, method, sparsity, **options)


def prune_into(
    base: Path,
    output: Path,
    method: str,
    sparsity: str,
    *,
    calib_data: str,
    calib_samples: int,
    calib_length: int,
    dtype: torch.dtype,
    device: str,
    seed: int,
    mode: str = "masked",
    base_name: str | None = None,
) -> dict:
    """Prune the model in folder `base`, write it to the folder `output` with its tokenizer, and return the record.

    sparsity: the text of -sparsity. device: where a decoder layer is when its turn comes, "auto" for a GPU if there is
    one; the rest of the model stays in the host's memory. mode: "masked" keeps the shapes, "compact" (slimgpt
    only) writes the smaller model of `models.compact_llama`. base_name: what the model card calls the dense model.
    The record, also in `pruning.json`: method, sparsity asked for and reached, calibration set and digests,
    seconds, peak memory, and per layer its sparsity and errors (see `prune_layers`).
    """
    started = time.perf_counter()
    config = load_config(base, "-base_model_name")
    pattern = check(method, sparsity, calib_data, calib_samples, calib_length, config, mode)
    place = _device(device)
    _, _, tokenizer = check_model(base, "-base_model_name")
    tokens, source = None, None
    if METHODS[method].statistic:
        tokens, source = calibration.load(calib_data, calib_samples, calib_length, tokenizer, seed)
    model = load_model(base, dtype, "cpu", "-base_model_name")
    check_cast(model)
    loaded = time.perf_counter()
    layers = _prune(model, METHODS[method].stages(pattern, config), tokens, place)
    pruned = time.perf_counter()
    reached = [share_of_zeros(layer) for layer in model.model.layers]
    dense_parameters = model.num_parameters()
    if mode == "compact":
        model = compact(model)
    record = {
        "method": method,
        "mode": mode,
        "sparsity": str(pattern),
        "sparsity_reached": sum(reached) / len(reached),
        "parameters": {"dense": dense_parameters, "pruned": model.num_parameters()},
        "base_model": base_name or base.name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(place),
        "seed": seed,
        "calibration": source,
        "seconds": {"load": loaded - started, "prune": pruned - loaded},
        "peak_memory_bytes": _peak_memory(place),
        "layers": [{"sparsity": share} | layer for share, layer in zip(reached, layers, strict=True)],
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }
    with explain_disk_full(output):
        model.save_pretrained(output)
        make_portable(output)
        copy_tokenizer(base, output)
        write_json(output / RECORD, record)
        write_text(output / "README.md", _card(record))
    return record


def _prune(
    model: LlamaForCausalLM, stages: list[list[Stage]], tokens: torch.Tensor | None, device: torch.device
) -> list[dict]:
    """Prune the model in place, with a calibration set or, for methods that need none, without."""
    if tokens is not None:
        return prune_layers(model, tokens, stages, device)
    with torch.no_grad():
        for layer, (stage,) in zip(progress(model.model.layers, desc="pruning", unit="layer"), stages, strict=True):
            stage.prune(layer, {})
    return [{} for _ in stages]


@torch.no_grad()
def prune_layers(
    model: LlamaForCausalLM, tokens: torch.Tensor, stages: list[list[Stage]], device: torch.device
) -> list[dict]:
    """Prune the model in place, layer by layer, each with the inputs that the pruned layers before it give.

    tokens: (S, T) int64, the calibration set, no padding. stages: per layer, in order. Returns per layer {"error",
    "linear_errors", "seconds", "algebra_seconds" (the part spent on the weights, the rest is forward passes)}; error is
    ‖f(X) - f̂(X)‖² / ‖f(X) - X‖² on a part of the set: of what the layer adds to the residual stream, the share that is
    now wrong. Raises UserError naming the layer if its weights or inputs are not finite.
    """
    record, start = [], time.perf_counter()
    for inputs in walk(model, tokens, device, "pruning"):
        few = max(1, min(len(tokens) // 16, BATCH_TOKENS // tokens.shape[1]))
        sample, linear_errors, algebra = inputs.hidden[:few].clone(), {}, 0.0
        dense = finite(inputs.layer(sample, **inputs.kwargs), f"the output of layer {inputs.index}")
        for stage in stages[inputs.index]:
            values = inputs.gather(stage.sites, stage.statistic) if stage.sites else {}
            began = time.perf_counter()
            try:
                linear_errors |= stage.prune(inputs.layer, values)
            except torch.linalg.LinAlgError as failure:
                raise UserError(
                    f"-calib_data: the Hessian of layer {inputs.index} is singular ({failure}); "
                    "raise -calib_samples, or prune with wanda"
                ) from failure
            algebra += time.perf_counter() - began
        wrong = (inputs.layer(sample, **inputs.kwargs) - dense).float().norm().item()
        error = (wrong / max((dense - sample).float().norm().item(), 1e-30)) ** 2
        now = time.perf_counter()
        record.append(
            {"error": error, "linear_errors": linear_errors, "seconds": now - start, "algebra_seconds": algebra}
        )
        start = now
    return record


def _device(name: str) -> torch.device:
    place = torch.device(usable_device(name))
    if place.type not in ("cpu", "cuda"):  # Hessians are inverted in fp64, which others lack
        raise UserError(f"-device: pruning runs on cpu and cuda, not on {place.type}; give one of them or auto")
    return place


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most the GPU's allocator held, or the most this process ever had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _card(record: dict) -> str:
    source, compacted = record["calibration"], record["mode"] == "compact"
    flags = f"-prune_method {record['method']} -sparsity {record['sparsity']} -seed {record['seed']}"
    flags += f" -mode compact -dtype {record['dtype']}" if compacted else f" -dtype {record['dtype']}"
    calibrated = "No calibration data."
    if source:
        flags += f" -calib_data {source['source']} -calib_samples {source['samples']} -calib_length {source['length']}"
        calibrated = f"Calibrated on {source['samples']} windows of {source['length']} tokens of {source['source']}."
    state = "gone" if compacted else "zero"
    card = (
        f"# {record['base_model']}, pruned with {record['method']} at {record['sparsity']}\n\n"
        f"{record['sparsity_reached']:.2%} of the decoder layers' linear weights are {state}; embeddings, norms and "
        f"the output layer are untouched. {calibrated}\n\n"
    )
    if compacted:
        before, after = (f"{record['parameters'][name]:,}" for name in ("dense", "pruned"))
        card += (
            f"{after} of {before} parameters are left. The layers differ in size, so the model has its own class:\n\n"
            "```python\n"
            "AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)\n"
            "```\n\n"
        )
    return card + (
        "Made with:\n\n"
        f"```\npython -m pruning -base_model_name {record['base_model']} {flags} -output_dir …\n```\n\n"
        f"`{RECORD}` holds the sparsity and the error of every layer.\n"
    )
