"""A tensor as the bytes it is stored as: what is written, compared and hashed."""

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> Tensor:
    """uint8, one dimension: the bytes of a CPU tensor in row-major order; no copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def hash_tensor(whole, name: str, tensor: Tensor) -> None:
    """Add a tensor's name, dtype, shape and bytes to a hash of hashlib."""
    whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    whole.update(raw_bytes(tensor).numpy())
