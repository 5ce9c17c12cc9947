"""Pruning: a dense Llama's folder in, a plain pruned checkpoint out; `check` and `prune` are the interface."""

from pruning.checkpoint import check, prune
from pruning.pattern import Pattern

__all__ = ["Pattern", "check", "prune"]
