"""SlimGPT (Ling et al., NeurIPS 2024): whole heads and FFN channels go, the rest of their layer makes up for it.

Optimal brain surgery on groups of columns S of a linear layer's weight W with H = XᵀX of its input: what the
loss of S costs once all other columns have moved is tr(W_S [(H⁻¹)_SS]⁻¹ W_Sᵀ).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig

from pruning.input_statistics import Hessian
from pruning.layers import PruningPass, Values
from pruning.sparsegpt import damped_inverse
from utils.common.errors import UserError

FIRST_SHARE = 0.3125
"""The first layer's ratio as a share of the model's: the paper's 0.0625 at 20 %."""


@dataclass(frozen=True)
class Removal:
    """How many key-value heads (with the query heads that share them) and FFN channels one layer loses."""

    kv_heads: int
    channels: int


def ratios(layers: int, total: float) -> list[float]:
    """Each layer's ratio: r_i = r_0 + (r_{n-1} - r_0)·log(i+1)/log n, with the mean `total`.

    r_0 is FIRST_SHARE of the total unless r_{n-1} would exceed 1; then r_{n-1} is 1 and r_0 is what is left.
    """
    if layers == 1:
        return [total]
    growth = [math.log(index + 1) / math.log(layers) for index in range(layers)]
    mean = sum(growth) / layers
    first = FIRST_SHARE * total
    last = first + (total - first) / mean
    if last > 1:
        first, last = (total - mean) / (1 - mean), 1.0
    return [first + (last - first) * step for step in growth]


