"""Where a run's training texts are: the split of -spec_task that lm_eval's rows come with, or -data_path."""

import random
from pathlib import Path

from data.loading import Sample, Split, load_samples
from data.spec_rows import SPEC_FORMS
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.evaluation.task_loading import hub_split
from utils.evaluation.tasks import PAPER_TASKS, read_rows, split_file

FLAG = "-spec_task"
DATA_FLAG = "-eval_data_dir"


def load_texts(args: Arguments) -> Split:
    """Training and validation texts as the flags name them; -spec_task has no validation samples.

    Says which flags are not used. Raises UserError: what `load_samples` and `load_spec_samples` raise.
    """
    tell_unused(args)
    if args.spec_task:
        return Split(
            load_spec_samples(args.spec_task, args.eval_data_dir, args.num_train_samples, args.samples_seed), []
        )
    return load_samples(args.data_path, args.num_train_samples, args.num_valid_samples)


def tell_unused(args: Arguments) -> None:
    """Print a line if -data_path names samples although -spec_task does."""
    if args.spec_task and args.data_path is not None:
        print(f"      -data_path is not used: -spec_task trains on {args.spec_task}'s own training split")


def load_spec_samples(task: str, data_dir: Path | None, num_train: int, seed: int) -> list[Sample]:
    """`num_train` samples of the task's training split, drawn with `seed`, in the drawn order.

    data_dir: a folder as -eval_data_dir takes it, which must hold the training split; None for the hub.
    Prompts are those that lm_eval scores the task with. Raises UserError: unknown task, missing split, damaged row,
    too few rows.
    """
    if task not in SPEC_FORMS:
        raise UserError(f"{FLAG}: '{task}' is not one of {', '.join(SPEC_FORMS)}")
    fault = PAPER_TASKS[task].fault
    if data_dir is None:
        rows = hub_split(task, "train")
    else:
        rows = read_rows(split_file(data_dir, task, "train", DATA_FLAG), DATA_FLAG, fault)
    if len(rows) < num_train:
        raise UserError(
            f"-num_train_samples: {num_train} asked for, but {task}'s training split has {len(rows)} rows; lower it"
        )
    drawn = random.Random(seed).sample(range(len(rows)), num_train)
    return [SPEC_FORMS[task](rows[index]) for index in drawn]
