"""Fold a saved restoration into the pruned checkpoint it was trained on, file to file, and prove the result.

python -m models.merge -pruned_model_path PRUNED -restoration OUT/restoration -output_dir MERGED

The proof reads the merged checkpoint back from disk: every tensor is accounted for, and its logits are those of
training. What each tensor must be is computed again from the saved restoration.
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
"""What this command leaves beside the checkpoint."""


def read_flags(argv: list[str] | None = None) -> Namespace:
    """The command line, its paths checked."""
    parser = Parser(prog="python -m models.merge", description=__doc__.partition("\n")[0])
    model, folder = {"type": name_or_path, "metavar": "MODEL"}, {"type": folder_path, "metavar": "DIR"}
    parser.flag("pruned_model_path", required=True, help="the pruned checkpoint: folder, hub id, GGUF file", **model)
    parser.flag("restoration", required=True, help="OUT/restoration of a run", **folder)
    parser.flag("output_dir", required=True, help="where the plain checkpoint goes", **folder)
    parser.flag("tokenizer", help="model to take the tokenizer from (default: the pruned one)", **model)
    parser.flag("dtype", choices=DTYPE_NAMES, help="dtype of both models in the proof (default: the run's)")
    parser.flag("device", default="cpu", help="cpu, cuda, cuda:N, …")
    parser.flag("overwrite", default=False, help="rename what is in -output_dir to DIR.1 when the result is whole")
    parser.flag("cache_dir", default=DEFAULT_CACHE, help="where GGUF and compact files are unpacked", **folder)
    args = parser.parse_args(argv)
    check_apart(args, ("pruned_model_path", "restoration", "tokenizer", "cache_dir"))
    check_found(args.pruned_model_path, "-pruned_model_path")
    if args.tokenizer:
        check_found(args.tokenizer, "-tokenizer")
    if not args.restoration.is_dir():
        raise UserError(f"-restoration: {args.restoration} is not a folder; give OUT/restoration of a run")
    check_writable(args.cache_dir, "-cache_dir")
    return args


if __name__ == "__main__":
    run(read_flags)  # before torch is imported, which takes seconds, so that a wrong path is answered at once

import math
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models import loading
from models.checkpoint import Checkpoint, Header, Survey, pruned_layer, same_bits, write_checkpoint
from models.compact import chosen, in_dense_shapes, left_of, what_is_left, write_compact
from models.families import BIASES
from models.modeling_llama import explicit_biases, max_rounding_error
from models.portable import portable
from models.restoration import Restoration, check_belongs, load_restoration
from utils.common.files import read_json, whole_folder, write_json
from utils.common.run_folder import RunFolder

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""For each dtype, the wider one in which its rounding errors are measured."""

MEAN_ROUNDINGS, LARGEST_ROUNDINGS = 2, 4
"""How far logits of two computations in one dtype may differ, as multiples of its rounding error: RMS, and maximum.

Two computations that round independently differ by √2 of one's error in the RMS, and in no logit by much more than the
sum of the two largest errors. Measured on tiny models: 1.1 to 1.7, and 0.9 to 2.3.
"""

SWALLOWED = (
    " (the restored tensors are stored in a wider dtype than -dtype: training rounds small weight changes away, "
    "but the merged weights keep them; give -dtype float32, a higher -lr, or a pruned checkpoint stored in -dtype)"
)
"""Why logits of a correct merge can differ: training computes with bf16(bf16(W) + Δ), the merged model with W + Δ."""

PROBE_TEXTS = (
    "### Instruction:\nName three things that float on water.\n\n### Response: Wood, ice and",
    "The harvest was poor that year, and so the village",
    "def mean(values):\n    return sum(values) /",
)
"""Texts on which the attached and the merged model are compared when there are no samples."""