def plan(config: LlamaConfig, total: float) -> list[Removal]:
    """What each layer loses, so that `total` of all linear weights of the decoder layers go.

    Heads are few and large: their number follows the cumulative ratio, and the channels, in multiples of 8 where
    the dense model's are, bring the total to the target. Every layer keeps a KV head and a channel (or 8).
    Raises UserError naming -sparsity if the target is out of reach.
    """
    kv_heads, channels = config.num_key_value_heads, config.intermediate_size
    shared = config.num_attention_heads // kv_heads
    head_cost = config.head_dim * config.hidden_size * 2 * (shared + 1)
    channel_cost = 3 * config.hidden_size
    unit = 8 if channels % 8 == 0 else 1
    wanted = ratios(config.num_hidden_layers, total)
    heads = [min(count, kv_heads - 1) for count in _whole(ratio * kv_heads for ratio in wanted)]
    weights = config.num_hidden_layers * (kv_heads * head_cost + channels * channel_cost)
    left = (total * weights - sum(heads) * head_cost) / channel_cost
    most = channels - unit
    if left > most * config.num_hidden_layers:
        raise UserError(
            f"-sparsity: {total:g} is more than slimgpt can remove from this model, which keeps a key-value head and "
            f"{unit} channels in every layer; lower it"
        )
    exact = _spread(wanted, most, left)
    counts = [unit * min(count, most // unit) for count in _whole(share / unit for share in exact)]
    return [Removal(*pair) for pair in zip(heads, counts, strict=True)]


def remove(
    weight: torch.Tensor, hessian: torch.Tensor, size: int, count: int, step: Callable[[int], int]
) -> tuple[torch.Tensor, list[int]]:
    """Remove `count` units of `size` consecutive columns each, the cheapest first; the other columns move.

    weight: (out, n). hessian: (n, n) fp32. step: how many units go at once, given how many are still to go.
    A unit's cost is ‖L⁻¹ W_Sᵀ‖², with L the Cholesky factor of its diagonal block of H⁻¹; after each choice
    W -= W_S [(H⁻¹)_SS]⁻¹ (H⁻¹)_S: and S leaves W and H⁻¹. Returns the weight (out, n) fp64, zero in the
    removed columns, and the indices of the removed units in the order of their removal.
    """
    weight = weight.double().clone()
    weight[:, hessian.diagonal() == 0] = 0
    inverse = damped_inverse(hessian)
    left = torch.arange(weight.shape[1], device=weight.device).unflatten(0, (-1, size))
    removed = []
    remaining = weight
    while len(removed) < count:
        errors = unit_errors(remaining, inverse, size)
        number = max(1, min(step(count - len(removed)), count - len(removed)))
        chosen = torch.topk(errors, number, largest=False).indices
        gone = torch.zeros(len(left), dtype=torch.bool, device=weight.device)
        gone[chosen] = True
        columns = gone.repeat_interleave(size)
        factor = torch.linalg.cholesky(inverse[columns][:, columns])
        move = torch.cholesky_solve(inverse[columns][:, ~columns], factor)
        remaining = remaining[:, ~columns] - remaining[:, columns] @ move
        inverse = inverse[~columns][:, ~columns] - inverse[~columns][:, columns] @ move
        removed += (left[chosen, 0] // size).tolist()
        left = left[~gone]
    result = torch.zeros_like(weight)
    result[:, left.flatten()] = remaining
    return result, removed


def unit_errors(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """What the loss of each unit alone costs: tr(W_S [(H⁻¹)_SS]⁻¹ W_Sᵀ).

    weight: (out, units·size), inverse: (units·size, units·size), fp64. Returns (units,).
    """
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal()
    units = inverse.shape[0] // size
    blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    factor = torch.linalg.cholesky(blocks)
    columns = weight.T.reshape(units, size, -1)
    return torch.linalg.solve_triangular(factor, columns, upper=False).square().sum((1, 2))


def shrinking_step(to_go: int) -> int:
    """FFN channels removed between two updates: half of those still to go, between 8 and 1024."""
    return max(8, min(1024, to_go // 2))


def passes(removal: Removal, head_dim: int) -> list[PruningPass]:
    """Attention first; the FFN's Hessian is gathered from what the pruned attention gives.

    KV heads go with the query heads that share them.
    """

    def heads(layer: nn.Module, values: Values) -> None:
        attention = layer.self_attn
        size, weight = attention.num_key_value_groups * head_dim, attention.o_proj.weight
        pruned, gone = remove(weight, values["self_attn.o_proj"], size, removal.kv_heads, lambda _: 1)
        weight.copy_(pruned)
        for linear, rows in ((attention.q_proj, size), (attention.k_proj, head_dim), (attention.v_proj, head_dim)):
            for kv_head in gone:
                _zero_rows(linear, slice(kv_head * rows, (kv_head + 1) * rows))

    def channels(layer: nn.Module, values: Values) -> None:
        mlp = layer.mlp
        pruned, gone = remove(mlp.down_proj.weight, values["mlp.down_proj"], 1, removal.channels, shrinking_step)
        mlp.down_proj.weight.copy_(pruned)
        for linear in (mlp.gate_proj, mlp.up_proj):
            _zero_rows(linear, gone)

    of_heads = PruningPass(("self_attn.o_proj",), Hessian, heads)
    of_channels = PruningPass(("mlp.down_proj",), Hessian, channels)
    return [of_heads] * bool(removal.kv_heads) + [of_channels] * bool(removal.channels)


def _zero_rows(linear: nn.Linear, rows: slice | list[int]) -> None:
    linear.weight[rows] = 0
    if linear.bias is not None:
        linear.bias[rows] = 0


def _whole(shares: Iterable[float]) -> list[int]:
    """Whole numbers whose running sums are the shares' running sums, rounded."""
    counts, exact, given = [], 0.0, 0
    for share in shares:
        exact += share
        counts.append(round(exact) - given)
        given += counts[-1]
    return counts


def _spread(shape: list[float], most: float, total: float) -> list[float]:
    """Numbers proportional to `shape`, none above `most`, that add up to `total`."""
    low, high = 0.0, most / min(share for share in shape if share > 0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(min(middle * share, most) for share in shape) < total else (low, middle)
    return [min(high * share, most) for share in shape]
