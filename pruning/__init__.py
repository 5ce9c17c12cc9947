"""Pruning: a dense Llama's folder in, a pruned checkpoint out; `check` and `prune_into` of `checkpoint.py` do it."""
