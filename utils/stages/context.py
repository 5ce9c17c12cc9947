"""What all stages of a run share: its flags, processes, cache, record, folder and device; and its two models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from models.checkpoint import Checkpoint
from models.loading import DTYPES, head_shape, load_model, placement, tokenizer_digest
from utils.common.cache import Cache
from utils.common.errors import OutOfRoom, UserError, shortage
from utils.common.flags import Arguments
from utils.common.methods import Options, needs_of
from utils.common.processes import Processes
from utils.common.record import RunRecord, stage_name
from utils.training import TrainingSettings

LIGHTER = {
    "prune": "-calib_samples or -calib_length",
    "negatives": "-num_train_samples",
    "dense": "-max_length or -ppl_window",
    "pruned": "-max_length or -ppl_window",
    "rank": "-num_train_samples or -num_probe_samples",
    "train": "-batch_size (with more -gradient_accumulation) or -max_length, or give -gradient_checkpointing",
    "merge": "-max_length",
    "restored": "-ppl_window",
}
"""Stage → what takes less memory when it is lower."""


class LazyModel:
    """A model that is loaded when it is called for, and kept within a `with` block only.

    In a key it is its weights and the dtype that it runs in.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, load: Callable[[], LlamaForCausalLM]):
        self.checkpoint, self.dtype, self._load = checkpoint, dtype, load
        self._keeps, self._model = False, None

    def key(self) -> list[str]:
        """What determines all that the model computes, but for rounding."""
        return [self.checkpoint.fingerprint, str(self.dtype)]

    def __call__(self) -> LlamaForCausalLM:
        model = self._model or self._load()
        self._model = model if self._keeps else None
        return model

    def __enter__(self) -> "LazyModel":
        self._keeps = True
        return self

    def __exit__(self, *_) -> None:
        self._keeps, self._model = False, None


class Run:
    """A run's context.

    folder: where it writes. device: where models run, as torch names it. kind_of_device: `cpu`, `cuda`, …, what
    rounding depends on, so that it belongs in keys. needs: the method's. reads_activations: whether z of both models is
    needed, to rank heads or for V of those that are chosen.
    """

    def __init__(self, args: Arguments, processes: Processes, folder: Path, device: str):
        self.args, self.processes, self.folder, self.device = args, processes, folder, device
        self.cache = Cache(args.cache_dir)
        if processes.is_main:
            self.cache.clean()
        self.record = RunRecord(self.cache.reused)
        self.dtype, self.kind_of_device = DTYPES[args.dtype], device.partition(":")[0]
        self.needs = needs_of(args.method, Options.of(args))
        self.reads_activations = self.needs.heads and (self.needs.basis or args.head_selection != "lofit")

    @contextmanager
    def main_first(self, key: str) -> Iterator[None]:
        """A stage (utils.common.record.STAGES) of the main process; then the others find what it left."""
        with self.stage(key), self.processes.main_first():
            yield

    @contextmanager
    def stage(self, key: str) -> Iterator[None]:
        """A stage that all processes are in together, or that the main one is in alone."""
        with self.record.stage(key):
            try:
                yield
            except OutOfRoom:
                raise
            except Exception as error:
                if (said := shortage(error)) is None:
                    raise
                cure = f"lower {LIGHTER[key]}" if key in LIGHTER else "take a machine with more memory"
                raise OutOfRoom(
                    f"out of memory in '{stage_name(key)}' ({said}); {cure} (-plan here tells what fits)"
                ) from error

    def reading_device(self, checkpoint: Checkpoint) -> str:
        """Where a model that is only read goes: the run's device, or with -device auto all there is, if it must."""
        auto = self.args.device == "auto"
        return placement(checkpoint.folder, self.dtype, self.device) if auto else self.device

    def training_device(self, checkpoint: Checkpoint, trains: bool) -> str:
        """Where a model that may be trained goes; UserError if it must be spread. Under FSDP it is sharded from CPU."""
        device = "cpu" if self.processes.sharded else self.reading_device(checkpoint)
        if device == "auto" and trains:
            raise UserError(
                f"-device: the model does not fit into {self.device}, and its training cannot be offloaded; "
                "use several GPUs: accelerate launch --use_fsdp --fsdp_version 2 (see docs/running.md)"
            )
        return device

    def load(self, checkpoint: Checkpoint, device: str | None = None) -> LlamaForCausalLM:
        """The model, on `device`, or where one goes that is only read."""
        return load_model(checkpoint.folder, self.dtype, device or self.reading_device(checkpoint), checkpoint.flag)

    def lazy(self, checkpoint: Checkpoint) -> LazyModel:
        """The model, loaded when it is called for: a stage that the cache answers loads none."""
        return LazyModel(checkpoint, self.dtype, lambda: self.load(checkpoint))


@dataclass(frozen=True)
class Models:
    """The dense and the pruned checkpoint, checked.

    pruned: in the dense model's shapes; None until pruning made it. given: what -pruned_model_path named, None if
    nothing. config: the pruned model's, the dense one's until then. tokenizer_from: the folder of the tokenizer.
    """

    dense: Checkpoint
    pruned: Checkpoint | None
    given: Checkpoint | None
    config: LlamaConfig
    tokenizer: PreTrainedTokenizerBase
    tokenizer_from: Path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, H, d)."""
        return head_shape(self.config)

    @property
    def compact(self) -> bool:
        """Whether the pruned checkpoint came in smaller shapes than the dense one."""
        return self.given is not None and self.given is not self.pruned

    @cached_property
    def tokenizer_sha256(self) -> str:
        """The tokenizer's content, for keys."""
        return tokenizer_digest(self.tokenizer_from)


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
