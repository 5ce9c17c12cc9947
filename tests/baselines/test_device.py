"""Closed forms compute on the run's device, with a stand-in for a card."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.restoration import Restoration
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


@pytest.mark.parametrize("stream", ["dense", "pruned", "sequential", None])
@pytest.mark.parametrize(
    ("method", "first"),
    [("reconstruct", None), ("norms_biases", "reconstruct"), ("admm_update", None), ("flap_bias", None)],
)
def test_all_of_a_layer_is_on_the_device_that_computes_it(make_tiny_llama, method, first, stream):
    folders = make_tiny_llama(), make_tiny_llama(zeros=0.5)
    dense, pruned = (partial(load_model, folder, torch.float32, "cpu", "-p") for folder in folders)
    teacher, read = (Checkpoint(folder).read for folder in folders)
    config = load_config(folders[1], "-p")
    inputs = MethodInputs(config, 0, read, teacher=teacher, tokens=TOKENS, dense=dense, pruned=pruned, device="meta")
    with Card():
        restoration = Restoration.start(method, Options(first=first, stream=stream), inputs)
    assert all(tensor.device.type == "cpu" for tensor in restoration.tensors().values())
