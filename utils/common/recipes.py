"""Recipes: named sets of flags, with the rates that validation chose; docs/results.md says what was measured of them.

A recipe is nothing but flags. What is given on the command line wins over it.
"""

_HALF_DISTILLED = {"loss": "distill"}

_INSIDE_MASK = {"method": "masked_lora", "apply_to": "all", "train_norms": True, **_HALF_DISTILLED, "lr": 2e-3}

RECIPES = {
    "biases": {"method": "output_bias", "apply_to": "all", **_HALF_DISTILLED, "lr": 4e-3},
    "constants": {"method": "norms_biases", **_HALF_DISTILLED, "lr": 4e-3},
    "inside_mask": _INSIDE_MASK,
    "inside_mask_admm": {"first": "admm_update", **_INSIDE_MASK},
}
"""What -recipe takes. `biases`: every weight keeps its bits. `constants`: no weight of a matrix changes, but the scales
of norms do. `inside_mask`: no zero changes. `inside_mask_admm`: none either, and before training the weights are fitted
to the dense model's outputs on the calibration set."""


def as_flags(name: str) -> str:
    """The recipe as it would be typed."""
    parts = (f"-{flag}" if value is True else f"-{flag} {value}" for flag, value in RECIPES[name].items())
    return " ".join(parts)
