"""Before anything is read: whether -output_dir is free, may be replaced, or holds the run to continue."""

import json

from data.loading import check_calib_data, check_data_path
from models.names import check_found
from utils.common.commands import check_cache
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.common.processes import Processes
from utils.common.result import Result, check_apart

RESULTS = ("results.json", "run.json", "report.md", "figures", "model", "compact", "restoration", "logs")
"""What a run may write to -output_dir."""

WRITTEN = "logs/written.json"
"""Names every file that a run wrote there: all that -overwrite removes."""

INTERRUPTED = "logs/arguments.json"
"""What -resume holds its flags against, in the result while it is not whole."""

NOT_RESUMED = ("output_dir", "cache_dir", "eval_batch_size", "device")
"""Flags that may differ between an interrupted run and the one that continues it."""


def result_folder(args: Arguments, check: bool = True) -> Result:
    """Where the run writes. check: raise UserError unless it may; one process of several asks."""
    check_apart(args.output_dir, args.inputs())
    result = Result(args.output_dir, WRITTEN, INTERRUPTED)
    if check and args.resume:
        check_interrupted(args, result)
    elif check:
        result.check(args.overwrite, RESULTS)
    return result


def check_interrupted(args: Arguments, result: Result) -> None:
    """Raise UserError unless there is an interrupted run with the same flags."""
    result.complete()
    if not result.interrupted:
        if (args.output_dir / "results.json").is_file():
            raise UserError(f"-resume: the run in {args.output_dir} is finished; use -overwrite to replace it")
        raise UserError(f"-resume: {args.output_dir} holds no interrupted run; run without -resume")
    before = json.loads((result.folder / INTERRUPTED).read_text(encoding="utf-8"))
    now = args.as_json()
    if changed := [name for name in now if name not in NOT_RESUMED and now[name] != before.get(name)]:
        raise UserError(
            f"-resume: -{changed[0]} is {now[changed[0]]}, the interrupted run's was {before.get(changed[0])}; "
            "give its flags, or another -output_dir"
        )


def check_inputs(args: Arguments) -> None:
    """Raise UserError for what names and paths tell without torch, whose import takes seconds."""
    check_found(args.base_model_name, "-base_model_name")
    if args.pruned_model_path:
        check_found(args.pruned_model_path, "-pruned_model_path")
    else:
        check_calib_data(args.calib_data)
    if not args.spec_task:
        check_data_path(args.data_path, args.valid_data_path)
    if args.eval_data_dir and not args.eval_data_dir.is_dir():
        raise UserError(f"-eval_data_dir: {args.eval_data_dir} is not a folder; give the folder of task data")
    check_cache(args.cache_dir)


def check_resumable(args: Arguments, processes: Processes) -> None:
    """Raise UserError if -resume is asked of a sharded training, which writes no checkpoints."""
    if args.resume and processes.sharded:
        raise UserError("-resume: FSDP training writes no checkpoints to continue from; give -overwrite to start again")
