"""Attention kernels compared: what stock PyTorch offers, for reading and for training."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM

from benchmarks.inference import plain_forward
from benchmarks.timing import say, speedup, spread, turn_by_turn
from benchmarks.training import grouped_batches, restoring_loop, visible_restoration
from models.cpu_attention import cpu_attention
from utils.common.errors import first_line
from utils.prompts import Encoded

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def _attending(name: str, model: LlamaForCausalLM) -> AbstractContextManager:
    if name == "eager":
        return _eager(model)
    if name == "ours":
        return cpu_attention(model)
    return sdpa_kernel(KERNELS[name]) if name in KERNELS else nullcontext()


@contextmanager
def _eager(model: LlamaForCausalLM) -> Iterator[None]:
    """Attention written out in transformers, without a fused kernel."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention_speed(
    model: LlamaForCausalLM, samples: list[Encoded], count: int, prompt: torch.Tensor, repeats: int, seed: int
) -> dict[str, dict]:
    """Rows `attention_NAME_prefill` and `attention_NAME_training`: how fast NAME is, as a ratio to sdpa's own choice.

    NAME `ours` is this project's for training on a CPU. A kernel that the device, dtype or shapes rule out is named and
    has no row.
    """
    loop = restoring_loop(model, visible_restoration(model, seed), nullcontext)
    batches = grouped_batches(samples, count, seed)
    works = {
        "prefill": (model, lambda: plain_forward(model, prompt)),
        "training": (loop.model, lambda: loop.run(batches)),
    }
    rows = {}
    for kind, (used, work) in works.items():
        usable = {}
        ours = ("ours",) if kind == "training" and model.device.type == "cpu" else ()
        for name in ("sdpa", "eager", *ours, *KERNELS):
            run = _with_kernel(name, used, work)
            try:
                run(0)
            except RuntimeError as error:
                say(f"attention {kind}: {name} cannot be used here ({first_line(error)})")
            else:
                usable[name] = run
        turns = turn_by_turn(usable, repeats)
        for name in (name for name in usable if name != "sdpa"):
            rows[f"attention_{name}_{kind}"] = row = spread(speedup(turns["sdpa"], turns[name]))
            say(f"attention {kind}: {name} {row['median']:.2f}× as fast as what sdpa takes by itself")
    return rows


def _with_kernel(name: str, model: LlamaForCausalLM, work: Callable[[], object]) -> Callable[[int], None]:
    """`work` as a turn in which `model` attends by the kernel of that name; "sdpa" leaves the choice to PyTorch."""

    def run(_: int) -> None:
        with _attending(name, model):
            work()

    return run
