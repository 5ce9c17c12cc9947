"""Train a restoration that is attached to the pruned model, and save it."""

import json
from dataclasses import asdict, dataclass

from models.merge import Reference, record_logits
from models.modeling_llama import numbers_trained
from models.restoration import Restoration, load_restoration, save_restoration
from utils.common.cache import digest_tensors
from utils.common.errors import UserError
from utils.common.files import digest, write_text
from utils.common.flags import Arguments
from utils.report.summary import loss_rose
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.rank import Ranked
from utils.stages.start import starting
from utils.stages.teacher import load_teacher, with_model
from utils.training import TrainingResult, TrainingSettings, check_gathered, train, validate

SAVED = "restoration"
"""The folder in the result that holds what was learned."""

CHECKPOINTS = "checkpoints"
"""The folder in an unfinished result that training continues from."""


@dataclass(frozen=True)
class Trained:
    """What is left of the attached model once it is gone: what was learned, what it answered, and how it went.

    restoration: as it was saved; its terms are read when they are asked for. learned: in words. parameters: how many
    numbers were trained. pruned_loss: the pruned model's validation loss; None where
    nothing measured it.
    """

    restoration: Restoration
    learned: str
    reference: Reference
    training: TrainingResult
    parameters: int
    pruned_loss: float | None


def train_restoration(run: Run, models: Models, samples: Samples, ranked: Ranked | None) -> Trained | None:
    """Start, train and save a restoration; all processes train it together, the main one has it in the end."""
    args, sharded = run.args, run.processes.sharded
    with run.processes.main_first():
        start = starting(run, models, ranked)
        teacher = load_teacher(run, models, samples)
    learned = start.describe()
    run.record.tell(learned)
    trains = run.needs.training and args.num_epoch > 0
    # Under FSDP the model is sharded from the CPU.
    device = "cpu" if sharded else device_to_train(run, models, trains)
    model = run.load(models.pruned, device)
    # One that would be sharded is not asked on the CPU, while other processes wait.
    asked = samples.valid if run.processes.is_main and not sharded else []
    # Asked by itself: a closed form restores something before the first step, and b does not begin at zero.
    pruned_loss = first_loss(validate(model, asked).history)
    model = start.attach(model)
    parameters = numbers_trained(model) if trains else 0
    if trains:
        training = train(
            model,
            samples.train,
            samples.valid,
            settings(args),
            run.device,
            run.folder / CHECKPOINTS,
            sharded=sharded,
            distillation=teacher and with_model(run, models, teacher),
            belongs=belongs(run, models, samples, start),
        )
        if worse := worse_on_validation(training.history):
            run.record.tell(worse)
    else:
        training = validate(model, asked)
    if run.needs.calibration and (harm := harm_of_closed_form(pruned_loss, training.history)):
        run.record.tell(harm)
    if run.processes.sharded:
        start = start.gathered()
    run.processes.end()
    if not run.processes.is_main:
        return None
    save(run, models, start, training)
    del start
    restoration, _ = load_restoration(run.folder / SAVED)
    if sharded:
        # What is left of the sharded model is a part of it: the saved restoration is attached to a whole one again.
        del model
        device = run.reading_device(models.pruned)
        model = restoration.attach(run.load(models.pruned, device))
        check_gathered(model, samples.valid, training)
    reference = record_logits(model, restoration, models.pruned, samples.to_prove(), device)
    return Trained(restoration, learned, reference, training, parameters, pruned_loss)


def settings(args: Arguments) -> TrainingSettings:
    """The flags of training."""
    return TrainingSettings(
        lr=args.lr,
        epochs=args.num_epoch,
        batch_size=args.batch_size,
        accumulation=args.gradient_accumulation,
        max_grad_norm=args.max_grad_norm,
        group_by_length=not args.random_batches,
        gradient_checkpointing=args.gradient_checkpointing,
        seed=args.training_seed,
    )


def belongs(run: Run, models: Models, samples: Samples, start: Restoration) -> str:
    """Digest of all that a checkpoint of this training can be continued with."""
    encoded = [[sample.ids, sample.prompt_length] for sample in (*samples.train, *samples.valid)]
    learned = digest_tensors(start.tensors())
    how = [asdict(settings(run.args)), run.args.dtype, run.args.loss, run.processes.count]
    return digest(models.dense.fingerprint, models.pruned.fingerprint, learned, encoded, how)


def first_loss(history: list[dict]) -> float | None:
    """The validation loss before the first step."""
    return next((row["valid_loss"] for row in history if "valid_loss" in row), None)


def harm_of_closed_form(pruned: float | None, history: list[dict]) -> str | None:
    """A line if the validation loss that a closed form leaves is above the pruned model's; None if it isn't."""
    rose = loss_rose(pruned, first_loss(history))
    return rose and f"warning: after the closed form {rose}, before any training; try without it"


def worse_on_validation(history: list[dict]) -> str | None:
    """A line if the last validation loss is above the one that training began with; None if it isn't."""
    losses = [row["valid_loss"] for row in history if "valid_loss" in row]
    rose = loss_rose(losses[0], losses[-1]) if losses else None
    return rose and f"warning: {rose}; try a smaller -lr or fewer epochs"


def device_to_train(run: Run, models: Models, trains: bool) -> str:
    """Where the pruned model goes; UserError if it must be spread and would be trained."""
    device = run.reading_device(models.pruned)
    if device == "auto" and trains:
        raise UserError(
            f"-device: the model does not fit into {run.device}, and its training cannot be offloaded; "
            "use several GPUs: accelerate launch --use_fsdp --fsdp_version 2 (see docs/running.md)"
        )
    return device


def save(run: Run, models: Models, restoration: Restoration, training: TrainingResult) -> None:
    """The restoration, with what it belongs to, and the history of its loss."""
    args = run.args
    about = {
        "base_model": args.base_model_name,
        "pruned_model": args.pruned_model_path or f"{args.prune_method} {args.sparsity} of {args.base_model_name}",
        **models.identity(),
        "layers_heads_head_dim": models.shape,
        "arguments": args.as_json(),
    }
    save_restoration(run.folder / SAVED, restoration, about)
    lines = "".join(f"{json.dumps(row)}\n" for row in training.history)
    write_text(run.folder / "logs" / "history.jsonl", lines)
