"""The proof of a merged checkpoint: read back from disk, every tensor accounted for, and its logits those of training.

What is expected is computed again from the saved restoration, so that no value passes because it looks plausible.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from models.checkpoint import Checkpoint, Survey, pruned_layer, same_bits
from models.compact import chosen, left_of, what_is_left
from models.contract import KEPT
from models.layout import merged_layout, switched_on, zero_biases
from models.loading import input_device, load_config, load_model
from models.modeling_llama import RestoredLinear, explicit_biases, store_as
from models.portable import portable
from models.restoration import Restoration

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


@dataclass(frozen=True)
class Reference:
    """What the attached model answered, and how it was computed.

    token_ids: sequences. logits: fp32 (T, vocabulary) on the CPU, one for each. dtype, device: the model's.
    stored: whether dtype holds all that the restoration reads of the pruned checkpoint as it is stored, so that a
    merged model computes with the same bits. apart: see RestoredLinear.apart, the largest of all layers.
    """

    token_ids: list[list[int]]
    logits: list[Tensor]
    dtype: torch.dtype
    device: str
    stored: bool
    apart: float

    @classmethod
    def ask(
        cls,
        attached: LlamaForCausalLM,
        restoration: Restoration,
        pruned: Checkpoint,
        token_ids: list[list[int]],
        device: str,
    ) -> "Reference":
        """The answers of a model that the restoration is attached to, with what a checkpoint of it will hold.

        In place, it is given explicit zero biases, and restored tensors rounded to the dtype they are stored in.
        """
        config, dtype = attached.config, attached.dtype
        touched = restoration.touched(config)
        layout = merged_layout(pruned, config, touched)
        read = {f"{name.removesuffix('bias')}weight" for name in touched if name.endswith(".bias")}
        stored = all(_holds(dtype, layout[name].dtype) for name in (*read, *touched) if name in pruned)
        linears = [module for module in attached.modules() if isinstance(module, RestoredLinear)]
        apart = max((linear.apart() for linear in linears if linear.weight.device.type != "meta"), default=0.0)
        store_as(attached, {name: layout[name].dtype for name in touched})
        explicit_biases(attached, zero_biases(pruned, config, touched))
        return cls(token_ids, probe_logits(attached, token_ids), dtype, device, stored, apart)


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
    against = [name for name in touched if name not in (promise.changed if name in before else promise.added)]
    for what, names in {
        "missing": [name for name in layout if name not in after],
        "not named by the promise": seen.unexpected,
        "touched against the promise": against,
        "other bits than they must have": seen.wrong,
        "NaN or infinity": surveys[1].not_finite,
    }.items():
        if names:
            proof.failures.append(f"{len(names)} tensors {what}: {', '.join(names[:3])}")
    if _settings(merged) != portable({**_settings(pruned), **dict.fromkeys(switched_on(touched), True)}):
        proof.failures.append("config.json is not the pruned checkpoint's with the biases switched on")
    fewer = [layer for layer, zeros in surveys[0].zeros.items() if surveys[1].zeros.get(layer, 0) < zeros]
    if promise.zeros == KEPT and (seen.lost_zeros or fewer):
        proof.failures.append("zeros of the pruned checkpoint are gone")
    proof.record["trained_apart"] = reference.apart
    if not reference.apart <= 1:
        proof.failures.append(f"what was trained is {reference.apart:.1f} times fp32's rounding from what was merged")
    proof.model = load_model(merged, reference.dtype, reference.device, "-output_dir")
    # Spread over several devices, what runs where may differ from one loading to the next.
    exact = reference.stored and reference.device != "auto"
    found = probe_logits(proof.model, reference.token_ids)
    _compare_logits(proof, found, merged, reference, exact, is_spread(proof.model))
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
    # Gone before a wider one is loaded.
    found = probe_logits(load_model(compact, reference.dtype, reference.device, "-output_dir"), reference.token_ids)
    _compare_logits(proof, found, compact, reference, exact=False)
    return proof.closed()


def _settings(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


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


def _compare_logits(
    proof: Proof, found: list[Tensor], folder: Path, reference: Reference, exact: bool, spread: bool = False
) -> None:
    """Add to the proof how far these logits are from the reference's, and whether that is allowed.

    folder: the checkpoint that gave them, loaded once more in a wider dtype where they need not be equal. spread:
    whether that needs all devices.
    """
    finite = all(bool(logits.isfinite().all()) for logits in (*reference.logits, *found))
    expected, given = (torch.cat([logits.flatten() for logits in each]) for each in (reference.logits, found))
    largest = (float(expected.abs().max()) if finite else 0.0) or 1.0
    # A NaN is no difference to `max`, so finiteness is asked for by itself.
    differences = (expected - given).abs()
    difference, tolerance, ratio = float(differences.max()), 0.0, 0.0
    if finite and not exact and difference:
        wide = load_model(folder, WIDER[reference.dtype], "auto" if spread else "cpu", "-output_dir")
        rounding = torch.cat([logits.flatten() for logits in probe_logits(wide, reference.token_ids)]) - given
        tolerance = LARGEST_ROUNDINGS * float(rounding.abs().max())
        ratio = float(differences.double().square().mean().sqrt() / rounding.double().square().mean().sqrt())
    agreement = sum(
        int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(reference.logits, found, strict=True)
    ) / sum(map(len, found))
    proof.record |= {
        "logits_finite": finite,
        "logits_relative_difference": difference / largest if finite else None,
        "logits_tolerance": tolerance / largest,
        "logits_must_be_equal": exact,
        "logits_roundings": ratio,
        "top1_agreement": agreement,
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


def is_spread(model: LlamaForCausalLM) -> bool:
    """Whether accelerate spread the model over several devices, or a device and a disk."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
