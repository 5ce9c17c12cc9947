"""Train what a restoration has attached, with transformers' Trainer; everything else stays frozen."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import patch_environment
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from models.cpu_attention import cpu_attention
from models.modeling_llama import keep_columns
from utils.common.errors import UserError
from utils.distillation import Distillation, by_length
from utils.losses import IGNORED, ResponseLoss
from utils.prompts import Encoded

VALID_TOKENS_A_BATCH = 4096

COMPILER = "inductor"
"""torch.compile's backend for -torch_compile."""


@dataclass(frozen=True)
class TrainingSettings:
    """lr: peak, falling linearly to 0. epochs: may be fractional. batch_size: samples a step on one process.

    lr_flag: what the user lowers lr by.
    """

    lr: float
    epochs: float
    batch_size: int
    accumulation: int
    max_grad_norm: float
    group_by_length: bool
    gradient_checkpointing: bool
    torch_compile: bool
    seed: int
    lr_flag: str = "-lr"


@dataclass
class TrainingResult:
    """history: rows {"step", "epoch", "loss", "learning_rate"} and {"step", "epoch", "valid_loss"}, the latter with
    "valid_kl" under distillation.

    loss: of what was trained on; valid_loss: cross-entropy in any case; valid_kl: from the dense model; all in nats.
    tokens: non-padding tokens trained on; padded_tokens: with the padding; seconds: of the steps alone.
    """

    history: list[dict] = field(default_factory=list)
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0


