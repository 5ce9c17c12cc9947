"""Causal attention for CPUs, where torch's own kernel is slow, most of all in its backward pass.

It works on a few rows of the batch and a block of queries at a time: few enough for the CPU's cache. Scores and
gradients are batched matrix products. Query heads that share a key head go into one product. Keys after the block are
skipped. The backward pass recomputes the probabilities, so that no T × T matrix is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaForCausalLM

NAME = "restorelcc_cpu"
"""Its name in `config._attn_implementation`."""

BLOCK = 128
"""Queries in a block, at most."""

SCORES = 2**20
"""Attention scores computed at a time: 2 MiB in bf16. More only if FEWEST queries have more."""

FEWEST = 16
"""Queries in a block, at least; the last block of a sequence may have fewer."""


@contextmanager
def cpu_attention(model: LlamaForCausalLM) -> Iterator[None]:
    """Context manager: a model on the CPU uses this attention in place of SDPA, if all its layers have full attention
    without dropout or soft-capping.

    For whole sequences only, padded on the right. A mask must be additive, (B, 1, T, T): transformers drops others.
    """
    config, before = model.config, model.config._attn_implementation
    full = set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    plain = full and not (getattr(config, "attn_logit_softcapping", None) or config.attention_dropout)
    if model.device.type == "cpu" and before == "sdpa" and plain:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class _CausalAttention(torch.autograd.Function):
    """softmax(scaling · q kᵀ) v, where a query sees the keys up to its own position.

    query: (B, H, T, d); key, value: (B, KV, T, d), H a multiple of KV; all of one dtype, on the CPU. mask: (B, 1, T, T)
    of that dtype, 0 for each key that a query sees and -inf for all others, later keys included; every query must see a
    key. Returns (B, T, H, d). Scores are rounded to the dtype, as in eager attention; the softmax is computed in fp32.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value, mask)
        batch, heads, length, width = query.shape
        attended = query.new_empty(batch, length, heads, width)
        for rows, queries in _parts(query):
            _, _, values, probabilities = _block(query, key, value, scaling, mask, rows, queries)
            attended[rows, queries] = _by_head(probabilities @ values, queries).transpose(1, 2)
        return attended

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, mask = ctx.saved_tensors
        of_query = query.new_empty(query.shape)
        # In fp32, because every block adds to the keys before it.
        of_key, of_value = (key.new_zeros(key.shape, dtype=torch.float32) for _ in range(2))
        for rows, queries in _parts(query):
            scaled, keys, values, probabilities = _block(query, key, value, ctx.scaling, mask, rows, queries)
            of_output = _by_key_head(gradient[rows, queries].transpose(1, 2), key.shape[1])
            seen = rows, slice(None), slice(queries.stop)
            of_value[seen] += probabilities.mT @ of_output
            of_probabilities = of_output @ values.mT
            of_scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, query.dtype)
            of_query[rows, :, queries] = _by_head(of_scores @ keys, queries)
            of_key[seen] += of_scores.mT @ scaled
        return of_query.mul_(ctx.scaling), of_key.to(key.dtype), of_value.to(value.dtype), None, None


causal_attention = _CausalAttention.apply


def _block(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, rows: slice, queries: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention probabilities of one block: n queries of r rows, and the m keys that they may see.

    Returns the scaled query (r, KV, G·n, d), key and value (r, KV, m, d), probabilities (r, KV, G·n, m), G = H / KV.
    """
    count = queries.stop - queries.start
    scaled = _by_key_head(query[rows, :, queries] * scaling, key.shape[1])
    keys, values = (tensor[rows, :, : queries.stop] for tensor in (key, value))
    scores = scaled @ keys.mT
    by_row = scores.unflatten(2, (-1, count))  # (r, KV, G, n, m)
    if mask is None:
        by_row[..., queries.start :] += query.new_full((count, count), -torch.inf).triu(1)
    else:
        by_row += mask[rows, :, queries, : queries.stop].unsqueeze(1)
    return scaled, keys, values, scores.softmax(-1)


def _by_head(tensor: Tensor, queries: slice) -> Tensor:
    """(r, KV, G·n, d) -> (r, H, n, d)."""
    return tensor.unflatten(2, (-1, queries.stop - queries.start)).flatten(1, 2)


def _by_key_head(tensor: Tensor, key_heads: int) -> Tensor:
    """(r, H, n, d) -> (r, KV, G·n, d)."""
    return tensor.unflatten(1, (key_heads, -1)).flatten(2, 3)


def _parts(query: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and queries of each block: as many rows as hold SCORES scores, at least one."""
    batch, heads, length, _ = query.shape
    block = min(BLOCK, max(FEWEST, SCORES // (heads * length)))
    together = max(1, SCORES // (heads * min(length, block) * length))
    for row in range(0, batch, together):
        for begin in range(0, length, block):
            yield slice(row, row + together), slice(begin, min(length, begin + block))


def _attention_of_layer(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_
) -> tuple[Tensor, None]:
    """`causal_attention` with the signature of transformers' attention functions."""
    if attention_mask is not None and attention_mask.dtype != query.dtype:
        raise TypeError(f"the mask is {attention_mask.dtype}; it must be additive, in {query.dtype}")
    return causal_attention(query, key, value, scaling, attention_mask), None


AttentionInterface.register(NAME, _attention_of_layer)
