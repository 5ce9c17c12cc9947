"""Scores of a model through lm_eval: planned and checked before a model loads, each with its standard error.

`plan_tasks` → `evaluate` for each model → `compare` and `recovered` between them.
"""

import difflib
import inspect
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlparse

import datasets
import huggingface_hub.constants
import lm_eval.api.metrics
import lm_eval.evaluator
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils import eval_statistics, perplexity
from utils.errors import UserError
from utils.eval_model import InMemoryLM, quiet, token_budget
from utils.files import digest
from utils.tasks import (
    BUNDLED,
    BUNDLED_FOLDER,
    DEFINITIONS,
    PAPER,
    PAPER_TASKS,
    TOKEN_PERPLEXITY,
    WIKITEXT,
    local_definition,
    main_metric,
    needed_splits,
    paper_rows,
    read_rows,
    split_file,
)

TASKS_FLAG = "-eval_tasks"
DATA_FLAG = "-eval_data_dir"

_HUB_WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
_FEWSHOT_SEED = 1234  # lm_eval's own default
_AGGREGATIONS = {
    getattr(lm_eval.api.metrics, name): name for name in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte")
}


@dataclass(frozen=True)
class Rows:
    """Which of a task's rows are scored: the first `scored` of `total`, and the digest of their content."""

    scored: int
    total: int
    sha256: str


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
                lines.append(f"{name}: {some} {unit}, {shots}-shot, {metrics} ({planned.source})")
        if self.wikitext is not None:
            some = f"the first {self.limit}" if self.limit else "all"
            lines.append(f"{WIKITEXT}: {TOKEN_PERPLEXITY} over {some} whole windows of {self.ppl_window} tokens")
        return lines

    def key(self) -> dict:
        """All that determines the scores but the model and its tokenizer; JSON-serialisable, for cache keys.

        Rows count by content, so the same rows from the hub, a mirror or a plain folder are one key.
        """
        tasks = {
            name: {
                "version": task.VERSION,
                "definition": digest(_portable_config(task)),
                "rows": planned.rows[name].sha256,
            }
            for planned in self.planned
            for name, task in planned.tasks.items()
        }
        text = None if self.wikitext is None else digest(self.wikitext)
        windows = {"text": text, "window": self.ppl_window, "limit": self.limit} if text else None
        return {"lm_eval": version("lm_eval"), "tasks": tasks, TOKEN_PERPLEXITY: windows}


@dataclass(frozen=True)
class Evaluation:
    """One model's scores.

    scores: task -> metric -> {"value", "stderr"} (None where no standard error is defined).
    samples: task -> metric -> one value a row, or [log-likelihood, weight], in the order of the rows.
    metrics: task -> metric -> {"aggregation", "higher_is_better"}, for those with samples.
    provenance: what is needed to reproduce the numbers. seconds: task -> wall time.
    """

    scores: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    samples: dict[str, dict[str, list]] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict]] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict:
        """A dictionary that json can write; `from_json` gives an equal Evaluation back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict) -> "Evaluation":
        """The Evaluation behind `to_json`'s dictionary."""
        return cls(**content)

    def main(self, task: str) -> tuple[str, dict[str, float | None]] | None:
        """(metric, score) that stands for the task in a table."""
        metric = main_metric(task, self.scores[task])
        return None if metric is None else (metric, self.scores[task][metric])


# ---- planning


