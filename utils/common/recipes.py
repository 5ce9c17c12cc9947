"""Recipes: named sets of flags, with the rates that validation chose; docs/results.md says what was measured of them.

A recipe is nothing but flags. What is given on the command line wins over it.
"""

RECIPES = {
    "constants": {
        "method": "norms_biases",
        "loss": "distill",
        "distill_weight": 0.5,
        "lr": 4e-3,
    },
    "inside_mask": {
        "method": "masked_lora",
        "apply_to": "all",
        "train_norms": True,
        "loss": "distill",
        "distill_weight": 0.5,
        "lr": 2e-3,
    },
}
"""What -recipe takes. `constants`: no weight of a matrix changes. `inside_mask`: no zero changes."""


def as_flags(name: str) -> str:
    """The recipe as it would be typed."""
    parts = (f"-{flag}" if value is True else f"-{flag} {value}" for flag, value in RECIPES[name].items())
    return " ".join(parts)
