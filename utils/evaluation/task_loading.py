"""Find tasks by name, and load and check their rows, to evaluate or train on, before any model loads."""

import difflib
import functools
import inspect
import io
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from unittest.mock import patch

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from data.sources import Sample, Split, load_samples, read_text
from utils.common.errors import UserError, first_line
from utils.common.files import digest
from utils.common.flags import Arguments
from utils.common.hub import asking
from utils.common.names import BUNDLED
from utils.evaluation import perplexity
from utils.evaluation.in_memory_lm import quiet
from utils.evaluation.tasks import (
    BUNDLED_FOLDER,
    DATA_FLAG,
    DEFINITIONS,
    PAPER_TASKS,
    TOKEN_PERPLEXITY,
    TOKENS_ONLY,
    WIKITEXT,
    right_choice,
    task_rows,
)

TASKS_FLAG = "-eval_tasks"
WIKITEXT_FILE = f"{WIKITEXT}/test.txt"
TASK_FILES = ("*/*.jsonl", "tasks/*/*.jsonl", WIKITEXT_FILE)
"""Patterns of all files read below -eval_data_dir, by `task_rows` and `wikitext_rows`."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
REFUSED = ("UNSAFE_CODE", "MULTIMODAL")  # attributes of tasks that lm_eval refuses only when it runs them


@dataclass(frozen=True)
class PlannedTask:
    """A task, or a group that has a score of its own, with all rows in memory."""

    name: str
    tasks: dict[str, Task]
    groups: dict[str, Group]
    limit: int | None
    records: dict[str, dict]  # by task, what is needed to reproduce its numbers
    text: str | None = None  # WikiText-2 as pruning papers join it, if its token perplexity is measured


@dataclass(frozen=True)
class EvalPlan:
    """What will be run, checked; the same plan serves the dense, the pruned and the restored model."""

    planned: tuple[PlannedTask, ...]
    ppl_window: int
    windows: int | None = None  # how many of a text, None for all
    left_out: tuple[str, ...] = ()  # messages: parts of 'paper' that the data folder lacks

    def parts(self) -> "list[EvalPlan]":
        """One plan a task; `Evaluation.joined` puts the scores together."""
        return [replace(self, planned=(planned,)) for planned in self.planned]

    def describe(self) -> list[str]:
        """One line a task: what will be run."""
        lines = []
        for planned in self.planned:
            for name, record in planned.records.items():
                rows, total, shots = record["rows"], record["rows_in_split"], record["num_fewshot"] or "zero"
                some = f"{rows}" if rows == total else f"the first {rows} of {total}"
                how = f"rows, {shots}-shot" if name != WIKITEXT else f"pages, windows of {self.ppl_window} tokens"
                metrics = ", ".join(planned.tasks[name].aggregation())
                lines.append(f"{name}: {some} {how}, {metrics} ({record['source']})")
            if planned.text is not None:
                some = f"at most the first {self.windows}" if self.windows else "all"
                lines.append(f"{WIKITEXT}: {TOKEN_PERPLEXITY} over {some} whole windows of {self.ppl_window} tokens")
        return [*lines, *self.left_out]

    def check_model(self, positions: int) -> None:
        """Raise UserError if a model's `positions` (max_position_embeddings) are too few for this plan."""
        if self.ppl_window > positions and any(planned.text is not None for planned in self.planned):
            why = f"{self.ppl_window} tokens are more than the model's {positions} positions"
            raise UserError(f"-ppl_window: {why}; give {positions} or less")
        for name, task in ((name, task) for planned in self.planned for name, task in planned.tasks.items()):
            if task.OUTPUT_TYPE == "generate_until":
                asked = normalize_gen_kwargs(task.config.generation_kwargs or {})["max_gen_toks"]
                if asked >= positions:  # lm_eval needs at least one for the prompt
                    why = f"answers of up to {asked} tokens need more than the model's {positions} positions"
                    raise UserError(f"{TASKS_FLAG}: {name}: {why}; leave it out")

    def key(self) -> dict:
        """The plan as JSON, for the key of cached scores. The same rows from the hub or a folder give the same key."""
        key = {}
        for planned in self.planned:
            for name, record in planned.records.items():
                key[name] = {part: value for part, value in record.items() if part != "source"}
            for name, group in planned.groups.items():
                key[f"group {name}"] = _jsonable([vars(each) for each in group.aggregate_metric_list or ()])
            if planned.text is not None:
                key[TOKEN_PERPLEXITY] = [digest(planned.text), self.ppl_window, self.windows]
        return key


