"""Fold a saved restoration into the pruned checkpoint it was trained on, file to file, and prove the result.

python -m models.merge -pruned_model_path PRUNED -restoration OUT/restoration -output_dir MERGED

The proof reads the merged checkpoint back from disk: every tensor is accounted for, and its logits are those of
training. What is expected is computed again from the saved restoration, so that no value passes because it looks
plausible.
"""

# ruff: noqa: E402

from argparse import Namespace

from models.model_names import check_found
from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, name_or_path, run
from utils.common.errors import UserError
from utils.common.files import check_writable
from utils.common.names import DTYPE_NAMES
from utils.common.run_folder import check_apart

PROOF = "proof.json"
"""What a later merge leaves beside the checkpoint."""


def read_flags(argv: list[str] | None = None) -> Namespace:
    """The command line of a later merge, its paths checked."""
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
    parser.flag("dtype", choices=DTYPE_NAMES, help="in which both models answer for the proof (default: the run's)")
    parser.flag("device", default="cpu", help="cpu, cuda, cuda:N, …")
    parser.switch("overwrite", "rename what is in -output_dir to DIR.1 when the merged checkpoint is whole")
    parser.flag(
        "cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="where a GGUF file is unpacked"
    )
    args = parser.parse_args(argv)
    inputs = ("pruned_model_path", "restoration", "tokenizer", "cache_dir")
    check_apart(args.output_dir, {f"-{name}": getattr(args, name) for name in inputs})
    check_found(args.pruned_model_path, "-pruned_model_path")
    if args.tokenizer:
        check_found(args.tokenizer, "-tokenizer")
    if not args.restoration.is_dir():
        raise UserError(f"-restoration: {args.restoration} is not a folder; give OUT/restoration of a run")
    check_writable(args.cache_dir, "-cache_dir")
    return args


if __name__ == "__main__":
    run(read_flags)  # before torch is imported, which takes seconds, so that a wrong path is answered at once

import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import (
    ATTENTION,
    MLP,
    Checkpoint,
    Header,
    pruned_layer,
    safetensors_name,
    same_bits,
    write_checkpoint,
)
from models.compact import chosen, in_dense_shapes, left_of, what_is_left, write_compact
from models.loading import (
    DTYPES,
    check_vocabulary,
    copy_tokenizer,
    has_tokenizer,
    input_device,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
    usable_device,
)
from models.modeling_llama import explicit_biases, max_rounding_error, store_as
from models.portable import portable
from models.restoration import Restoration, check_belongs, load_restoration
from utils.common.files import read_json, whole_folder, workspace, write_json
from utils.common.run_folder import RunFolder

BIAS_SWITCHES = {"attention_bias": ATTENTION, "mlp_bias": MLP}
"""Llama's switches for biases: each stands for all of these linear layers, in every decoder layer."""

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""The dtype that another's rounding is measured in."""

ROUNDINGS, LARGEST_ROUNDINGS = 2, 4
"""How far two computations in one dtype may be apart, in roundings of that dtype: root mean squares, and the largest.

Two that round independently differ by √2 of one's rounding in the mean, and in no logit by much more than the sum of
the two largest; measured on tiny models: 1.1 to 1.7, and 0.9 to 2.3.
"""

SWALLOWED = (
    " (what is restored is stored in a wider dtype than -dtype: training rounds small changes of weights away, and the "
    "merged weight keeps them; give -dtype float32, a higher -lr, or a pruned checkpoint stored in -dtype)"
)
"""Why logits of a merge that is right can be apart: trained were bf16(bf16(W) + Δ), merged are W + Δ."""

PROBE_TEXTS = (
    "### Instruction:\nName three things that float on water.\n\n### Response: Wood, ice and",
    "The harvest was poor that year, and so the village",
    "def mean(values):\n    return sum(values) /",
)
"""What the attached and the merged model are asked when no samples are at hand."""


# What a merged checkpoint holds.


