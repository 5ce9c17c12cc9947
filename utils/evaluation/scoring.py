"""Scores of a model through lm_eval, each with its standard error and with what is needed to reproduce it.

`plan_tasks` (utils.evaluation.task_loading) → `evaluate` for each model → `summarise` (utils.evaluation.comparison).
"""

import time
from dataclasses import dataclass, field
from importlib.metadata import version

import lm_eval.api.metrics
import lm_eval.evaluator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.loading import input_device
from utils.common.files import digest
from utils.common.names import ANSWER_BITS
from utils.evaluation import answers, paired_statistics, perplexity
from utils.evaluation.in_memory_lm import InMemoryLM, quiet, token_budget
from utils.evaluation.task_loading import EvalPlan, PlannedTask, portable_config
from utils.evaluation.tasks import TOKEN_PERPLEXITY, WIKITEXT

PACKAGES = ("lm_eval", "transformers", "tokenizers", "torch", "datasets")
"""Libraries of which another version may give another score."""

_AGGREGATIONS = {
    getattr(lm_eval.api.metrics, name): name for name in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte")
}


@dataclass(frozen=True)
class Evaluation:
    """One model's scores.

    scores: task -> metric -> {"value", "stderr"} (None where no standard error is defined).
    samples: task -> metric -> one value a row, or [log-likelihood, weight], in the order of the rows.
    metrics: task -> metric -> {"aggregation", "higher_is_better"} of every score; None is what lm_eval doesn't say, or
        an aggregation that nothing here resamples.
    provenance: {"tasks": task -> what is needed to reproduce its numbers, TOKEN_PERPLEXITY: the same of that one}, each
        with the versions, device and dtype that it was measured with.
    seconds: task -> wall time.
    choices: of multiple-choice tasks, task -> rows -> log-likelihood (nats) of each choice.
    """

    scores: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    samples: dict[str, dict[str, list]] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict]] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    choices: dict[str, list[list[float]]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: "list[Evaluation]") -> "Evaluation":
        """The scores of several parts of one plan, in their order; what each was measured with stays its own."""
        whole = cls()
        for part in parts:
            for name in ("scores", "samples", "metrics", "seconds", "choices"):
                getattr(whole, name).update(getattr(part, name))
            by_task = {**whole.provenance.get("tasks", {}), **part.provenance.get("tasks", {})}
            whole.provenance.update(part.provenance, tasks=by_task)
        return whole


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: EvalPlan, label: str) -> Evaluation:
    """Score a loaded model on every task of the plan. label: names the model in bars."""
    plan.check_model(tokenizer, model.config.max_position_embeddings)
    result = Evaluation(provenance={"tasks": {}})
    circumstances = {
        "versions": {package: version(package) for package in PACKAGES},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(input_device(model)),
        "limit": plan.limit,
    }
    if plan.planned:
        lm = InMemoryLM(model, tokenizer, label)
        for planned in plan.planned:
            # Both perplexities of WikiText-2 are of windows of one length; all else may use the model's whole length.
            lm.read_at_most(plan.ppl_window if planned.name == WIKITEXT else None)
            _score(lm, planned, label, circumstances, result)
    if plan.wikitext is not None:
        _score_tokens(model, tokenizer, plan, label, circumstances, result)
    return result


def _score(lm: InMemoryLM, planned: PlannedTask, label: str, circumstances: dict, result: Evaluation) -> None:
    started = time.perf_counter()
    lm.label = f"{label}: {planned.name}"
    # The jackknife covers every metric that is a mean or a perplexity; lm_eval's bootstrap would take minutes of CPU.
    known = all(fn in _AGGREGATIONS for task in planned.tasks.values() for fn in task.aggregation().values())
    with quiet():
        found = lm_eval.evaluator.evaluate(
            lm,
            {"tasks": planned.tasks, "groups": planned.groups},
            limit=planned.limit,
            bootstrap_iters=0 if known and not planned.groups else 1000,
        )
    for name, measured in found["results"].items():
        aggregations = planned.tasks[name].aggregation() if name in planned.tasks else {}
        for key, value in measured.items():
            metric, _, kind = key.partition(",")
            # lm_eval writes a word where it has no number.
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = measured.get(f"{metric}_stderr,{kind}")
            full = metric if kind == "none" else f"{metric},{kind}"  # another filter gives another number
            result.scores.setdefault(name, {})[full] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else None,
            }
            result.metrics.setdefault(name, {})[full] = {
                "aggregation": _AGGREGATIONS.get(aggregations.get(metric)),
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
            }
    for name, task in planned.tasks.items():
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        _keep_rows(name, samples, result)
        if answers.asks_choices(task):
            # A sample a filter, all of the same responses.
            samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
            result.choices[name] = answers.choice_rows(task, samples)
            rows = answers.answer_rows(task, samples, result.choices[name])
            if rows is not None:
                _add(result, name, ANSWER_BITS, rows, "bits_per_byte")
        result.provenance["tasks"][name] = {
            "version": task.VERSION,
            "rows": planned.rows[name].scored,
            "rows_in_split": planned.rows[name].total,
            "rows_sha256": planned.rows[name].sha256,
            "num_fewshot": task.config.num_fewshot,
            "max_length": lm.max_length,
            "source": planned.source,
            "config": portable_config(task),
            **circumstances,
        }
    result.seconds[planned.name] = round(time.perf_counter() - started, 2)


def _keep_rows(name: str, samples: list[dict], result: Evaluation) -> None:
    columns: dict[str, list] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            full = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            columns.setdefault(full, []).append(sample[metric])
    for metric, rows in columns.items():
        aggregation = result.metrics[name][metric]["aggregation"]
        if aggregation is None:  # nothing here can resample it
            continue
        # lm_eval takes the mean of a perplexity's rows with weights, where the rows are pairs.
        rows = [[float(part) for part in row] if isinstance(row, tuple | list) else float(row) for row in rows]
        result.samples.setdefault(name, {})[metric] = rows
        result.scores[name][metric]["stderr"] = paired_statistics.stderr(rows, aggregation)


def _add(result: Evaluation, task: str, metric: str, rows: list, aggregation: str) -> None:
    """A metric of ours, of which lower is better."""
    result.scores.setdefault(task, {})[metric] = paired_statistics.score(rows, aggregation)
    result.samples.setdefault(task, {})[metric] = rows
    result.metrics.setdefault(task, {})[metric] = {"aggregation": aggregation, "higher_is_better": False}


def _score_tokens(model, tokenizer, plan: EvalPlan, label: str, circumstances: dict, result: Evaluation) -> None:
    started = time.perf_counter()
    windows = perplexity.token_windows(tokenizer, plan.wikitext, plan.ppl_window, plan.windows)
    batch = max(1, token_budget(input_device(model)) // windows.shape[1])
    losses = perplexity.window_losses(model, windows, batch, f"{label}: {WIKITEXT} {TOKEN_PERPLEXITY}")
    by_page = result.scores.pop(WIKITEXT, {})
    _add(result, WIKITEXT, TOKEN_PERPLEXITY, losses, "exp_mean")
    result.scores[WIKITEXT] |= by_page
    result.provenance[TOKEN_PERPLEXITY] = {
        "windows": len(windows),
        "window_tokens": windows.shape[1],
        "text_sha256": digest(plan.wikitext),
        "rows_sha256": digest(windows.tolist()),
        **circumstances,
    }
    elapsed = time.perf_counter() - started
    result.seconds[WIKITEXT] = round(result.seconds.get(WIKITEXT, 0.0) + elapsed, 2)
