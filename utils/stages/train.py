"""Train a restoration that is attached to the pruned model, save it, merge it, and prove the result."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import baselines
import models
import pruning
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import has_tokenizer, release_unused
from models.merge import Reference, compact_and_prove, merge_and_prove, record_logits
from models.modeling_llama import numbers_trained
from models.restoration import Restoration, Terms, load_restoration, save_restoration, unpacked
from utils import activations, distillation, packing, prompts
from utils.common.cache import cached, digest_tensors
from utils.common.files import as_bytes, digest, write_text
from utils.common.methods import Options, Part
from utils.common.names import DISTILL
from utils.common.record import versions
from utils.distillation import WEIGHT, Distillation, by_sample, predicted, teacher_states
from utils.losses import TrainingResult, check_gathered, validate
from utils.prompts import Encoded
from utils.report.summary import loss_rose
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run
from utils.stages.rank import Ranked
from utils.training import TrainingSettings, train

SAVED = "restoration"
"""The folder in the result that holds what was learned."""


@dataclass(frozen=True)
class Trained:
    """The results of training, without the model.

    restoration: as it was saved; its tensors are memory-mapped. reference: the trained model's logits, for the proof.
    training: its losses. parameters: the number of trained parameters. validation: see `validation_record`.
    """

    restoration: Restoration
    reference: Reference
    training: TrainingResult
    parameters: int
    validation: dict | None


def train_restoration(run: Run, models: Models, samples: Samples, ranked: Ranked | None) -> Trained | None:
    """Start, train and save a restoration; all processes train it together, the main one has it in the end."""
    sharded = run.processes.sharded
    with run.processes.main_first():
        start = starting(run, models, ranked)
        teacher = load_teacher(run, models, samples)
    run.record.tell(start.describe())
    trains = run.args.trains
    device = run.training_device(models.pruned, trains)
    model = run.load(models.pruned, device)
    # Not under FSDP: the model is still on the CPU, and the other processes would wait for a slow validation.
    asked = samples.valid if run.processes.is_main and not sharded else []
    # The pruned model's own loss; training starts from another after a closed form, or with a b that is not zero.
    unrestored = validate(model, asked)
    model = start.attach(model)
    parameters = numbers_trained(model) if trains else 0
    if trains:
        training = train(
            model,
            samples.train,
            samples.valid,
            TrainingSettings.of(run.args),
            run.device,
            run.folder / "checkpoints",
            distillation=teacher,
            belongs=belongs(run, models, samples, start, teacher),
        )
    else:
        training = validate(model, asked)
    validation = validation_record(unrestored.history, training.history, samples.valid)
    for line in warnings_of(validation, run.needs.calibration):
        run.record.tell(line)
    if sharded:
        start = start.gathered(keep=run.processes.is_main)
        # No process needs its shard of the model now. They go before the group ends: the main one uses all cards then.
        del model
        release_unused()  # the Trainer, its own callback, is a reference cycle that holds the model
    run.processes.end()
    if not run.processes.is_main:
        return None
    save(run, models, start, training)
    del start
    restoration, _ = load_restoration(run.folder / SAVED)
    if sharded:
        # Attach the saved restoration to a whole model again.
        device = run.reading_device(models.pruned)
        model = restoration.attach(run.load(models.pruned, device))
        check_gathered(model, samples.valid, training)
    reference = record_logits(model, restoration, models.pruned, samples.to_prove(), device)
    return Trained(restoration, reference, training, parameters, validation)


def starting(run: Run, models: Models, ranked: Ranked | None) -> Restoration:
    """The restoration before training; with -num_epoch 0 without what would be trained."""
    args, options, calibrates = run.args, Options.of(run.args), run.needs.calibration
    inputs = MethodInputs(
        config=models.config,
        seed=args.training_seed,
        read=models.pruned.read,
        heads=ranked.heads if ranked else None,
        basis=ranked.basis if ranked and run.needs.basis else None,
        teacher=models.dense.read if calibrates else None,
        tokens=run.calibration_windows(models.tokenizer) if calibrates else None,
        # On the CPU, since one layer at a time is computed; a method may change the model that it is given.
        dense=(lambda: run.load(models.dense, "cpu")) if calibrates else None,
        pruned=(lambda: run.load(models.pruned, "cpu")) if calibrates else None,
        device=run.device,
    )
    closed = []

    def kept(part: Part, make: Callable[[], Terms]) -> Terms:
        if not part.spec.needs.calibration:
            return make()
        closed.append([part.spec.made_by, part.sites, {flag: getattr(args, flag) for flag in part.spec.takes}])
        own = [getattr(inputs, name) for name in ("heads", "basis") if getattr(part.spec.needs, name)]
        how = [inputs.tokens, args.dtype, run.kind_of_device, *own]
        return unpacked(closed_form(run.cache, models.dense, models.pruned, closed, how, make=make))

    start = Restoration.start(args.method, options, inputs, kept)
    return start if args.num_epoch else start.untrained()


@cached("starts", code=(baselines, models, pruning))
def closed_form(dense: Checkpoint, pruned: Checkpoint, forms: list, how: list, *, make: Callable) -> dict[str, Tensor]:
    """What a closed form restores. forms: the settings of this one and of those before it, which it starts from."""
    return Restoration("", make()).tensors()


def load_teacher(run: Run, models: Models, samples: Samples) -> Distillation | None:
    """The teacher with its states, made or from the cache; None where the loss has no teacher."""
    if run.args.loss != DISTILL or not run.args.trains:
        return None
    own, other = (output_head(checkpoint).to(run.dtype) for checkpoint in (models.dense, models.pruned))
    head = None if torch.equal(own, other) else own.to(run.device)
    text = tuple(Encoded(ids, 0) for ids in run.calibration_windows(models.tokenizer).tolist())
    parts = samples.valid, samples.train, list(text)
    size = as_bytes(sum(predicted(sample) for part in parts for sample in part) * own[0].nbytes)
    run.record.tell(f"teacher: the dense model's hidden states for responses and calibration text, {size}")
    model = LazyModel(run, "dense", models.dense)
    valid, train, of_text = (
        by_sample(states(run.cache, model, part, run.kind_of_device)["states"], part) for part in parts
    )
    return Distillation(WEIGHT, head, train, valid, text, of_text)


@cached("teacher", code=(distillation, activations, packing, prompts, models))
def states(model: LazyModel, samples: list[Encoded], device: str) -> dict[str, Tensor]:
    """The teacher's states. The token ids in the key cover data, template and length."""
    return {"states": teacher_states(model(), samples, "teacher's states")}