@dataclass(frozen=True)
class MergedLayout:
    """The layout of a merged checkpoint, known before it is written.

    headers: dtype, shape and file of every tensor, by name: of the stored ones, and of new biases, which have the dtype
    and the file of their weight. zeros: new biases without terms, written as zeros because a switch of BIASES covers
    all projections of a kind. settings: the content of config.json, with the switches of its biases on.
    """

    headers: dict[str, Header]
    zeros: set[str]
    settings: dict

    @classmethod
    def of(cls, pruned: Checkpoint, touched: Collection[str]) -> "MergedLayout":
        """touched: names of the parameters that have terms."""
        headers, settings = pruned.kept(), loading.written_settings(pruned.folder, pruned.flag)
        biases = {name for name in (*touched, *headers) if name.endswith("bias")}
        for switch, linears in BIASES.items():
            weights = (name for name in pruned.headers if name.removesuffix(".weight").endswith(linears))
            kind = {f"{name.removesuffix('weight')}bias" for name in weights}
            if kind & biases:
                settings[switch] = True
                biases |= kind
        new = biases - pruned.headers.keys()
        for name in new:
            weight = headers[f"{name.removesuffix('bias')}weight"]
            headers[name] = replace(weight, shape=weight.shape[:1])
        return cls(headers, new - set(touched), portable(settings))

    def value(self, name: str, pruned: Checkpoint, restoration: Restoration) -> Tensor:
        """A tensor of the merged checkpoint: as it is stored, or stored + terms in fp64, rounded to its dtype."""
        header = self.headers[name]
        if name in restoration.terms:
            return restoration.merged(name, pruned.read).to(header.dtype)
        return torch.zeros(header.shape, dtype=header.dtype) if name in self.zeros else pruned.read(name)


def merge(pruned: Path, restoration: Restoration, output: Path, tokenizer_from: Path) -> None:
    """Write the pruned checkpoint with the restoration merged into it to the folder `output`, a file at a time.

    Buffers that transformers drops are left out. Raises UserError if a merged value is NaN or infinite.
    """
    stored = Checkpoint(pruned)
    layout = MergedLayout.of(stored, restoration.terms)

    def read(name: str) -> Tensor:
        value = layout.value(name, stored, restoration)
        if name in restoration.terms and not bool(value.isfinite().all()):
            raise UserError(
                f"-restoration: the merged {name} holds NaN or infinity in its dtype ({value.dtype}); train "
                "again with a lower -lr"
            )
        return value

    write_checkpoint(output, layout.headers, read)
    write_json(output / "config.json", layout.settings)
    if (pruned / "generation_config.json").is_file():
        shutil.copy(pruned / "generation_config.json", output)
    loading.copy_tokenizer(tokenizer_from, output)


def merge_and_prove(
    pruned: Path, saved: Path, output: Path, *, tokenizer_from: Path, reference: "Reference"
) -> "Proof":
    """Merge the restoration in the folder `saved` into a folder that takes the name `output` only if the proof holds.

    Raises RuntimeError, and leaves nothing behind, if any promise is broken; see Proof.check.
    """
    restoration, _ = load_restoration(saved)
    with whole_folder(output) as folder:
        merge(pruned, restoration, folder, tokenizer_from)
        proof = prove(pruned, folder, restoration, reference)
        proof.check()
        if "disk" in _places(proof.model):
            proof.model = None  # its weights are offloaded from the folder that is renamed now
    return proof


def compact_and_prove(merged: Path, output: Path, reference: "Reference") -> "Proof":
    """Write the merged checkpoint in its compact form to `output`. It is kept only if its proof holds."""
    with whole_folder(output) as folder:
        write_compact(merged, folder)
        proof = prove_compact(merged, folder, reference)
        proof.check()
    return proof


