"""Lost components of all heads, and the heads in the order in which they are chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor

import utils.components
import utils.probing
from models.checkpoint import restorable_heads
from utils.common.cache import code_version
from utils.common.errors import UserError
from utils.components import lost_components, random_basis
from utils.probing import ProbeScores, order_randomly, probe_heads, rank_by_score, rank_heads
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
    """V of all heads (L, H, d, d), the share of the gap (L, H, d) that each direction carries, ‖c‖ (L, H), the (L, H)
    scores that ranked the heads, and the chosen ones: pairs (layer, head), in ascending order.

    V, its share and ‖c‖ are None where neither the method nor -head_selection reads activations.
    """

    basis: Tensor | None
    explained: Tensor | None
    sizes: Tensor | None
    scores: Tensor
    heads: list[tuple[int, int]]


def rank(
    run: Run, models: Models, dense_keys: list[dict], pruned_keys: list[dict], norms: Tensor | None
) -> Ranked | None:
    """The heads that will be restored, and what they are restored by; None for a method without heads.

    norms: (L, H), what -head_selection lofit ranks by.
    """
    if not run.needs.heads:
        return None
    args = run.args
    found = kept_components(run, dense_keys, pruned_keys) if run.reads_activations else {}
    heads, head_scores = ordered(run, found, norms, restorable_heads(models.pruned, *models.shape[:2]))
    wanted = args.head_count(*models.shape[:2])
    if wanted > len(heads):
        raise UserError(
            f"-use_topk_heads: {wanted} heads asked for, but {len(heads)} can be restored "
            "(the o_proj columns of the others are all zero); give a smaller count"
        )
    if not found:
        return Ranked(None, None, None, head_scores, sorted(heads[:wanted]))
    basis = random_basis(found["basis"], args.training_seed) if args.basis == "random" else found["basis"]
    first = float(found["explained"][..., : args.num_components].sum(-1).mean())
    kept = min(args.num_components, basis.shape[-1])
    print(f"      the first {kept} of {basis.shape[-1]} directions carry {first:.1%} of the gap")
    return Ranked(basis, found["explained"], found["size"], head_scores, sorted(heads[:wanted]))


def kept_components(run: Run, dense_keys: list[dict], pruned_keys: list[dict]) -> dict[str, Tensor]:
    """What find_components finds, by the main process first."""
    key = components_key(run, dense_keys, pruned_keys)
    with run.processes.main_first():
        return run.cache.tensors("components", key, lambda: find_components(run, dense_keys, pruned_keys))


def components_key(run: Run, dense_keys: list[dict], pruned_keys: list[dict]) -> dict:
    """All that lost components and probes depend on."""
    args = run.args
    return {
        "dense": dense_keys,
        "pruned": pruned_keys,
        "num_components": args.num_components,
        "probes_seed": args.samples_seed if args.head_selection == "contrastive" else None,
        "code": code_version(utils.components, utils.probing),
    }


def ordered(
    run: Run, found: dict[str, Tensor], norms: Tensor | None, usable: Tensor
) -> tuple[list[tuple[int, int]], Tensor]:
    """The usable heads, best first as -head_selection has it, and the (L, H) scores to show."""
    if run.args.head_selection == "contrastive":
        return rank_heads(ProbeScores(found["accuracy"], found["loss"]), usable), found["accuracy"]
    if run.args.head_selection == "lofit":
        return rank_by_score(norms, usable), norms
    if run.args.head_selection == "gap":
        return rank_by_score(found["gap"], usable), found["gap"]
    return order_randomly(usable, run.args.training_seed), found["gap"]


def find_components(run: Run, dense_keys: list[dict], pruned_keys: list[dict]) -> dict[str, Tensor]:
    """Eqs. 3-4 for all heads, and what ranks them: the probes' scores, or the size of the gap."""
    # Kept a stage ago, or by an earlier run: nothing is computed here.
    dense = [run.cache.tensors("activations", key, dict)["z"].float() for key in dense_keys]
    of_pruned = torch.cat([run.cache.tensors("activations", key, dict)["z"][0] for key in pruned_keys], dim=2).float()
    gap = torch.cat([z[0] for z in dense], dim=2) - of_pruned
    components = lost_components(gap, run.args.num_components)
    found = {"basis": components.basis, "explained": components.explained, "size": components.size}
    found["gap"] = gap.square().mean((2, 3))
    if run.args.head_selection == "contrastive":
        _, right, wrong = dense[0]
        restored = of_pruned[:, :, : right.shape[2]] + components.component.unsqueeze(2)
        probes = probe_heads(restored, right, wrong, run.args.samples_seed, shown=True)
        found |= {"accuracy": probes.accuracy, "loss": probes.loss}
    return found
