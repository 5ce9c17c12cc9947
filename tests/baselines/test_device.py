"""Closed forms compute on the run's device, with a stand-in for a card."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.restoration import Restoration
from tests.builders import inputs_of
from utils.common.methods import Options

TOKENS = torch.randint(0, 256, (9, 23), generator=torch.Generator().manual_seed(2))
aten = torch.ops.aten


class Card(TorchDispatchMode):
    """Within it `meta` is a device from which values come back: zeros, and ones where a single number is asked for.

    What computes with tensors of it and of the CPU together fails, as on a card.
    """

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator is aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if operator is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if operator is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        return operator(*args, **kwargs)


@pytest.mark.parametrize(
    ("method", "first"), [("norms_biases", "reconstruct"), ("admm_update", None), ("flap_bias", None)]
)
def test_all_of_a_layer_is_on_the_device_that_computes_it(make_tiny_llama, method, first):
    inputs = inputs_of(make_tiny_llama(), make_tiny_llama(zeros=0.5), TOKENS, device="meta")
    with Card():
        restoration = Restoration.start(method, Options(first=first), inputs)
    assert all(tensor.device.type == "cpu" for tensor in restoration.tensors().values())
