"""What a flag's value may be: argparse types that say in one line what is wrong."""

import argparse
from collections.abc import Callable
from contextlib import suppress

from utils.common.errors import shortened
from utils.common.methods import LINEAR_NAMES

MOST = 10**9  # beyond it, sizes overflow in libraries rather than being too large


def _number(kind: Callable[[str], float], holds: Callable[[float], bool], what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with suppress(ValueError):
            if holds(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be a {what}, not {shortened(text)}")

    convert.metavar = "N"
    return convert


def at_least(bound: float) -> Callable[[str], float]:
    """An argparse type: a number not below `bound`, nor above MOST; a whole one if the bound is an int."""
    kind = "whole number" if isinstance(bound, int) else "number"
    return _number(type(bound), lambda value: bound <= value <= MOST, f"{kind}, {bound:g} to {MOST}")


rate = _number(float, lambda value: 0 < value < 3.4e38, "number above 0")
"""An argparse type: a number above 0 that fp32 holds."""

seed_number = _number(int, lambda value: 0 <= value < 2**32, f"whole number, 0 to {2**32 - 1}")
"""An argparse type: a whole number that every library takes for a seed."""


count_or_share = _number(
    lambda text: int(text) if text.strip().isdecimal() else float(text),
    lambda value: 1 <= value <= MOST if isinstance(value, int) else 0 < value <= 1,
    "count of heads (1 or more) or a share above 0, at most 1.0",
)
"""An argparse type: a whole number of at least 1, or with a point (1.0 too) a share in (0, 1]."""


def linear_names(text: str) -> str:
    """An argparse type: some of LINEAR_NAMES, separated by commas; the same in their order."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in LINEAR_NAMES]:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(LINEAR_NAMES)}, not {', '.join(unknown) or text}")
    return ",".join(name for name in LINEAR_NAMES if name in names)


def hub_id(text: str) -> str:
    """An argparse type: a model's name on the hub, `owner/name` or `name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # a tenth of a second, for this flag only

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"must be owner/name or name, as the hub has them ({error})") from error
    if not text.isascii() or text != text.strip():  # which earlier versions of that check take
        raise argparse.ArgumentTypeError("must be owner/name or name, in ASCII and without spaces")
    return text


count_or_share.metavar, linear_names.metavar, hub_id.metavar = "COUNT|SHARE", "NAMES", "NAME"