def merged_layout(stored: Checkpoint, config: LlamaConfig, touched: Iterable[str]) -> dict[str, Header]:
    """Every tensor of the merged checkpoint with its dtype, shape and file: the stored ones, touched, and zero biases.

    A new bias has the dtype of its weight and stands in its weight's file.
    """
    layout = {
        name: replace(stored.headers[name], file=safetensors_name(stored.headers[name].file)) for name in stored.kept()
    }
    for name in [*touched, *zero_biases(stored, config, touched)]:
        if name not in layout:
            weight = layout[f"{name.removesuffix('bias')}weight"]
            layout[name] = replace(weight, shape=weight.shape[:1])
    return layout


def zero_biases(stored: Checkpoint, config: LlamaConfig, touched: Iterable[str]) -> list[str]:
    """Biases that must be there as zeros, because a touched one of the same kind is new."""
    new = {name for name in touched if name not in stored}
    everywhere = [
        f"model.layers.{layer}.{linear}.bias"
        for switch in switched_on(new)
        for layer in range(config.num_hidden_layers)
        for linear in BIAS_SWITCHES[switch]
    ]
    return [name for name in everywhere if name not in new and name not in stored]


def switched_on(touched: Iterable[str]) -> list[str]:
    """Llama's switches that must be on for these tensors to be read."""
    linears = {name.removesuffix(".bias").split(".", 3)[-1] for name in touched if name.endswith(".bias")}
    return [switch for switch, kinds in BIAS_SWITCHES.items() if linears & set(kinds)]


# The merge.


def merge(pruned: Path, restoration: Restoration, output: Path, tokenizer_from: Path) -> None:
    """Write the pruned checkpoint with what the restoration says to the folder `output`.

    Tensors are copied one at a time, each in its stored dtype and in the file it was in; only those that have terms
    are replaced or added: stored + terms in fp64, rounded once. Llama has biases on all projections of a kind or on
    none, so the others get explicit zeros. Buffers that transformers drops are left out. Raises UserError if a restored
    value is no finite number.
    """
    stored, config = Checkpoint(pruned), load_config(pruned, "-pruned_model_path")
    layout = merged_layout(stored, config, restoration.terms)
    shards: dict[str, list[tuple[str, Header]]] = {}
    for name, header in layout.items():
        shards.setdefault(header.file, []).append((name, header))

    def read(name: str) -> Tensor:
        if name in restoration.terms:
            value = restoration.merged(name, stored.read).to(layout[name].dtype)
            if not bool(value.isfinite().all()):
                raise UserError(
                    f"-restoration: with what was learned, {name} is no finite number in its dtype; restore again with "
                    "a lower -lr"
                )
            return value
        return stored.read(name) if name in stored else torch.zeros(layout[name].shape, dtype=layout[name].dtype)

    output.mkdir(parents=True, exist_ok=True)
    write_checkpoint(output, shards, read)
    switched = dict.fromkeys(switched_on(restoration.terms), True)
    write_json(output / "config.json", portable({**read_json(pruned / "config.json"), **switched}))
    if (pruned / "generation_config.json").is_file():
        shutil.copy(pruned / "generation_config.json", output)
    copy_tokenizer(tokenizer_from, output)


def merge_and_prove(
    pruned: Path, saved: Path, output: Path, *, tokenizer_from: Path, reference: "Reference"
) -> "Proof":
    """Merge the restoration in the folder `saved` into a folder that takes the name `output` only if the proof holds.

    reference: what the attached model answered. Raises RuntimeError, and leaves nothing behind, if any promise is
    broken.
    """
    restoration, _ = load_restoration(saved)
    with whole_folder(output) as partial:
        merge(pruned, restoration, partial, tokenizer_from)
        proof = prove(pruned, partial, restoration, reference)
        proof.check(f"what was trained is in {saved}")
        if "disk" in (getattr(proof.model, "hf_device_map", None) or {}).values():
            proof.model = None  # it would look for its weights under the name that is given up now
    return proof


