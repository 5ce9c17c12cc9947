"""Where a run's training texts are: the split of -spec_task that lm_eval's rows come with, or -data_path."""

import logging
import random
from pathlib import Path

from data.sources import SPEC_FORMS, Sample, Split, load_samples
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.evaluation.in_memory_lm import quiet
from utils.evaluation.task_loading import load_tasks
from utils.evaluation.tasks import task_rows


def load_texts(args: Arguments) -> Split:
    """Training and validation texts as the flags name them; -spec_task has no validation samples.

    Says which flags are not used. Raises UserError: what `load_samples` and `load_spec_samples` raise.
    """
    if not args.spec_task:
        return load_samples(args.data_path, args.num_train_samples, args.num_valid_samples)
    if args.data_path is not None:
        print(f"      -data_path is not used: -spec_task trains on {args.spec_task}'s own training split")
    drawn = load_spec_samples(args.spec_task, args.eval_data_dir, args.num_train_samples, args.samples_seed)
    return Split(drawn, [])


def load_spec_samples(task: str, data_dir: Path | None, num_train: int, seed: int) -> list[Sample]:
    """`num_train` samples of the task's training split, drawn with `seed`, in the drawn order.

    data_dir: a folder as -eval_data_dir takes it, which must hold the training split; None for the hub.
    Prompts are those that lm_eval scores the task with. Raises UserError: unknown task, missing split, damaged row,
    too few rows.
    """
    if task not in SPEC_FORMS:
        raise UserError(f"-spec_task: '{task}' is not one of {', '.join(SPEC_FORMS)}")
    if data_dir is None:
        with quiet(logging.ERROR):
            ((loaded,), _) = load_tasks(task, None)
        rows = [dict(row) for row in loaded.dataset["train"]]
    else:
        rows = task_rows(data_dir, task, "train")
    if len(rows) < num_train:
        raise UserError(
            f"-num_train_samples: {num_train} asked for, but {task}'s training split has {len(rows)} rows; lower it"
        )
    drawn = random.Random(seed).sample(range(len(rows)), num_train)
    return [SPEC_FORMS[task](rows[index]) for index in drawn]