def plan_tasks(
    eval_tasks: str, eval_data_dir: Path | None, limit: int | None, ppl_window: int, windows: int | None = None
) -> EvalPlan:
    """Find, load and check all that `eval_tasks` needs; the arguments are the flags' (docs/evaluation.md).

    windows: those of the token perplexity, by default `limit`. Word perplexity reads the first pages with as many words
    as these have tokens. UserError for an unknown task, a missing split, a damaged file, or a hub out of reach.
    """
    names, windows = task_names(eval_tasks), windows or limit
    planned, left_out = [], ()
    absent = eval_data_dir is not None and not (eval_data_dir / WIKITEXT_FILE).is_file()
    if absent and WIKITEXT in names and WIKITEXT not in map(str.strip, eval_tasks.split(",")):  # `paper` includes it
        names = [name for name in names if name != WIKITEXT]
        left_out = (f"{WIKITEXT}: left out, {eval_data_dir} holds no {WIKITEXT_FILE}",)
    with quiet(logging.ERROR):
        for name in names:
            if name == WIKITEXT:
                rows, source = wikitext_rows(eval_data_dir)
                pages, scored = perplexity.pages(rows), None
                if windows is not None:  # two at least, so that there is a standard error
                    words = accumulate(len(page.split()) for page in pages)
                    scored = max(2, sum(count < windows * ppl_window for count in words) + 1)
                config = load_yaml(DEFINITIONS / "wikitext" / "wikitext.yaml")
                with _rows_from(lambda *_, pages=pages: [{"page": page} for page in pages]):
                    by_page = {WIKITEXT: ConfigurableTask(config={**config, "task": WIKITEXT})}
                planned.append(replace(plan_task(by_page, {}, scored, source), text="\n\n".join(rows)))
            elif name == TOKENS_ONLY and WIKITEXT not in names:
                text = "\n\n".join(wikitext_rows(eval_data_dir)[0])
                planned.append(PlannedTask(name, {}, {}, None, {}, text))
            elif name != TOKENS_ONLY:
                seen = {task for other in planned for task in other.tasks}
                groups = {group for other in planned for group in other.groups}
                parts = _load_tasks(name, eval_data_dir, limit)
                planned += [part for part in parts if set(part.tasks) - seen or set(part.groups) - groups]
    return EvalPlan(tuple(planned), ppl_window, windows, left_out)


def task_names(tasks: str) -> list[str]:
    """Task names without repeats, in order. `paper` becomes its tasks, `none` no task."""
    names = []
    given = [part.strip() for part in tasks.split(",")]
    if "none" in given and len(given) > 1:
        raise UserError(f"{TASKS_FLAG}: '{tasks}' names tasks and none; give one of the two")
    for name in given:
        names += {"paper": [*PAPER_TASKS, WIKITEXT], "none": []}.get(name, [name])
    if "" in names:
        raise UserError(f"{TASKS_FLAG}: '{tasks}' has an empty name; put one comma between names, or give 'none'")
    return list(dict.fromkeys(names))


def _load_tasks(name: str, data_dir: Path | None, limit: int | None) -> list[PlannedTask]:
    """Load what an lm_eval name stands for: a group with a score of its own as a whole, all else task by task."""
    if name.startswith(BUNDLED):
        loaded, source = _manager(name).load([name]), "shipped with the project"
    elif data_dir is None:
        loaded, source = _from_hub(functools.partial(_manager(name).load, [name]), name), "hub"
    else:
        loaded, source = _from_folder(name, data_dir), str(data_dir)
    tasks, groups = loaded["tasks"], loaded["groups"]
    if refused := [task for task, own in tasks.items() if any(getattr(own, kind, False) for kind in REFUSED)]:
        raise UserError(f"{TASKS_FLAG}: {refused[0]} runs code that a model writes, or shows it pictures; leave it out")
    if name in groups and groups[name].has_aggregation:
        return [plan_task(tasks, groups, limit, source)]
    return [plan_task({task: tasks[task]}, {}, limit, source) for task in tasks]