def plan_tasks(eval_tasks: str, eval_data_dir: Path | None, limit: int | None, ppl_window: int) -> EvalPlan:
    """Find and check everything that `eval_tasks` needs, and load the rows.

    eval_tasks: 'bundled', 'paper' (the seven and WikiText-2), 'none', or names of lm_eval tasks, groups and
        'wikitext2' with commas between them.
    eval_data_dir: a folder of TASK/SPLIT.jsonl, or one that holds tasks/TASK/SPLIT.jsonl and wikitext2/test.txt (a
        mirror has this form). With it nothing is asked of the hub.
    limit: rows of each task and windows of the token perplexity; word perplexity takes the first pages that hold as
        many words as these windows hold tokens.
    ppl_window: tokens in a window.
    Raises UserError before any model is loaded: unknown task, missing split, damaged file, hub out of reach.
    """
    names = _names(eval_tasks)
    if eval_data_dir is not None and not eval_data_dir.is_dir():
        raise UserError(f"{DATA_FLAG}: {eval_data_dir} is not a folder; give the folder of task data")
    with tempfile.TemporaryDirectory(prefix="restorelcc-eval-") as workspace, quiet(logging.ERROR):
        loader = _Loader(Path(workspace), eval_data_dir)
        planned, text = [], None
        for name in names:
            if name == WIKITEXT:
                rows, source = _wikitext_rows(eval_data_dir)
                text = perplexity.joined(rows)
                pages = _first_pages(perplexity.pages(rows), limit and limit * ppl_window)
                planned.append(_planned(loader.wikitext(pages), None, source))
            else:
                loaded, source = loader.load(name)
                planned += [_planned(item, limit, source) for item in loaded]
    return EvalPlan(tuple(planned), limit, ppl_window, text)


def _names(eval_tasks: str) -> list[str]:
    names = []
    for name in (part.strip() for part in eval_tasks.split(",")):
        names += {"paper": [*PAPER, WIKITEXT], "none": []}.get(name, [name])
    if "" in names:
        raise UserError(f"{TASKS_FLAG}: '{eval_tasks}' has an empty name; put one comma between names, or give 'none'")
    return list(dict.fromkeys(names))


