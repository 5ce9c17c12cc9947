"""What a checkpoint takes without its zeros is counted of a form from which it can be had back."""

import pytest
import torch

from benchmarks.sizes import packed, sizes, unpacked
from models.checkpoint import Checkpoint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 7), (16, 8), (1,)])
def test_a_bitmask_and_what_it_marks_are_the_tensor(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    mask, kept = packed(tensor)
    assert len(mask) == -(-tensor.numel() // 8) and len(kept) == int((tensor != 0).sum()) * dtype.itemsize
    assert torch.equal(unpacked(mask, kept, tensor.shape, dtype), tensor)


def test_zeros_take_an_eighth_of_a_byte_and_dense_tensors_their_own(make_tiny_llama):
    pytest.importorskip("zstandard")
    folder = make_tiny_llama(zeros=0.5)
    checkpoint = Checkpoint(folder)
    found = sizes(folder, torch.bfloat16, 3)
    tensors = [checkpoint.read(name) for name in checkpoint.headers]
    assert found.stored == sum(2 * tensor.numel() for tensor in tensors)
    of_mask = [-(-tensor.numel() // 8) + 2 * int((tensor.bfloat16() != 0).sum()) for tensor in tensors]
    pairs = zip(tensors, of_mask, strict=True)
    assert found.bitmask == sum(min(2 * tensor.numel(), masked) for tensor, masked in pairs) < 0.8 * found.stored
    assert 0 < found.bitmask_zstd <= found.zstd
