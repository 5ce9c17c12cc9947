"""What zeros buy on disk and in transit: a checkpoint's bytes as stored, under zstd, and with the zeros left out.

python -m benchmarks.sizes DENSE PRUNED RESTORED
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.loading import DTYPES
from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.names import DTYPE_NAMES

LEVEL = 3
"""zstd's own default."""


@dataclass
class Sizes:
    """Bytes of a checkpoint's tensors: as they are, under zstd, as a bitmask and what it marks, and that under zstd."""

    stored: int = 0
    zstd: int = 0
    bitmask: int = 0
    bitmask_zstd: int = 0


def main() -> None:
    """Measure each checkpoint and print a table with ratios to the first."""
    parser = Parser(prog="python -m benchmarks.sizes", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoints", nargs="+", type=folder_path, metavar="MODEL", help="folders; ratios to the first"
    )
    parser.flag("dtype", choices=DTYPE_NAMES, default="bfloat16", help="that tensors are rounded to first")
    parser.flag("level", type=int, default=LEVEL, metavar="N", help="zstd's")
    args = parser.parse_args()
    if importlib.util.find_spec("zstandard") is None:
        raise UserError("zstandard is not installed: pip install zstandard")
    print(f"{args.dtype}, zstd level {args.level}; MB, and the share of what the first takes as it is stored")
    print(f"{'':<24}{'stored':>16}{'zstd':>16}{'bitmask':>16}{'bitmask + zstd':>18}")
    first = None
    for folder in args.checkpoints:
        found = sizes(folder, DTYPES[args.dtype], args.level)
        first = first or found.stored
        cells = [f"{size / 1e6:.1f} ({size / first:.0%})" for size in vars(found).values()]
        print(f"{folder.name[:23]:<24}{cells[0]:>16}{cells[1]:>16}{cells[2]:>16}{cells[3]:>18}", flush=True)


def sizes(folder: Path, dtype: torch.dtype, level: int) -> Sizes:
    """Of all tensors of a checkpoint, each rounded to `dtype` and compressed by itself, as a loader would want them."""
    import zstandard

    pack, checkpoint, found = zstandard.ZstdCompressor(level=level), Checkpoint(folder), Sizes()
    for name in checkpoint.headers:
        tensor = checkpoint.read(name).to(dtype)
        whole = raw(tensor)
        mask, kept = packed(tensor)
        found.stored += len(whole)
        found.zstd += len(pack.compress(whole))
        found.bitmask += min(len(whole), len(mask) + len(kept))
        found.bitmask_zstd += min(len(pack.compress(whole)), len(pack.compress(mask)) + len(pack.compress(kept)))
    return found


def packed(tensor: Tensor) -> tuple[bytes, bytes]:
    """A bit for each element, set where it is no zero, the first in the lowest bit of a byte; and those elements."""
    flat = tensor.flatten()
    bits = torch.zeros(8 * math.ceil(len(flat) / 8), dtype=torch.uint8)
    bits[: len(flat)] = flat != 0
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return raw((bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8)), raw(flat[flat != 0])


def unpacked(mask: bytes, kept: bytes, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The tensor that `packed` was given."""
    bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8).unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1
    flat = torch.zeros(shape.numel(), dtype=dtype)
    flat[bits.flatten()[: len(flat)].bool()] = torch.frombuffer(bytearray(kept), dtype=dtype)
    return flat.view(shape)


def raw(tensor: Tensor) -> bytes:
    """A tensor's own bytes."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


if __name__ == "__main__":
    run(main)
