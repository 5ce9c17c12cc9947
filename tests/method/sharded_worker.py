"""One of two processes that train a model sharded by FSDP2 over gloo; tests/test_processes.py starts them.

accelerate chooses FSDP on GPUs only, so its own preparation of the model is called here by hand.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.device_mesh import init_device_mesh

from models.loading import load_model
from tests.builders import SAMPLES, trained
from utils.losses import ResponseLoss
from utils.training import Collator, response_loss


def main(folder: str, dtype: str, ram_efficient: str, output: str) -> None:
    state = PartialState(cpu=True)
    start = trained()
    model = ResponseLoss(start.attach(load_model(Path(folder), getattr(torch, dtype), "cpu", "-p")))
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=ram_efficient == "True",
        state_dict_type="FULL_STATE_DICT",
    )
    plugin.set_auto_wrap_policy(model)
    stand_in = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=state.is_main_process,
        device=torch.device("cpu"),
        torch_device_mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("dp_shard",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=("dp_shard",)),
    )
    sharded = fsdp2_prepare_model(stand_in, model)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    optimizer = torch.optim.SGD([p for p in sharded.parameters() if p.requires_grad], lr=0.5)
    mine = [SAMPLES[:2], SAMPLES[2:]][state.process_index]
    batch = Collator(257)([{"input_ids": s.ids, "prompt_length": s.prompt_length} for s in mine])
    labelled = sum(len(s.ids) - s.prompt_length for s in SAMPLES)
    with torch.no_grad():  # so that what inference keeps could be out of date at the end
        response_loss(sharded, SAMPLES, 257, "", state.process_index, 2)
    losses = []
    for _ in range(3):
        loss = sharded(**batch, num_items_in_batch=labelled)["loss"] * 2  # gradients are averaged over both
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach() / 2
        torch.distributed.all_reduce(total)
        losses.append(float(total))
    with torch.no_grad():
        valid = response_loss(sharded, SAMPLES, 257, "", state.process_index, 2)
    torch.distributed.all_reduce(valid)
    restoration = start.read_from(model.model)
    if state.is_main_process:
        torch.save({"losses": losses, "valid": valid, "restoration": restoration}, output)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
