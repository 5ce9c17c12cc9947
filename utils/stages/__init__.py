"""The stages of a run: what each reads, by what it is kept, and what it hands on.

Files, caches and flags are known here and above; what stages call takes tensors, models and folders.
"""
