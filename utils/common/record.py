"""The record of a run: how long each stage took, how much memory it needed, and what went in."""

import ctypes
import gc
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from utils.common.cache import Cache
from utils.common.names import counted

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "lm-eval", "numpy", "safetensors", "gguf")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Stage(NamedTuple):
    """One stage of a run: a short key for the code, and the name that terminal, run.json and `-plan` show.

    lighter: the flags that make it take less memory when they are lower.
    """

    key: str
    name: str
    lighter: str = ""


STAGES = (
    Stage("samples", "reading samples, tokenizer and tasks"),
    Stage("prune", "pruned checkpoint", "-calib_samples or -calib_length; or prune elsewhere"),
    Stage("negatives", "contrastive negatives", "-num_train_samples"),
    Stage("dense", "dense model: activations and scores", "-max_length or -ppl_window"),
    Stage("pruned", "pruned model: activations and scores", "-max_length or -ppl_window"),
    Stage(
        "rank",
        "lost components and head ranking",
        "-num_train_samples or -num_probe_samples; under -head_selection lofit as for training",
    ),
    Stage(
        "train",
        "training",
        "-batch_size (with more -gradient_accumulation), -max_length, -lora_rank, under -loss distill -calib_length; "
        "or give -gradient_checkpointing",
    ),
    Stage("merge", "merge and proof", "-max_length"),
    Stage("restored", "restored model: scores", "-ppl_window"),
)
"""All stages of a run, in its order."""


class RunRecord:
    """The stages of a run, recorded as they end. cache: tells which of its entries each stage reused."""

    def __init__(self, cache: Cache):
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.stages: list[dict] = []
        self.cache = cache
        self._details: list[str] = []

    def tell(self, detail: str) -> None:
        """Print a detail of the current stage, and record it."""
        self._details.append(detail)
        print(f"      {detail}", flush=True)

    @contextmanager
    def stage(self, key: str) -> Iterator[Stage]:
        """Announce the stage of that key, and record its seconds and peak memory (of the process, and on the GPU)."""
        number, stage = {stage.key: (number, stage) for number, stage in enumerate(STAGES, start=1)}[key]
        print(f"[{number}/{len(STAGES)}] {stage.name}", flush=True)
        self._details = []
        reset_peak_memory()
        found, saved, began = len(self.cache.reused), self.cache.saved, time.perf_counter()
        yield stage
        entry = {
            "name": stage.name,
            "detail": "; ".join(self._details),
            "seconds": time.perf_counter() - began,
            "peak_memory_bytes": peak_memory(),
            "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
            "reused": self.cache.reused[found:],
            "saved_seconds": self.cache.saved - saved,
        }
        self.stages.append(entry)
        print(f"      {entry['seconds']:.1f} s, peak memory {entry['peak_memory_bytes'] / 2**30:.2f} GiB", flush=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def device_name(device: str) -> str:
    """The name of the hardware that numbers were measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device} ({counted(threads, 'thread')})"


def reset_peak_memory() -> None:
    """Restart the peak memory counters of the process and of the GPU's allocator, after releasing what is free.

    Memory that is freed from now on stays with the process until the next call.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library other than glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim(0)  # return freed memory, which every later stage would count
        # Otherwise glibc would return the memory that a step frees, and the next step would fault each page in again.
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc sets by itself
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    if torch.cuda.is_initialized():  # a run on the CPU leaves the GPU alone
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not on Linux, or not allowed: the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of main memory the process held at most since the last reset."""
    with suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
