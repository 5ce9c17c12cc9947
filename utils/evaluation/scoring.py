"""Scores of a model through lm_eval, each with its standard error, and paired comparisons of two models.

`plan_tasks` (utils.evaluation.plan) → `evaluate` for each model → `compare` and `recovered` between them.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

import lm_eval.api.metrics
import lm_eval.evaluator
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.loading import input_device
from utils.common.files import digest
from utils.evaluation import perplexity
from utils.evaluation import statistics as eval_statistics
from utils.evaluation.model import InMemoryLM, quiet, token_budget
from utils.evaluation.plan import EvalPlan, PlannedTask, plan_tasks, portable_config
from utils.evaluation.tasks import MAIN_METRIC, TOKEN_PERPLEXITY, WIKITEXT

__all__ = ["MAIN_METRIC", "EvalPlan", "Evaluation", "compare", "evaluate", "plan_tasks", "recovered"]

_AGGREGATIONS = {
    getattr(lm_eval.api.metrics, name): name for name in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte")
}


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

    @classmethod
    def joined(cls, parts: "list[Evaluation]") -> "Evaluation":
        """The scores of several parts of one plan, in their order."""
        whole = cls()
        for part in parts:
            for name in ("scores", "samples", "metrics", "seconds"):
                getattr(whole, name).update(getattr(part, name))
            tasks = {**whole.provenance.get("tasks", {}), **part.provenance.get("tasks", {})}
            whole.provenance.update(part.provenance, tasks=tasks)
        return whole


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
        device=str(input_device(model)),
        limit=plan.limit,
        tasks={},
    )
    if plan.planned:
        lm = InMemoryLM(model, tokenizer, batch_size, label)
        for planned in plan.planned:
            # Both perplexities of WikiText-2 are of windows of one length; all else may use the model's whole length.
            length = plan.ppl_window if planned.name == WIKITEXT else lm.max_length
            with lm.windows_of(length):
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
            "max_length": lm.max_length,
            "source": planned.source,
            "config": portable_config(task),
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
    fitting = max(1, token_budget(input_device(model)) // windows.shape[1])
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