@dataclass(frozen=True)
class Reference:
    """Logits of the attached model, with which the merged model's are compared, and how they were computed.

    token_ids: the sequences. logits: for each, (T, vocabulary) in dtype on the CPU. dtype, device: the attached
    model's. stored: whether the stored tensors that the restoration reads fit into dtype without rounding, so that a
    merged model computes with the same bits. rounding_error: `max_rounding_error` of the attached model.
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
    """The logits of a model with the restoration attached, computed with the values that a checkpoint of it will hold.

    It changes the model in place: zero biases are added, and restored tensors are rounded to their stored dtype. Raises
    UserError if a logit is NaN or infinite.
    """
    dtype, touched = attached.dtype, list(restoration.terms)
    layout = MergedLayout.of(pruned, touched)
    error = max_rounding_error(attached)
    for name in touched:
        place, _, part = name.rpartition(".")
        attached.get_submodule(place).stored[part] = layout.headers[name].dtype
    explicit_biases(attached, layout.zeros)
    read = {*touched, *(f"{name.rpartition('.')[0]}.weight" for name in touched)} & pruned.headers.keys()
    stored = all(torch.promote_types(dtype, pruned.headers[name].dtype) == dtype for name in read)
    logits = [each.to(dtype) for each in probe_logits(attached, token_ids)]
    if not all(bool(each.isfinite().all()) for each in logits):
        raise UserError(
            "-restoration: the restored model's logits hold NaN or infinity; train again with a lower -lr, or in "
            "another -dtype"
        )
    return Reference(token_ids, logits, dtype, device, stored, error)


@dataclass
class Proof:
    """Findings. record: for results.json. failures: broken promises, in words. model: the merged one, if it is kept."""

    record: dict = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    model: LlamaForCausalLM | None = None

    def check(self) -> None:
        """Raise RuntimeError if a promise is broken, UserError if a flag can mend it."""
        if self.failures:
            told = f"the merged checkpoint failed its proof and was not kept: {'; '.join(self.failures)}"
            raise (UserError if all(SWALLOWED in each for each in self.failures) else RuntimeError)(told)

    def compare_tensors(
        self, found: Checkpoint, names: Collection[str], expected: Callable[[str], Tensor]
    ) -> tuple[Survey, set[str]]:
        """Compare all tensors in `found`, one at a time, bit by bit with `expected`; add to `failures` what is wrong.

        names: the tensors that must be there, and no others. Returns the survey, and the names of the correct tensors.
        """
        right: set[str] = set()

        def look(name: str, tensor: Tensor) -> None:
            if name in names and same_bits(tensor, expected(name)):
                right.add(name)

        survey = found.survey(look)
        for what, wrong in {
            "missing": [name for name in names if name not in found],
            "unexpected": [name for name in found.headers if name not in names],
            "with unexpected values": [name for name in names if name in found and name not in right],
            "with NaN or infinity": survey.not_finite,
        }.items():
            if wrong:
                self.failures.append(f"{len(wrong)} tensors {what}: {', '.join(sorted(wrong)[:3])}")
        return survey, right


@torch.no_grad()
def probe_logits(model: LlamaForCausalLM, token_ids: list[list[int]]) -> list[Tensor]:
    """fp32 logits (T, vocabulary) on the CPU for each sequence of ids, one at a time, so that nothing is padded."""
    device = model.device
    return [model(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in token_ids]


def prove(pruned: Path, merged: Path, restoration: Restoration, reference: Reference) -> Proof:
    """Verify a merged checkpoint against the pruned one, the restoration as it was saved, and the attached model.

    Promises: a tensor without terms keeps its bits and dtype; one with terms has the bits that they give; other new
    biases are zero; there is no other tensor; zeros are kept, if all terms promise it. Logits are finite. They equal
    the attached model's where both compute with the same bits on the same kind of device; else they differ by no more
    than the rounding of their dtype. A training step computed the merged values, within the rounding of fp32.
    """
    proof = _account_for_tensors(pruned, merged, restoration)  # closes its files before a model is loaded
    if not (error := reference.rounding_error) <= 1:
        proof.failures.append(f"trained and merged values differ by {error:.1f} times the fp32 rounding error")
    proof.model = loading.load_model(merged, reference.dtype, reference.device, "-output_dir")
    # A model that is spread over devices may be placed in another way each time it is loaded.
    exact = reference.stored and reference.device != "auto"
    _compare_logits(proof, proof.model, merged, reference, exact)
    return proof


def _account_for_tensors(pruned: Path, merged: Path, restoration: Restoration) -> Proof:
    """The part of the proof about tensors and config.json, which needs no model."""
    before, after, touched = Checkpoint(pruned), Checkpoint(merged, "-output_dir"), list(restoration.terms)
    layout = MergedLayout.of(before, touched)
    proof = Proof()
    survey, right = proof.compare_tensors(after, layout.headers, lambda name: layout.value(name, before, restoration))
    surveys = before.survey(), survey
    broken, new = layout.headers.keys() - right, after.headers.keys() - before.headers
    weights = [name for name in touched if name in before and name in right and pruned_layer(name) is not None]
    lost_zeros = sum(int(((before.read(name) == 0) & (after.read(name) != 0)).sum()) for name in weights)
    compared = [name for name in before.kept() if name not in restoration.terms]
    shares = [[zero / all_ for zero, all_ in zip(*each.counts(), strict=True)] for each in surveys]
    proof.record = {
        "tensors_compared": len(compared),
        "tensors_identical": len(right.intersection(compared)),
        "changed_tensors": sorted(name for name in {*touched, *broken} if name in before),
        "new_tensors": sorted(new),
        "nonzero_new_tensors": sorted(name for name in new if bool((after.read(name) != 0).any())),
        "tensors_recomputed": len(right.intersection(touched)),
        "tensors_touched": len(touched),
        "unexplained_tensors": sorted({*broken, *after.headers} - right - {*compared, *touched}),
        "dropped_buffers": [name for name in before.headers if name not in layout.headers],
        "zeros": restoration.zeros,
        "zeros_lost": lost_zeros,
        "zeros_pruned": sum(surveys[0].zeros.values()),
        "zeros_restored": sum(surveys[1].zeros.values()),
        "weights": sum(surveys[0].weights.values()),
        "sparsity_pruned": shares[0],
        "sparsity_restored": shares[1],
        "sha256": survey.sha256,
    }
    if read_json(merged / "config.json") != layout.settings:
        proof.failures.append("config.json is not the pruned checkpoint's with the biases switched on")
    if restoration.zeros == "kept" and lost_zeros:
        proof.failures.append("zeros of the pruned checkpoint are gone")
    return proof


def prove_compact(merged: Path, compact: Path, reference: Reference) -> Proof:
    """Verify a compact checkpoint against the merged one in dense shapes: the same bits, and nothing lost but zeros.

    What was left out must be heads and channels whose o_proj or down_proj columns are all zero. Products of matrices
    of other shapes round differently, so logits need to agree only within the rounding of their dtype.
    """
    whole, small, proof = Checkpoint(merged, "-output_dir"), Checkpoint(compact, "-output_dir"), Proof()
    config = loading.load_config(merged, "-output_dir")
    left = left_of(config, *what_is_left(whole.read, config))
    survey, right = proof.compare_tensors(small, whole.kept(), lambda name: chosen(whole.read(name), left.get(name)))
    for name in (name for name in left if name.endswith(("o_proj.weight", "down_proj.weight"))):
        tensor = whole.read(name)
        gone = torch.ones(tensor.shape[1], dtype=torch.bool).index_fill(0, left[name][1], False)
        if bool((tensor[:, gone] != 0).any()):
            proof.failures.append(f"{name} lost values that are not zero")
    zeros, weights = (sum(counts.values()) for counts in (survey.zeros, survey.weights))
    proof.record = {
        "tensors_compared": len(small.headers),
        "tensors_identical": len(right),
        "zeros_restored": zeros,
        "zeros_left_out": sum(whole.survey().zeros.values()) - zeros,
        "weights": weights,
        "weights_left_out": sum(whole.survey().weights.values()) - weights,
        "sha256": survey.sha256,
    }
    model = loading.load_model(compact, reference.dtype, reference.device, "-output_dir")
    _compare_logits(proof, model, compact, reference, exact=False)
    return proof


def _compare_logits(proof: Proof, model: LlamaForCausalLM, folder: Path, reference: Reference, exact: bool) -> None:
    """Add to the proof how far the model's logits are from the reference's, the tolerance, and the verdict.

    folder: the model's checkpoint. If logits differ but need not be equal, it is loaded again in a wider dtype, to
    measure their rounding errors. Only one sequence's logits are in fp32 at a time.
    """
    answers = [probe_logits(model, [ids])[0].to(reference.dtype) for ids in reference.token_ids]
    pairs, tolerance, ratio = list(zip(reference.logits, answers, strict=True)), 0.0, 0.0
    largest, _ = _size(expected.float() for expected in reference.logits)
    difference, norm = _size(expected.float() - given.float() for expected, given in pairs)
    finite = math.isfinite(largest + difference)
    if finite and not exact and difference:
        place = "auto" if len(_places(model)) > 1 else "cpu"
        wide = loading.load_model(folder, WIDER[reference.dtype], place, "-output_dir")
        asked = zip(reference.token_ids, answers, strict=True)
        rounding, norm_of_rounding = _size(probe_logits(wide, [ids])[0] - given.float() for ids, given in asked)
        tolerance, ratio = LARGEST_ROUNDINGS * rounding, norm / norm_of_rounding if norm_of_rounding else math.inf
    agreeing = sum(int((expected.argmax(-1) == given.argmax(-1)).sum()) for expected, given in pairs)
    largest = largest if finite and largest else 1.0
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
    elif not (difference <= tolerance and ratio <= MEAN_ROUNDINGS):
        proof.failures.append(
            f"logits differ from the attached model's by {difference / largest:.1e} (allowed {tolerance / largest:.1e})"
            + f", on average by {ratio:.1f} times the dtype's rounding error (allowed {MEAN_ROUNDINGS})" * (not exact)
            + ("" if reference.stored else SWALLOWED)
        )
    proof.record = {"passed": not proof.failures, **proof.record, "failures": proof.failures}


def _size(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """(largest absolute value, L2 norm) of all entries of all tensors; NaN if one entry is."""
    sizes = [torch.stack([each.abs().max().double(), each.double().square().sum()]) for each in tensors]
    largest, squares = torch.stack(sizes).unbind(1)
    return float(largest.max()), float(squares.sum().sqrt())


def _places(model: LlamaForCausalLM) -> set:
    """The devices of accelerate's device map, "disk" among them if it is used; empty if the model has none."""
    return set((getattr(model, "hf_device_map", None) or {}).values())


