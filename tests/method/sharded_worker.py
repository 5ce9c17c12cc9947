"""One of two processes that train a model sharded by FSDP2 over gloo, as a run does; test_processes.py starts them.

The environment is the one that `accelerate launch --use_fsdp` makes. accelerate chooses FSDP for the processes of
accelerators only: that one choice is made here for CPUs, and all that follows is accelerate's and the Trainer's own.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor

from baselines.lofit import scale_norms
from models.loading import load_model
from models.merge import probe_logits
from models.restoration import load_restoration, save_restoration
from tests.builders import trained
from tests.method.test_training import encoded, settings
from utils.common.errors import UserError
from utils.distillation import Distillation, by_sample, teacher_states
from utils.prompts import Encoded
from utils.training import check_gathered, train

L1 = 0.05
"""LoFiT's penalty, large enough to be seen."""


def choose_fsdp_on_cpus() -> None:
    """Make accelerate's state say FSDP wherever it was given a plugin for it."""
    begin = AcceleratorState.__init__

    def begin_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


def keep_addresses() -> None:
    """Let gathered parameters lie where they lay before, as a GPU's allocator, which keeps what was freed, often does.

    An address then doesn't tell whether a parameter is still what it was.
    """
    _fsdp_param.free_storage = lambda tensor: None


def distilling(dense: Path, samples: list[Encoded], valid: int = 9) -> Distillation:
    """That model as a teacher of all samples and of the first, that validate; its head larger so that it is sure."""
    model = load_model(dense, torch.float32, "cpu", "-b")
    states = by_sample(teacher_states(model, samples, ""), samples)
    return Distillation(0.5, 20 * model.lm_head.weight, states, states[:valid])


def main(folder: Path, dtype: torch.dtype, output: Path, dense: Path | None = None) -> None:
    state = PartialState(cpu=True)  # before loading, which asks whether there are several processes
    samples = encoded(folder, 24)
    norms = scale_norms(load_model(folder, dtype, "cpu", "-p"), samples, settings(lr=0.05), L1, "cpu", sharded=True)
    restoration = trained()
    model = restoration.attach(load_model(folder, dtype, "cpu", "-p"))
    result = train(
        model,
        samples,
        samples[:9],
        settings(lr=0.1),
        "cpu",
        output / "checkpoints",
        resume=False,
        sharded=True,
        distillation=distilling(dense, samples) if dense else None,
    )
    assert all(isinstance(parameter, DTensor) for parameter in model.model.layers.parameters())
    assert not list(output.glob("checkpoints/checkpoint-*"))
    restoration = restoration.gathered()
    is_main = state.is_main_process
    torch.distributed.destroy_process_group()
    if is_main:
        save_restoration(output / "restoration", restoration, {})
        again, _ = load_restoration(output / "restoration")
        whole = again.attach(load_model(folder, dtype, "cpu", "-p"))
        logits = probe_logits(whole, [samples[0].ids])
        check_gathered(whole, samples[:9], result)
        again.state["component"][1:] = trained().state["component"][1:]  # the first process's part alone
        wrong = again.attach(load_model(folder, dtype, "cpu", "-p"))
        try:
            check_gathered(wrong, samples[:9], result)
            seen = ""
        except UserError as error:
            seen = str(error)
        found = {"result": result, "restoration": restoration, "logits": logits, "norms": norms, "seen": seen}
        torch.save(found, output / "found.pt")


if __name__ == "__main__":
    choose_fsdp_on_cpus()
    keep_addresses()
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]), Path(sys.argv[3]), *map(Path, sys.argv[4:]))