def train(
    model: LlamaForCausalLM,
    samples: list[Encoded],
    valid: list[Encoded],
    settings: TrainingSettings,
    device: str,
    checkpoints: Path,
    resume: bool,
    sharded: bool = False,
    distillation: Distillation | None = None,
    penalty: Callable[[], Tensor] | None = None,
) -> TrainingResult:
    """Train what requires gradients in `model`, in place, together with the other processes of `accelerate launch`.

    The loss is cross-entropy at response tokens, with `distillation` mixed with, or replaced by, the divergence from
    the dense model.

    device: where this process trains, an index included; under FSDP where its part of the model goes.
    checkpoints: a folder for the trained parameters and the optimizer's state after every epoch; with `resume` the last
    one there is continued from. sharded: under FSDP no checkpoints are written, since they would hold the whole model.
    penalty: what training adds to the mean loss, see ResponseLoss.
    """
    last = get_last_checkpoint(str(checkpoints)) if resume and checkpoints.is_dir() else None
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
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        seed=settings.seed,
        use_cpu=device == "cpu",
        eval_strategy="epoch" if valid else "no",
        eval_on_start=bool(valid) and last is None,
        save_strategy="no" if sharded else "epoch",
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        dataloader_pin_memory=device.startswith("cuda"),
        ddp_find_unused_parameters=False,
    )
    if not sharded:
        keep_columns(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    collate = Collator(pad_id=model.config.pad_token_id or 0)
    result = TrainingResult()
    trainer = _RestorationTrainer(
        model=ResponseLoss(model, distillation, penalty),
        args=arguments,
        data_collator=collate,
        train_dataset=_rows(samples, distillation and distillation.train),
        eval_dataset=valid,
        callbacks=[_Progress(result, lr_flag=settings.lr_flag)],
    )
    trainer.valid_states = distillation and distillation.valid
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    if last is not None:
        result.history += json.loads((Path(last) / "history.json").read_text())
    # Asked of `device`: under FSDP a model is still on the CPU when its training on cards begins.
    attention = cpu_attention(model) if device == "cpu" else nullcontext()
    with attention, _compiled(model) if settings.torch_compile else nullcontext():
        trainer.train(resume_from_checkpoint=last)
    counted = torch.tensor([collate.tokens, collate.padded_tokens])
    result.tokens, result.padded_tokens = trainer.over_processes(counted).tolist()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return result


@contextmanager
def _compiled(model: LlamaForCausalLM) -> Iterator[None]:
    """Within it, decoder layers run compiled, one by one: they are alike, so that few compilations serve all.

    Those few are for batches of every length and any number of compensated heads; with and without gradients, above,
    at and below the lowest trained layer, and for a single head, whose size of 1 the compiler treats as a constant.
    """
    options = {"force_parameter_static_shapes": False, "force_nn_module_property_static_shapes": False}
    with torch._dynamo.config.patch(recompile_limit=32, **options):
        for layer in model.model.layers:
            layer.compile(backend=COMPILER, dynamic=True)
        try:
            yield
        finally:
            for layer in model.model.layers:
                layer._compiled_call_impl = None  # what `compile` set; there is no public way back


@dataclass
class Collator:
    """Right-padded batches; labels are -100 on prompts and padding. Counts what it padded.

    Rows may bring the teacher's states of their responses (n_i, D); a batch has them as its labels follow each other.
    """

    pad_id: int
    tokens: int = 0
    padded_tokens: int = 0

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        labels = torch.full((len(rows), longest), IGNORED)
        for index, row in enumerate(rows):
            tokens, start = torch.tensor(row["input_ids"]), row["prompt_length"]
            ids[index, : len(tokens)] = tokens
            labels[index, start : len(tokens)] = tokens[start:]
        self.tokens += sum(len(row["input_ids"]) for row in rows)
        self.padded_tokens += ids.numel()
        batch = {"input_ids": ids, "labels": labels}
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
    """(summed loss in nats, labelled tokens) over a part of the samples' batches; summed over parts, all.

    (2,) fp64 on the CPU, where alone every machine has fp64; (3,) with the summed divergence under distillation.

    model: a ResponseLoss, or what distributes one, in evaluation mode. states: the teacher's, of each sample. Every
    part runs as many batches, so that processes that share a model stay in step: a part that is short of one runs one
    of the others', and leaves it out of the sum.
    """
    device = next(model.parameters()).device
    batches = by_length(samples, VALID_TOKENS_A_BATCH)
    found: list[dict[str, Tensor]] = []
    names, labelled = ["loss"], 0
    inputs = _rows(samples, states)
    with tqdm(total=len(samples), desc=description, unit="sample", leave=False) as bar:
        for first in range(0, len(batches), parts):
            mine = first + part < len(batches)
            rows = batches[first + part if mine else first]
            batch = Collator(pad_id)([inputs[row] for row in rows])
            labels = batch["labels"][:, 1:]
            summed = model(**{name: tensor.to(device) for name, tensor in batch.items()}, num_items_in_batch=1)
            names = list(summed)
            if mine:
                found.append(summed)
                labelled += int((labels != IGNORED).sum())
            bar.update(sum(len(rows) for rows in batches[first : first + parts]))
    # Read at the end only: a device need not wait for each batch.
    loss, *divergence = (sum(float(summed[name]) for summed in found) for name in names)
    return torch.tensor([loss, labelled, *divergence], dtype=torch.float64)


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


class _RestorationTrainer(Trainer):
    """transformers' Trainer; checkpoints hold what is trained, and validation loss is a mean over tokens."""

    valid_states: list[Tensor] | None = None
    """The teacher's, of each validation sample."""

    def _get_train_sampler(self, train_dataset=None):
        """Grouped over the batches of all processes, so that 2 × 4 samples a step are the 8 of a single process."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(size, lengths=[len(row["input_ids"]) for row in self.train_dataset])

    def evaluate(self, *_, **__) -> dict[str, float]:
        # The wrapped one: a sharded model runs as a whole only.
        module = self.model_wrapped
        training = module.training
        module.eval()
        part, parts = self.args.process_index, self.args.world_size
        pad, states = self.data_collator.pad_id, self.valid_states
        found = response_loss(module, self.eval_dataset, pad, "validation loss", part, parts, states)
        module.train(training)
        total, count, *divergence = self.over_processes(found).tolist()
        metrics = {"eval_loss": total / count, **({"eval_kl": divergence[0] / count} if divergence else {})}
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
        save_file(trained, folder / "model.safetensors")
        progress = next(c for c in self.callback_handler.callbacks if isinstance(c, _Progress))
        (folder / "history.json").write_text(json.dumps(progress.result.history))

    def _issue_warnings_after_load(self, load_result) -> None:
        """A checkpoint of the trained parameters alone is what we wrote; the rest is not missing."""


class _Progress(TrainerCallback):
    """One bar with loss and learning rate; keeps the history, and the seconds and tokens of the steps."""

    def __init__(self, result: TrainingResult, clock: Callable[[], float] = time.perf_counter, lr_flag: str = "-lr"):
        self.result, self.clock, self.lr_flag = result, clock, lr_flag
        self.bar: tqdm | None = None
        self.began = 0.0

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_begin(self, args, state, control, **_) -> None:
        self.began = self.clock()

    def on_step_end(self, args, state, control, **_) -> None:
        self.result.seconds += self.clock() - self.began
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                what = "loss" if name == "loss" else "gradient"
                raise UserError(
                    f"{self.lr_flag}: the {what} is no finite number at step {state.global_step} of {state.max_steps}; "
                    f"lower it (now {args.learning_rate:g}), or look at the samples with -dtype float32"
                )
        self.result.history.append(
            {
                "step": state.global_step,
                "epoch": state.epoch,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
            }
        )
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", lr=f"{logs['learning_rate']:.1e}", refresh=False)

    def on_evaluate(self, args, state, control, metrics=None, **_) -> None:
        row = {"step": state.global_step, "epoch": state.epoch or 0.0, "valid_loss": metrics["eval_loss"]}
        self.result.history.append(row | ({"valid_kl": metrics["eval_kl"]} if "eval_kl" in metrics else {}))

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()
