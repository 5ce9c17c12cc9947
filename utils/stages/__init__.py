"""The stages of a run, one module each: what it reads, its cache key, and what it hands on.

Files, caches and flags are known here and above; what stages call takes tensors, models and folders.
"""
