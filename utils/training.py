"""Train what a restoration has attached, with transformers' Trainer; everything else stays frozen."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import align_module_device, gather_object, patch_environment
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from models.cpu_attention import cpu_attention
from models.loading import input_device
from models.modeling_llama import keep_columns
from models.terms import whole
from utils.common.commands import ENDING
from utils.common.errors import Stopped, UserError
from utils.common.files import explain_disk_full, read_manifest, write_json, write_manifest
from utils.common.names import DIVERGED
from utils.common.progress import progress
from utils.distillation import Distillation
from utils.losses import IGNORED, ResponseLoss
from utils.packing import by_length
from utils.prompts import Encoded

VALID_TOKENS_A_BATCH = 4096

SAVED_EVERY = 600
"""Seconds of training that a kill may cost."""

UNFINISHED = ".unfinished"
"""In the folder of checkpoints: where one is written until it is whole."""

KEPT = 2
"""Checkpoints kept: the latest, and the one before it, should that be damaged."""

PROGRESS = "progress.json"
"""In a checkpoint: the history so far, the rows of the last validation, and what was counted."""

NOT_FINITE = (
    "-dtype: the validation loss is no finite number before any training; try float32, or look at the validation "
    "samples and the pruned model"
)

GATHERED_FP32, GATHERED_HALF = 1e-4, 2e-3
"""Relative difference of validation losses that kernels of other devices and shapes may make, in fp32 and below."""


@dataclass(frozen=True)
class TrainingSettings:
    """lr: peak, falling linearly to 0. epochs: may be fractional. batch_size: samples a step on one process.

    flag: what the user changes where it diverges. Defaults are those of the flags.
    """

    lr: float = 1e-3
    epochs: float = 3.0
    batch_size: int = 8
    accumulation: int = 1
    max_grad_norm: float = 1.0
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    seed: int = 42
    flag: str = "-lr"


@dataclass
class TrainingResult:
    """history: rows {"step", "epoch", "loss", "learning_rate"} and {"step", "epoch", "valid_loss"}, the latter with
    "valid_kl" under distillation.

    loss: of what was trained on; valid_loss: cross-entropy in any case; valid_kl: from the dense model; all in nats.
    tokens: non-padding tokens trained on; padded_tokens: with the padding; seconds: of the steps alone. valid_rows: of
    the last validation, each sample's [summed cross-entropy in nats, labelled tokens].
    """

    history: list[dict] = field(default_factory=list)
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    valid_rows: list[list[float]] = field(default_factory=list)


def train(
    model: LlamaForCausalLM,
    samples: list[Encoded],
    valid: list[Encoded],
    settings: TrainingSettings,
    device: str,
    checkpoints: Path,
    *,
    sharded: bool = False,
    distillation: Distillation | None = None,
    penalty: Callable[[], Tensor] | None = None,
    belongs: str = "",
) -> TrainingResult:
    """Train what requires gradients in `model`, in place, together with the other processes of `accelerate launch`.

    The loss is cross-entropy at response tokens, with `distillation` mixed with, or replaced by, the divergence from
    the dense model.

    device: where this process trains, an index included; under FSDP where its part of the model goes.
    checkpoints: a folder for the trained parameters and the optimizer's state, at the end of each epoch, before and
    after its validation, and every SAVED_EVERY seconds; the last whole one there is continued from. belongs: digest of
    what they may be continued with: start, samples, settings, processes. sharded: under FSDP no checkpoints are
    written, since they would hold the whole model. penalty: what training adds to the mean loss, see ResponseLoss.

    Told to end by a signal it finishes the step, writes a checkpoint and raises Stopped, or KeyboardInterrupt; told so
    again it ends at once.
    """
    last, passed_over = last_whole(checkpoints, belongs)
    for line in passed_over:
        tqdm.write(f"      {line}")
    before, measured = {"history": [], "counted": [0, 0, 0.0], "valid_rows": []}, False
    if last:
        before = json.loads((last / PROGRESS).read_text(encoding="utf-8"))
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        measured = not float(state["epoch"]).is_integer() or validated(before["history"], state["global_step"])
    arguments = _OneDevice(
        place=device,
        output_dir=str(checkpoints),
        learning_rate=settings.lr,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        weight_decay=0.0,
        lr_scheduler_type="linear",
        seed=settings.seed,
        use_cpu=device == "cpu",
        eval_strategy="epoch" if valid else "no",
        eval_on_start=bool(valid) and not measured,
        save_strategy="no" if sharded else "epoch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        dataloader_pin_memory=device.startswith("cuda"),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # all are frozen, and alike on all processes
    )
    if not sharded:
        keep_columns(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = _rows(samples, distillation and distillation.train)
    result = TrainingResult(history=before["history"], valid_rows=before["valid_rows"])
    trainer = _RestorationTrainer(
        model=ResponseLoss(model, distillation, penalty),
        args=arguments,
        data_collator=Collator(model.config.pad_token_id or 0, rows[0]),
        train_dataset=[{**row, "number": number} for number, row in enumerate(rows, start=1)],
        eval_dataset=valid,
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    watch = _Watch(trainer, settings.flag, sharded)
    trainer.add_callback(watch)
    trainer.belongs, trainer.result, trainer.watch = belongs, result, watch
    trainer.half = model.dtype == torch.float16
    trainer.valid_states = distillation and distillation.valid
    lengths = [len(sample.ids) for sample in samples]
    trainer.batches = _ProcessBatches(lengths, settings, arguments.process_index, arguments.world_size)
    if arguments.process_index == 0:
        shutil.rmtree(checkpoints / UNFINISHED, ignore_errors=True)  # of a process that was killed
        result.tokens, result.padded_tokens, result.seconds = before["counted"]
    # Asked of `device`: under FSDP a model is still on the CPU when its training on cards begins.
    attention = cpu_attention(model) if device == "cpu" else nullcontext()
    with attention, watch.listening():
        trainer.train(resume_from_checkpoint=last and str(last))
    result.tokens, result.padded_tokens, _ = trainer.counted()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return result


def validate(model: LlamaForCausalLM, valid: list[Encoded]) -> TrainingResult:
    """The validation of a model that isn't trained, as training would make it before its first step.

    history: one row, of step 0; without validation samples none. model: attached or plain; spread too. Raises UserError
    if the loss is no finite number.
    """
    if not valid:
        return TrainingResult()
    spread = hasattr(model, "hf_device_map")
    head = align_module_device(model.lm_head, input_device(model)) if spread else nullcontext()
    with cpu_attention(model), head:
        rows = response_loss(ResponseLoss(model).eval(), valid, model.config.pad_token_id or 0, "validation loss")
    total, count = rows.sum(0).tolist()
    if not math.isfinite(total):
        raise UserError(NOT_FINITE)
    return TrainingResult([{"step": 0, "epoch": 0.0, "valid_loss": total / count}], valid_rows=rows.tolist())


def check_gathered(model: LlamaForCausalLM, valid: list[Encoded], training: TrainingResult) -> None:
    """Raise UserError unless the whole model has the loss that the sharded one ended with: else what was gathered from
    the processes, and saved, is not what they trained."""
    losses = [row["valid_loss"] for row in training.history if "valid_loss" in row]
    if not losses or not valid:
        return
    (found,) = validate(model, valid).history
    allowed = GATHERED_FP32 if model.dtype == torch.float32 else GATHERED_HALF
    if not math.isclose(found["valid_loss"], losses[-1], rel_tol=allowed):
        raise UserError(
            f"accelerate launch: with the restoration that was gathered and saved the validation loss is "
            f"{found['valid_loss']:.5f}, the sharded model's last was {losses[-1]:.5f} (they may differ by "
            f"{100 * allowed:g} %): the restoration is not what was trained; train without --use_fsdp"
        )


def validated(history: list[dict], step: int) -> bool:
    """Whether the validation loss after that step is known."""
    return any("valid_loss" in row and row["step"] == step for row in history)


def seal(written: Path, belongs: str) -> None:
    """Give a checkpoint that is all written, in UNFINISHED, its place; those older than the KEPT latest go.

    belongs: digest of all that it can be continued with. Killed anywhere, the one before it still stands.
    """
    checkpoints = written.parents[1]
    write_manifest(written, belongs=belongs)
    final, replaced = checkpoints / written.name, checkpoints / f".{written.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():  # of the same step, before its validation
        final.rename(replaced)
    written.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    for older in _latest_first(checkpoints)[KEPT:]:
        shutil.rmtree(older)


def last_whole(checkpoints: Path, belongs: str) -> tuple[Path | None, list[str]]:
    """The latest checkpoint of this training that is as it was written, None if there is none; and a line for each
    later one, which says why it is passed over."""
    said = []
    for folder in _latest_first(checkpoints):
        if fault := _fault(folder, belongs):
            said.append(f"checkpoint {folder.name} {fault}; it is passed over")
        else:
            return folder, said
    return None, said


def _fault(folder: Path, belongs: str) -> str | None:
    try:
        same = read_manifest(folder).get("belongs") == belongs
    except ValueError as error:
        return str(error)
    return None if same else "is of other samples, weights, heads or processes"


def _latest_first(checkpoints: Path) -> list[Path]:
    found = {}
    for folder in checkpoints.glob("checkpoint-*"):
        step = folder.name.partition("-")[2]
        if folder.is_dir() and step.isascii() and step.isdecimal():
            found[int(step)] = folder
    return [found[step] for step in sorted(found, reverse=True)]


@dataclass
class Collator:
    """Right-padded batches; labels are -100 on prompts and padding.

    Rows may bring the teacher's states of their responses (n_i, D); a batch has them as its labels follow each other;
    and their numbers, by which a step's samples are told.
    """

    pad_id: int
    stand_in: dict | None = None
    """The row of whose first two tokens, with nothing to learn, a process makes the batch in which it has no sample."""

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        if not rows:
            rows = [{**self.stand_in, "number": 0, "input_ids": self.stand_in["input_ids"][:2], "prompt_length": 2}]
            if "teacher" in rows[0]:
                rows[0]["teacher"] = rows[0]["teacher"][:0]
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        labels = torch.full((len(rows), longest), IGNORED)
        for index, row in enumerate(rows):
            tokens, start = torch.tensor(row["input_ids"]), row["prompt_length"]
            ids[index, : len(tokens)] = tokens
            labels[index, start : len(tokens)] = tokens[start:]
        batch = {"input_ids": ids, "labels": labels}
        if "number" in rows[0]:
            batch["numbers"] = torch.tensor([row["number"] for row in rows])
        if "teacher" in rows[0]:
            batch["teacher"] = torch.cat([row["teacher"] for row in rows])
        return batch


def _rows(samples: list[Encoded], states: list[Tensor] | None) -> list[dict]:
    """The samples as the Collator takes them, each with its own states of the teacher, if there are any."""
    rows = [{"input_ids": sample.ids, "prompt_length": sample.prompt_length} for sample in samples]
    return [{**row, "teacher": own} for row, own in zip(rows, states, strict=True)] if states else rows


@torch.no_grad()
def response_loss(
    model: torch.nn.Module,
    samples: list[Encoded],
    pad_id: int,
    description: str,
    part: int = 0,
    parts: int = 1,
    states: list[Tensor] | None = None,
) -> Tensor:
    """[summed loss in nats, labelled tokens] of each sample of a part of the batches, 0 of the others; summed over
    parts, of all.

    (N, 2) fp64 on the CPU, where alone every machine has fp64; (N, 3) with the summed divergence under distillation.

    model: a ResponseLoss, or what distributes one, in evaluation mode. states: the teacher's, of each sample. Every
    part runs as many batches, so that processes that share a model stay in step: a part that is short of one runs one
    of the others', and leaves it out of the sum.
    """
    device = next(model.parameters()).device
    batches = by_length([sample.ids for sample in samples], VALID_TOKENS_A_BATCH)
    found: list[tuple[list[int], list[int], Tensor]] = []
    inputs = _rows(samples, states)
    with progress(total=len(samples), desc=description, unit="sample", leave=False) as bar:
        for first in range(0, len(batches), parts):
            mine = first + part < len(batches)
            rows = batches[first + part if mine else first]
            batch = Collator(pad_id)([inputs[row] for row in rows])
            counts = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
            tokens = model(**{name: tensor.to(device) for name, tensor in batch.items()})["tokens"]
            if mine:
                found.append((rows, counts, tokens))
            bar.update(sum(len(rows) for rows in batches[first : first + parts]))
    summed = torch.zeros(len(samples), 1 + len(tokens), dtype=torch.float64)
    # Read at the end only: a device need not wait for each batch.
    for rows, counts, tokens in found:
        for row, count, own in zip(rows, counts, tokens.cpu().double().split(counts, dim=1), strict=True):
            loss, *divergence = own.sum(1).tolist()
            summed[row] = torch.tensor([loss, count, *divergence], dtype=torch.float64)
    return summed


@dataclass
class _OneDevice(TrainingArguments):
    """One process trains on one device, `place`; several devices are accelerate's job, not DataParallel's.

    By themselves, transformers takes the first GPU, or Apple's, and accelerate the first or the current one.
    """

    place: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        with patch_environment(ACCELERATE_TORCH_DEVICE=self.place):
            _ = super()._setup_devices  # makes accelerate's state, and with it the process group
        place = torch.device(self.place)
        if place.type == "cuda":
            torch.cuda.set_device(place)  # it has made the first one current
        return place

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class _ProcessBatches(Sampler[list[int]]):
    """This process's batches of an epoch, whose order seed and epoch decide together, and nothing else.

    Each step's samples are those of one process with the batches of all: process p takes every sample whose place in
    such a batch is p modulo the number of processes. Where an epoch ends that may be none: [].
    """

    def __init__(self, lengths: list[int], settings: TrainingSettings, process: int, processes: int):
        self.lengths, self.settings, self.process, self.processes = lengths, settings, process, processes
        self.of_all = settings.batch_size * processes
        self.epoch = 0
        self.over = False
        """Whether all steps were made: then there are no batches."""

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.of_all)

    def order(self) -> list[int]:
        """The samples as they follow each other in the present epoch."""
        (drawn,) = np.random.SeedSequence([self.settings.seed, self.epoch]).generate_state(1, np.uint64).tolist()
        generator = torch.Generator().manual_seed(drawn)
        if not self.settings.group_by_length:
            return torch.randperm(len(self.lengths), generator=generator).tolist()
        return get_length_grouped_indices(self.lengths, self.of_all * self.settings.accumulation, generator=generator)

    def __iter__(self) -> Iterator[list[int]]:
        order = [] if self.over else self.order()
        for first in range(0, len(order), self.of_all):
            yield order[first : first + self.of_all][self.process :: self.processes]


class _RestorationTrainer(Trainer):
    """transformers' Trainer; checkpoints hold what is trained, and validation loss is a mean over tokens."""

    valid_states: list[Tensor] | None = None
    """The teacher's, of each validation sample."""
    belongs = ""
    result: TrainingResult
    half = False
    """Whether gradients pass through fp16, in which a mean over many tokens has no room for them."""
    loss_scale = 1.0
    """Of the present step: its gradient is that of loss_scale · loss until it is whole."""
    of_step: tuple[dict[str, Tensor], ...] = ()
    """Batches of the present step, under fp16."""
    numbers: tuple[Tensor, ...] = ()
    """Of the samples of the present step, on this process, counted from 1; 0 is none."""
    batches: _ProcessBatches
    watch: "_Watch"

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate, whose processes train on some samples twice to end an epoch together."""
        pin = self.args.dataloader_pin_memory
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator, pin_memory=pin)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Counts what it trains on; a row ends with its last label, and one without any is not trained on."""
        self.numbers += (inputs.pop("numbers"),)
        labelled = inputs["labels"] != IGNORED
        rows = labelled[labelled.any(1)]
        self.result.tokens += rows.numel() - int(rows.flip(1).int().argmax(1).sum())
        self.result.padded_tokens += rows.numel()
        if self.half:
            return self._half_step(model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def _half_step(self, model, inputs: dict[str, Tensor], count: Tensor) -> Tensor:
        """A batch's loss; with the last batch of a step the step's gradient is computed whole, and unscaled.

        The loss is scaled by about the labelled tokens of the step, so that each has the gradient in fp16 that it would
        have alone. Where fp16 can't hold that, the step's batches are computed again, scaled by 1/16 of it, until it is
        finite or the scale is 1. Each step begins with its own: a continued training has the same.
        """
        if not self.of_step:
            self.loss_scale = 2.0 ** math.floor(math.log2(max(1, float(count) / self.args.world_size)))
        self.of_step += (dict(inputs),)
        loss = super().training_step(model, inputs, count) / self.loss_scale
        if not self.accelerator.sync_gradients:
            return loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        while self.loss_scale > 1 and not whole(get_total_norm([p.grad for p in trained])).isfinite():
            self.loss_scale = max(1.0, self.loss_scale / 16)
            model.zero_grad()
            for batch in self.of_step[:-1]:
                with self.accelerator.no_sync(model):
                    super().training_step(model, dict(batch), count)
            super().training_step(model, dict(self.of_step[-1]), count)
        for parameter in trained:
            parameter.grad /= self.loss_scale  # a power of two: exact
        self.of_step = ()
        return loss

    def compute_loss(self, *inputs, **named) -> Tensor:
        """What a gradient is taken of."""
        return super().compute_loss(*inputs, **named) * self.loss_scale

    def counted(self) -> tuple[int, int, float]:
        """Tokens, padded tokens and seconds: of all processes, and of this one."""
        counted = torch.tensor([self.result.tokens, self.result.padded_tokens])
        return *self.over_processes(counted).tolist(), self.result.seconds

    def _get_output_dir(self, trial) -> str:
        """Where a checkpoint is written until it is whole."""
        return str(Path(self.args.output_dir) / UNFINISHED)

    def _save_checkpoint(self, model, trial) -> None:
        counted = self.counted()
        with explain_disk_full(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)
            written = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                kept = {"history": self.result.history, "counted": counted, "valid_rows": self.result.valid_rows}
                write_json(written / PROGRESS, kept)
                seal(written, self.belongs)
            self.accelerator.wait_for_everyone()

    def evaluate(self, *_, **__) -> dict[str, float]:
        # The wrapped one: a sharded model runs as a whole only.
        module = self.model_wrapped
        training = module.training
        module.eval()
        part, parts = self.args.process_index, self.args.world_size
        pad, states = self.data_collator.pad_id, self.valid_states
        found = response_loss(module, self.eval_dataset, pad, "validation loss", part, parts, states)
        module.train(training)
        rows = self.over_processes(found)
        self.result.valid_rows = rows[:, :2].tolist()
        total, count, *divergence = rows.sum(0).tolist()
        metrics = {"valid_loss": total / count, **({"valid_kl": divergence[0] / count} if divergence else {})}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def over_processes(self, counted: torch.Tensor) -> torch.Tensor:
        """What each process has counted on its CPU, summed; one process alone needs no device, which may lack fp64."""
        if self.args.world_size == 1:
            return counted
        return self.accelerator.reduce(counted.to(self.args.device)).cpu()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        trained = {name: parameter.detach().cpu() for name, parameter in named if parameter.requires_grad}
        if not all(bool(values.isfinite().all()) for values in trained.values()):
            self.watch.diverged("restoration", "")
        save_file(trained, folder / "model.safetensors")

    def _issue_warnings_after_load(self, load_result) -> None:
        """A checkpoint of the trained parameters alone is what we wrote; the rest is not missing."""


class _Watch(TrainerCallback):
    """What happens between the steps: the bar and the history; checkpoints besides the ends of epochs; the end of a
    training whose loss or gradient is no finite number, before a checkpoint is made of it, or that was told to end."""

    def __init__(self, trainer: _RestorationTrainer, flag: str, sharded: bool):
        self.trainer, self.flag, self.sharded = trainer, flag, sharded
        self.signal = 0
        self.saved = time.monotonic()
        self.began = 0.0
        self.bar: tqdm | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, the first signal to end is kept for the end of the step; a second one ends at once."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}

        def keep(number: int, frame) -> None:
            if self.signal:
                handlers[number](number, frame)
            self.signal = number
            tqdm.write(f"      {signal.Signals(number).name}: this step, then a checkpoint, then the end")

        ours = [number for number, handler in handlers.items() if callable(handler)]
        try:
            for number in ours:
                signal.signal(number, keep)
            yield
        finally:
            for number in ours:
                signal.signal(number, handlers[number])

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = progress(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_epoch_begin(self, args, state, control, **_) -> None:
        """A training that goes on after its last step has no batches, and ends."""
        batches = self.trainer.batches
        batches.epoch = int(state.epoch)
        batches.over = control.should_training_stop = state.global_step >= state.max_steps

    def on_step_begin(self, args, state, control, **_) -> None:
        self.trainer.numbers, self.began = (), time.perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        self.trainer.result.seconds += time.perf_counter() - self.began
        self.bar.update(1)
        asked = torch.tensor([self.signal, time.monotonic() - self.saved > SAVED_EVERY])
        told, late = self.trainer.over_processes(asked).tolist()
        if told and self.sharded:
            self._end()
        self.signal = self.signal or (signal.SIGTERM if told else 0)
        control.should_save |= not self.sharded and bool(told or late or float(state.epoch).is_integer())

    def on_epoch_end(self, args, state, control, **_) -> None:
        if validated(self.trainer.result.history, state.global_step):
            control.should_evaluate = control.should_save = False

    def on_save(self, args, state, control, **_) -> None:
        self.saved = time.monotonic()
        if self.signal:
            self._end()

    def on_log(self, args, state, control, logs: dict, **_) -> None:
        if "loss" not in logs:
            return
        for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
            if not math.isfinite(logs.get(name, 0.0)):
                numbers = [number for part in self.trainer.numbers for number in part.tolist() if number]
                if args.world_size > 1:
                    numbers = gather_object(numbers)
                listed = ", ".join(map(str, sorted(numbers)[:16])) + (", …" if len(numbers) > 16 else "")
                self.diverged(what, f" of {state.max_steps}, on training samples {listed}")
        row = {"step": state.global_step, "epoch": state.epoch}
        self.trainer.result.history.append(row | {name: logs[name] for name in ("loss", "learning_rate")})
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", lr=f"{logs['learning_rate']:.1e}", refresh=False)

    def on_evaluate(self, args, state, control, metrics: dict, **_) -> None:
        if not math.isfinite(metrics["valid_loss"]):
            if state.global_step == 0:
                raise UserError(NOT_FINITE)
            self.diverged("validation loss", f" of {state.max_steps}")
        self.trainer.result.history.append({"step": state.global_step, "epoch": state.epoch or 0.0, **metrics})

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()

    def diverged(self, what: str, where: str) -> None:
        """Raise UserError, which names the last checkpoint that stands."""
        args, step = self.trainer.args, self.trainer.state.global_step
        good, _ = last_whole(Path(args.output_dir), self.trainer.belongs)
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint before it"
        mended = f"lower it (now {args.learning_rate:g})" if self.flag == "-lr" else "choose another"
        raise UserError(
            f"{self.flag}: the {what} {DIVERGED} {step}{where}; {mended}, or look at the samples with -dtype float32; "
            f"{kept}"
        )

    def _end(self) -> None:
        raise KeyboardInterrupt if self.signal == signal.SIGINT else Stopped(self.signal or signal.SIGTERM)
