"""The CSR form that a benchmark times."""

import pytest
import torch
from torch import nn

from benchmarks.sparse import SparseLinear, as_sparse
from models.loading import load_model
from tests.builders import save_tiny_llama


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_a_sparse_linear_computes_what_the_dense_one_does(bias):
    linear = nn.Linear(7, 5, bias=bias)
    linear.weight[torch.rand(5, 7) < 0.5] = 0
    inputs = torch.randn(2, 3, 7)
    sparse = SparseLinear(linear)
    torch.testing.assert_close(sparse(inputs), linear(inputs))
    kept = int((linear.weight != 0).sum())
    assert sparse.bytes == 4 * (5 + 1) + (4 + 4) * kept


@torch.no_grad()
def test_only_the_decoders_linear_layers_are_replaced(tmp_path):
    model = load_model(save_tiny_llama(tmp_path / "model", zeros=0.5), torch.float32, "cpu", "PRUNED")
    tokens = torch.arange(6).view(1, 6)
    sparse, dense_bytes, _ = as_sparse(model)
    torch.testing.assert_close(sparse(tokens).logits, model(tokens).logits)
    replaced = [module for module in sparse.modules() if isinstance(module, SparseLinear)]
    assert len(replaced) == 7 * model.config.num_hidden_layers
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert dense_bytes == sum(4 * part.weight.shape.numel() for part in replaced)
