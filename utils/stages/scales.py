"""What -head_selection lofit ranks heads by: LoFiT's first step, trained by all processes together, and kept."""

from dataclasses import asdict, replace

from torch import Tensor

import baselines.lofit
import utils.compensation
import utils.losses
import utils.training
from models import cpu_attention, modeling_llama, terms
from models.checkpoint import fingerprint
from models.loading import load_model
from utils.common.cache import code_version
from utils.common.files import digest
from utils.common.record import versions
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.train import device_to_train, settings
from utils.training import TrainingSettings


def head_norms(run: Run, models: Models, samples: Samples) -> Tensor | None:
    """‖A‖₂ (L, H) fp32 of LoFiT's first step on the pruned model; None where heads are ranked otherwise, or not."""
    if not run.needs.heads or run.args.head_selection != "lofit":
        return None
    how = replace(settings(run.args), lr=run.args.lofit_lr, lr_flag="-lofit_lr")
    key = norms_key(run, models, samples, how)
    with run.processes.main_first():
        found = run.cache.found("lofit", key)
    # Asked together: a process that trained alone would wait for the others for ever.
    if run.processes.any(found is None):
        norms = trained_norms(run, models, samples, how)
        with run.processes.main_first():
            found = run.cache.tensors("lofit", key, lambda: {"norms": norms})
    return found["norms"]


def trained_norms(run: Run, models: Models, samples: Samples, how: TrainingSettings) -> Tensor:
    """The norms, trained now."""
    sharded = run.processes.sharded
    device = "cpu" if sharded else device_to_train(run, models, how.epochs > 0)
    model = load_model(models.pruned, run.dtype, device, "-pruned_model_path")
    run.record.tell("LoFiT's first step: a scale of every head")
    return baselines.lofit.scale_norms(model, samples.train, how, run.args.lofit_l1, run.device, sharded)


def norms_key(run: Run, models: Models, samples: Samples, how: TrainingSettings) -> dict:
    """All that they depend on; the seed is among the settings."""
    known = versions()
    return {
        "pruned": fingerprint(models.pruned),
        "samples": digest([[sample.ids, sample.prompt_length] for sample in samples.train]),
        "settings": asdict(how),
        "l1": run.args.lofit_l1,
        "processes": [run.processes.count, run.processes.sharded],
        "dtype": run.args.dtype,
        "device": run.kind_of_device,
        "libraries": {library: known[library] for library in ("torch", "transformers", "accelerate")},
        "code": code_version(
            baselines.lofit,
            cpu_attention,
            modeling_llama,
            terms,
            utils.compensation,
            utils.losses,
            utils.training,
        ),
    }
