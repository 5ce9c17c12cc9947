"""Pruning: a dense Llama's folder in, a pruned checkpoint out; `check` and `prune_into` do it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruning.checkpoint import check, prune_into
    from pruning.pattern import Pattern

__all__ = ["Pattern", "check", "prune_into"]


def __getattr__(name: str) -> object:
    # When asked for: `python -m pruning` imports this first, and tells a wrong path before torch is imported.
    if name in __all__:
        from pruning import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'pruning' has no attribute '{name}'")
