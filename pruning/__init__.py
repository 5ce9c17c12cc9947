"""Pruning: a dense Llama's folder in, a pruned checkpoint out. `check` and `prune` do it; `compact` makes a model
that lost whole heads and channels smaller, `expand` puts zeros in their place again."""

from pruning.checkpoint import check, prune
from pruning.compact import compact, compact_checkpoint, expand, expand_checkpoint
from pruning.pattern import Pattern

__all__ = ["Pattern", "check", "compact", "compact_checkpoint", "expand", "expand_checkpoint", "prune"]
