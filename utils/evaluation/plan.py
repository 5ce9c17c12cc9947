"""What will be evaluated: task names found, their rows loaded and checked, before any model loads."""

import codecs
import difflib
import inspect
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from utils.common.disk import DiskFull, explain_disk_full
from utils.common.errors import UserError, first_line
from utils.common.files import digest, workspace
from utils.common.hub import no_waiting
from utils.common.names import BUNDLED
from utils.evaluation import perplexity
from utils.evaluation.model import quiet
from utils.evaluation.tasks import (
    BUNDLED_FOLDER,
    DEFINITIONS,
    PAPER_TASKS,
    TOKEN_PERPLEXITY,
    TOKENS_ONLY,
    WIKITEXT,
    local_definition,
    needed_splits,
    paper_fault,
    read_rows,
    split_file,
)

TASKS_FLAG = "-eval_tasks"
DATA_FLAG = "-eval_data_dir"

_HUB_WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
_FEWSHOT_SEED = 1234  # lm_eval's own default


@dataclass(frozen=True)
class Rows:
    """Which of a task's rows are scored: the first `scored` of `total`, and the digest of their content.

    examples: the digest of the rows that examples are drawn from, where the task shows any.
    """

    scored: int
    total: int
    sha256: str
    examples: str | None = None


@dataclass(frozen=True)
class PlannedTask:
    """One task or group, loaded: its rows are in memory. `tasks` and `rows` are by task name."""

    name: str
    loaded: Task | Group
    limit: int | None
    source: str
    tasks: dict[str, Task]
    rows: dict[str, Rows]


@dataclass(frozen=True)
class EvalPlan:
    """What will be run, checked; the same plan serves the dense, the pruned and the restored model."""

    planned: tuple[PlannedTask, ...]
    limit: int | None
    ppl_window: int
    wikitext: str | None = None
    """WikiText-2's test text as pruning papers join it, where its token perplexity is asked for."""
    windows: int | None = None
    """How many of its windows; None for all."""
    left_out: tuple[str, ...] = ()
    """What 'paper' would run but the data folder does not hold, in words."""

    def parts(self) -> "list[EvalPlan]":
        """One plan a task, to score or to find in a cache one by one; `Evaluation.joined` puts the scores together."""
        parts = [
            replace(self, planned=(planned,), wikitext=self.wikitext if planned.name == WIKITEXT else None)
            for planned in self.planned
        ]
        alone = self.wikitext is not None and all(planned.name != WIKITEXT for planned in self.planned)
        return [*parts, replace(self, planned=())] if alone else parts

    def describe(self) -> list[str]:
        """One line a task: what will be run."""
        lines = []
        for planned in self.planned:
            for name, task in planned.tasks.items():
                shots = task.config.num_fewshot or "zero"
                rows = planned.rows[name]
                some = f"{rows.scored}" if rows.scored == rows.total else f"the first {rows.scored} of {rows.total}"
                unit = "pages" if name == WIKITEXT else "rows"
                metrics = ", ".join(task.aggregation())
                how = f"windows of {self.ppl_window} tokens" if name == WIKITEXT else f"{shots}-shot"
                lines.append(f"{name}: {some} {unit}, {how}, {metrics} ({planned.source})")
        if self.wikitext is not None:
            some = f"the first {self.windows}" if self.windows else "all"
            lines.append(f"{WIKITEXT}: {TOKEN_PERPLEXITY} over {some} whole windows of {self.ppl_window} tokens")
        return [*lines, *self.left_out]

    def key(self) -> dict:
        """What is asked: definitions, rows and windows; JSON-serialisable, for `score_key`.

        Rows count by content, so the same rows from the hub, a mirror or a plain folder are one key.
        """
        tasks = {
            name: {
                "version": task.VERSION,
                "definition": digest(portable_config(task)),
                "rows": planned.rows[name].sha256,
                "examples": planned.rows[name].examples,
            }
            for planned in self.planned
            for name, task in planned.tasks.items()
        }
        text = None if self.wikitext is None else digest(self.wikitext)
        windows = {"text": text, "window": self.ppl_window, "limit": self.windows} if text else None
        return {"tasks": tasks, TOKEN_PERPLEXITY: windows}


