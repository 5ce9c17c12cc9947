"""SlimGPT (Ling et al., NeurIPS 2024): whole heads and FFN channels are removed, other weights compensate.

Optimal brain surgery on groups of columns S of a linear layer's weight W, with H = X Xᵀ of its input. The cost of
removing S, once all other columns are updated to compensate, is tr(W_S [(H⁻¹)_SS]⁻¹ W_Sᵀ).
"""

import math
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise

import torch
from transformers import LlamaConfig

from pruning.input_statistics import Hessian
from pruning.layers import LayerInputs
from pruning.sparsegpt import damped_inverse
from utils.common.errors import UserError
from utils.common.names import counted

FIRST_SHARE = 0.3125
"""The first layer's ratio as a share of the model's: the paper's 0.0625 at 20 %."""


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


def plan(config: LlamaConfig, total: float) -> list[tuple[int, int]]:
    """(key-value heads, FFN channels) to remove from each layer, so that the share `total` of the decoder layers'
    linear weights is removed. A key-value head goes with the query heads that share it.

    Heads are few and large: their numbers follow the running sum of the ratios. The channels, in multiples of 8 if
    the dense model's number is one, make up the rest. Every layer keeps at least a KV head and a channel (or 8).
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
    while (left := (total * weights - sum(heads) * head_cost) / channel_cost) < 0:  # few layers
        heads[heads.index(max(heads))] -= 1
    most = channels - unit
    if left > most * config.num_hidden_layers:
        raise UserError(
            f"-sparsity: {total:g} is more than slimgpt can remove from this model, which keeps a key-value head and "
            f"{counted(unit, 'channel')} in every layer; lower it"
        )
    exact = _spread(wanted, most, left)
    counts = [unit * min(count, most // unit) for count in _whole(share / unit for share in exact)]
    return list(zip(heads, counts, strict=True))


def remove(
    weight: torch.Tensor, hessian: torch.Tensor, size: int, count: int, step: Callable[[int], int]
) -> tuple[torch.Tensor, list[int]]:
    """Remove `count` units of `size` consecutive columns each, the cheapest first, and update the other columns.

    weight: (out, n). hessian: (n, n) fp32. step: how many units go at once, given how many are still to go.
    A unit's cost is ‖L⁻¹ W_Sᵀ‖², with L the Cholesky factor of its diagonal block of H⁻¹; after each choice
    W -= W_S [(H⁻¹)_SS]⁻¹ (H⁻¹)_S: and S is eliminated from W and H⁻¹. Returns the weight (out, n) fp64, zero in the
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
        number = min(step(count - len(removed)), count - len(removed))
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
    """The cost of removing each unit alone: tr(W_S [(H⁻¹)_SS]⁻¹ W_Sᵀ).

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


def prune_layer(kv_heads: int, channels: int, inputs: LayerInputs) -> None:
    """Zero heads and channels of a decoder layer in place, KV heads with the query heads that share them.

    Attention is pruned first, so that the FFN's Hessian is gathered with the pruned attention.
    """
    attention = inputs.layer.self_attn
    width = attention.head_dim
    size = width * attention.num_key_value_groups
    rows = {"self_attn.q_proj": size, "self_attn.k_proj": width, "self_attn.v_proj": width}
    _remove_units(inputs, "self_attn.o_proj", size, kv_heads, lambda _: 1, rows)
    rows = {"mlp.gate_proj": 1, "mlp.up_proj": 1}
    _remove_units(inputs, "mlp.down_proj", 1, channels, shrinking_step, rows)


def _remove_units(
    inputs: LayerInputs, name: str, size: int, count: int, step: Callable[[int], int], rows: dict[str, int]
) -> None:
    """`remove` on a linear layer. rows: for each layer before it, how many rows belong to a unit; they become zero."""
    if not count:
        return
    linear = inputs.layer.get_submodule(name)
    weight, removed = remove(linear.weight, inputs.gather((name,), Hessian)[name], size, count, step)
    linear.weight.copy_(weight)
    for before, height in rows.items():
        gone = [unit * height + row for unit in removed for row in range(height)]
        for parameter in inputs.layer.get_submodule(before).parameters():  # weight, and bias if there is one
            parameter[gone] = 0


def _whole(shares: Iterable[float]) -> list[int]:
    """Whole numbers whose running sums are the shares' running sums, rounded."""
    return [after - before for before, after in pairwise([0, *map(round, accumulate(shares))])]


def _spread(shape: list[float], most: float, total: float) -> list[float]:
    """Numbers proportional to `shape`, none above `most`, that add up to `total`."""
    low, high = 0.0, most / min(share for share in shape if share > 0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(min(middle * share, most) for share in shape) < total else (low, middle)
    return [min(high * share, most) for share in shape]
