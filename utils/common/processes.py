"""One process, or the several of `accelerate launch`: the main one runs a stage, the others find what it left."""

import atexit
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import NoReturn

from utils.common.errors import UserError, explain, shortened
from utils.common.progress import OFF


class Processes:
    """The processes of this run; a single one unless accelerate (or torchrun) has set WORLD_SIZE.

    is_main: whether this process writes and prints. sharded: whether training shards the model (FSDP).
    Raises UserError if -device names one GPU for all, if accelerate is set to mixed precision, to compile, or to
    DeepSpeed or another way to shard than FSDP, or if FSDP is used on CPUs, with one process, or in version 1, whose
    flat parameters mix trained and frozen ones.
    """

    def __init__(self, device: str):
        for flag in ("mixed_precision", "dynamo_backend"):  # the latter turns on TF32
            variable = f"ACCELERATE_{flag.upper()}"
            if (asked := os.environ.get(variable, "no")).lower() != "no":
                raise UserError(
                    f"{variable}: is {shortened(repr(asked))} (accelerate launch sets it by --{flag}, --config_file or "
                    f"its default_config.yaml), but what is trained is always fp32; give --{flag} no, or unset it"
                )
        alone = "WORLD_SIZE: is set, but not by a launcher", "unset it, or start by accelerate launch", ValueError
        with explain(*alone):
            self.count = int(os.environ.get("WORLD_SIZE", "1"))
        for other in ("deepspeed", "megatron_lm", "parallelism_config"):
            if _asked(other):
                raise UserError(f"accelerate launch: --use_{other} is not supported; leave it out, or shard by FSDP")
        self.sharded = _asked("fsdp")
        if self.sharded and os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError("accelerate launch: FSDP version 1, its default, is not supported; add --fsdp_version 2")
        self.is_main, self.state, self.device = is_main_process(), None, device
        if self.count == 1:
            if self.sharded:
                raise UserError("accelerate launch: FSDP needs several processes; give --num_processes 2 or more")
            return
        if ":" in device:
            raise UserError(f"-device: {device} is one device for {self.count} processes; give auto, cuda or cpu")
        if not self.is_main:
            os.environ[OFF] = "1"
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
        from accelerate import PartialState

        on_cpu = device == "cpu" or _asked("cpu")
        if on_cpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else a barrier would take a card for each process
        with explain(*alone):  # the main process may prune and score for hours
            self.state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
        self.device = str(self.state.device)
        if self.is_main and self.state.device.type != "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
            import torch

            torch.set_num_threads(len(os.sched_getaffinity(0)))  # the launcher's 1 is for processes that share cores
        if self.sharded and self.state.device.type == "cpu":
            raise UserError("accelerate launch: FSDP shards over GPUs only; leave out --use_fsdp")

    def main_first(self) -> AbstractContextManager:
        """A block that runs in the main process, then in all others, which find what it left in the cache."""
        return self.state.main_process_first() if self.state else nullcontext()

    def any(self, said: bool) -> bool:
        """Whether `said` is true in any process. All processes must call it together."""
        if self.state is None:
            return said
        from accelerate.utils import gather_object

        return any(gather_object([said]))

    def end(self) -> None:
        """Leave the process group: only the main process goes on."""
        if self.state is not None:
            import torch.distributed

            self.state.wait_for_everyone()
            torch.distributed.destroy_process_group()


def _asked(what: str) -> bool:
    """Whether accelerate launch was told to use it."""
    return os.environ.get(f"ACCELERATE_USE_{what.upper()}", "false").lower() == "true"


def is_main_process() -> bool:
    """Whether this is the main process. It prints a mistake that all processes find."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def leave() -> NoReturn:
    """End this process, one of several, at once: gloo's threads outlive its group, and Python's own end can abort."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
