"""One of two processes that train together over gloo, whole and cut off; test_processes.py starts them."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import PartialState
from torch.nn.parallel import DistributedDataParallel

from models.loading import load_model
from tests.builders import trained
from tests.method.sharded_worker import distilling
from tests.method.test_training import encoded, settings
from utils.common.errors import Stopped
from utils.losses import ResponseLoss
from utils.training import TrainingResult, TrainingSettings, train

LOPSIDED_EPOCHS = {
    "one sample is left": (17, settings(batch_size=4), True),
    "three are left of three batches": (27, settings(batch_size=4, accumulation=3, group_by_length=False), False),
}
"""Number of samples, settings of each of two processes, and whether it distils."""

CUT_AT = 8
"""Of 12 steps in two epochs."""


def training(
    folder: Path, dense: Path | None, count: int, how: TrainingSettings, place: Path, resume: bool = False
) -> tuple[TrainingResult, dict]:
    """Train HEADS of the model on so many samples, the first seven of which validate; what it says and learned."""
    samples = encoded(folder, count)
    model = trained().attach(load_model(folder, torch.float32, "cpu", "-p"))
    taught = dense and distilling(dense, samples, 7)
    result = train(model, samples, samples[:7], how, "cpu", place, resume, distillation=taught)
    return result, trained().read_from(model).state


def cut_off(*given) -> None:
    """The same training, but the first process is told to end within a step of the second epoch."""
    original, calls = ResponseLoss.forward, []

    def forward(self, *args, **kwargs):
        calls.extend([1] * self.training)
        if len(calls) == CUT_AT and self.training and PartialState().is_main_process:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    ResponseLoss.forward = forward
    with suppress(KeyboardInterrupt, Stopped):
        training(*given)
    ResponseLoss.forward = original


def main(folder: Path, dense: Path, output: Path) -> None:
    state = PartialState(cpu=True)
    broadcasts, wrap = [], DistributedDataParallel.__init__

    def spy(self, *args, **kwargs) -> None:
        wrap(self, *args, **kwargs)
        broadcasts.append(self.broadcast_buffers)

    DistributedDataParallel.__init__ = spy
    found = {
        name: training(folder, dense if distils else None, count, how, output / name)
        for name, (count, how, distils) in LOPSIDED_EPOCHS.items()
    }
    how, place = settings(batch_size=2), output / "cut"
    found["whole"] = training(folder, None, 24, how, output / "whole")
    cut_off(folder, None, 24, how, place)
    state.wait_for_everyone()
    found["checkpoints"] = sorted(path.name for path in place.glob("checkpoint-*"))
    found["continued"] = training(folder, None, 24, how, place, True)
    if state.is_main_process:
        torch.save(found | {"broadcasts": broadcasts}, output / "found.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
