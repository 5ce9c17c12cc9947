"""The proof of a merged checkpoint: read back from disk, every tensor accounted for, and its logits those of training.

What is expected is computed again from the saved restoration, so that no value passes because it looks plausible.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.checkpoint import Checkpoint, Survey, pruned_layer, same_bits
from models.compact import chosen, left_of, what_is_left
from models.contract import KEPT
from models.layout import merged_layout, zero_biases
from models.loading import input_device, load_config, load_model
from models.modeling_llama import explicit_biases
from models.restoration import Restoration

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""The dtype that another's rounding is measured in."""

ROUNDINGS = 2
"""Two computations that round apart differ by at most the sum of their roundings."""


@dataclass(frozen=True)
class Reference:
    """What the attached model answered, and how it was computed.

    token_ids: sequences. logits: fp32 (T, vocabulary) on the CPU, one for each. dtype, device: the model's.
    stored: whether the pruned checkpoint's files hold all that was trained on in this dtype, so that a merged model
    computes with the same bits.
    """

    token_ids: list[list[int]]
    logits: list[Tensor]
    dtype: torch.dtype
    device: str
    stored: bool

    @classmethod
    def ask(
        cls,
        attached: LlamaForCausalLM,
        restoration: Restoration,
        pruned: Checkpoint,
        token_ids: list[list[int]],
        device: str,
    ) -> "Reference":
        """The answers of a model that the restoration is attached to; it is given explicit zero biases for them."""
        config, dtype = attached.config, attached.dtype
        touched = restoration.touched(config)
        layout = merged_layout(pruned, config, touched)
        read = {name for name in touched if name in layout}
        read |= {f"{name.removesuffix('bias')}weight" for name in touched if name.endswith(".bias")}
        explicit_biases(attached, zero_biases(pruned, config, touched))
        return cls(
            token_ids,
            probe_logits(attached, token_ids),
            dtype,
            device,
            all(layout[name].dtype == dtype for name in read),
        )


