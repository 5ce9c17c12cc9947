"""What a flag's value may be: argparse types that say in one line what is wrong."""

import argparse
from collections.abc import Callable
from contextlib import suppress

from utils.common.errors import shortened
from utils.common.names import LINEAR_NAMES

MOST = 10**9
"""The largest count that a flag takes: beyond it, sizes overflow in libraries rather than being too large."""


def _number(kind: type, holds: Callable[[float], bool], what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with suppress(ValueError):
            if holds(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be a {what}, not {shortened(text)}")

    convert.metavar = "N"
    return convert


def above(bound: float) -> Callable[[str], float]:
    """An argparse type: a number above `bound` that fp32 holds."""
    return _number(float, lambda value: bound < value < 3.4e38, f"number above {bound:g}")


def at_least_real(bound: float) -> Callable[[str], float]:
    """An argparse type: a number not below `bound`, nor above MOST."""
    return _number(float, lambda value: bound <= value <= MOST, f"number, {bound:g} to {MOST}")


def at_least(bound: int) -> Callable[[str], int]:
    """An argparse type: a whole number not below `bound`, nor above MOST."""
    return _number(int, lambda value: bound <= value <= MOST, f"whole number, {bound} to {MOST}")


seed_number = _number(int, lambda value: 0 <= value < 2**32, f"whole number, 0 to {2**32 - 1}")
"""An argparse type: a whole number that every library takes for a seed."""


def count_or_share(text: str) -> int | float:
    """An argparse type: a whole number of at least 1, or with a point (1.0 too) a share in (0, 1]."""
    try:
        value = int(text)
    except ValueError:
        value = float(text)
    if not (1 <= value <= MOST if isinstance(value, int) else 0 < value <= 1):
        raise argparse.ArgumentTypeError(
            f"must be a count of heads (1 or more) or a share above 0, at most 1.0, not {shortened(text)}"
        )
    return value


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
