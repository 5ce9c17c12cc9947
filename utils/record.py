"""The record of a run: how long each stage took, how much memory it needed, and what went in."""

import gc
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "lm-eval", "numpy", "safetensors", "gguf")


class RunRecord:
    """Stages as they are done, in the order they were begun."""

    def __init__(self, total: int):
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.stages: list[dict] = []
        self.total = total

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage, and record its seconds and peak memory (of the process, and of the GPU's allocator)."""
        print(f"[{len(self.stages) + 1}/{self.total}] {name}", flush=True)
        gc.collect()
        _reset_peak_memory()
        began = time.perf_counter()
        yield
        entry = {
            "name": name,
            "seconds": time.perf_counter() - began,
            "peak_memory_bytes": _peak_memory(),
            "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        }
        self.stages.append(entry)
        print(f"      {entry['seconds']:.1f} s, peak memory {entry['peak_memory_bytes'] / 2**30:.2f} GiB", flush=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_name(device: str) -> str:
    """The name of the hardware that numbers were measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads > 1)})"


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Elsewhere than on Linux, or where it is not allowed, the peak is that of the process so far.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
