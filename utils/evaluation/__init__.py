"""Scores of a model through lm_eval, offline, with standard errors and paired differences."""