class _Loader:
    """Loads tasks by name, from definitions written to `workspace` where their rows are local."""

    def __init__(self, workspace: Path, data_dir: Path | None):
        self.workspace = workspace
        self.data_dir = data_dir
        self._all: TaskManager | None = None

    def load(self, name: str) -> tuple[list[Task | Group], str]:
        """The tasks or the group behind a name, and where the rows come from."""
        if name == BUNDLED or name in _bundled_names():
            manager = TaskManager(include_path=str(BUNDLED_FOLDER), include_defaults=False)
            return _load(manager, name), "shipped with the project"
        if name in PAPER_TASKS and self.data_dir is not None:
            paper_rows(name, self.data_dir, DATA_FLAG)  # one clear line for a bad row, where lm_eval would trace
            return self._local({name: DEFINITIONS / PAPER_TASKS[name].definition}, name), str(self.data_dir)
        if name in PAPER_TASKS:
            manager = TaskManager(
                include_path=str((DEFINITIONS / PAPER_TASKS[name].definition).parent), include_defaults=False
            )
            return _from_hub(lambda: _load(manager, name), name), "hub"
        members = self._members(name)
        if self.data_dir is None:
            return _from_hub(lambda: _load(self._all, name), name), "hub"
        return self._local(members, name), str(self.data_dir)

    def wikitext(self, pages: list[str]) -> Task:
        """lm_eval's word perplexity over `pages`."""
        file = self.workspace / "pages.jsonl"
        datasets.Dataset.from_dict({"page": pages}).to_json(file)
        definition = DEFINITIONS / "wikitext" / "wikitext.yaml"
        folder = self._write(WIKITEXT, definition, {"test": str(file)})
        return TaskManager(include_path=str(folder), include_defaults=False).load(WIKITEXT)["tasks"][WIKITEXT]

    def _write(self, task: str, definition: Path, files: dict[str, str]) -> Path:
        folder = self.workspace / "definitions" / digest(task)[:8]
        folder.mkdir(parents=True, exist_ok=True)
        config = load_yaml(definition, resolve_func=False)
        text = local_definition(task, definition, config, files, self.workspace / "arrow")
        (folder / "task.yaml").write_text(text, encoding="utf-8")
        return folder

    def _local(self, definitions: dict[str, Path], name: str) -> list[Task | Group]:
        folders = []
        for task, definition in definitions.items():
            splits = needed_splits(load_yaml(definition, resolve_func=False))
            files = {split: str(split_file(self.data_dir, task, split, DATA_FLAG)) for split in splits}
            for file in files.values():
                if task not in PAPER_TASKS:
                    read_rows(Path(file), DATA_FLAG)
            folders.append(self._write(task, definition, files))
        # A group finds its members by name, so that lm_eval's own definitions must be there, overridden.
        whole = list(definitions) != [name]
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=whole)
        try:
            items = _load(manager, name)
            for task in _leaves(items):
                _check_rows(task, str(self.data_dir))
        except (KeyError, ValueError, TypeError, AttributeError, datasets.exceptions.DatasetGenerationError) as error:
            raise UserError(
                f"{DATA_FLAG}: the rows of {name} in {self.data_dir} are not what lm_eval's task reads "
                f"({_first_line(error)}); write them with python -m utils.mirror"
            ) from error
        return items

    def _members(self, name: str) -> dict[str, Path]:
        """Definition of each task behind any of lm_eval's names."""
        if self._all is None:
            print("indexing lm_eval's tasks (ten seconds)")
            self._all = TaskManager()
        index = self._all.task_index
        if name not in index:
            near = difflib.get_close_matches(name, [*PAPER, BUNDLED, "paper", WIKITEXT, *self._all.all_tasks], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "python -m utils.lm_eval ls tasks lists them"
            raise UserError(f"{TASKS_FLAG}: unknown task '{name}'; {hint}")
        entry = index[name]
        if entry.yaml_path is None and not entry.tags:
            raise UserError(f"{TASKS_FLAG}: '{name}' has no definition file; name one of its tasks")
        if name in self._all.all_subtasks:
            return {name: entry.yaml_path}
        children = sorted(entry.tags) if name in self._all.all_tags else entry.cfg["task"]
        found: dict[str, Path] = {}
        for child in children:
            child = child if isinstance(child, str) else child.get("task") or child.get("group")
            if child not in index and self.data_dir is not None:
                raise UserError(
                    f"{TASKS_FLAG}: group '{name}' defines '{child}' within itself, which cannot be read "
                    f"from {DATA_FLAG}; name single tasks"
                )
            if child in index:
                found |= self._members(child)
        return found


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


def _check_rows(task: Task, where: str) -> None:
    """Build every row's prompt once, so that a row lm_eval cannot read is named before a model loads."""
    for number, row in enumerate(task.eval_docs, start=1):
        try:
            task.doc_to_text(row)
            task.doc_to_target(row)
            if task.config.doc_to_choice is not None:
                task.doc_to_choice(row)
        except Exception as error:
            raise UserError(
                f"{DATA_FLAG}: {task.task_name} in {where}, row {number}: lm_eval's task cannot read it "
                f"({_first_line(error)}); the hub's field names are expected"
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
        rows[task.task_name] = Rows(scored, len(docs), digest([_plain(docs[i]) for i in range(scored)]))
    name = loaded.name if isinstance(loaded, Group) else loaded.task_name
    return PlannedTask(name, loaded, limit, source, {task.task_name: task for task in members}, rows)


def _wikitext_rows(data_dir: Path | None) -> tuple[list[str], str]:
    """The test rows as the hub has them, and where they are from."""
    if data_dir is None:
        rows = _from_hub(lambda: datasets.load_dataset(*_HUB_WIKITEXT, split="test"), WIKITEXT)
        return rows["text"][:], "hub"
    plain, lines = data_dir / WIKITEXT / "test.txt", data_dir / WIKITEXT / "test.jsonl"
    if plain.is_file():
        try:
            text = plain.read_text(encoding="utf-8")
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
        with _no_waiting():
            return load()
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(
            f"{TASKS_FLAG}: cannot get the data of '{name}' from the hub ({_first_line(error)}); offline, give "
            f"{DATA_FLAG} DIR that holds it (python -m utils.mirror makes one), or use -eval_tasks bundled"
        ) from error


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Where the hub's name does not resolve, look in the local cache only: the library would retry for long."""
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not offline and not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        try:
            socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
        except OSError:
            huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline


def _portable_config(task: Task) -> dict:
    """lm_eval's own record of a task's definition, without where its rows are: prompts, choices, metrics, version."""
    config = dict(task.dump_config())
    config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
    places = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset")
    # Which splits exist differs between the hub and a folder.
    splits = ("training_split", "validation_split", "test_split", "fewshot_split")
    return _plain({name: value for name, value in config.items() if name not in (*places, *splits)})


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


# ---- scoring


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: EvalPlan,
    *,
    batch_size: int | str = "auto",
    label: str,
) -> Evaluation:
    """Score a loaded model on every task of the plan.

    batch_size: sequences a batch, or "auto" (as many as fit a budget of tokens). label: names the model in bars.
    """
    result = Evaluation()
    result.provenance.update(
        lm_eval=version("lm_eval"),
        transformers=version("transformers"),
        batch_size=batch_size,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        limit=plan.limit,
        tasks={},
    )
    if plan.planned:
        lm = InMemoryLM(model, tokenizer, batch_size, label)
        result.provenance["max_length"] = lm.max_length
        for planned in plan.planned:
            _score(lm, planned, label, result)
    if plan.wikitext is not None:
        _score_tokens(model, tokenizer, plan, batch_size, label, result)
    return result


def _score(lm: InMemoryLM, planned: PlannedTask, label: str, result: Evaluation) -> None:
    started = time.perf_counter()
    lm.label = f"{label}: {planned.name}"
    loaded = planned.loaded
    groups = {}
    if isinstance(loaded, Group):
        groups = {loaded.name: loaded, **{group.name: group for group in loaded.get_all_groups()}}
    # The jackknife covers every metric that is a mean or a perplexity; lm_eval's bootstrap would take minutes of CPU.
    known = all(fn in _AGGREGATIONS for task in planned.tasks.values() for fn in task.aggregation().values())
    with quiet():
        found = lm_eval.evaluator.evaluate(
            lm,
            {"tasks": planned.tasks, "groups": groups, "group_map": {}},
            limit=planned.limit,
            bootstrap_iters=0 if known and not groups else 1000,
        )
    for name, measured in found["results"].items():
        scores = result.scores.setdefault(name, {})
        for key, value in measured.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            spread = measured.get(f"{metric}_stderr,{kind}")
            spread = float(spread) if isinstance(spread, int | float) else None
            scores[_metric_name(metric, kind)] = {"value": float(value), "stderr": spread}
        if not scores:
            del result.scores[name]
    for name, task in planned.tasks.items():
        _keep_rows(name, task, found["samples"][name], result)
        result.provenance["tasks"][name] = {
            "version": task.VERSION,
            "rows": planned.rows[name].scored,
            "rows_in_split": planned.rows[name].total,
            "rows_sha256": planned.rows[name].sha256,
            "num_fewshot": task.config.num_fewshot,
            "source": planned.source,
            "config": _portable_config(task),
        }
    result.seconds[planned.name] = round(time.perf_counter() - started, 2)


def _metric_name(metric: str, kind: str) -> str:
    # 'none' is lm_eval's filter that does nothing; other filters give other numbers and stay in the name.
    return metric if kind == "none" else f"{metric},{kind}"


def _keep_rows(name: str, task: Task, samples: list[dict], result: Evaluation) -> None:
    columns: dict[str, list] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            columns.setdefault(_metric_name(metric, sample["filter"]), []).append(sample[metric])
    for metric, rows in columns.items():
        plain = metric.partition(",")[0]
        aggregation = _AGGREGATIONS.get(task.aggregation().get(plain))
        if aggregation is None:
            continue
        rows = [[float(part) for part in row] if isinstance(row, tuple | list) else float(row) for row in rows]
        # lm_eval takes the mean of a perplexity's rows with weights, where the rows are pairs.
        result.samples.setdefault(name, {})[metric] = rows
        higher = bool(task.higher_is_better().get(plain, True))
        result.metrics.setdefault(name, {})[metric] = {"aggregation": aggregation, "higher_is_better": higher}
        result.scores[name][metric]["stderr"] = eval_statistics.stderr(rows, aggregation)


def _score_tokens(model, tokenizer, plan: EvalPlan, batch_size: int | str, label: str, result: Evaluation) -> None:
    started = time.perf_counter()
    length = min(plan.ppl_window, model.config.max_position_embeddings)
    windows = perplexity.token_windows(tokenizer, plan.wikitext, length, plan.limit)
    fitting = max(1, token_budget(model.device) // windows.shape[1])
    batch = fitting if batch_size == "auto" else int(batch_size)
    losses = perplexity.window_losses(model, windows, batch, f"{label}: {WIKITEXT} {TOKEN_PERPLEXITY}")
    value = eval_statistics.aggregate(losses, "exp_mean")
    spread = eval_statistics.stderr(losses, "exp_mean")
    scores = result.scores.get(WIKITEXT, {})
    result.scores[WIKITEXT] = {TOKEN_PERPLEXITY: {"value": value, "stderr": spread}, **scores}
    result.samples.setdefault(WIKITEXT, {})[TOKEN_PERPLEXITY] = losses
    kind = {"aggregation": "exp_mean", "higher_is_better": False}
    result.metrics.setdefault(WIKITEXT, {})[TOKEN_PERPLEXITY] = kind
    result.provenance[TOKEN_PERPLEXITY] = {
        "windows": len(windows),
        "window_tokens": windows.shape[1],
        "text_sha256": digest(plan.wikitext),
    }
    elapsed = time.perf_counter() - started
    result.seconds[WIKITEXT] = round(result.seconds.get(WIKITEXT, 0.0) + elapsed, 2)


def _plain(value: object) -> object:
    """`value` with what json cannot write turned to text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(value):
        return inspect.getsource(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


# ---- comparing


def compare(restored: Evaluation, pruned: Evaluation) -> dict[str, dict[str, dict[str, float | None]]]:
    """task -> metric -> {"difference", "stderr", "mcnemar_p"} of restored minus pruned, row by row.

    Both answered the same questions, so the difference varies less than either score. mcnemar_p is None where rows
    are not right or wrong.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for task, metric, kind in _shared(restored, pruned):
        rows = restored.samples[task][metric], pruned.samples[task][metric]
        difference, spread = eval_statistics.paired_difference(*rows, kind["aggregation"])
        p = eval_statistics.mcnemar_p(*rows) if kind["aggregation"] == "mean" else None
        found.setdefault(task, {})[metric] = {"difference": difference, "stderr": spread, "mcnemar_p": p}
    return found


def recovered(dense: Evaluation, pruned: Evaluation, restored: Evaluation) -> dict[str, dict[str, float | None]]:
    """task -> metric -> share of the gap between dense and pruned that the restored model closes.

    None where the gap is within two standard errors of the paired difference, or the pruned model is the better one.
    """
    found: dict[str, dict[str, float | None]] = {}
    for task, metric, kind in _shared(restored, pruned):
        if metric not in dense.samples.get(task, {}):
            continue
        rows = (each.samples[task][metric] for each in (dense, pruned, restored))
        share = eval_statistics.share_recovered(*rows, kind["aggregation"], kind["higher_is_better"])
        found.setdefault(task, {})[metric] = share
    return found


def _shared(one: Evaluation, other: Evaluation) -> Iterator[tuple[str, str, dict]]:
    for task, metrics in one.metrics.items():
        for metric, kind in metrics.items():
            if metric in other.samples.get(task, {}):
                yield task, metric, kind