def output_head(stored: Checkpoint) -> Tensor:
    """The output head (V, D) as it is stored, or the embedding if it is tied and the files have none."""
    return stored.read("lm_head.weight" if "lm_head.weight" in stored else "model.embed_tokens.weight")


def belongs(run: Run, models: Models, samples: Samples, start: Restoration, teacher: Distillation | None) -> str:
    """Digest of all that must be the same to resume from a checkpoint of this training."""
    text = teacher.text if teacher else ()
    encoded = [[sample.ids, sample.prompt_length] for sample in (*samples.train, *samples.valid, *text)]
    learned = digest_tensors(start.tensors())
    how = [asdict(TrainingSettings.of(run.args)), run.args.dtype, run.args.loss, run.processes.count]
    how += [run.version, versions()]
    return digest(models.dense.fingerprint, models.pruned.fingerprint, learned, encoded, how)


def validation_record(unrestored: list[dict], history: list[dict], valid: list[Encoded]) -> dict | None:
    """Mean loss (nats a token) over the validation samples' responses; None where none was measured.

    pruned: the pruned model's; None if it was not measured. start: before the first step; it differs from `pruned` only
    by a closed form or by a b near zero. restored: after the last step; the same as `start` if nothing is trained.
    tokens: the number of response tokens.
    """
    pruned, losses = ([row["valid_loss"] for row in rows if "valid_loss" in row] for rows in (unrestored, history))
    if not losses:
        return None
    tokens = sum(map(predicted, valid))
    return {"pruned": pruned[0] if pruned else None, "start": losses[0], "restored": losses[-1], "tokens": tokens}


def warnings_of(validation: dict | None, closed_form: bool) -> list[str]:
    """A line if training left a higher validation loss than it began with, and one if a closed form before it did."""
    if validation is None:
        return []
    pruned, start, restored = (validation[name] for name in ("pruned", "start", "restored"))
    lines = [f"warning: {rose}; try a smaller -lr or fewer epochs"] if (rose := loss_rose(start, restored)) else []
    if closed_form and (rose := loss_rose(pruned, start)):
        lines.append(f"warning: {rose} by the closed form, before training; try another -first or -method")
    return lines


def save(run: Run, models: Models, restoration: Restoration, training: TrainingResult) -> None:
    """The restoration, with what it belongs to, and the history of its loss."""
    args = run.args
    about = {
        "base_model": args.base_model_name,
        "pruned_model": args.pruned_model_path or f"{args.prune_method} {args.sparsity} of {args.base_model_name}",
        "pruned_sha256": models.given.fingerprint,
        "expanded_sha256": models.pruned.fingerprint,
        "arguments": args.as_json(),
    }
    save_restoration(run.folder / SAVED, restoration, about)
    lines = "".join(f"{json.dumps(row)}\n" for row in training.history)
    write_text(run.folder / "logs" / "history.jsonl", lines)


def merge(run: Run, models: Models, trained: Trained) -> tuple[LazyModel, list[dict]]:
    """Merge into the result's model/, and into compact/ if the pruned checkpoint came in smaller shapes.

    Returns the merged model, as the proof has loaded it, and the record of each checkpoint's proof.
    """
    pruned, merged, reference = models.pruned.folder, run.folder / "model", trained.reference
    tokenizer = pruned if has_tokenizer(pruned) else models.tokenizer_from
    proof = merge_and_prove(pruned, run.folder / SAVED, merged, tokenizer_from=tokenizer, reference=reference)
    restored, proofs = LazyModel(run, "restored", Checkpoint(merged, "-output_dir"), proof.model), [proof.record]
    if models.given is not models.pruned:
        restored.loaded = proof.model = None  # two models, and a wider one to compare with, may not fit together
        proofs.append(compact_and_prove(merged, run.folder / "compact", reference).record)
        print("      also saved in the pruned checkpoint's compact shapes: compact/")
    return restored, proofs