def _from_folder(name: str, data_dir: Path, split: str | None = None) -> dict:
    """Load a task from a folder, and check each row. split: read instead of the one that lm_eval scores."""
    manager, where = _manager(name), f"{name} in {data_dir}"
    try:
        with _rows_from(lambda task, scored: task_rows(data_dir, task, split or scored)):
            loaded = manager.load([name])  # lm_eval builds the first row's prompt here
        for task in loaded["tasks"].values():
            for number, row in enumerate(task.eval_docs, start=1):
                where = f"{task.task_name} in {data_dir}, row {number}"
                _check_row(task, row)
    except UserError:
        raise
    except Exception as error:  # whatever a task's template or function raises
        why = f"{type(error).__name__}: {first_line(error)}"
        message = f"{DATA_FLAG}: {where}: lm_eval cannot read it ({why}); the hub's field names are expected"
        raise UserError(message) from error
    return loaded


def _check_row(task: Task, row: dict) -> None:
    """Build a row's prompt, so that one lm_eval cannot read is named before a model loads."""
    known = task.task_name in PAPER_TASKS
    if known:  # all their fields are needed: a null must not be read as the text "None"
        row = {name: value for name, value in row.items() if value is not None}
    task.doc_to_text(row)
    target = task.doc_to_target(row)
    choices = task.doc_to_choice(row) if task.config.doc_to_choice is not None else []
    texts = len(choices) > 1 and all(isinstance(choice, str) for choice in choices)
    if known and not (texts and right_choice(task, row) is not None):
        raise ValueError(f"{choices} are not two texts or more, of which {target!r} is right")


def _manager(name: str) -> TaskManager:
    """A TaskManager that knows the task; for bundled tasks and the paper's it indexes their own folder only."""
    folder = BUNDLED_FOLDER if name.startswith(BUNDLED) else PAPER_TASKS.get(name)
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else every_task()
    if name not in manager.all_tasks:
        known = {*PAPER_TASKS, BUNDLED, "paper", WIKITEXT, TOKENS_ONLY, *manager.all_tasks}
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "lm_eval ls tasks lists them"
        raise UserError(f"{TASKS_FLAG}: unknown task '{name}'; {hint}")
    return manager


@functools.cache
def every_task() -> TaskManager:
    """lm_eval's index of all its tasks."""
    print("indexing lm_eval's tasks (ten seconds)")
    return TaskManager()


@contextmanager
def _rows_from(read: Callable[[str, str], list[dict]]) -> Iterator[None]:
    """In the block, tasks that lm_eval loads get their rows from `read(name, split)`, and nothing from the hub."""

    def download(task: ConfigurableTask, *_, **__) -> None:
        config = task.config
        # What scoring reads: the scored split, and that of the examples if the task shows any.
        needed = {config.test_split or config.validation_split}
        if config.num_fewshot:
            needed.add(config.fewshot_split or config.training_split or config.test_split or config.validation_split)
        task.dataset = {}
        for split in needed:
            rows = read(config.task, split)
            fields = dict.fromkeys(field for row in rows for field in row)
            columns = {field: [row.get(field) for row in rows] for field in fields}
            task.dataset[split] = datasets.Dataset.from_dict(columns)
        for kind in SPLITS:
            if getattr(config, kind) not in needed:
                setattr(config, kind, None)
        if task.fewshot_cfg.split not in needed:
            task.fewshot_cfg.split = None

    with patch.object(ConfigurableTask, "download", download):
        yield


