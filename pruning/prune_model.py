"""From a dense model's folder to a pruned one's: the functions behind `python -m pruning`."""

import hashlib
import math
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import Checkpoint
from models.compact import write_compact
from models.families import LINEARS
from models.loading import check_model, copy_tokenizer, load_config, load_model, usable_device
from models.model_names import RECORD
from models.portable import make_portable
from pruning import calibration
from pruning.layers import BATCH_TOKENS, LayerInputs, finite, walk
from pruning.pattern import Pattern
from pruning.pruners import METHODS, PruneLayer
from utils.common.errors import UserError, explain
from utils.common.files import explain_disk_full, write_json, write_text
from utils.common.flags import as_flags
from utils.common.progress import progress
from utils.common.record import peak_memory


def check_names(method: str, sparsity: str) -> Pattern:
    """Parse -sparsity. Raises UserError if the text is invalid or the method unknown."""
    if method not in METHODS:
        raise UserError(f"-prune_method: unknown method '{method}'; give one of {', '.join(METHODS)}")
    return Pattern.parse(sparsity)


def check(
    method: str, sparsity: str, calib_data: str, calib_length: int, config: LlamaConfig, mode: str = "masked"
) -> list[PruneLayer]:
    """For each layer, the function that prunes it. Raises UserError naming the flag that is found wrong beforehand.

    sparsity: the text of -sparsity, a share of zeros or N:M. config: the dense model's.
    """
    pattern = check_names(method, sparsity)
    if mode == "compact" and method != "slimgpt":
        raise UserError(f"-mode: only slimgpt makes a model smaller; {method} gives 'masked'")
    by_layer = METHODS[method].by_layer(pattern, config)
    if METHODS[method].statistic:
        calibration.check(calib_data, calib_length, config.max_position_embeddings)
    return by_layer


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

    sparsity: the text of -sparsity. device: where the decoder layer that is being pruned is; "auto" is a GPU if there
    is one. The rest of the model stays in the host's memory. mode: "masked" keeps the shapes, "compact" (slimgpt
    only) writes the smaller model of `models.compact_llama`. base_name: what the model card calls the dense model.
    The record is also in `pruning.json`; its layers hold what `prune_layers` returns.
    """
    config = load_config(base, "-base_model_name")
    by_layer = check(method, sparsity, calib_data, calib_length, config, mode)
    place = torch.device(usable_device(device))
    if place.type not in ("cpu", "cuda"):  # Hessians are inverted in fp64, which others lack
        raise UserError(f"-device: pruning runs on cpu and cuda, not on {place.type}; give one of them or auto")
    _, _, tokenizer = check_model(base, "-base_model_name")
    tokens, calibrated = None, {}
    if METHODS[method].statistic:
        tokens = calibration.load(calib_data, calib_samples, calib_length, tokenizer, seed)
        calibrated = {"calib_data": calib_data, "calib_samples": calib_samples, "calib_length": calib_length}
        calibrated["tokens_sha256"] = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    model = load_model(base, dtype, "cpu", "-base_model_name")
    for index, layer in enumerate(model.model.layers):
        for name in LINEARS:
            finite(layer.get_submodule(name).weight, f"the weight of layer {index} ({name})")
    started = time.perf_counter()
    layers = prune_layers(model, tokens, by_layer, place)
    seconds = time.perf_counter() - started
    linears = [[layer.get_submodule(name).weight for name in LINEARS] for layer in model.model.layers]
    reached = [sum((w == 0).sum().item() for w in each) / sum(w.numel() for w in each) for each in linears]
    if sum(reached) in (0, len(reached)):
        raise UserError(f"-sparsity: {sparsity} makes no weight zero, or all; give another share")
    record = {
        "method": method,
        "mode": mode,
        "sparsity": sparsity,
        "sparsity_reached": sum(reached) / len(reached),
        "parameters": {"dense": model.num_parameters()},
        "base_model": base_name or base.name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(place),
        "seed": seed,
        "calibration": calibrated,
        "seconds": {"prune": seconds},
        "peak_memory_bytes": torch.cuda.max_memory_allocated(place) if place.type == "cuda" else peak_memory(),
        "layers": [{"sparsity": share} | layer for share, layer in zip(reached, layers, strict=True)],
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }
    output.mkdir(parents=True, exist_ok=True)
    with explain_disk_full(output), TemporaryDirectory(dir=output) as within:
        masked = Path(within) if mode == "compact" else output
        model.save_pretrained(masked)
        make_portable(masked)
        copy_tokenizer(base, masked)
        if mode == "compact":
            write_compact(masked, output)
        tensors = Checkpoint(output).headers.values()
        record["parameters"]["pruned"] = sum(math.prod(tensor.shape) for tensor in tensors)
        write_json(output / RECORD, record)
        write_text(output / "README.md", _card(record))
    return record


@torch.no_grad()
def prune_layers(
    model: LlamaForCausalLM, tokens: torch.Tensor | None, by_layer: list[PruneLayer], device: torch.device
) -> list[dict]:
    """Prune the model in place, layer by layer. Each layer's inputs come from the pruned layers before it.

    tokens: (S, T) int64, the calibration set, no padding; None for a method without one. Returns for each layer
    {"error": ‖f(X) - f̂(X)‖² / ‖f(X) - X‖²}: the relative error of what it adds to the residual stream, on a part of the
    set; {} if there is no set. Raises UserError naming the layer if its inputs are not finite.
    """
    if tokens is None:
        for index, layer in enumerate(progress(model.model.layers, desc="pruning", unit="layer")):
            by_layer[index](LayerInputs(index, layer))
        return [{} for _ in by_layer]
    record = []
    for inputs in walk(model, tokens, device, "pruning"):
        few = max(1, min(len(tokens) // 16, BATCH_TOKENS // tokens.shape[1]))
        sample = inputs.hidden[:few].clone()
        dense = finite(inputs.layer(sample, **inputs.kwargs), f"the output of layer {inputs.index}")
        singular = f"-calib_data: the Hessian of layer {inputs.index} is singular"
        with explain(singular, "raise -calib_samples, or prune with wanda", torch.linalg.LinAlgError):
            by_layer[inputs.index](inputs)
        wrong = (inputs.layer(sample, **inputs.kwargs) - dense).float().norm().item()
        added = (dense - sample).float().norm().item()
        record.append({"error": (wrong / max(added, 1e-30)) ** 2})
    return record


def _card(record: dict) -> str:
    flags = {"base_model_name": record["base_model"], "prune_method": record["method"]}
    flags |= {name: record[name] for name in ("sparsity", "mode", "dtype", "seed")} | record["calibration"]
    flags.pop("tokens_sha256", None)
    small = record["mode"] == "compact"
    loading = (
        "{pruned:,} of {dense:,} parameters are left. The layers differ in size, so the model has its own class:\n\n"
        "```python\nAutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)\n```\n\n"
    )
    return (
        f"# {record['base_model']}, pruned with {record['method']} at {record['sparsity']}\n\n"
        f"{record['sparsity_reached']:.2%} of the decoder layers' linear weights are {'gone' if small else 'zero'}; "
        f"embeddings, norms and the output layer are untouched.\n\n"
        f"{loading.format(**record['parameters']) if small else ''}"
        f"Made with:\n\n```\npython -m pruning {as_flags(flags)} -output_dir …\n```\n\n"
        f"`{RECORD}` holds the sparsity{' and the error' * bool(record['calibration'])} of every layer.\n"
    )