def compact_and_prove(merged: Path, output: Path, reference: "Reference") -> "Proof":
    """The merged checkpoint without the heads and channels that nothing reads, to `output` only if its proof holds."""
    with whole_folder(output) as partial:
        write_compact(merged, partial)
        proof = prove_compact(merged, partial, reference)
        proof.check(f"the same in the dense model's shapes is in {merged}")
    return proof


# The proof.


@dataclass(frozen=True)
class Reference:
    """What the attached model answered, and how it was computed.

    token_ids: sequences. logits: (T, vocabulary) in dtype on the CPU, one for each. dtype, device: the model's.
    stored: whether dtype holds all that the restoration reads of the pruned checkpoint as it is stored, so that a
    merged model computes with the same bits. rounding_error: see RestoredLayer, the largest of all layers.
    """

    token_ids: list[list[int]]
    logits: list[Tensor]
    dtype: torch.dtype
    device: str
    stored: bool
    rounding_error: float


def record_logits(
    attached: LlamaForCausalLM, restoration: Restoration, pruned: Checkpoint, token_ids: list[list[int]], device: str
) -> Reference:
    """The answers of a model that the restoration is attached to, with what a checkpoint of it will hold.

    In place, it is given explicit zero biases, and restored tensors rounded to the dtype they are stored in. Raises
    UserError if an answer is no finite number.
    """
    config, dtype, touched = attached.config, attached.dtype, list(restoration.terms)
    layout = merged_layout(pruned, config, touched)
    read = {f"{name.removesuffix('bias')}weight" for name in touched if name.endswith(".bias")}
    stored = all(_holds(dtype, layout[name].dtype) for name in (*read, *touched) if name in pruned)
    error = max_rounding_error(attached)
    store_as(attached, {name: layout[name].dtype for name in touched})
    explicit_biases(attached, zero_biases(pruned, config, touched))
    logits = [each.to(dtype) for each in probe_logits(attached, token_ids)]
    if not all(bool(each.isfinite().all()) for each in logits):
        raise UserError(
            "-restoration: with what was learned, the model's answers are no finite numbers; restore again with a "
            "lower -lr, or in another -dtype"
        )
    return Reference(token_ids, logits, dtype, device, stored, error)


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of dtype `narrow` is one of dtype `wide`."""
    return wide == narrow or torch.promote_types(wide, narrow) == wide


@dataclass
class Proof:
    """What was found: `record` as results.json keeps it, each broken promise in words, and the model loaded for it."""

    record: dict = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    model: LlamaForCausalLM | None = None

    def check(self, left: str) -> None:
        """Raise RuntimeError if a promise is broken. left: what there is all the same, in words."""
        if self.failures:
            broken = "; ".join(self.failures)
            raise RuntimeError(f"the merged checkpoint failed its proof and was not kept: {broken}; {left}")

    def closed(self) -> "Proof":
        """The same with `passed` and `failures` in the record."""
        self.record = {"passed": not self.failures, **self.record, "failures": self.failures}
        return self


@torch.no_grad()
def probe_logits(model: LlamaForCausalLM, token_ids: list[list[int]]) -> list[Tensor]:
    """fp32 logits (T, vocabulary) on the CPU for each sequence of ids, one at a time: no padding to hide behind."""
    device = input_device(model)
    return [model(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in token_ids]


def prove(pruned: Path, merged: Path, restoration: Restoration, reference: Reference) -> Proof:
    """Hold a merged checkpoint against the pruned one, the restoration as it was saved, and the attached model.

    Promises: every tensor without terms has the bits and dtype it had; every one with terms the bits that they give;
    new biases elsewhere are zero; there is no other tensor; zeros are kept, if all terms say so; logits are finite, and
    the attached model's: equal where both compute with the same bits on the same kind of device, else apart by no more
    than the rounding of their dtype; and a training step computed what is merged, within the rounding of fp32.
    """
    proof = _account_for_tensors(pruned, merged, restoration)  # whose files are let go before a model is loaded
    proof.record["trained_apart"] = error = reference.rounding_error
    if not error <= 1:
        proof.failures.append(f"what was trained is {error:.1f} times fp32's rounding from what was merged")
    proof.model = load_model(merged, reference.dtype, reference.device, "-output_dir")
    # Spread over several devices, what runs where may differ from one loading to the next.
    exact = reference.stored and reference.device != "auto"
    _compare_logits(proof, proof.model, merged, reference, exact)
    return proof.closed()


def _account_for_tensors(pruned: Path, merged: Path, restoration: Restoration) -> Proof:
    """What becomes of every tensor, and of config.json."""
    before, after = Checkpoint(pruned), Checkpoint(merged, "-output_dir")
    config, touched = load_config(pruned, "-pruned_model_path"), list(restoration.terms)
    layout = merged_layout(before, config, touched)
    zero = set(zero_biases(before, config, touched))
    right, unexpected, nonzero_new, lost_zeros = set(), [], [], 0

    def look(name: str, tensor: Tensor) -> None:
        nonlocal lost_zeros
        header = layout.get(name)
        if header is None:
            unexpected.append(name)
            return
        if name in restoration.terms:
            expected = restoration.merged(name, before.read).to(header.dtype)
        else:
            expected = torch.zeros(header.shape, dtype=header.dtype) if name in zero else before.read(name)
        if same_bits(tensor, expected):
            right.add(name)
        if name not in before:
            nonzero_new.extend([name] if bool((tensor != 0).any()) else [])
        elif pruned_layer(name) is not None and name in restoration.terms:
            lost_zeros += int(((before.read(name) == 0) & (tensor != 0)).sum())

    surveys = before.survey(), after.survey(look)
    compared = [name for name in before.kept() if name not in restoration.terms]
    broken = {name for name in layout if name not in right}
    shares = [[zero / all_ for zero, all_ in zip(*survey.counts(), strict=True)] for survey in surveys]
    proof = Proof(
        {
            "tensors_compared": len(compared),
            "tensors_identical": len(right.intersection(compared)),
            "changed_tensors": sorted(name for name in {*touched, *broken} if name in before),
            "new_tensors": sorted(name for name in after.headers if name not in before),
            "nonzero_new_tensors": nonzero_new,
            "tensors_recomputed": len(right.intersection(touched)),
            "tensors_touched": len(touched),
            "unexplained_tensors": sorted({*broken, *unexpected} - {*compared, *touched}),
            "dropped_buffers": before.dropped(),
            "zeros": restoration.zeros,
            "zeros_lost": lost_zeros,
            "zeros_pruned": sum(surveys[0].zeros.values()),
            "zeros_restored": sum(surveys[1].zeros.values()),
            "weights": sum(surveys[0].weights.values()),
            "sparsity_pruned": shares[0],
            "sparsity_restored": shares[1],
            "sha256": surveys[1].sha256,
        }
    )
    missing = [name for name in layout if name not in after]
    for what, names in {
        "missing": missing,
        "not named by the restoration": unexpected,
        "other bits than they must have": sorted(broken - set(missing)),
        "NaN or infinity": surveys[1].not_finite,
    }.items():
        if names:
            proof.failures.append(f"{len(names)} tensors {what}: {', '.join(names[:3])}")
    if read_json(merged / "config.json") != portable(
        {**read_json(pruned / "config.json"), **dict.fromkeys(switched_on(touched), True)}
    ):
        proof.failures.append("config.json is not the pruned checkpoint's with the biases switched on")
    fewer = [layer for layer, zeros in surveys[0].zeros.items() if surveys[1].zeros.get(layer, 0) < zeros]
    if restoration.zeros == "kept" and (lost_zeros or fewer):
        proof.failures.append("zeros of the pruned checkpoint are gone")
    return proof


def prove_compact(merged: Path, compact: Path, reference: Reference) -> Proof:
    """Hold a compact checkpoint against the merged one in the dense shapes: the same bits, and nothing lost but zeros.

    What was left out must be heads and channels whose o_proj or down_proj columns are all zero. Matrices of other
    shapes round apart, so logits agree within the rounding of their dtype.
    """
    whole, small = Checkpoint(merged, "-output_dir"), Checkpoint(compact, "-output_dir")
    config = load_config(merged, "-output_dir")
    kept = left_of(config, *what_is_left(whole.read, config))
    failures = []
    names = [name for name in whole.kept() if name not in small]
    failures += [f"{len(names)} tensors missing: {', '.join(names[:3])}"] if names else []
    wrong, left_out, zeros_left_out = [], 0, 0

    def look(name: str, tensor: Tensor) -> None:
        nonlocal left_out, zeros_left_out
        if name not in whole or not same_bits(tensor, chosen(whole.read(name), kept.get(name))):
            wrong.append(name)
        elif pruned_layer(name) is not None:
            left_out += whole.read(name).numel() - tensor.numel()
            zeros_left_out += int((whole.read(name) == 0).sum()) - int((tensor == 0).sum())

    surveys = whole.survey(), small.survey(look)
    failures += [f"{len(wrong)} tensors with other bits: {', '.join(wrong[:3])}"] if wrong else []
    for name, (axis, indices) in kept.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor = whole.read(name)
            gone = torch.ones(tensor.shape[axis], dtype=torch.bool).index_fill(0, indices, False)
            if bool((tensor[:, gone] != 0).any()):
                failures.append(f"{name} lost values that are not zero")
    proof = Proof(
        {
            "tensors_compared": len(small.headers),
            "tensors_identical": len(small.headers) - len(wrong),
            "zeros_restored": sum(surveys[1].zeros.values()),
            "zeros_left_out": zeros_left_out,
            "weights": sum(surveys[1].weights.values()),
            "weights_left_out": left_out,
        },
        failures,
    )
    model = load_model(compact, reference.dtype, reference.device, "-output_dir")
    _compare_logits(proof, model, compact, reference, exact=False)
    return proof.closed()


def _compare_logits(proof: Proof, model: LlamaForCausalLM, folder: Path, reference: Reference, exact: bool) -> None:
    """Add to the proof how far the model's logits are from the reference's, and whether that is allowed.

    folder: the checkpoint that the model is of, loaded once more in a wider dtype where they need not be equal. One
    sequence's logits are in fp32 at a time.
    """
    answers, finite, agreeing = [], True, 0
    largest = difference = squares = tolerance = ratio = 0.0
    for ids, expected in zip(reference.token_ids, reference.logits, strict=True):
        (given,) = probe_logits(model, [ids])
        expected = expected.float()
        # A NaN is no difference to `max`, so finiteness is asked for by itself.
        finite &= bool(expected.isfinite().all()) and bool(given.isfinite().all())
        apart = (expected - given).abs()
        largest, difference = max(largest, float(expected.abs().max())), max(difference, float(apart.max()))
        squares += float(apart.double().square().sum())
        agreeing += int((expected.argmax(-1) == given.argmax(-1)).sum())
        answers.append(given.to(reference.dtype))
    if finite and not exact and difference:
        wide = load_model(folder, WIDER[reference.dtype], "auto" if _is_spread(model) else "cpu", "-output_dir")
        rounded = 0.0
        for ids, given in zip(reference.token_ids, answers, strict=True):
            rounding = probe_logits(wide, [ids])[0] - given.float()
            tolerance = max(tolerance, LARGEST_ROUNDINGS * float(rounding.abs().max()))
            rounded += float(rounding.double().square().sum())
        ratio = (squares / rounded) ** 0.5 if rounded else float("inf")
    largest = largest or 1.0
    proof.record |= {
        "logits_finite": finite,
        "logits_relative_difference": difference / largest if finite else None,
        "logits_tolerance": tolerance / largest,
        "logits_must_be_equal": exact,
        "logits_roundings": ratio,
        "top1_agreement": agreeing / sum(map(len, reference.token_ids)),
        "dtype": str(reference.dtype).removeprefix("torch."),
        "loaded_with": "AutoModelForCausalLM",
    }
    if not finite:
        proof.failures.append("logits hold NaN or infinity")
    elif not (difference <= tolerance and ratio <= ROUNDINGS):
        proof.failures.append(
            f"logits {difference / largest:.1e} apart from the attached model's, allowed {tolerance / largest:.1e}, "
            f"and {ratio:.1f} times their dtype's rounding in the mean, allowed {ROUNDINGS}"
            + ("" if reference.stored else SWALLOWED)
        )


def _is_spread(model: LlamaForCausalLM) -> bool:
    """Whether accelerate spread the model over several devices, or a device and a disk."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


