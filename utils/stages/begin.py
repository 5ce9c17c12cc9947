"""Before anything is read: whether -output_dir is free, may be replaced, or holds the run to continue."""

import json
from pathlib import Path

from data.loading import check_calib_data, check_data_path
from models.names import check_found
from utils.common.commands import check_cache
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.common.processes import number_of_processes
from utils.common.result import WRITTEN, Result, check_apart
from utils.stages.push import check_push

RESULTS = ("results.json", "run.json", "report.html", "figures", "model", "compact", "restoration", "logs")
"""What a run may write to -output_dir."""

INTERRUPTED = "logs/arguments.json"
"""What the flags of a later run are held against, in the result, whole or not."""

NOT_RESUMED = ("output_dir", "cache_dir", "teacher_cache_gb", "eval_batch_size", "report_prompts", "device")
"""Flags that may differ between an interrupted run and the one that continues it."""


def result_folder(args: Arguments, check: bool = True) -> Result:
    """Where the run writes, and whether it continues an interrupted one there: with the same flags, it does.

    One that a kill kept from its place only is put there, and is what the same flags ask for: `done`.

    check: raise UserError unless it may write there; one process of several asks.
    """
    check_apart(args.output_dir, args.inputs())
    result = Result(args.output_dir, WRITTEN, INTERRUPTED)
    if check and result.complete() and args.resume == "auto":
        # Several processes would have to agree on it; they begin anew.
        result.done = number_of_processes() == 1 and changed_flag(args, result.final / INTERRUPTED) is None
        if result.done:
            return result
    if result.interrupted and args.resume == "auto":
        changed = changed_flag(args, result.folder / INTERRUPTED)
        result.continues = changed is None
        if check and changed and not args.overwrite:
            raise UserError(
                f"{changed}; give the flags of the interrupted run in {args.output_dir} to continue it, or "
                "-resume never to begin anew"
            )
    if check:
        result.check(args.overwrite, RESULTS)
    return result


def changed_flag(args: Arguments, record: Path) -> str | None:
    """The first flag that differs from those of the run that `record` tells of, in words; None if none does."""
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        now = args.as_json()
        changed = [name for name in now if name not in NOT_RESUMED and now[name] != before.get(name)]
    except (OSError, ValueError, AttributeError):
        return f"-output_dir: {record} can't be read"
    return f"-{changed[0]}: {now[changed[0]]} now, {before.get(changed[0])} before" if changed else None


def check_inputs(args: Arguments) -> None:
    """Raise UserError for what names, paths and the hub tell without torch, whose import takes seconds."""
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
    check_push(args)
