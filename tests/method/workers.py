"""What each of two processes over gloo does, sharded by FSDP2 or not; test_processes.py starts them.

The environment is the one that `accelerate launch --use_fsdp` makes. accelerate chooses FSDP for the processes of
accelerators only: that one choice is made here for CPUs, and all that follows is accelerate's and the Trainer's own.
"""

import signal
import sys
from contextlib import suppress
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
from tests.builders import learned_in, trained
from tests.method.test_training import attached, before_each_pass, encoded, settings
from utils.common.errors import Stopped, UserError
from utils.distillation import Distillation, by_sample, teacher_states
from utils.prompts import Encoded
from utils.training import TrainingResult, TrainingSettings, check_gathered, train

LOPSIDED = 17, settings(batch_size=4, accumulation=2, group_by_length=False)
"""Number of samples, of which an epoch's last step has one, and settings of each of two processes."""

CUT_AT = 8
"""Of 12 steps in two epochs."""

L1 = 0.05
"""LoFiT's penalty, large enough to be seen."""


def distilling(dense: Path, samples: list[Encoded], valid: int = 9) -> Distillation:
    """That model as a teacher of all samples and of the first, that validate; its head larger so that it is sure."""
    model = load_model(dense, torch.float32, "cpu", "-b")
    states = by_sample(teacher_states(model, samples, ""), samples)
    return Distillation(0.5, 20 * model.lm_head.weight, states, states[:valid])


def training(
    folder: Path, dense: Path | None, count: int, how: TrainingSettings, place: Path
) -> tuple[TrainingResult, dict]:
    """Train HEADS of the model on so many samples, the first seven of which validate; what it says and learned."""
    samples, model = encoded(folder, count), attached(folder)
    taught = dense and distilling(dense, samples, 7)
    result = train(model, samples, samples[:7], how, "cpu", place, distillation=taught)
    return result, learned_in(model)


def cut_off(*given) -> None:
    """The same training, but the first process is told to end within a step of the second epoch."""
    steps = []

    def tell(trains: bool) -> None:
        steps.extend([1] * trains)
        if len(steps) == CUT_AT and trains and PartialState().is_main_process:
            signal.raise_signal(signal.SIGINT)

    with suppress(KeyboardInterrupt, Stopped), before_each_pass(tell):
        training(*given)


def parted(output: Path, folder: Path, dense: Path) -> None:
    """Epochs that don't divide, and a training that is cut off within one and goes on."""
    state = PartialState(cpu=True)
    found = {"lopsided": training(folder, dense, *LOPSIDED, output / "lopsided")}
    how, place = settings(batch_size=2), output / "cut"
    found["whole"] = training(folder, None, 24, how, output / "whole")
    cut_off(folder, None, 24, how, place)
    state.wait_for_everyone()
    found["checkpoints"] = sorted(path.name for path in place.glob("checkpoint-*"))
    found["continued"] = training(folder, None, 24, how, place)
    if state.is_main_process:
        torch.save(found, output / "found.pt")
    torch.distributed.destroy_process_group()


def choose_fsdp_on_cpus() -> None:
    """Make accelerate's state say FSDP wherever it was given a plugin for it.

    And let gathered parameters lie where they lay before, as a GPU's allocator, which keeps what was freed, often does:
    an address then doesn't tell whether a parameter is still what it was.
    """
    begin = AcceleratorState.__init__

    def begin_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded
    _fsdp_param.free_storage = lambda tensor: None


def sharded(output: Path, folder: Path, dtype: torch.dtype, dense: Path | None = None) -> None:
    """LoFiT's first step, then a training, gathered, saved, and checked as a run does."""
    choose_fsdp_on_cpus()
    state = PartialState(cpu=True)  # before loading, which asks whether there are several processes
    samples, restoration = encoded(folder, 24), trained()
    norms = scale_norms(load_model(folder, dtype, "cpu", "-p"), samples, settings(lr=0.05), L1, "cpu", sharded=True)
    model, place = attached(folder, dtype, restoration), output / "checkpoints"
    taught = distilling(dense, samples) if dense else None
    how = settings(lr=0.1)
    result = train(model, samples, samples[:9], how, "cpu", place, sharded=True, distillation=taught)
    assert all(isinstance(parameter, DTensor) for parameter in model.model.layers.parameters())
    assert not list(place.glob("checkpoint-*"))
    restoration = restoration.gathered()
    is_main = state.is_main_process
    torch.distributed.destroy_process_group()
    if not is_main:
        return
    save_restoration(output / "restoration", restoration, {})
    again, _ = load_restoration(output / "restoration")
    whole = attached(folder, dtype, again)
    check_gathered(whole, samples[:9], result)
    seen = "nothing"
    try:
        check_gathered(attached(folder, dtype), samples[:9], result)  # what was never trained
    except UserError as error:
        seen = str(error)
    logits = probe_logits(whole, [samples[0].ids])
    found = {"result": result, "restoration": restoration, "logits": logits, "norms": norms, "seen": seen}
    torch.save(found, output / "found.pt")


if __name__ == "__main__":
    kind, output, folder, *more = sys.argv[1:]
    if kind == "parted":
        parted(Path(output), Path(folder), *map(Path, more))
    else:
        sharded(Path(output), Path(folder), getattr(torch, kind), *map(Path, more))
