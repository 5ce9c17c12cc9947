"""The stages of a run: files, caches and flags are known here and above; what stages call takes tensors and models."""
