"""Fold a restoration into a plain Hugging Face checkpoint, and prove what that left alone.

python -m models.merge -pruned_model_path PRUNED -restoration OUT/restoration -output_dir MERGED
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import count_zeros, tensor_readers
from models.loading import (
    DTYPES,
    check_name,
    has_tokenizer,
    input_device,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
)
from models.modeling_llama import Restoration, attach, compensated_projections
from models.restoration import check_belongs, load_restoration
from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, name_or_path, run
from utils.common.errors import UserError
from utils.common.files import whole_folder, write_json
from utils.common.result import Result, check_apart

PROOF = "proof.json"
"""What a later merge leaves beside the checkpoint: the proof, and which files it wrote."""

PROBE_TEXTS = (
    "### Instruction:\nName three things that float on water.\n\n### Response: Wood, ice and",
    "The harvest was poor that year, and so the village",
    "def mean(values):\n    return sum(values) /",
)
"""What the attached and the merged model are asked when no samples are at hand."""


def merge(pruned: Path, restoration: Restoration, output: Path, tokenizer_from: Path) -> None:
    """Write the pruned checkpoint with `o_proj.bias` = Σ_h W_O[:, h] c_h to the folder `output`.

    Weights keep the dtype and the bits they were saved with. The plain Llama has biases on all four attention
    projections or on none, so those of q, k, v and of untouched layers are explicit zeros.
    """
    model = attach(load_model(pruned, "auto", "cpu", "-pruned_model_path"), restoration)
    biases = {layer: p.compensated_bias().detach() for layer, p in compensated_projections(model).items()}
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            projection = getattr(attention, name)
            bias = projection.bias
            if name == "o_proj" and index in biases:
                bias = biases[index].to(projection.weight.dtype)
            elif bias is None:
                bias = torch.zeros(projection.out_features, dtype=projection.weight.dtype)
            setattr(attention, name, _linear(projection.weight, bias))
    model.config.attention_bias = True
    model.save_pretrained(output)
    load_tokenizer(tokenizer_from, "-pruned_model_path").save_pretrained(output)


def _linear(weight: nn.Parameter, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = weight, nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def logits_tolerance(dtype: torch.dtype) -> float:
    """How far merged and attached logits may differ, relative to the largest one.

    1e-4 in fp32. In half precision, eight units in the last place: weights and bias are the same bits on both sides
    where the checkpoint has the run's dtype, and the biases are rounded once more where it has another.
    """
    return 1e-4 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps


@torch.no_grad()
def probe_logits(model: nn.Module, token_ids: list[list[int]]) -> list[Tensor]:
    """fp32 logits (T, vocabulary) on the CPU for each sequence of ids, one at a time: no padding to hide behind."""
    device = input_device(model)
    return [model(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in token_ids]


def prove(
    pruned: Path,
    merged: Path,
    attached_logits: list[Tensor],
    token_ids: list[list[int]],
    dtype: torch.dtype,
    device: str,
) -> dict:
    """Read the merged checkpoint back and hold it against the pruned one and the attached model.

    Returns the proof as results.json keeps it; `passed` is true only if every weight has the same bits and dtype, each
    layer the same number of zeros, nothing but attention biases is new, only o_proj.bias holds values, and the logits
    of the plain reloaded model agree with the attached one's.
    """
    before, after = count_zeros(pruned), count_zeros(merged)
    compared, identical, changed, new, nonzero_new = _compare(pruned, merged)
    model = load_model(merged, dtype, device, "-output_dir")
    found = probe_logits(model, token_ids)
    pairs = list(zip(attached_logits, found, strict=True))
    largest = max(float(a.abs().max()) for a, _ in pairs)
    difference = max(float((a - b).abs().max()) for a, b in pairs) / largest
    agreement = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs) / sum(len(a) for a, _ in pairs)
    tolerance = logits_tolerance(dtype)
    return {
        # `not >` would let a NaN pass.
        "passed": identical == compared
        and not [name for name in changed if not name.endswith("o_proj.bias")]
        and not [name for name in new if not name.endswith("_proj.bias")]
        and not [name for name in nonzero_new if not name.endswith("o_proj.bias")]
        and before == after
        and difference <= tolerance,
        "tensors_compared": compared,
        "tensors_identical": identical,
        "changed_tensors": changed,
        "new_tensors": new,
        "nonzero_new_tensors": nonzero_new,
        "zeros_pruned": sum(before[0]),
        "zeros_restored": sum(after[0]),
        "weights": sum(before[1]),
        "sparsity_pruned": _shares(*before),
        "sparsity_restored": _shares(*after),
        "logits_relative_difference": difference,
        "logits_tolerance": tolerance,
        "top1_agreement": agreement,
        "dtype": str(dtype).removeprefix("torch."),
        "loaded_with": "AutoModelForCausalLM",
    }


def _compare(pruned: Path, merged: Path) -> tuple[int, int, list[str], list[str], list[str]]:
    """(weights compared, identical), and the names of changed, new, and new non-zero tensors."""
    left, right = tensor_readers(pruned), tensor_readers(merged)
    if load_config(pruned, "-pruned_model_path").tie_word_embeddings:
        # The head is the embedding then; whether a file repeats it is a matter of who saved it.
        left.pop("lm_head.weight", None)
        right.pop("lm_head.weight", None)
    compared = [name for name in left if not name.endswith("o_proj.bias")]
    changed = [name for name in left if name not in right or not _same_bits(left[name](), right[name]())]
    new = [name for name in right if name not in left]
    nonzero_new = [name for name in new if bool((right[name]() != 0).any())]
    return len(compared), len(set(compared) - set(changed)), changed, new, nonzero_new


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
    )


def _shares(zeros: list[int], weights: list[int]) -> list[float]:
    return [z / w for z, w in zip(zeros, weights, strict=True)]


def merge_and_prove(
    pruned: Path,
    restoration: Restoration,
    output: Path,
    *,
    tokenizer_from: Path,
    attached_logits: list[Tensor],
    token_ids: list[list[int]],
    dtype: torch.dtype,
    device: str,
) -> dict:
    """Merge into a folder that takes the name `output` only after the proof held; returns the proof.

    Raises RuntimeError, and leaves nothing behind, if any promise is broken.
    """
    with whole_folder(output) as partial:
        merge(pruned, restoration, partial, tokenizer_from)
        proof = prove(pruned, partial, attached_logits, token_ids, dtype, device)
        if not proof["passed"]:
            raise RuntimeError(f"the merged checkpoint failed its proof and was not kept: {proof}")
    return proof


def main(argv: list[str] | None = None) -> None:
    """The command line of a later merge."""
    parser = Parser(
        prog="python -m models.merge",
        description="Fold a saved restoration into the pruned checkpoint it was trained on, and prove the result.",
    )
    parser.flag(
        "pruned_model_path",
        type=name_or_path,
        required=True,
        metavar="MODEL",
        help="that checkpoint: folder, hub id, GGUF file",
    )
    parser.flag("restoration", type=folder_path, required=True, metavar="DIR", help="OUT/restoration of a run")
    parser.flag("output_dir", type=folder_path, required=True, metavar="DIR", help="where the plain checkpoint goes")
    parser.flag(
        "tokenizer",
        type=name_or_path,
        metavar="MODEL",
        help="whose tokenizer, if there is none beside the pruned checkpoint",
    )
    parser.flag("dtype", choices=DTYPES, default="bfloat16", help="in which both models answer for the proof")
    parser.flag("device", default="cpu", help="cpu, cuda, cuda:N, …")
    parser.switch("overwrite", "replace the merged checkpoint in -output_dir, and no other file")
    parser.flag(
        "cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="where a GGUF file is unpacked"
    )
    args = parser.parse_args(argv)
    inputs = ("pruned_model_path", "restoration", "tokenizer", "cache_dir")
    check_apart(args.output_dir, {f"-{name}": getattr(args, name) for name in inputs})
    result = Result(args.output_dir, PROOF)
    check_name(args.pruned_model_path, "-pruned_model_path")
    result.check(args.overwrite)
    restoration, about = load_restoration(args.restoration)
    pruned = resolve(args.pruned_model_path, "-pruned_model_path", args.cache_dir)
    check_belongs(about, pruned, "-pruned_model_path")
    tokenizer_from = pruned
    if args.tokenizer:
        tokenizer_from = resolve(args.tokenizer, "-tokenizer", args.cache_dir)
    elif not has_tokenizer(pruned):
        raise UserError(f"-tokenizer: {pruned} has no tokenizer of its own; name the model to take it from")
    dtype = DTYPES[args.dtype]
    tokenizer = load_tokenizer(tokenizer_from, "-tokenizer")
    token_ids = [tokenizer(text).input_ids for text in PROBE_TEXTS]
    attached = attach(load_model(pruned, dtype, args.device, "-pruned_model_path"), restoration)
    logits = probe_logits(attached, token_ids)
    del attached
    with result.working():
        proof = merge_and_prove(
            pruned,
            restoration,
            result.folder,
            tokenizer_from=tokenizer_from,
            attached_logits=logits,
            token_ids=token_ids,
            dtype=dtype,
            device=args.device,
        )
        write_json(result.folder / PROOF, proof)
        result.finish()
    print(
        f"{proof['tensors_identical']} of {proof['tensors_compared']} weights bit-identical, "
        f"{proof['zeros_restored']:,} zeros kept, logits differ by {proof['logits_relative_difference']:.1e}"
    )
    output = args.output_dir
    print(f"merged checkpoint: {output}; evaluate it with: lm_eval --model hf --model_args pretrained={output}")


if __name__ == "__main__":
    run(main)
