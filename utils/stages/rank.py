"""Compute the lost components of all heads, and rank and choose the heads to restore."""

import shutil
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import models
from baselines import lofit
from models.checkpoint import Checkpoint, restorable_heads
from utils import compensation, components, losses, probing, prompts, training
from utils.common.cache import Kept, cached
from utils.prompts import Encoded
from utils.report.records import spectrum_record
from utils.report.tables import share_text
from utils.samples import Samples
from utils.stages.context import Models, Run

SCORE_NAMES = {
    "contrastive": "validation accuracy of the probe",
    "gap": "mean squared activation gap",
    "random": "mean squared activation gap",
    "lofit": "norm of the scale A that LoFiT trained",
}
"""What the heat map of heads shows for each -head_selection; random heads are shown over the gap."""


@dataclass(frozen=True)
class Ranked:
    """heads: the chosen pairs (layer, head), ascending. scores: (L, H), what ranked them; NaN for heads that cannot be
    restored. basis: V of all heads (L, H, d, d). spectrum: a `spectrum_record` of the gap, None without a gap. sizes:
    ‖c‖ (L, H).

    The last three are None where neither the method nor -head_selection reads activations.
    """

    heads: list[tuple[int, int]]
    scores: Tensor
    basis: Tensor | None = None
    spectrum: dict | None = None
    sizes: Tensor | None = None


def rank(run: Run, models: Models, samples: Samples, dense: list[Kept], pruned: list[Kept]) -> Ranked | None:
    """Choose the heads to restore, and find what restores them; None for a method without heads.

    dense, pruned: the models' activations.
    """
    if not run.needs.heads:
        return None
    args, selection, found = run.args, run.args.head_selection, {}
    if run.reads_activations:
        with run.processes.main_first():
            seed = args.samples_seed if selection == "contrastive" else None
            found = find_components(run.cache, dense, pruned, args.num_components, seed)
    shape = models.config.num_hidden_layers, models.config.num_attention_heads
    usable = restorable_heads(models.pruned, *shape)
    measured = "accuracy" if selection == "contrastive" else "gap"
    scores = head_norms(run, models, samples) if selection == "lofit" else found[measured]
    if selection == "random":
        heads = probing.order_randomly(usable, args.training_seed)
    else:
        heads = probing.rank_heads(scores, usable, found.get("loss"))  # which only probes have
    heads, scores = sorted(heads[: args.head_count(*shape)]), scores.masked_fill(~usable, torch.nan)
    if not found:
        return Ranked(heads, scores)
    basis = components.random_basis(found["basis"], args.training_seed) if args.basis == "random" else found["basis"]
    spectrum = spectrum_record(found["explained"])
    if spectrum:
        kept = min(args.num_components, basis.shape[-1])
        first = spectrum["mean"][kept - 1]
        print(f"      the first {kept} of {basis.shape[-1]} directions carry {share_text(first)} of the gap")
    return Ranked(heads, scores, basis, spectrum, found["size"])


@cached("components", code=(components, probing))
def find_components(dense: list[Kept], pruned: list[Kept], count: int, probes_seed: int | None) -> dict[str, Tensor]:
    """Eqs. 3-4 for all heads, with the size of the gap; and the probes' scores, unless probes_seed is None."""
    of_dense = [z()["z"].float() for z in dense]
    of_pruned = torch.cat([z()["z"][0] for z in pruned], dim=2).float()
    gap = torch.cat([z[0] for z in of_dense], dim=2) - of_pruned
    lost = components.lost_components(gap, count)
    sizes = {"size": lost.component.norm(dim=-1), "gap": gap.square().mean((2, 3))}
    found = {"basis": lost.basis, "explained": lost.explained, **sizes}
    if probes_seed is not None:
        _, right, wrong = of_dense[0]
        restored = of_pruned[:, :, : right.shape[2]] + lost.component.unsqueeze(2)
        found |= probing.probe_heads(restored, right, wrong, probes_seed, shown=True)
    return found


def head_norms(run: Run, models: Models, samples: Samples) -> Tensor:
    """‖A‖₂ (L, H) fp32 of LoFiT's first step on the pruned model, trained by all processes together."""
    processes, made, place = run.processes, [], run.folder / "lofit"
    how = replace(training.TrainingSettings.of(run.args), lr=lofit.LR, flag="-head_selection")
    alike = [processes.count, processes.sharded, run.args.dtype, run.kind_of_device]
    kept = lofit_norms.later(run.cache, models.pruned, samples.train, how, alike, made=made)
    began = time.perf_counter()
    # All processes decide together: one that trained alone would wait for the others for ever.
    if processes.any(not kept.known()):
        model = run.load(models.pruned, run.training_device(models.pruned, how.num_epoch > 0))
        run.record.tell("LoFiT's first step: training a scale for each head")
        made.append(lofit.scale_norms(model, samples.train, how, lofit.L1, run.device, place, belongs=kept.path.name))
    with processes.main_first():
        norms = replace(kept, before=time.perf_counter() - began)()["norms"]
        if processes.is_main:  # the norms are cached, and flags may change again
            shutil.rmtree(place, ignore_errors=True)
    return norms


@cached("lofit", code=(lofit, models, compensation, losses, prompts, training))
def lofit_norms(
    pruned: Checkpoint, samples: list[Encoded], how: training.TrainingSettings, alike: list, *, made: list[Tensor]
) -> dict[str, Tensor]:
    """The norms in `made`, trained by all processes. alike: number of processes, sharding, dtype, kind of device."""
    return {"norms": made.pop()}
