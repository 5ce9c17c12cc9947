"""What all benchmarks share: turns, the machine's own matrix product, and the spread of repeats."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from transformers import LlamaForCausalLM

from models.checkpoint import LINEARS

PRODUCT = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the square matrices that are multiplied: large enough for the full rate, still quick."""

PRODUCTS = 8

Found = TypeVar("Found")


class Disagreement(RuntimeError):
    """Two ways that should compute the same do not, so that a ratio of their times would mean nothing."""


@dataclass(frozen=True)
class Turn(Generic[Found]):
    """One turn of a piece of work: what it returned, its seconds, and the matrix product's FLOP/s around it."""

    found: Found
    seconds: float
    rate: float | None


def say(line: str) -> None:
    """Print at once: a run takes minutes, and what is measured should survive being stopped."""
    print(line, flush=True)


def wait_for_device() -> None:
    """Until the GPU's queue is empty; nothing to wait for without one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> float:
    """Seconds, the GPU's queue included."""
    return _turn(work).seconds


def matmul_rate(device: str | torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product in `dtype`, the best of several: the machine's own limit, now."""
    place = torch.device(device)
    size = PRODUCT.get(place.type, PRODUCT["cpu"])
    left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    product = torch.empty(size, size, device=place, dtype=dtype)
    # A weight is stored (out, in), so what the models compute is x Wᵀ.
    return 2 * size**3 / min(timed(lambda: torch.mm(left, right.T, out=product)) for _ in range(PRODUCTS))


def turn_by_turn(
    works: dict[str, Callable[[int], Found]], repeats: int, rate: Callable[[], float] | None = None
) -> dict[str, list[Turn[Found]]]:
    """`repeats` turns of each piece of work, all pieces in a turn, every other turn backwards.

    So whatever else the machine does falls on all of them, and a drift cancels. A piece of work is given the number
    of its turn. With `rate`, that is measured just before and just after each piece, and the mean of both kept.
    """
    turns: dict[str, list[Turn[Found]]] = {name: [] for name in works}
    for number in range(repeats):
        order = list(works.items())
        for name, work in order if number % 2 == 0 else reversed(order):
            before = rate() if rate else None
            turn = _turn(lambda work=work, number=number: work(number))
            around = None if before is None else (before + rate()) / 2
            turns[name].append(Turn(turn.found, turn.seconds, around))
    return turns


def _turn(work: Callable[[], Found]) -> Turn[Found]:
    wait_for_device()
    start = time.perf_counter()
    found = work()
    wait_for_device()
    return Turn(found, time.perf_counter() - start, None)


def spread(values: Sequence[float], **more) -> dict:
    """Median, least and greatest of the repeats, the repeats themselves, and whatever else belongs to the row."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": values, **more}


def speedup(slow: list[Turn], fast: list[Turn]) -> list[float]:
    """How many times faster, turn by turn."""
    return [a.seconds / b.seconds for a, b in zip(slow, fast, strict=True)]


def check_close(found: float, expected: float, tolerance: float, what: str) -> None:
    """Raise Disagreement unless both differ by at most `tolerance`, relative to the expected one."""
    difference = abs(found - expected) / max(abs(expected), 1e-12)
    # `not <=` lets no NaN pass.
    if not difference <= tolerance:
        raise Disagreement(f"{what}: {found:.6g} against {expected:.6g}, more than {tolerance:.1e} apart")


def sharing_weights(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A second model that can be patched by itself; the weights stay the first one's tensors."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def linear_parameters(layer: torch.nn.Module, names: Sequence[str] = LINEARS) -> int:
    """Weights of a decoder layer's linear layers: what a token is multiplied with."""
    return sum(layer.get_submodule(name).weight.numel() for name in names)
