"""Train what a restoration has attached, with transformers' Trainer; everything else stays frozen."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import patch_environment
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import sort_checkpoints

from models.cpu_attention import cpu_attention
from models.modeling_llama import keep_frozen, restored_layers
from models.terms import whole
from utils.common.commands import ENDING
from utils.common.errors import Stopped, UserError
from utils.common.files import digest, explain_disk_full, read_manifest, write_manifest
from utils.common.flags import Arguments
from utils.common.names import DIVERGED
from utils.common.progress import progress
from utils.distillation import Distillation
from utils.losses import NOT_FINITE, ResponseLoss, TrainingResult, response_loss
from utils.prompts import Encoded, collate

SAVED_EVERY = 600
"""Seconds after which a checkpoint is written: about as much training as a kill may cost."""

KEPT = 2
"""Checkpoints kept: the latest, and the one before it in case the latest is damaged or unfinished."""

_IN_HISTORY = ("step", "epoch", "loss", "learning_rate", "valid_loss", "valid_kl")


@dataclass(frozen=True)
class TrainingSettings:
    """The training flags and their defaults. flag: the one that an error tells the user to change if it diverges."""

    lr: float = Arguments.lr
    num_epoch: float = Arguments.num_epoch
    batch_size: int = Arguments.batch_size
    gradient_accumulation: int = Arguments.gradient_accumulation
    max_grad_norm: float = Arguments.max_grad_norm
    random_batches: bool = Arguments.random_batches
    gradient_checkpointing: bool = Arguments.gradient_checkpointing
    training_seed: int = Arguments.seed
    flag: str = "-lr"

    @classmethod
    def of(cls, args: object) -> "TrainingSettings":
        """The settings from an object that has them as attributes, such as Arguments."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if field.name != "flag"})


def train(
    model: LlamaForCausalLM,
    samples: list[Encoded],
    valid: list[Encoded],
    settings: TrainingSettings,
    device: str,
    checkpoints: Path,
    *,
    distillation: Distillation | None = None,
    penalty: Callable[[], Tensor] | None = None,
    belongs: str = "",
) -> TrainingResult:
    """Train the parameters of `model` that require gradients, in place, with all processes of `accelerate launch`.

    The loss is cross-entropy at response tokens. `distillation` mixes it with, or replaces it by, the KL divergence
    from the dense model, and adds the mean KL on the windows of text that it holds.

    device: where this process trains, with its index; under FSDP where its shard goes. checkpoints: a folder for the
    trained parameters and the optimizer state, saved at the end of each epoch, before its validation, and every
    SAVED_EVERY seconds. Training resumes from the latest complete one. Under FSDP none are written, since they would
    hold the whole model. belongs: a digest of start, samples, settings and processes, by default of samples and
    settings; a checkpoint with another one is not resumed from. penalty: what is added to the mean loss, see
    ResponseLoss.

    On a signal it finishes the step, writes a checkpoint and raises Stopped, or KeyboardInterrupt for SIGINT. A second
    signal ends it at once.
    """
    belongs = belongs or digest(asdict(settings), [[each.ids, each.prompt_length] for each in samples])
    last, passed_over = last_whole(checkpoints, belongs)
    for line in [*passed_over, *([f"resuming from {last.name}"] if last else [])]:
        tqdm.write(f"      {line}")
    arguments = _OneDevice(
        place=device,
        output_dir=str(checkpoints),
        learning_rate=settings.lr,
        num_train_epochs=settings.num_epoch,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation + bool(distillation and distillation.text),
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        weight_decay=0.0,
        lr_scheduler_type="linear",
        seed=settings.training_seed,
        use_cpu=device == "cpu",
        eval_strategy="epoch" if valid else "no",
        save_strategy="no",  # on_step_end decides when
        save_total_limit=KEPT,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_pin_memory=device.startswith("cuda"),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # all are frozen, and alike on all processes
    )
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    trainer = _RestorationTrainer(model, samples, valid, settings, arguments, distillation, penalty, belongs=belongs)
    # By `device`, not by the model's: under FSDP the model is still on the CPU here, and is trained on GPUs.
    attention = cpu_attention(model) if device == "cpu" else nullcontext()
    with attention, trainer.listening():
        trainer.train(resume_from_checkpoint=last and str(last))
    for layer in restored_layers(model):
        layer.started = None  # frees 13 GB for a 7B model
    if settings.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.eval()
    rows = [row for row in trainer.state.log_history if "loss" in row or "valid_loss" in row]
    history = [{name: row[name] for name in _IN_HISTORY if name in row} for row in rows]
    return TrainingResult(history, trainer.valid_rows)


