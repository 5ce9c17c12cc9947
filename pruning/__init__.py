"""Pruning: `prune_into` of `prune_model.py` makes a pruned checkpoint from a dense model's folder."""
