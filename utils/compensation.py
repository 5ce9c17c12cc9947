"""RestoreLCC itself: learned compensations on chosen heads (Eq. 8), and its controls that train b or β alone."""

from functools import partial

import torch

from models.contract import MethodInputs
from models.terms import HeadConstant
from utils.common.methods import SITES

INITIAL_STD = 1e-3
"""Standard deviation of β and b before training, as in the paper."""

BETA, B = "magnitudes", "component"


def head_constants(inputs: MethodInputs, trained: tuple[str, ...]) -> dict[str, HeadConstant]:
    """Terms of c_learned = Σ_i β_i v_i + b for the chosen heads, by name of the o_proj.bias that each is added to.

    trained: which of β and b there are; both start from N(0, 1e-3). Without V (b alone) the basis is the identity.
    """
    heads = sorted(inputs.heads)
    width = inputs.config.head_dim if inputs.basis is None else inputs.basis.shape[-1]
    generator = torch.Generator().manual_seed(inputs.seed)
    drawn = {name: INITIAL_STD * torch.randn(len(heads), width, generator=generator) for name in (BETA, B)}
    terms = {}
    for layer in dict.fromkeys(layer for layer, _ in heads):
        rows = [row for row, pair in enumerate(heads) if pair[0] == layer]
        within = torch.tensor([heads[row][1] for row in rows])
        identity = torch.eye(width).repeat(len(rows), 1, 1)
        terms[f"model.layers.{layer}.{SITES['attention']}.bias"] = HeadConstant(
            heads=within,
            basis=identity if inputs.basis is None else inputs.basis[layer, within].float(),
            **{name: drawn[name][rows] for name in trained},
        )
    return terms


restorelcc = partial(head_constants, trained=(BETA, B))
bias_only = partial(head_constants, trained=(B,))
magnitudes_only = partial(head_constants, trained=(BETA,))
