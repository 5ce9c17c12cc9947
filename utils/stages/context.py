"""What all stages of a run share: its flags, processes, cache, record, result and device; and its two models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from models.checkpoint import fingerprint
from models.loading import DTYPES, head_shape, load_model, placement
from utils.common.cache import Cache
from utils.common.flags import Arguments
from utils.common.methods import Needs, Options, needs_of
from utils.common.processes import Processes
from utils.common.record import RunRecord
from utils.common.result import Result
from utils.stages.memory import telling_memory


@dataclass(frozen=True)
class Run:
    """A run's context. device: where models run, as torch names it. needs: the method's."""

    args: Arguments
    processes: Processes
    cache: Cache
    record: RunRecord
    result: Result
    device: str
    needs: Needs

    @classmethod
    def of(cls, args: Arguments, processes: Processes, result: Result, device: str) -> "Run":
        """A run that is about to begin."""
        cache = Cache(args.cache_dir)
        needs = needs_of(args.method, Options.of(args))
        return cls(args, processes, cache, RunRecord(cache.reused), result, device, needs)

    @property
    def folder(self) -> Path:
        """Where this run writes; what is whole in the end takes its place in -output_dir."""
        return self.result.folder

    @property
    def dtype(self) -> torch.dtype:
        """That models run in."""
        return DTYPES[self.args.dtype]

    @property
    def reads_activations(self) -> bool:
        """Whether z of both models is needed: to rank heads, or for V of those that are chosen."""
        return self.needs.heads and (self.needs.basis or self.args.head_selection != "lofit")

    @property
    def kind_of_device(self) -> str:
        """`cpu`, `cuda`, …: what rounding depends on, so that it belongs in keys."""
        return self.device.partition(":")[0]

    @contextmanager
    def main_first(self, key: str) -> Iterator[None]:
        """A stage (utils.common.record.STAGES) of the main process; then the others find what it left."""
        with self.record.stage(key), telling_memory(self.args, key), self.processes.main_first():
            yield

    @contextmanager
    def stage(self, key: str) -> Iterator[None]:
        """A stage that all processes are in together, or that the main one is in alone."""
        with self.record.stage(key), telling_memory(self.args, key):
            yield

    def reading_device(self, folder: Path) -> str:
        """Where a model that is only read goes: the run's device, or with -device auto all there is, if it must."""
        return placement(folder, self.dtype, self.device) if self.args.device == "auto" else self.device

    @contextmanager
    def loaded(self, folder: Path, flag: str) -> Iterator[Callable[[], LlamaForCausalLM]]:
        """The model in `folder`, loaded when first called for, and gone after the block: a cached stage loads none."""
        held: list[LlamaForCausalLM] = []

        def get() -> LlamaForCausalLM:
            if not held:
                held.append(load_model(folder, self.dtype, self.reading_device(folder), flag))
            return held[0]

        try:
            yield get
        finally:
            held.clear()


@dataclass(frozen=True)
class Models:
    """The dense and the pruned checkpoint, checked; folders on this machine.

    pruned: in the dense model's shapes; None until pruning made it. given: what -pruned_model_path named, None if
    nothing. config: the pruned model's, the dense one's until then. tokenizer_from: the folder of the tokenizer.
    """

    dense: Path
    pruned: Path | None
    given: Path | None
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
        return self.given is not None and self.given != self.pruned

    def identity(self) -> dict[str, str]:
        """Fingerprints by which a restoration knows the checkpoint that it belongs to."""
        found = {"pruned_sha256": fingerprint(self.given or self.pruned)}
        return {**found, "expanded_sha256": fingerprint(self.pruned)} if self.compact else found
