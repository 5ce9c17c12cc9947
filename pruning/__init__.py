"""Pruning: a dense Llama's folder in, a pruned checkpoint out; `prune_into` of `prune_model.py` does it."""
