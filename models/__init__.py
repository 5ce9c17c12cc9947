"""Loading Llamas, attaching the restoration to them, merging it into a plain checkpoint."""
