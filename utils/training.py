"""Train β and b with transformers' Trainer; everything else stays frozen."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from utils.prompts import Encoded
from utils.response_loss import IGNORED, ResponseLoss

VALID_TOKENS_A_BATCH = 4096


@dataclass(frozen=True)
class TrainingSettings:
    """lr: peak, falling linearly to 0. epochs: may be fractional. batch_size: samples a step on one process."""

    lr: float
    epochs: float
    batch_size: int
    accumulation: int
    max_grad_norm: float
    group_by_length: bool
    gradient_checkpointing: bool
    seed: int


@dataclass
class TrainingResult:
    """history: rows {"step", "epoch", "loss", "learning_rate"} and {"step", "epoch", "valid_loss"}.

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
) -> TrainingResult:
    """Train what requires gradients in `model`, in place.

    checkpoints: a folder for the trained parameters and the optimizer's state after every epoch; with `resume` the last
    one there is continued from.
    """
    arguments = _OneDevice(
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
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
    )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    collate = Collator(pad_id=model.config.pad_token_id or 0)
    result = TrainingResult()
    trainer = _RestorationTrainer(
        model=ResponseLoss(model),
        args=arguments,
        data_collator=collate,
        train_dataset=[{"input_ids": sample.ids, "prompt_length": sample.prompt_length} for sample in samples],
        eval_dataset=valid,
        callbacks=[_Progress(result, collate)],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    last = get_last_checkpoint(str(checkpoints)) if resume and checkpoints.is_dir() else None
    if last is not None:
        result.history += json.loads((Path(last) / "history.json").read_text())
    elif valid:
        result.history.append({"step": 0, "epoch": 0.0, "valid_loss": trainer.evaluate()["eval_loss"]})
    trainer.train(resume_from_checkpoint=last)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return result


@dataclass
class Collator:
    """Right-padded batches; labels are -100 on prompts and padding. Counts what it padded."""

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
        return {"input_ids": ids, "labels": labels}


@torch.no_grad()
def mean_response_loss(model: ResponseLoss, samples: list[Encoded], pad_id: int, description: str) -> float:
    """Mean loss over all response tokens of `samples` (natural logarithm, per token, not per batch)."""
    device = model.model.get_input_embeddings().weight.device
    order = sorted(range(len(samples)), key=lambda index: -len(samples[index].ids))
    total, count = 0.0, 0
    with tqdm(total=len(order), desc=description, unit="sample", leave=False) as bar:
        while order:
            size = max(1, VALID_TOKENS_A_BATCH // len(samples[order[0]].ids))
            rows = [
                {"input_ids": samples[index].ids, "prompt_length": samples[index].prompt_length}
                for index in order[:size]
            ]
            batch = {name: tensor.to(device) for name, tensor in Collator(pad_id)(rows).items()}
            summed, labelled = model.summed(**batch)
            total, count = total + float(summed), count + labelled
            bar.update(len(rows))
            order = order[size:]
    return total / count


class _OneDevice(TrainingArguments):
    """One process trains on one device; several devices are accelerate's job, not DataParallel's."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class _RestorationTrainer(Trainer):
    """transformers' Trainer; checkpoints hold what is trained, and validation loss is a mean over tokens."""

    def evaluate(self, *_, **__) -> dict[str, float]:
        module = self.accelerator.unwrap_model(self.model)
        training = module.training
        module.eval()
        loss = mean_response_loss(module, self.eval_dataset, self.data_collator.pad_id, "validation loss")
        module.train(training)
        metrics = {"eval_loss": loss}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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

    def __init__(self, result: TrainingResult, collate: Collator, clock: Callable[[], float] = time.perf_counter):
        self.result, self.collate, self.clock = result, collate, clock
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
        if state.global_step:
            self.result.history.append(
                {"step": state.global_step, "epoch": state.epoch, "valid_loss": metrics["eval_loss"]}
            )

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()
        self.result.tokens, self.result.padded_tokens = self.collate.tokens, self.collate.padded_tokens
