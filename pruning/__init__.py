"""Pruning: a dense Llama's folder in, a pruned checkpoint out, through `check`, `prune` and `compact`."""

from pruning.checkpoint import check, prune
from pruning.compact import compact
from pruning.pattern import Pattern

__all__ = ["Pattern", "check", "compact", "prune"]