def plan_tasks(
    eval_tasks: str, eval_data_dir: Path | None, limit: int | None, ppl_window: int, windows: int | None = None
) -> EvalPlan:
    """Find and check everything that `eval_tasks` needs, and load the rows.

    eval_tasks: 'bundled', 'paper' (the seven and WikiText-2), 'none', or names of lm_eval tasks, groups and
        'wikitext2' (or 'wikitext2_tokens', its token perplexity alone) with commas between them.
    eval_data_dir: a folder of TASK/SPLIT.jsonl, or one that holds tasks/TASK/SPLIT.jsonl and wikitext2/test.txt.
        With it nothing is asked of the hub; 'paper' then leaves WikiText-2 out, and says so, where the folder has none.
    limit: rows of each task. windows: of the token perplexity, by default as many; word perplexity takes the first
        pages that hold as many words as these windows hold tokens.
    ppl_window: tokens in a window of either perplexity (lm_eval's own default is the model's whole length, which its
        argument max_length sets).
    Raises UserError before any model is loaded: unknown task, missing split, damaged file, hub out of reach.
    """
    names, windows = task_names(eval_tasks, TASKS_FLAG), windows or limit
    if eval_data_dir is not None and not eval_data_dir.is_dir():
        raise UserError(f"{DATA_FLAG}: {eval_data_dir} is not a folder; give the folder of task data")
    with workspace("eval") as place, quiet(logging.ERROR):
        loader = TaskLoader(place, eval_data_dir)
        planned, text, left_out = [], None, ()
        for name in names:
            if name == WIKITEXT and _asked_only_by_paper(eval_tasks) and not _has_wikitext(eval_data_dir):
                left_out = (f"{WIKITEXT}: left out, {eval_data_dir} holds no {WIKITEXT}/test.txt",)
            elif name == TOKENS_ONLY:
                text = perplexity.joined(wikitext_rows(eval_data_dir)[0])
            elif name == WIKITEXT:
                rows, source = wikitext_rows(eval_data_dir)
                text = perplexity.joined(rows)
                pages = _first_pages(perplexity.pages(rows), windows and windows * ppl_window)
                planned.append(_planned(loader.wikitext(pages), None, source))
            else:
                loaded, source = loader.load(name)
                seen = {task for other in planned for task in other.tasks}
                new = (_planned(item, limit, source) for item in loaded)
                planned += [item for item in new if not seen >= set(item.tasks)]
    return EvalPlan(tuple(planned), limit, ppl_window, text, windows, left_out)


def _asked_only_by_paper(tasks: str) -> bool:
    return WIKITEXT not in (part.strip() for part in tasks.split(","))


def _has_wikitext(data_dir: Path | None) -> bool:
    """Whether there is something to read: the hub, or a file in a folder."""
    return data_dir is None or any((data_dir / WIKITEXT / f"test.{kind}").is_file() for kind in ("txt", "jsonl"))


def task_names(tasks: str, flag: str) -> list[str]:
    """Names without repeats, in order, `paper` and `none` spelled out."""
    names = []
    for name in (part.strip() for part in tasks.split(",")):
        names += {"paper": [*PAPER_TASKS, WIKITEXT], "none": []}.get(name, [name])
    if "" in names:
        raise UserError(f"{flag}: '{tasks}' has an empty name; put one comma between names, or give 'none'")
    return list(dict.fromkeys(names))


