"""Where a run's training texts are: the split of -spec_task that lm_eval's rows come with, or -data_path."""

import logging
import random
from pathlib import Path

from data.sources import Sample, Split, load_samples
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.evaluation.in_memory_lm import quiet
from utils.evaluation.task_loading import load_tasks
from utils.evaluation.tasks import right_choice


def load_texts(args: Arguments) -> Split:
    """Training and validation texts as the flags name them; -spec_task has no validation samples.

    Says which flags are not used. Raises UserError as `load_samples` and `load_spec_samples` do.
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
    Prompts and answers are those that lm_eval scores the task with; negatives are the other choices. Raises UserError:
    missing split, damaged row, too few rows.
    """
    with quiet(logging.ERROR):
        (planned,) = load_tasks(task, data_dir, split="train")
    known = planned.tasks[task]
    rows = known.dataset["train"] if data_dir is None else known.eval_docs
    if len(rows) < num_train:
        raise UserError(
            f"-num_train_samples: {num_train} asked for, but {task}'s training split has {len(rows)} rows; lower it"
        )
    samples = []
    for index in random.Random(seed).sample(range(len(rows)), num_train):
        choices, right = known.doc_to_choice(rows[index]), right_choice(known, rows[index])
        negatives = tuple(text for place, text in enumerate(choices) if place != right)
        samples.append(Sample(known.doc_to_text(rows[index]), choices[right], negatives))
    return samples
