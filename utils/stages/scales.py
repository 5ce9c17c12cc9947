"""What -head_selection lofit ranks heads by: LoFiT's first step, trained by all processes together, and kept."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

import baselines.lofit
import utils.compensation
import utils.losses
import utils.training
from models import cpu_attention, modeling_llama, terms
from models.checkpoint import Checkpoint
from utils.common.cache import cached
from utils.prompts import Encoded
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.train import device_to_train, settings
from utils.training import TrainingSettings


def head_norms(run: Run, models: Models, samples: Samples) -> Tensor | None:
    """‖A‖₂ (L, H) fp32 of LoFiT's first step on the pruned model; None where heads are ranked otherwise, or not."""
    if not run.needs.heads or run.args.head_selection != "lofit":
        return None
    args, processes = run.args, run.processes
    how = replace(settings(args), lr=baselines.lofit.LR, flag="-head_selection")
    alike = [processes.count, processes.sharded, args.dtype, run.kind_of_device]
    made: list[Tensor] = []
    kept = norms.later(run.cache, models.pruned, samples.train, how, baselines.lofit.L1, alike, made=made.pop)
    with processes.main_first():
        known = kept.known()
    # Asked together: a process that trained alone would wait for the others for ever.
    if processes.any(not known):
        device = "cpu" if processes.sharded else device_to_train(run, models, how.epochs > 0)
        model, where = run.load(models.pruned, device), (run.device, processes.sharded)
        run.record.tell("LoFiT's first step: a scale of every head")
        made.append(baselines.lofit.scale_norms(model, samples.train, how, baselines.lofit.L1, *where))
    with processes.main_first():
        return kept()["norms"]


@cached(
    "lofit",
    code=(
        baselines.lofit,
        cpu_attention,
        modeling_llama,
        terms,
        utils.compensation,
        utils.losses,
        utils.training,
    ),
    libraries=("torch", "transformers", "accelerate"),
)
def norms(
    pruned: Checkpoint, samples: list[Encoded], how: TrainingSettings, l1: float, alike: list, *, made: Callable
) -> dict[str, Tensor]:
    """The norms that all processes have trained together. alike: how many they were, their dtype and device."""
    return {"norms": made()}