class TaskLoader:
    """Loads tasks by lm_eval's names: from the hub, or from `data_dir` by definitions written to `workspace`."""

    def __init__(self, workspace: Path, data_dir: Path | None):
        self.workspace = workspace
        self.data_dir = data_dir
        self._all: TaskManager | None = None

    def load(self, name: str) -> tuple[list[Task | Group], str]:
        """What is behind a name, and where its rows come from."""
        if name in _bundled_names():
            manager = TaskManager(include_path=str(BUNDLED_FOLDER), include_defaults=False)
            return _load(manager, name), "shipped with the project"
        definitions = self.definitions(name)
        if self.data_dir is None:
            return self._from_hub(definitions, name), "hub"
        return self._from_folder(definitions, name), str(self.data_dir)

    def definitions(self, name: str) -> dict[str, Path]:
        """lm_eval's definition of each task behind one of its names."""
        if name in PAPER_TASKS:
            return {name: DEFINITIONS / PAPER_TASKS[name].definition}
        if self._all is None:
            print("indexing lm_eval's tasks (ten seconds)")
            self._all = TaskManager()
        index = self._all.task_index
        if name not in index:
            known = {*PAPER_TASKS, BUNDLED, "paper", WIKITEXT, TOKENS_ONLY, *self._all.all_tasks}
            near = difflib.get_close_matches(name, sorted(known), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "lm_eval ls tasks lists them"
            raise UserError(f"{TASKS_FLAG}: unknown task '{name}'; {hint}")
        entry = index[name]
        if name in self._all.all_subtasks:
            return {name: entry.yaml_path}
        found: dict[str, Path] = {}
        for child in sorted(entry.tags) if name in self._all.all_tags else entry.cfg["task"]:
            child = child if isinstance(child, str) else child.get("task") or child.get("group")
            if child in index:
                found |= self.definitions(child)
            elif self.data_dir is not None:
                raise UserError(
                    f"{TASKS_FLAG}: group '{name}' defines '{child}' within itself, which cannot be read from "
                    f"{DATA_FLAG}; name single tasks"
                )
        return found

    def wikitext(self, pages: list[str]) -> Task:
        """lm_eval's word perplexity over `pages`."""
        file = self.workspace / "pages.jsonl"
        datasets.Dataset.from_dict({"page": pages}).to_json(file)
        definition = DEFINITIONS / "wikitext" / "wikitext.yaml"
        folder = self._write(WIKITEXT, definition, {"test": str(file)})
        return TaskManager(include_path=str(folder), include_defaults=False).load(WIKITEXT)["tasks"][WIKITEXT]

    def _from_hub(self, definitions: dict[str, Path], name: str) -> list[Task | Group]:
        # Indexing all of lm_eval takes ten seconds: one of the seven needs only its own folder.
        alone = str(definitions[name].parent) if name in PAPER_TASKS else None
        manager = self._all or TaskManager(include_path=alone, include_defaults=False)
        return _from_hub(lambda: _load(manager, name), name)

    def _from_folder(self, definitions: dict[str, Path], name: str) -> list[Task | Group]:
        folders = []
        for task, definition in definitions.items():
            splits = needed_splits(load_yaml(definition, resolve_func=False))
            files = {split: split_file(self.data_dir, task, split, DATA_FLAG) for split in splits}
            for file in files.values():
                # One clear line for a bad row, where lm_eval would trace.
                read_rows(file, DATA_FLAG, paper_fault(task))
            plain = {split: str(self._without_mark(file)) for split, file in files.items()}
            folders.append(self._write(task, definition, plain))
        # A group finds its members by name, so that lm_eval's own definitions must be there, overridden.
        whole = list(definitions) != [name]
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=whole)
        try:
            with explain_disk_full(self.workspace):
                items = _load(manager, name)
        except DiskFull:
            raise
        except Exception as error:
            # lm_eval builds the first row's prompt as it loads, and raises whatever its template or function does.
            raise UserError(
                f"{DATA_FLAG}: lm_eval's {name} cannot read its rows in {self.data_dir} ({first_line(error)}); "
                "the hub's field names are expected"
            ) from error
        for task in _leaves(items):
            _check_rows(task, self.data_dir)
        return items

    def _without_mark(self, file: Path) -> Path:
        """The file, or a copy without the byte order mark it begins with: `datasets` doesn't read one."""
        with file.open("rb") as opened:
            if opened.read(3) != codecs.BOM_UTF8:
                return file
            copy = self.workspace / f"{digest(str(file))[:8]}{file.suffix}"
            with copy.open("wb") as target:
                shutil.copyfileobj(opened, target)
        return copy

    def _write(self, task: str, definition: Path, files: dict[str, str]) -> Path:
        folder = self.workspace / "definitions" / digest(task)[:8]
        folder.mkdir(parents=True, exist_ok=True)
        config = load_yaml(definition, resolve_func=False)
        text = local_definition(task, definition, config, files, self.workspace / "arrow")
        (folder / "task.yaml").write_text(text, encoding="utf-8")
        return folder


def _load(manager: TaskManager, name: str) -> list[Task | Group]:
    """The group if it has a score of its own, else its tasks one by one."""
    loaded = manager.load([name])
    group = (loaded.get("groups") or {}).get(name)
    return [group] if group is not None and group.has_aggregation else list(loaded["tasks"].values())


def _leaves(items: list[Task | Group]) -> Iterator[Task]:
    for item in items:
        yield from item.get_all_tasks() if isinstance(item, Group) else [item]


def _bundled_names() -> set[str]:
    return {BUNDLED, *(path.stem for path in BUNDLED_FOLDER.glob(f"{BUNDLED}_*.yaml"))}


