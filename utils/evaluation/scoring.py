"""Scores of a model through lm_eval, each with its standard error and with what is needed to reproduce it."""

import math
from dataclasses import dataclass, field, fields
from importlib.metadata import version

import lm_eval.api.metrics
import lm_eval.evaluator
from lm_eval.api.task import ConfigurableTask, Task
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.common.files import digest
from utils.common.names import ANSWER_BITS
from utils.evaluation import perplexity
from utils.evaluation.in_memory_lm import InMemoryLM, quiet, token_budget
from utils.evaluation.paired_statistics import score
from utils.evaluation.task_loading import EvalPlan, PlannedTask
from utils.evaluation.tasks import TOKEN_PERPLEXITY, WIKITEXT, right_choice

PACKAGES = ("lm_eval", "transformers", "tokenizers", "torch", "datasets")  # whose versions may change a score

_AGGREGATIONS = {
    getattr(lm_eval.api.metrics, name): name for name in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte")
}


@dataclass(frozen=True)
class Evaluation:
    """One model's scores.

    scores: task -> metric -> {"value", "stderr"} (None where no standard error is defined).
    samples: task -> metric -> one value a row, or [log-likelihood, weight], in the order of the rows.
    metrics: task -> metric -> {"aggregation", "higher_is_better"}, each None where lm_eval or this project has none.
    provenance: {"tasks": task -> what is needed to reproduce its numbers, TOKEN_PERPLEXITY: the same for it}.
    choices: of multiple-choice tasks, task -> rows -> log-likelihood (nats) of each choice.
    """

    scores: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    samples: dict[str, dict[str, list]] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict]] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    choices: dict[str, list[list[float]]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: "list[Evaluation]") -> "Evaluation":
        """Join the evaluations of several parts of one plan, in order. Each task keeps its own provenance."""
        whole = cls()
        for part in parts:
            by_task = {**whole.provenance.get("tasks", {}), **part.provenance.get("tasks", {})}
            for each in fields(cls):
                getattr(whole, each.name).update(getattr(part, each.name))
            whole.provenance["tasks"] = by_task
        return whole

    def add(self, task: str, metric: str, rows: list, aggregation: str) -> None:
        """Add a metric of this project. Lower is better."""
        self.scores.setdefault(task, {})[metric] = score([rows], aggregation)
        self.samples.setdefault(task, {})[metric] = rows
        self.metrics.setdefault(task, {})[metric] = {"aggregation": aggregation, "higher_is_better": False}


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: EvalPlan, label: str) -> Evaluation:
    """Score a loaded model on every task of a plan that fits it (`check_model`). label: names the model in bars."""
    result = Evaluation(provenance={"tasks": {}})
    circumstances = {
        "versions": {package: version(package) for package in PACKAGES},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
    for planned in plan.planned:
        if planned.text is not None:
            windows = perplexity.token_windows(tokenizer, planned.text, plan.ppl_window, plan.windows)
            batch = max(1, token_budget(model.device) // windows.shape[1])
            losses = perplexity.window_losses(model, windows, batch, f"{label}: {WIKITEXT} {TOKEN_PERPLEXITY}")
            result.add(WIKITEXT, TOKEN_PERPLEXITY, losses, "exp_mean")
            result.provenance[TOKEN_PERPLEXITY] = {
                "windows": len(windows),
                "window_tokens": windows.shape[1],
                "text_sha256": digest(planned.text),
                "rows_sha256": digest(windows.tolist()),
                **circumstances,
            }
        if planned.tasks:
            # Both perplexities of WikiText-2 are of windows of one length; all else may use the model's whole length.
            length = plan.ppl_window if planned.name == WIKITEXT else None
            _score(InMemoryLM(model, tokenizer, f"{label}: {planned.name}", length), planned, circumstances, result)
    return result


def _score(lm: InMemoryLM, planned: PlannedTask, circumstances: dict, result: Evaluation) -> None:
    # The jackknife covers every metric that is a mean or a perplexity; lm_eval's bootstrap would take minutes of CPU.
    known = all(fn in _AGGREGATIONS for task in planned.tasks.values() for fn in task.aggregation().values())
    for task in planned.tasks.values():  # each model gets the same examples, those that lm_eval's command draws
        task.set_fewshot_seed(1234)
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
            full = metric if kind == "none" else key  # another filter of the responses gives another number
            error = float(error) if isinstance(error, int | float) else None
            result.scores.setdefault(name, {})[full] = {"value": float(value), "stderr": error}
            result.metrics.setdefault(name, {})[full] = {
                "aggregation": _AGGREGATIONS.get(aggregations.get(metric)),
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
            }
    for name, task in planned.tasks.items():
        samples, columns = sorted(found["samples"][name], key=lambda sample: sample["doc_id"]), {}
        for sample in samples:
            for metric in sample["metrics"]:
                full = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                columns.setdefault(full, []).append(sample[metric])
        for metric, rows in columns.items():
            if (aggregation := result.metrics.get(name, {}).get(metric, {}).get("aggregation")) is not None:
                # A perplexity's rows may be pairs with a weight; lm_eval then takes their weighted mean.
                rows = [[float(part) for part in row] if isinstance(row, tuple | list) else float(row) for row in rows]
                result.samples.setdefault(name, {})[metric] = rows
                result.scores[name][metric]["stderr"] = score([rows], aggregation)["stderr"]
        # A task with a class of its own may make other requests than one per choice.
        if type(task) is ConfigurableTask and task.OUTPUT_TYPE == "multiple_choice":
            # lm_eval logs one sample per filter, all with the same responses.
            samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
            result.choices[name] = choice_rows(task, samples)
            broken = [any(map(math.isnan, row)) for row in result.choices[name]]
            for metric, rows in result.samples.get(name, {}).items() if any(broken) else ():
                # lm_eval takes NaN for the likeliest, and so answers with the first choice without a number.
                if result.metrics[name][metric]["aggregation"] == "mean":
                    rows[:] = [math.nan if lost else row for lost, row in zip(broken, rows, strict=True)]
                    result.scores[name][metric] = score([rows], "mean")
            if (rows := _answer_rows(task, samples, result.choices[name])) is not None:
                result.add(name, ANSWER_BITS, rows, "bits_per_byte")
        result.provenance["tasks"][name] = {**planned.records[name], "max_length": lm.max_length, **circumstances}


def choice_rows(task: Task, samples: list[dict]) -> list[list[float]]:
    """Log-likelihood (nats) of each choice, a list a row. samples: what lm_eval logs, one a row."""
    # With mutual information, the requests of the choices are followed by as many without a context.
    counts = [len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return [[float(of[0][0]) for of in sample["resps"][:n]] for sample, n in zip(samples, counts, strict=True)]


def _answer_rows(task: Task, samples: list[dict], choices: list[list[float]]) -> list[list[float]] | None:
    """[log-likelihood (nats) of the right answer, its UTF-8 bytes] of each row: what "bits_per_byte" aggregates.

    The bytes are those of the continuation in lm_eval's request, with the delimiter before it; in WinoGrande, of the
    text after the gap. Returns None unless every row has one right answer that lm_eval itself looks up; also if the
    task has its own process_results, which may take another for right.
    """
    right = [right_choice(task, sample["doc"]) for sample in samples]
    if callable(task.config.process_results) or None in right:
        return None
    return [
        [log_likelihoods[index], float(len(sample["arguments"][index][1].encode()))]
        for sample, log_likelihoods, index in zip(samples, choices, right, strict=True)
    ]
