"""Train a restoration that is attached to the pruned model, save it, merge it, and prove the result."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor

import baselines
import models
import pruning
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import has_tokenizer
from models.merge import Proof, Reference, compact_and_prove, merge_and_prove, record_logits
from models.modeling_llama import numbers_trained
from models.restoration import Restoration, Terms, load_restoration, packed, save_restoration, unpacked
from pruning import calibration
from utils.common.cache import cached, digest_tensors
from utils.common.files import digest, write_text
from utils.common.methods import Options, Part, parts_of
from utils.report.summary import loss_rose
from utils.samples import Samples
from utils.stages.context import Models, Run, settings
from utils.stages.prune import calibration_key
from utils.stages.rank import Ranked
from utils.stages.teacher import load_teacher, with_model
from utils.training import TrainingResult, check_gathered, train, validate

SAVED = "restoration"
"""The folder in the result that holds what was learned."""


@dataclass(frozen=True)
class Trained:
    """What is left of the attached model once it is gone: what was learned, what it answered, and how it went.

    restoration: as it was saved; its terms are read when they are asked for. learned: in words. parameters: how many
    numbers were trained. pruned_loss: the pruned model's validation loss; None where nothing measured it.
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
    device = run.training_device(models.pruned, trains)
    model = run.load(models.pruned, device)
    # One that would be sharded is not asked on the CPU, while other processes wait.
    asked = samples.valid if run.processes.is_main and not sharded else []
    # Asked by itself: a closed form restores something before the first step, and b does not begin at zero.
    pruned_loss = next(iter(validation_losses(validate(model, asked).history)), None)
    model = start.attach(model)
    parameters = numbers_trained(model) if trains else 0
    if trains:
        training = train(
            model,
            samples.train,
            samples.valid,
            settings(args),
            run.device,
            run.folder / "checkpoints",
            sharded=sharded,
            distillation=teacher and with_model(run, models, teacher),
            belongs=belongs(run, models, samples, start),
        )
    else:
        training = validate(model, asked)
    for line in warnings_of(validation_losses(training.history), pruned_loss if run.needs.calibration else None):
        run.record.tell(line)
    if sharded:
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


def starting(run: Run, models: Models, ranked: Ranked | None) -> Restoration:
    """The restoration before training; with -num_epoch 0 without what would be trained."""
    args, tokens = run.args, None
    if calibrates := run.needs.calibration:
        sizes = args.calib_samples, args.calib_length
        tokens = calibration.load(args.calib_data, *sizes, models.tokenizer, args.calibration_seed)
    inputs = MethodInputs(
        config=models.config,
        seed=args.training_seed,
        read=models.pruned.read,
        heads=ranked.heads if ranked else None,
        basis=ranked.basis if ranked else None,
        teacher=models.dense.read if run.needs.teacher else None,
        tokens=tokens,
        # On the CPU, since one layer at a time is computed; a method may change the model that it is given.
        dense=(lambda: run.load(models.dense, "cpu")) if calibrates else None,
        pruned=(lambda: run.load(models.pruned, "cpu")) if calibrates else None,
        device=run.device,
    )
    parts = parts_of(args.method, Options.of(args))

    def kept(part: Part, make: Callable[[], Terms]) -> Terms:
        if not part.needs.calibration:
            return make()
        # It is given what the closed forms before it restored, so they count too.
        these = [*(each for each in parts[: parts.index(part)] if not each.needs.training), part]
        named = [[e.spec.made_by, e.sites, {flag: getattr(args, flag) for flag in e.spec.takes}] for e in these]
        # A closed form draws nothing: it is the same for all seeds; reconstruct draws its batches' order.
        seed = args.training_seed if any(each.name == "reconstruct" for each in these) else None
        texts, how = [*calibration_key(args), models.tokenizer_sha256], [args.dtype, run.kind_of_device]
        stored = {"make": lambda: packed(make())}
        return unpacked(closed_form(run.cache, models.dense, models.pruned, named, seed, texts, how, **stored))

    start = Restoration.start(args.method, Options.of(args), inputs, kept)
    return start if args.num_epoch else start.untrained()


@cached("starts", code=(baselines, models, pruning), libraries=("torch", "transformers"))
def closed_form(
    dense: Checkpoint, pruned: Checkpoint, parts: list, seed: int | None, texts: list, how: list, *, make: Callable
) -> dict[str, Tensor]:
    """What a part that reads the calibration set starts from. parts: the closed forms until then, by their settings."""
    return make()


def belongs(run: Run, models: Models, samples: Samples, start: Restoration) -> str:
    """Digest of all that a checkpoint of this training can be continued with."""
    encoded = [[sample.ids, sample.prompt_length] for sample in (*samples.train, *samples.valid)]
    learned = digest_tensors(start.tensors())
    how = [asdict(settings(run.args)), run.args.dtype, run.args.loss, run.processes.count]
    return digest(models.dense.fingerprint, models.pruned.fingerprint, learned, encoded, how)


def validation_losses(history: list[dict]) -> list[float]:
    """All that were measured, the first one before the first step."""
    return [row["valid_loss"] for row in history if "valid_loss" in row]


def warnings_of(losses: list[float], pruned: float | None) -> list[str]:
    """A line if the last validation loss is above the one that training began with, and one if that is above `pruned`,
    the loss before a closed form.
    """
    if not losses:
        return []
    lines = [(loss_rose(losses[0], losses[-1]), "warning: {}; try a smaller -lr or fewer epochs")]
    harm = "warning: after the closed form {}, before any training; try without it"
    lines.append((loss_rose(pruned, losses[0]), harm))
    return [line.format(rose) for rose, line in lines if rose]


def save(run: Run, models: Models, restoration: Restoration, training: TrainingResult) -> None:
    """The restoration, with what it belongs to, and the history of its loss."""
    args = run.args
    about = {
        "base_model": args.base_model_name,
        "pruned_model": args.pruned_model_path or f"{args.prune_method} {args.sparsity} of {args.base_model_name}",
        "pruned_sha256": (models.given or models.pruned).fingerprint,
        **({"expanded_sha256": models.pruned.fingerprint} if models.compact else {}),
        "layers_heads_head_dim": models.shape,
        "arguments": args.as_json(),
    }
    save_restoration(run.folder / SAVED, restoration, about)
    lines = "".join(f"{json.dumps(row)}\n" for row in training.history)
    write_text(run.folder / "logs" / "history.jsonl", lines)


def merge(run: Run, models: Models, trained: Trained) -> tuple[Proof, dict | None]:
    """Merge into the result's model/, and into compact/ where the pruned checkpoint came in smaller shapes.

    The proof, with the merged model that it loaded, and the record of the compact one's.
    """
    pruned, merged, reference = models.pruned.folder, run.folder / "model", trained.reference
    tokenizer = pruned if has_tokenizer(pruned) else models.tokenizer_from
    proof = merge_and_prove(pruned, run.folder / SAVED, merged, tokenizer_from=tokenizer, reference=reference)
    if not models.compact:
        return proof, None
    proof.model = None  # two of them, and a wider one to compare with, may be too many
    compact = compact_and_prove(merged, run.folder / "compact", reference).record
    print("      as small as the pruned checkpoint: compact/")
    return proof, compact