def last_whole(checkpoints: Path, belongs: str) -> tuple[Path | None, list[str]]:
    """Find the latest intact checkpoint of this training: (its folder, or None if there is none; for each later one a
    line that says why it is passed over)."""
    passed_over = []
    for folder in map(Path, reversed(sort_checkpoints(str(checkpoints)))):
        try:
            if read_manifest(folder)["belongs"] == belongs:
                return folder, passed_over
            fault = "was made with other samples, weights, heads, processes, code or versions"
        except ValueError as error:
            fault = str(error)
        passed_over.append(f"skipping {folder.name}: it {fault}")
    return None, passed_over


@dataclass
class _OneDevice(TrainingArguments):
    """One process trains on one device, `place`; several devices are accelerate's job, not DataParallel's.

    By default transformers takes the first GPU (or MPS), and accelerate the first or the current GPU.
    """

    place: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        with patch_environment(ACCELERATE_TORCH_DEVICE=self.place):
            _ = super()._setup_devices  # makes accelerate's state, and with it the process group
        place = torch.device(self.place)
        if place.type == "cuda":
            torch.cuda.set_device(place)  # super() has made the first GPU current
        return place

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class _ProcessBatches(Sampler[list[int]]):
    """This process's batches of an epoch. Their order depends on the seed and the epoch alone.

    The batches of all processes are cut from one joint batch, as a single process would have it: process p takes the
    samples whose index in it is p modulo the number of processes. At the end of an epoch its batch may be empty: [].
    """

    def __init__(self, lengths: list[int], settings: TrainingSettings, process: int, processes: int, windows: int = 0):
        """windows: number of text windows. Each step begins with one as a batch; they are indexed after the samples."""
        self.lengths, self.settings, self.process, self.processes = lengths, settings, process, processes
        self.windows = windows
        self.of_all = settings.batch_size * processes
        self.of_update = self.of_all * settings.gradient_accumulation
        self.steps = math.ceil(len(lengths) / self.of_update)  # per epoch
        self.epoch = 0
        self.over = False
        """Whether all steps are done; there are no batches then."""

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.of_all) + self.steps * bool(self.windows)

    def order(self) -> list[int]:
        """Indices of the samples, in the order of the current epoch."""
        seeds = np.random.SeedSequence([self.settings.training_seed, self.epoch])
        (drawn,) = seeds.generate_state(1, np.uint64).tolist()
        generator = torch.Generator().manual_seed(drawn)
        if self.settings.random_batches:
            return torch.randperm(len(self.lengths), generator=generator).tolist()
        return get_length_grouped_indices(self.lengths, self.of_update, generator=generator)

    def of_step(self, step: int) -> list[int]:
        """Indices of all processes' samples in a step of the current epoch. step: counted from 1 over all epochs."""
        first = (step - 1) % self.steps * self.of_update
        return self.order()[first : first + self.of_update]

    def __iter__(self) -> Iterator[list[int]]:
        order = [] if self.over else self.order()
        before = self.epoch * self.steps
        for batch, first in enumerate(range(0, len(order), self.of_all)):
            step, within = divmod(batch, self.settings.gradient_accumulation)
            if self.windows and not within:
                place = (before + step) * self.processes + self.process
                yield [len(order) + place % self.windows]
            yield order[first : first + self.of_all][self.process :: self.processes]


def tokens_read(samples: list[Encoded], settings: TrainingSettings, processes: int, window: int = 0) -> int:
    """The number of tokens that training reads: the samples', and `window` tokens of text per step and process."""
    lengths = [len(sample.ids) for sample in samples]
    batches = _ProcessBatches(lengths, settings, 0, processes)
    steps = math.ceil(settings.num_epoch * batches.steps)
    batches.epoch, rest = divmod(steps, batches.steps)
    of_rest = sum(lengths[row] for row in batches.order()[: rest * batches.of_update])
    return batches.epoch * sum(lengths) + of_rest + steps * processes * window


