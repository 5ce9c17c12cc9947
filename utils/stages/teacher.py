"""The dense model as training's teacher, for -loss distill: its states from the cache, or the model itself beside."""

from dataclasses import replace

import torch
from torch import Tensor

import utils.activations
import utils.distillation
import utils.packing
from models import cpu_attention
from models.checkpoint import Checkpoint
from utils.common.cache import cached
from utils.common.errors import UserError
from utils.common.names import DISTILL
from utils.distillation import GB, KEPT, WEIGHT, Distillation, by_sample, predicted, teacher_states
from utils.prompts import Encoded
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run


def bytes_of_states(run: Run, hidden_size: int, samples: Samples) -> int:
    """Of the teacher's states for all training and validation samples."""
    tokens = sum(predicted(sample) for sample in (*samples.train, *samples.valid))
    return tokens * hidden_size * run.dtype.itemsize


def check_teacher(run: Run, hidden_size: int, samples: Samples) -> None:
    """UserError if nothing is trained; or if the model is to be sharded, which leaves no room for a whole one beside
    it, and the teacher's states may not be kept.
    """
    if run.args.loss != DISTILL:
        return
    if not run.needs.training:
        raise UserError(f"-loss: {DISTILL} is a loss of training, and {run.args.method} trains nothing; leave it out")
    size = bytes_of_states(run, hidden_size, samples)
    if run.processes.sharded and size > KEPT:
        raise UserError(
            f"-loss: the dense model's states take {size / GB:.3g} GB, above {KEPT / GB:g}, and under FSDP it "
            "can't run beside instead; give fewer -num_train_samples, or -loss response"
        )


def load_teacher(run: Run, models: Models, samples: Samples) -> Distillation | None:
    """The teacher with its states, made or from the cache; without them where they are too large.

    None where the loss has no teacher.
    """
    if run.args.loss != DISTILL or not run.args.num_epoch:
        return None
    size = bytes_of_states(run, models.config.hidden_size, samples)
    # The dense model's output head, where training runs; None if the pruned model has the same.
    own, other = (output_head(checkpoint).to(run.dtype) for checkpoint in (models.dense, models.pruned))
    known = Distillation(WEIGHT, None if torch.equal(own, other) else own.to(run.device))
    if size > KEPT:
        run.record.tell(
            f"teacher: its states would take {size / GB:.3g} GB, above {KEPT / GB:g}; "
            "the dense model runs beside the pruned one at every step"
        )
        return known
    run.record.tell(f"teacher: the dense model's states at response tokens, {size / GB:.3g} GB")
    with run.lazy(models.dense) as model:

        def kept(part: list[Encoded], what: str) -> list[Tensor]:
            if not part:
                return []
            return by_sample(states(run.cache, model, part, run.kind_of_device, what=what)["states"], part)

        return replace(known, valid=kept(samples.valid, "validation"), train=kept(samples.train, "training"))


_CODE = (utils.distillation, utils.activations, utils.packing, cpu_attention)


@cached("teacher", code=_CODE, libraries=("torch", "transformers"))
def states(model: LazyModel, samples: list[Encoded], device: str, *, what: str) -> dict[str, Tensor]:
    """The teacher's states; token ids say all about data, template and length."""
    return {"states": teacher_states(model(), samples, f"teacher's states, {what}")}


def with_model(run: Run, models: Models, known: Distillation) -> Distillation:
    """The teacher with the dense model itself where it has no states; UserError if there is no room for it."""
    if known.train is not None:
        return known
    device = run.reading_device(models.dense)
    if device == "auto":
        raise UserError(
            f"-loss: the dense model doesn't fit into {run.device} beside the pruned one; give fewer "
            "-num_train_samples, so that its states are kept instead"
        )
    return replace(known, model=run.load(models.dense, device))


def output_head(stored: Checkpoint) -> Tensor:
    """(V, D) as it is stored, tied to the embedding where the files have none."""
    return stored.read("lm_head.weight" if "lm_head.weight" in stored else "model.embed_tokens.weight")