def main(argv: list[str] | None = None) -> None:
    """Merge and prove what a run has saved."""
    args = read_flags(argv)
    arguments = {name: str(value) for name, value in vars(args).items() if name not in ("output_dir", "overwrite")}
    with RunFolder(args.output_dir, arguments, args.overwrite) as folder:
        merge_saved(args, folder.partial)
        folder.finish()
    found = read_json(args.output_dir / PROOF)
    before, after = found["zeros_pruned"], found["zeros_restored"]
    if small := found.get("compact"):  # which has none of those that were left out
        before, after = before - small["zeros_left_out"], small["zeros_restored"]
    print(
        f"{found['tensors_identical']} of {found['tensors_compared']} untouched tensors bit-identical, "
        f"{len(found['changed_tensors'])} changed and {len(found['new_tensors'])} new; {before:,} zeros before, "
        f"{after:,} after; logits differ by {found['logits_relative_difference']:.1e}"
    )
    how = shlex.quote(f"pretrained={args.output_dir}" + ",trust_remote_code=True" * ("compact" in found))
    print(f"merged checkpoint: {args.output_dir}\nnext: lm_eval --model hf --model_args {how} --tasks arc_easy")


def merge_saved(args: Namespace, output: Path) -> None:
    """Merge what -restoration holds, prove the result, and write it with its proof to the existing folder `output`."""
    loading.quiet_libraries()
    device = loading.usable_device(args.device)
    restoration, about = load_restoration(args.restoration)
    given = loading.resolve(args.pruned_model_path, "-pruned_model_path", args.cache_dir)
    loading.load_config(given, "-pruned_model_path")  # refuses unsupported models, such as quantized ones
    check_belongs(about, given, "-pruned_model_path")
    pruned, compact = in_dense_shapes(given, args.cache_dir)
    tokenizer_from = given
    if args.tokenizer:
        tokenizer_from = loading.resolve(args.tokenizer, "-tokenizer", args.cache_dir)
    elif not loading.has_tokenizer(given):
        raise UserError(f"-tokenizer: {given} has no tokenizer of its own; name the model to take it from")
    tokenizer = loading.load_tokenizer(tokenizer_from, "-tokenizer")
    loading.check_vocabulary(tokenizer, loading.load_config(pruned, "-pruned_model_path"), "-tokenizer")
    token_ids = [tokenizer(text).input_ids for text in PROBE_TEXTS]
    dtype = loading.DTYPES[args.dtype or about.get("arguments", {}).get("dtype", DTYPE_NAMES[0])]
    model = restoration.attach(loading.load_model(pruned, dtype, device, "-pruned_model_path"))
    reference = record_logits(model, restoration, Checkpoint(pruned), token_ids, device)
    del model
    # A compact checkpoint gets a compact result, by way of the dense shapes in which it was restored.
    with TemporaryDirectory(dir=output, ignore_cleanup_errors=True) as place:
        merged, small = Path(place, "merged"), Path(place, "compact")
        proof = merge_and_prove(pruned, args.restoration, merged, tokenizer_from=tokenizer_from, reference=reference)
        record = proof.record
        del proof  # and its model: two of them may be too many for the device
        if compact:
            found = compact_and_prove(merged, small, reference).record
            record |= {"compact": found, "sha256": found["sha256"]}
        for file in (small if compact else merged).iterdir():
            file.rename(output / file.name)
    write_json(output / PROOF, record)


if __name__ == "__main__":
    run(main)