class _RestorationTrainer(Trainer, TrainerCallback):
    """transformers' Trainer, which is also its own callback.

    Checkpoints leave out the frozen parameters. The validation loss is a mean over tokens. A loss or gradient that is
    not finite ends the training before it gets into a checkpoint. The history is the Trainer's own log, which
    checkpoints hold too.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        samples: list[Encoded],
        valid: list[Encoded],
        settings: TrainingSettings,
        arguments: _OneDevice,
        distillation: Distillation | None,
        penalty: Callable[[], Tensor] | None,
        belongs: str,
    ):
        self.samples, self.distillation = samples, distillation
        self.text = distillation.text if distillation else ()
        self.pad_id = model.config.pad_token_id or 0
        super().__init__(
            model=ResponseLoss(model, distillation, penalty, arguments.world_size),
            args=arguments,
            data_collator=self.batch,
            train_dataset=range(len(samples) + len(self.text)),
            eval_dataset=valid,
            callbacks=[self],
        )
        self.remove_callback(PrinterCallback)
        # Under FSDP, gradients that wait for a step's later batches would be held whole by each process.
        self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = self.is_fsdp_enabled
        lengths = [len(sample.ids) for sample in samples]
        place = arguments.process_index, arguments.world_size
        self.batches = _ProcessBatches(lengths, settings, *place, len(self.text))
        self.settings, self.sharded, self.belongs = settings, self.is_fsdp_enabled, belongs
        self.valid_rows: list[list[float]] = []
        self.signal, self.saved = 0, time.monotonic()
        self.half = model.dtype == torch.float16
        """Whether gradients pass through fp16, in which the gradient of a mean over many tokens underflows."""
        self.loss_scale = 1.0
        """The scale of the current step. Until its last batch, gradients are those of loss_scale · loss."""
        self.of_step: tuple[dict[str, Tensor], ...] = ()
        """The batches of the current step so far; collected under fp16 only."""

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate, which would repeat samples so that all processes end an epoch together."""
        pin = self.args.dataloader_pin_memory
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator, pin_memory=pin)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Collate samples with the teacher's states, or a window of text; with no rows, a batch without labels."""
        if rows and (window := rows[0] - len(self.samples)) >= 0:
            ids = self.text[window].ids
            return collate([Encoded(ids, len(ids))], self.pad_id) | {"of_text": self.distillation.of_text[window]}
        known = self.distillation and self.distillation.train
        samples = [self.samples[row] for row in rows] or [Encoded(self.samples[0].ids[:2], 2)]
        states = known and ([known[row] for row in rows] or [known[0][:0]])
        return collate(samples, self.pad_id, states)

    def training_step(self, model, inputs: dict[str, Tensor], count: Tensor | None = None) -> Tensor:
        """A batch's loss and its backward pass; under fp16 the step's last batch checks and unscales the gradient.

        The loss is scaled by about the number of labelled tokens of the step, so that each has the gradient in fp16
        that it would have alone. If a gradient overflows, the step's batches are recomputed at 1/16 of the scale, until
        the gradient is finite or the scale is 1. Each step sets its own scale, so a resumed training has the same.
        """
        if not self.half:
            return super().training_step(model, inputs, count)
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
        """The loss to differentiate: multiplied by `loss_scale`, which is 1 except under fp16."""
        return super().compute_loss(*inputs, **named) * self.loss_scale

    def evaluate(self, *_, **__) -> dict[str, float]:
        module = self.model_wrapped.eval()  # wrapped, as a sharded model needs it; each step calls train()
        part, parts = self.args.process_index, self.args.world_size
        states = self.distillation and self.distillation.valid
        rows = self.over_processes(response_loss(module, self.eval_dataset, self.pad_id, part, parts, states))
        self.valid_rows = rows[:, :2].tolist()
        total, count, *divergence = rows.sum(0).tolist()
        metrics = {"valid_loss": total / count, **({"valid_kl": divergence[0] / count} if divergence else {})}
        self.log(metrics)
        return metrics

    def over_processes(self, counted: Tensor) -> Tensor:
        """The sum of a CPU tensor over all processes. A single process avoids its device, which may lack fp64."""
        if self.args.world_size == 1:
            return counted
        return self.accelerator.reduce(counted.to(self.args.device)).cpu()

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint, and its manifest last: a checkpoint without one is unfinished."""
        folder = Path(self.args.output_dir)
        with explain_disk_full(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_manifest(folder / f"checkpoint-{self.state.global_step}", belongs=self.belongs)
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str, state_dict: dict | None = None) -> None:
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        trained = {name: parameter.detach().cpu() for name, parameter in named if parameter.requires_grad}
        if not all(bool(values.isfinite().all()) for values in trained.values()):
            self.diverged("restoration", "")
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(trained, Path(output_dir) / "model.safetensors")

    def _issue_warnings_after_load(self, load_result) -> None:
        """Do not warn: our checkpoints hold the trained parameters only, so missing keys are expected."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In the block, the first of SIGINT and ENDING takes effect after the step, a second signal at once."""

        def keep(number: int, frame) -> None:
            if self.signal:
                handlers[number](number, frame)
            self.signal = number
            then = "without a checkpoint (FSDP writes none)" if self.sharded else "with a checkpoint"
            tqdm.write(f"      {signal.Signals(number).name}: stopping after this step, {then}")

        handlers = {n: handler for n in (signal.SIGINT, *ENDING) if callable(handler := signal.getsignal(n))}
        try:
            for number in handlers:
                signal.signal(number, keep)
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.signal:  # during the last validation
            self._end()

    def on_train_begin(self, args, state, control, **_) -> None:
        keep_frozen(self.model, self.sharded)  # not before: transformers and accelerate move all of a model
        self.bar = progress(total=state.max_steps, initial=state.global_step, desc="training", unit="step")
        state.epoch = float(state.epoch)  # transformers begins with the int 0
        # Validate first: at the start of a training, and where a checkpoint was made just before an epoch's validation.
        args.eval_on_start = bool(self.eval_dataset) and state.epoch.is_integer()

    def on_epoch_begin(self, args, state, control, **_) -> None:
        """A training that is resumed after its last step has no batches left, and ends at once."""
        self.batches.epoch = int(state.epoch)
        self.batches.over = control.should_training_stop = state.global_step >= state.max_steps

    def on_step_end(self, args, state, control, **_) -> None:
        self.bar.update(1)
        late = time.monotonic() - self.saved > SAVED_EVERY
        told, late = self.over_processes(torch.tensor([self.signal, late])).tolist()
        if told and self.sharded:
            self._end()
        self.signal = self.signal or (signal.SIGTERM if told else 0)
        ends = state.epoch.is_integer() or state.global_step >= state.max_steps
        control.should_save = not self.sharded and bool(told or late or ends)

    def on_save(self, args, state, control, **_) -> None:
        self.saved = time.monotonic()
        if self.signal:
            self._end()

    def on_log(self, args, state, control, logs: dict, **_) -> None:
        if not math.isfinite(logs.get("valid_loss", 0.0)):
            if state.global_step == 0:
                raise UserError(NOT_FINITE)
            self.diverged("validation loss", f" of {state.max_steps}")
        if "loss" not in logs:
            return
        for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
            if not math.isfinite(logs.get(name, 0.0)):
                numbers = sorted(row + 1 for row in self.batches.of_step(state.global_step))
                listed = ", ".join(map(str, numbers[:16])) + (", …" if len(numbers) > 16 else "")
                self.diverged(what, f" of {state.max_steps}, on training samples {listed} of those kept")
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", lr=f"{logs['learning_rate']:.1e}", refresh=False)

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()
        del self.bar  # else a signal that comes while its cycle is collected is raised in its destructor, and lost

    def diverged(self, what: str, where: str) -> None:
        """Raise UserError, which names the last intact checkpoint."""
        flag, lr = self.settings.flag, self.settings.lr
        good, _ = last_whole(Path(self.args.output_dir), self.belongs)
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint before it"
        mended = f"lower it (now {lr:g})" if flag == "-lr" else "choose another"
        raise UserError(
            f"{flag}: the {what} {DIVERGED} {self.state.global_step}{where}; {mended}, or look at the samples with "
            f"-dtype float32; {kept}"
        )

    def _end(self) -> None:
        raise KeyboardInterrupt if self.signal == signal.SIGINT else Stopped(self.signal or signal.SIGTERM)