@dataclass
class Proof:
    """What was found: `record` as results.json keeps it, each broken promise in words, and the model loaded for it."""

    record: dict = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    model: LlamaForCausalLM | None = None

    def check(self) -> None:
        """Raise RuntimeError if a promise is broken."""
        if self.failures:
            raise RuntimeError(f"the merged checkpoint failed its proof and was not kept: {'; '.join(self.failures)}")

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

    Promises: every tensor that the restoration doesn't touch has the bits and dtype it had; every touched one has the
    bits that the restoration gives, and is one that its method may touch; new biases elsewhere are zero; there is no
    other tensor; zeros are kept, if the method says so; logits are finite, and the attached model's: equal where both
    compute with the same bits on the same kind of device, else apart by no more than the rounding of their dtype.
    """
    before, after = Checkpoint(pruned), Checkpoint(merged, "-output_dir")
    config = load_config(pruned, "-pruned_model_path")
    promise, touched = restoration.promise(config), restoration.touched(config)
    layout = merged_layout(before, config, touched)
    zero = set(zero_biases(before, config, touched))
    seen = _Seen()

    def look(name: str, tensor: Tensor) -> None:
        header = layout.get(name)
        if header is None:
            seen.unexpected.append(name)
        elif (tensor.dtype, tuple(tensor.shape)) != (header.dtype, header.shape):
            seen.wrong.append(name)
        elif name in touched:
            seen.recompute(name, tensor, restoration.merged(name, config, before).to(header.dtype))
        elif name in zero:
            if not same_bits(tensor, torch.zeros_like(tensor)):
                seen.wrong.append(name)
        elif not same_bits(tensor, before.read(name)):
            seen.wrong.append(name)
        if name in before and pruned_layer(name) is not None and name in touched:
            seen.lost_zeros += int(((before.read(name) == 0) & (tensor != 0)).sum())
        if name not in before and bool((tensor != 0).any()):
            seen.nonzero_new.append(name)

    surveys = before.survey(), after.survey(look)
    proof = Proof(_record(before, after, layout, touched, promise.zeros, surveys, seen))
    allowed = promise.added | promise.changed
    for what, names in {
        "missing": [name for name in layout if name not in after],
        "not named by the promise": seen.unexpected,
        "touched against the promise": [name for name in touched if name not in allowed],
        "other bits than they must have": seen.wrong,
        "NaN or infinity": surveys[1].not_finite,
    }.items():
        if names:
            proof.failures.append(f"{len(names)} tensors {what}: {', '.join(names[:3])}")
    if promise.zeros == KEPT and (seen.lost_zeros or surveys[0].zeros != surveys[1].zeros):
        proof.failures.append("zeros of the pruned checkpoint are gone")
    proof.model = load_model(merged, reference.dtype, reference.device, "-output_dir")
    # Spread over several devices, what runs where may differ from one loading to the next.
    exact = reference.stored and reference.device != "auto"
    _compare_logits(proof, proof.model, merged, reference, exact)
    return proof.closed()


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


@dataclass
class _Seen:
    """What one pass over a merged checkpoint found, by name."""

    unexpected: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    nonzero_new: list[str] = field(default_factory=list)
    lost_zeros: int = 0

    def recompute(self, name: str, tensor: Tensor, expected: Tensor) -> None:
        (self.recomputed if same_bits(tensor, expected) else self.wrong).append(name)


def _record(
    before: Checkpoint,
    after: Checkpoint,
    layout: dict,
    touched: list[str],
    zeros: str,
    surveys: tuple[Survey, Survey],
    seen: _Seen,
) -> dict:
    compared = [name for name in before.kept() if name not in touched]
    broken = {*seen.wrong, *(name for name in layout if name not in after)}
    shares = [[zero / all_ for zero, all_ in zip(*survey.counts(), strict=True)] for survey in surveys]
    return {
        "tensors_compared": len(compared),
        "tensors_identical": len([name for name in compared if name not in broken]),
        "changed_tensors": sorted(name for name in {*touched, *broken} if name in before),
        "new_tensors": sorted(name for name in after.headers if name not in before),
        "nonzero_new_tensors": seen.nonzero_new,
        "tensors_recomputed": len(seen.recomputed),
        "tensors_touched": len(touched),
        "unexplained_tensors": sorted({*broken, *seen.unexpected} - {*compared, *touched}),
        "dropped_buffers": before.dropped(),
        "zeros": zeros,
        "zeros_lost": seen.lost_zeros,
        "zeros_pruned": sum(surveys[0].zeros.values()),
        "zeros_restored": sum(surveys[1].zeros.values()),
        "weights": sum(surveys[0].weights.values()),
        "sparsity_pruned": shares[0],
        "sparsity_restored": shares[1],
        "sha256": surveys[1].sha256,
    }


def _compare_logits(proof: Proof, model: LlamaForCausalLM, folder: Path, reference: Reference, exact: bool) -> None:
    """Add to the proof how far the model's logits are from the reference's, and whether that is allowed."""
    found = probe_logits(model, reference.token_ids)
    pairs = list(zip(reference.logits, found, strict=True))
    finite = all(bool(logits.isfinite().all()) for pair in pairs for logits in pair)
    largest = max((float(a.abs().max()) for a, _ in pairs), default=0.0) or 1.0
    # A NaN is no difference to `max`, so finiteness is asked for by itself.
    difference = max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / largest if finite else math.inf
    tolerance = 0.0
    if finite and not exact and difference:
        tolerance = ROUNDINGS * _rounding(model, folder, found, reference) / largest
    rows = sum(len(a) for a, _ in pairs)
    agreement = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs) / max(rows, 1)
    proof.record |= {
        "logits_finite": finite,
        "logits_relative_difference": difference if finite else None,
        "logits_tolerance": tolerance,
        "logits_must_be_equal": exact,
        "top1_agreement": agreement,
        "dtype": str(reference.dtype).removeprefix("torch."),
        "loaded_with": "AutoModelForCausalLM",
    }
    if not finite:
        proof.failures.append("logits hold NaN or infinity")
    elif not difference <= tolerance:
        proof.failures.append(f"logits {difference:.1e} apart from the attached model's, allowed {tolerance:.1e}")


def _rounding(model: LlamaForCausalLM, folder: Path, found: list[Tensor], reference: Reference) -> float:
    """The largest error that the model's dtype makes in these logits, against the same weights in a wider one."""
    spread = getattr(model, "hf_device_map", None) and len(set(model.hf_device_map.values())) > 1
    wide = load_model(folder, WIDER[reference.dtype], "auto" if spread else "cpu", "-output_dir")
    exact = probe_logits(wide, reference.token_ids)
    return max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))