# The command.


def main(argv: list[str] | None = None) -> None:
    """Merge and prove what a run has saved."""
    args = read_flags(argv)
    arguments = {name: str(value) for name, value in vars(args).items() if name not in ("output_dir", "overwrite")}
    with RunFolder(args.output_dir, arguments, args.overwrite) as folder:
        if not folder.whole:
            merge_saved(args, folder.partial)
        folder.finish()
    found = read_json(args.output_dir / PROOF)
    print(
        f"{found['tensors_identical']} of {found['tensors_compared']} weights bit-identical, "
        f"{found['zeros_restored']:,} zeros kept, logits differ by {found['logits_relative_difference']:.1e}"
    )
    loading = f"pretrained={args.output_dir}" + (",trust_remote_code=True" if "compact" in found else "")
    print(f"merged checkpoint: {args.output_dir}; evaluate it with: lm_eval --model hf --model_args {loading}")


def merge_saved(args: Namespace, output: Path) -> None:
    """Merge and prove what -restoration holds, to the folder `output`, which is there."""
    device = usable_device(args.device)
    restoration, about = load_restoration(args.restoration)
    given = resolve(args.pruned_model_path, "-pruned_model_path", args.cache_dir)
    check_belongs(restoration, about, given, "-pruned_model_path")
    pruned, compact = in_dense_shapes(given, args.cache_dir)
    tokenizer_from = given
    if args.tokenizer:
        tokenizer_from = resolve(args.tokenizer, "-tokenizer", args.cache_dir)
    elif not has_tokenizer(given):
        raise UserError(f"-tokenizer: {given} has no tokenizer of its own; name the model to take it from")
    tokenizer = load_tokenizer(tokenizer_from, "-tokenizer")
    check_vocabulary(tokenizer, load_config(pruned, "-pruned_model_path"), "-tokenizer")
    token_ids = [tokenizer(text).input_ids for text in PROBE_TEXTS]
    arguments = about.get("arguments")
    of_run = arguments.get("dtype") if isinstance(arguments, dict) else None
    dtype = DTYPES[args.dtype or (of_run if of_run in DTYPE_NAMES else DTYPE_NAMES[0])]
    model = restoration.attach(load_model(pruned, dtype, device, "-pruned_model_path"))
    reference = record_logits(model, restoration, Checkpoint(pruned), token_ids, device)
    del model
    # A compact checkpoint gets a compact result, by way of the dense shapes in which it was restored.
    with workspace("merge") if compact else nullcontext(output) as place:
        merged = place / "merged"
        found = merge_and_prove(pruned, args.restoration, merged, tokenizer_from=tokenizer_from, reference=reference)
        record = found.record
        if compact:
            record |= {"compact": compact_and_prove(merged, output / "merged", reference).record}
    for file in (output / "merged").iterdir():
        file.rename(output / file.name)
    (output / "merged").rmdir()
    write_json(output / PROOF, record)


if __name__ == "__main__":
    run(main)
