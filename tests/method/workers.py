"""What each of two processes over gloo does, sharded by FSDP2 or not; test_processes.py starts them.

The environment is the one that `accelerate launch --use_fsdp` makes. accelerate chooses FSDP for the processes of
accelerators only: that one choice is made here for CPUs, and all that follows is accelerate's and the Trainer's own.
"""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from baselines.lofit import scale_norms
from models.loading import load_model
from models.merge import probe_logits
from models.restoration import Restoration, load_restoration, save_restoration
from tests.builders import learned_in, trained
from tests.method.test_training import attached, before_each_pass, encoded, settings
from utils.common.errors import Stopped, UserError
from utils.distillation import Distillation, by_sample, teacher_states
from utils.prompts import Encoded
from utils.training import TrainingResult, check_gathered, train

CUT_AT = 8
"""Of 12 steps in two epochs."""


def training(folder: Path, place: Path) -> tuple[TrainingResult, dict[str, Tensor]]:
    """Train HEADS of the model; what it says and learned."""
    samples, model = encoded(folder, 24), attached(folder)
    return train(model, samples, samples[:7], settings(batch_size=2), "cpu", place), learned_in(model)


def cut(output: Path, folder: Path) -> None:
    """A whole training, and one whose first process is told to end within a step of the second epoch, and goes on."""
    state, place, steps = PartialState(cpu=True), output / "cut", []

    def tell(trains: bool) -> None:
        steps.extend([1] * trains)
        if len(steps) == CUT_AT and trains and state.is_main_process:
            signal.raise_signal(signal.SIGINT)

    whole = training(folder, output / "whole")
    with suppress(KeyboardInterrupt, Stopped), before_each_pass(tell):
        training(folder, place)
    state.wait_for_everyone()
    checkpoints = sorted(path.name for path in place.glob("checkpoint-*"))
    continued = training(folder, place)
    if state.is_main_process:
        torch.save({"whole": whole, "checkpoints": checkpoints, "continued": continued}, output / "found.pt")
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


def distilling(dense: Path, samples: list[Encoded]) -> Distillation:
    """That model as a teacher; its head larger so that it is sure."""
    model = load_model(dense, torch.float32, "cpu", "-b")
    states = by_sample(teacher_states(model, samples, ""), samples)
    return Distillation(0.5, 20 * model.lm_head.weight, states, states[:9])


def restored(
    restoration: Restoration,
    folder: Path,
    dtype: torch.dtype,
    dense: Path | None = None,
    *,
    place: Path,
    size: int,
    sharded: bool = False,
) -> tuple[Tensor, TrainingResult, LlamaForCausalLM, list[Encoded]]:
    """LoFiT's norms by a penalty that is large enough to be seen, then a training: both of that size of batches."""
    samples, scaled = encoded(folder, 24), load_model(folder, dtype, "cpu", "-p")
    norms = scale_norms(scaled, samples, settings(lr=0.05, batch_size=size), 0.05, "cpu", sharded=sharded)
    model, how = attached(folder, dtype, restoration), settings(lr=0.1, batch_size=size)
    taught = dense and distilling(dense, samples)
    result = train(model, samples, samples[:9], how, "cpu", place, sharded=sharded, distillation=taught)
    return norms, result, model, samples


def sharded(output: Path, folder: Path, dtype: torch.dtype, dense: Path | None = None) -> None:
    """What was trained, gathered, saved, and checked as a run does."""
    choose_fsdp_on_cpus()
    state = PartialState(cpu=True)  # before loading, which asks whether there are several processes
    restoration, place = trained(), output / "checkpoints"
    norms, result, model, samples = restored(restoration, folder, dtype, dense, place=place, size=4, sharded=True)
    assert all(isinstance(parameter, DTensor) for parameter in model.model.layers.parameters())
    assert not list(place.glob("checkpoint-*"))
    restoration = restoration.gathered()
    is_main = state.is_main_process
    torch.distributed.destroy_process_group()
    if not is_main:
        return
    save_restoration(output / "restoration", restoration, {})
    whole = attached(folder, dtype, load_restoration(output / "restoration")[0])
    check_gathered(whole, samples[:9], result)
    with pytest.raises(UserError) as seen:
        check_gathered(attached(folder, dtype), samples[:9], result)  # what was never trained
    logits = probe_logits(whole, [samples[0].ids])
    found = {"result": result, "restoration": restoration, "logits": logits, "norms": norms, "seen": str(seen.value)}
    torch.save(found, output / "found.pt")


if __name__ == "__main__":
    kind, *folders = sys.argv[1:]
    output, folder, *dense = map(Path, folders)
    if kind == "cut":
        cut(output, folder)
    else:
        sharded(output, folder, getattr(torch, kind), *dense)