def plan_task(tasks: dict[str, Task], groups: dict[str, Group], limit: int | None, source: str) -> PlannedTask:
    """Plan loaded tasks, with the first `limit` rows of each. groups: those that the tasks are in, the outer first."""
    # A definition is recorded without the source of its rows: the hub and a folder may have different splits.
    dropped = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", *SPLITS)
    records = {}
    for name, task in tasks.items():
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        docs = task.eval_docs
        scored = min(limit or len(docs), len(docs))
        config = task.config.to_dict(keep_callable=True)
        config = {name: value for name, value in config.items() if name not in dropped}
        config["fewshot_config"] = {k: v for k, v in (config.get("fewshot_config") or {}).items() if k != "split"}
        config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
        records[name] = {
            "version": task.VERSION,
            "rows": scored,
            "rows_in_split": len(docs),
            "rows_sha256": digest(_jsonable([*islice(docs, scored)])),
            "num_fewshot": task.config.num_fewshot,
            "source": source,
            "config": _jsonable(config),
        }
        if task.config.num_fewshot:
            records[name]["examples_sha256"] = digest(_jsonable(list(task.fewshot_docs())))
    # Inner groups first: lm_eval passes a metric's direction up from the members in this order.
    inner_first = dict(reversed(groups.items()))
    return PlannedTask(next(iter(groups or tasks)), tasks, inner_first, limit, records)


def wikitext_rows(data_dir: Path | None) -> tuple[list[str], str]:
    """WikiText-2's test rows as the hub has them, and where they are from."""
    if data_dir is None:
        name = "Salesforce/wikitext", "wikitext-2-raw-v1"
        rows = _from_hub(lambda: datasets.load_dataset(*name, split="test"), WIKITEXT)
        return rows["text"][:], "hub"
    file = data_dir / WIKITEXT_FILE
    text = read_text(file, DATA_FLAG) if file.is_file() else ""
    if not text.strip():
        raise UserError(f"{DATA_FLAG}: {file} is missing or empty; copy WikiText-2's raw test file there")
    # As the hub's wikitext-2-raw-v1 has them: lines kept whole, blank ones emptied.
    return [line if line.strip() else "" for line in io.StringIO(text)], str(file)


def _from_hub(load: Callable, name: str, flag: str = TASKS_FLAG, instead: str = "use -eval_tasks bundled"):
    cure = f"offline, set HF_HOME to a folder that holds it and HF_HUB_OFFLINE=1, give {DATA_FLAG} DIR, or {instead}"
    with asking(flag, f"the data of '{name}' from the hub", cure):
        return load()


def _jsonable(value: object) -> object:
    """`value` as JSON, with text for what JSON lacks: functions as their source, partials with their arguments."""

    def text(item: object) -> object:
        if isinstance(item, functools.partial):
            return [item.func, item.args, item.keywords]
        with suppress(TypeError, OSError):
            return inspect.getsource(item)
        return getattr(item, "__qualname__", type(item).__qualname__) if callable(item) else str(item)

    return json.loads(json.dumps(value, default=text))


def load_texts(args: Arguments) -> Split:
    """Training and validation texts as the flags name them; UserError as `load_samples` raises it.

    Under -spec_task the samples are drawn with -data_seed from the task's training split, in the drawn order, without
    validation samples. Prompts and answers are those that lm_eval scores the task with; negatives are other choices.
    """
    task, data_dir, count = args.spec_task, args.eval_data_dir, args.num_train_samples
    if not task:
        return load_samples(args.data_path, count, args.num_valid_samples)
    if args.data_path is not None:
        print(f"      -data_path is not used: -spec_task trains on {task}'s own training split")
    with quiet(logging.ERROR):
        if data_dir is None:
            told = "-spec_task", "train on -data_path instead"
            known = _from_hub(functools.partial(_manager(task).load, [task]), task, *told)["tasks"][task]
            rows = known.dataset["train"]
        else:
            known = _from_folder(task, data_dir, "train")["tasks"][task]
            rows = known.eval_docs
    if len(rows) < count:
        why = f"asks for {count}, but {task}'s training split has {len(rows)} rows"
        raise UserError(f"-num_train_samples: {why}; lower it")
    samples = []
    for index in random.Random(args.samples_seed).sample(range(len(rows)), count):
        choices, right = known.doc_to_choice(rows[index]), right_choice(known, rows[index])
        negatives = tuple(text for place, text in enumerate(choices) if place != right)
        samples.append(Sample(known.doc_to_text(rows[index]), choices[right], negatives))
    return Split(samples, [])
