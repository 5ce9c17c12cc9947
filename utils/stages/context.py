"""What all stages of a run share: its flags, processes, cache, record, folder and device; and its two models."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from models.checkpoint import Checkpoint
from models.loading import DTYPES, load_model, placement, release_unused
from pruning import calibration
from utils.common.cache import Cache, code_version
from utils.common.errors import OutOfRoom, UserError, shortage
from utils.common.flags import Arguments
from utils.common.methods import Options, parts_of
from utils.common.processes import Processes
from utils.common.record import RunRecord


class Run:
    """A run's context.

    folder: where it writes. device: where models run, as torch names it. kind_of_device: `cpu`, `cuda`, …; rounding
    depends on it, so it is in cache keys. needs: the method's. reads_activations: whether z of both models is needed,
    to rank heads or for V of the chosen ones. version: digest of this project's source.
    """

    def __init__(self, args: Arguments, processes: Processes, folder: Path, device: str):
        self.args, self.processes, self.folder, self.device = args, processes, folder, device
        self.cache = Cache(args.cache_dir)
        if processes.is_main:
            self.cache.clean()
        self.record = RunRecord(self.cache)
        for part in parts_of(args.method, Options.of(args)):
            part.spec.function()  # import now: keys are of the code that runs, even if its files change later
        self.version = code_version(*map(import_module, ("baselines", "data", "models", "pruning", "utils")))
        self._windows: Tensor | None = None
        self.dtype, self.kind_of_device = DTYPES[args.dtype], device.partition(":")[0]
        self.needs = args.needs
        self.reads_activations = self.needs.heads and (self.needs.basis or args.head_selection != "lofit")

    def calibration_windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """The calibration set (S, T) int64, drawn once for closed forms and the teacher; pruning draws the same."""
        if self._windows is None:
            args = self.args
            sizes = args.calib_samples, args.calib_length
            self._windows = calibration.load(args.calib_data, *sizes, tokenizer, args.calibration_seed)
        return self._windows

    @contextmanager
    def stage(self, key: str, main_first: bool = False) -> Iterator[None]:
        """The block of a stage (of utils.common.record.STAGES), run by all processes or by the main one alone.

        main_first: the main process runs it first; the others then find its results in the cache.
        """
        with self.record.stage(key) as stage, self.processes.main_first() if main_first else nullcontext():
            try:
                yield
            except Exception as error:
                if (said := shortage(error)) is None:
                    raise
                cure = f"lower {stage.lighter}" if stage.lighter else "take a machine with more memory"
                told = f"out of memory in '{stage.name}' ({said}); {cure} (-plan here tells what fits)"
                raise OutOfRoom(told) from error

    def reading_device(self, checkpoint: Checkpoint) -> str:
        """Device for forward passes only: the run's; with -device auto "auto" (all of them) if it is too small."""
        auto = self.args.device == "auto"
        return placement(checkpoint.folder, self.dtype, self.device) if auto else self.device

    def training_device(self, checkpoint: Checkpoint, trains: bool) -> str:
        """Device for a model that may be trained; under FSDP the CPU. UserError if it trains and must be spread."""
        if self.processes.sharded:  # a spread model, read by the main process, may still hold memory of all cards
            release_unused()
        device = "cpu" if self.processes.sharded else self.reading_device(checkpoint)
        if device == "auto" and trains:
            raise UserError(
                f"-device: the model does not fit into {self.device}, and its training cannot be offloaded; "
                "use several GPUs: accelerate launch --use_fsdp --fsdp_version 2 (see docs/running.md)"
            )
        return device

    def load(self, checkpoint: Checkpoint, device: str | None = None) -> LlamaForCausalLM:
        """Load the model, on `device`, by default on `reading_device`."""
        return load_model(checkpoint.folder, self.dtype, device or self.reading_device(checkpoint), checkpoint.flag)


@dataclass
class LazyModel:
    """A model that is loaded at the first call, unless `loaded` is given, and kept until `loaded` is set to None.

    label: `dense`, `pruned` or `restored`. Its cache key has its weights and the dtype that it runs in, which determine
    all that it computes, up to rounding.
    """

    run: Run
    label: str
    checkpoint: Checkpoint
    loaded: LlamaForCausalLM | None = None

    def key(self) -> list[str]:
        return [*self.checkpoint.key(), str(self.run.dtype)]

    def __call__(self) -> LlamaForCausalLM:
        self.loaded = self.loaded or self.run.load(self.checkpoint)
        return self.loaded


@dataclass(frozen=True)
class Models:
    """The dense and the pruned checkpoint, checked.

    given: the pruned checkpoint as given or made; pruned: in the dense model's shapes. Until it is made both are None,
    and config, the pruned model's, is the dense one's. tokenizer_from, _sha256: the tokenizer's folder and digest.
    """

    dense: Checkpoint
    given: Checkpoint | None
    pruned: Checkpoint | None
    config: LlamaConfig
    tokenizer: PreTrainedTokenizerBase
    tokenizer_from: Path
    tokenizer_sha256: str
