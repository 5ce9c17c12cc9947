"""Pruning: a dense Llama's folder in, a pruned checkpoint out; `check` and `prune` do it."""

from pruning.checkpoint import check, prune
from pruning.pattern import Pattern

__all__ = ["Pattern", "check", "prune"]
