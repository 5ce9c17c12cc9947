"""Lost components of all heads, and the heads in the order in which they are chosen."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import baselines.lofit
import utils.compensation
import utils.components
import utils.losses
import utils.probing
import utils.training
from models import cpu_attention, modeling_llama, terms
from models.checkpoint import Checkpoint, restorable_heads
from utils.common.cache import Kept, cached
from utils.common.errors import UserError
from utils.components import lost_components, random_basis
from utils.probing import ProbeScores, order_randomly, probe_heads, rank_by_score, rank_heads
from utils.prompts import Encoded
from utils.samples import Samples
from utils.stages.context import Models, Run, settings
from utils.training import TrainingSettings

SCORE_NAMES = {
    "contrastive": "validation accuracy of the probe",
    "gap": "mean squared activation gap",
    "random": "mean squared activation gap",
    "lofit": "norm of the scale A that LoFiT trained",
}
"""What the heat map of heads shows for each -head_selection; random heads are shown over the gap."""


@dataclass(frozen=True)
class Ranked:
    """V of all heads (L, H, d, d), the share of the gap (L, H, d) that each direction carries, ‖c‖ (L, H), the (L, H)
    scores that ranked the heads, and the chosen ones: pairs (layer, head), in ascending order.

    V, its share and ‖c‖ are None where neither the method nor -head_selection reads activations.
    """

    basis: Tensor | None
    explained: Tensor | None
    sizes: Tensor | None
    scores: Tensor
    heads: list[tuple[int, int]]


def rank(run: Run, models: Models, dense: list[Kept], pruned: list[Kept], norms: Tensor | None) -> Ranked | None:
    """The heads that will be restored, and what they are restored by; None for a method without heads.

    dense, pruned: the models' activations. norms: (L, H), what -head_selection lofit ranks by.
    """
    if not run.needs.heads:
        return None
    args, found = run.args, {}
    if run.reads_activations:
        seed = args.samples_seed if args.head_selection == "contrastive" else None
        with run.processes.main_first():
            found = components(run.cache, dense, pruned, args.num_components, seed)
    usable = restorable_heads(models.pruned.folder, *models.shape[:2])
    if args.head_selection == "contrastive":
        heads, scores = rank_heads(ProbeScores(found["accuracy"], found["loss"]), usable), found["accuracy"]
    elif args.head_selection == "random":
        heads, scores = order_randomly(usable, args.training_seed), found["gap"]
    else:
        scores = norms if args.head_selection == "lofit" else found["gap"]
        heads = rank_by_score(scores, usable)
    wanted = args.head_count(*models.shape[:2])
    if wanted > len(heads):
        raise UserError(
            f"-use_topk_heads: {wanted} heads asked for, but {len(heads)} can be restored "
            "(the o_proj columns of the others are all zero); give a smaller count"
        )
    if not found:
        return Ranked(None, None, None, scores, sorted(heads[:wanted]))
    basis = random_basis(found["basis"], args.training_seed) if args.basis == "random" else found["basis"]
    first = float(found["explained"][..., : args.num_components].sum(-1).mean())
    kept = min(args.num_components, basis.shape[-1])
    print(f"      the first {kept} of {basis.shape[-1]} directions carry {first:.1%} of the gap")
    return Ranked(basis, found["explained"], found["size"], scores, sorted(heads[:wanted]))


@cached("components", code=(utils.components, utils.probing))
def components(dense: list[Kept], pruned: list[Kept], count: int, probes_seed: int | None) -> dict[str, Tensor]:
    """Eqs. 3-4 for all heads, with the size of the gap; and the probes' scores, unless probes_seed is None."""
    of_dense = [z()["z"].float() for z in dense]
    of_pruned = torch.cat([z()["z"][0] for z in pruned], dim=2).float()
    gap = torch.cat([z[0] for z in of_dense], dim=2) - of_pruned
    lost = lost_components(gap, count)
    sizes = {"size": lost.component.norm(dim=-1), "gap": gap.square().mean((2, 3))}
    found = {"basis": lost.basis, "explained": lost.explained, **sizes}
    if probes_seed is not None:
        _, right, wrong = of_dense[0]
        restored = of_pruned[:, :, : right.shape[2]] + lost.component.unsqueeze(2)
        probes = probe_heads(restored, right, wrong, probes_seed, shown=True)
        found |= {"accuracy": probes.accuracy, "loss": probes.loss}
    return found


def head_norms(run: Run, models: Models, samples: Samples) -> Tensor | None:
    """‖A‖₂ (L, H) fp32 of LoFiT's first step on the pruned model, trained by all processes together; None where heads
    are ranked otherwise, or not.
    """
    if not run.needs.heads or run.args.head_selection != "lofit":
        return None
    args, processes = run.args, run.processes
    how = replace(settings(args), lr=baselines.lofit.LR, flag="-head_selection")
    alike = [processes.count, processes.sharded, args.dtype, run.kind_of_device]
    made: list[Tensor] = []
    kept = lofit_norms.later(run.cache, models.pruned, samples.train, how, baselines.lofit.L1, alike, made=made.pop)
    with processes.main_first():
        known = kept.known()
    # Asked together: a process that trained alone would wait for the others for ever.
    if processes.any(not known):
        model = run.load(models.pruned, run.training_device(models.pruned, how.epochs > 0))
        run.record.tell("LoFiT's first step: a scale of every head")
        where = run.device, processes.sharded
        made.append(baselines.lofit.scale_norms(model, samples.train, how, baselines.lofit.L1, *where))
    with processes.main_first():
        return kept()["norms"]


_LOFIT = (baselines.lofit, cpu_attention, modeling_llama, terms, utils.compensation, utils.losses, utils.training)


@cached("lofit", code=_LOFIT, libraries=("torch", "transformers", "accelerate"))
def lofit_norms(
    pruned: Checkpoint, samples: list[Encoded], how: TrainingSettings, l1: float, alike: list, *, made: Callable
) -> dict[str, Tensor]:
    """The norms that all processes have trained together. alike: how many they were, their dtype and device."""
    return {"norms": made()}