def _check_rows(task: Task, data_dir: Path) -> None:
    """Build every row's prompt once, so that a row lm_eval cannot read is named before a model loads."""
    for number, row in enumerate(task.eval_docs, start=1):
        try:
            task.doc_to_text(row)
            task.doc_to_target(row)
            if task.config.doc_to_choice is not None:
                task.doc_to_choice(row)
        except Exception as error:
            raise UserError(
                f"{DATA_FLAG}: {task.task_name} in {data_dir}, row {number}: lm_eval cannot read it "
                f"({first_line(error)}); the hub's field names are expected"
            ) from error


def _planned(loaded: Task | Group, limit: int | None, source: str) -> PlannedTask:
    members = loaded.get_all_tasks() if isinstance(loaded, Group) else [loaded]
    rows = {}
    for task in members:
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(_FEWSHOT_SEED)
        docs = task.eval_docs
        scored = min(limit or len(docs), len(docs))
        examples = _content(task.fewshot_docs()) if task.config.num_fewshot else None
        rows[task.task_name] = Rows(scored, len(docs), _content(docs[i] for i in range(scored)), examples)
    name = loaded.name if isinstance(loaded, Group) else loaded.task_name
    return PlannedTask(name, loaded, limit, source, {task.task_name: task for task in members}, rows)


def _content(rows: Iterable[dict]) -> str:
    return digest([_jsonable(row) for row in rows])


def wikitext_rows(data_dir: Path | None) -> tuple[list[str], str]:
    """WikiText-2's test rows as the hub has them, and where they are from."""
    if data_dir is None:
        rows = _from_hub(lambda: datasets.load_dataset(*_HUB_WIKITEXT, split="test"), WIKITEXT)
        return rows["text"][:], "hub"
    plain, lines = data_dir / WIKITEXT / "test.txt", data_dir / WIKITEXT / "test.jsonl"
    if plain.is_file():
        try:
            text = plain.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{DATA_FLAG}: cannot read {plain} ({error})") from error
        if not text.strip():
            raise UserError(f"{DATA_FLAG}: {plain} is empty; copy WikiText-2's raw test file there")
        return perplexity.hub_rows(text), str(plain)
    if lines.is_file():

        def fault(row: dict) -> str | None:
            named = isinstance(row.get("text"), str) or isinstance(row.get("page"), str)
            return None if named else "field 'text' (or 'page') is missing"

        rows = read_rows(lines, DATA_FLAG, fault)
        texts = [row["text"] if "text" in row else row["page"] + "\n" for row in rows]
        return [part for text in texts for part in (perplexity.hub_rows(text) or [""])], str(lines)
    raise UserError(f"{DATA_FLAG}: {data_dir} has no WikiText-2; it would be {plain} (or test.jsonl beside it)")


def _first_pages(pages: list[str], words: int | None) -> list[str]:
    """The first pages that hold `words` words, all if None; two at least, so that there is a standard error."""
    if words is None:
        return pages
    taken, count = [], 0
    for page in pages:
        if count >= words and len(taken) >= 2:
            break
        taken.append(page)
        count += len(page.split())
    return taken


def _from_hub(load: Callable, name: str):
    try:
        with no_waiting():
            return load()
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(
            f"{TASKS_FLAG}: cannot get the data of '{name}' from the hub ({first_line(error)}); offline, set HF_HOME "
            f"to a folder that holds it and HF_HUB_OFFLINE=1, give {DATA_FLAG} DIR, or use -eval_tasks bundled"
        ) from error


def portable_config(task: Task) -> dict:
    """lm_eval's own record of a task's definition, without where its rows are: prompts, choices, metrics, version."""
    config = dict(task.dump_config())
    config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
    places = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset")
    # Which splits exist differs between the hub and a folder.
    splits = ("training_split", "validation_split", "test_split", "fewshot_split")
    return _jsonable({name: value for name, value in config.items() if name not in (*places, *splits)})


def _jsonable(value: object) -> object:
    """`value` with what json cannot write turned to text: functions to their source."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if callable(value):
        return inspect.getsource(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def hub_split(task: str, split: str) -> list[dict]:
    """All rows of a split of one of lm_eval's tasks, from the hub."""
    with workspace("eval") as place, quiet(logging.ERROR):
        ((loaded,), _) = TaskLoader(place, None).load(task)
        return [dict(row) for row in loaded.dataset[split]]
