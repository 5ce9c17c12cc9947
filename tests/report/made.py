"""What the tests of pages read: records of runs, as results.json, run.json, the history and the examples hold them."""

import shlex
from functools import cache
from pathlib import Path

import torch

from utils.common.files import without_nan, write_json
from utils.evaluation.outcomes import write_compressed
from utils.report.page import Record
from utils.report.records import heads_record, spectrum_record
from utils.report.tables import MODELS

SPACE = "{http://www.w3.org/2000/svg}"
LAYERS, HEADS, DIM = 5, 3, 8
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>\"><svg onload=hacked=3>"


def task(dense, pruned, restored, metric="acc", stderr=0.02, paired_stderr=0.01, higher=None) -> dict:
    """What one task measured. higher: whether higher is better; unless given, so it is for all but a perplexity."""
    higher = metric != "token_perplexity" if higher is None else higher
    told = {"metric": metric, "stderr": stderr, "paired_stderr": paired_stderr, "higher": higher}
    return {"values": (dense, pruned, restored), **told}


def make_results(**tasks: dict) -> dict:
    results = {"scores": {}, "metrics": {}, "paired": {}, "recovered": {}, "main_metric": {}}
    for name, t in tasks.items():
        (dense, pruned, restored), metric = t["values"], t["metric"]
        for model, value in zip(MODELS, t["values"], strict=True):
            results["scores"].setdefault(model, {})[name] = {metric: {"value": value, "stderr": t["stderr"]}}
        gain = None if None in t["values"] else restored - pruned
        results["paired"][name] = {metric: {"difference": gain, "stderr": t["paired_stderr"]}}
        results["recovered"][name] = {metric: gain and gain / (dense - pruned)}
        results["main_metric"][name] = metric
        results["metrics"][name] = {metric: {"higher_is_better": t["higher"], "aggregation": None}}
    return results


def kept(values: list, aggregation: str | None = "mean", higher: bool | None = True, asked: str = "asked") -> dict:
    """A value a question, as rows.json.gz keeps them. asked: stands for the digest of the questions."""
    return {"values": values, "aggregation": aggregation, "higher_is_better": higher, "sha256": asked}


def write_run(folder: Path, results: dict, run: dict, **rows: dict) -> None:
    """A finished run, as its files tell. rows: by model, task → metric → `kept`."""
    write_json(folder / "results.json", results)
    write_json(folder / "run.json", run)
    write_compressed(folder / "logs" / "rows.json.gz", rows)


def with_answers() -> dict:
    """Results of two multiple-choice tasks: bits a byte fall by 0.1, answers are nearer to the dense model's in one."""
    results = make_results(
        a=task(1.5, 1.9, 1.8, "answer_bits_per_byte", higher=False),
        b=task(1.3, 1.5, 1.4, "answer_bits_per_byte", higher=False),
        c=task(24.2, 54.0, 45.0, "token_perplexity", 0.3, 0.2),
    )
    for name in "ab":
        results["main_metric"][name] = "acc"
        for model, value in zip(MODELS, (0.7, 0.5, 0.55), strict=True):
            results["scores"][model][name]["acc"] = {"value": value, "stderr": 0.06}
    values = {"dense": 1.4, "pruned": 1.7, "restored": 1.6}
    results["answers"] = {
        "tasks": ["a", "b"], "higher_is_better": False,
        "scores": {name: {"value": value, "stderr": 0.02} for name, value in values.items()},
        "paired": {"difference": -0.1, "stderr": 0.007}, "recovered": 1 / 3,
    }  # fmt: skip
    results["agreement"] = {"pruned": {}, "restored": {}, "paired": {}}
    for name, pruned, restored in (("a", 0.3, 0.2), ("b", 0.2, 0.25), ("all", 0.25, 0.22)):
        told = ({"value": pruned, "stderr": 0.03}, {"value": restored, "stderr": 0.03})
        paired = {"difference": restored - pruned, "stderr": 0.02}
        for part, found in zip(results["agreement"], (*told, paired), strict=True):
            results["agreement"][part][name] = {"flipped": found, "kl": {key: 2 * found[key] for key in found}}
    return results


def stage(name: str, seconds: float, memory: int, detail: str = "", reused: tuple[str, ...] = ()) -> dict:
    told = {"detail": detail, "reused": reused, "peak_gpu_memory_bytes": None}
    return {"name": name, "seconds": seconds, "peak_memory_bytes": memory, **told}


PROOF = {
    "passed": True, "tensors_compared": 38, "tensors_identical": 38, "changed_tensors": [],
    "new_tensors": [f"model.layers.{i}.self_attn.{x}_proj.bias" for i in range(LAYERS) for x in "qkvo"],
    "nonzero_new_tensors": ["model.layers.2.self_attn.o_proj.bias"],
    "tensors_recomputed": 1, "tensors_touched": 1, "unexplained_tensors": [], "zeros": "kept", "zeros_lost": 0,
    "zeros_pruned": 12345, "zeros_restored": 12345, "weights": 24690,
    "sparsity_pruned": [0.5] * LAYERS, "sparsity_restored": [0.5] * LAYERS,
    "logits_relative_difference": 3.1e-6, "logits_tolerance": 1e-4, "top1_agreement": 1.0,
    "dtype": "float32", "loaded_with": "AutoModelForCausalLM",
}  # fmt: skip
RUN = {
    "command": "/home/ann/venv/bin/python /home/ann/code/RestoreLCC_train.py -pruned_model_path /data/ann/wanda-50",
    "arguments": {"num_epoch": 3, "num_train_samples": 900, "data_path": "/home/ann/alpaca.jsonl", "num_components": 4},
    "stages": [stage("probing", 4.7, 2**30), stage("training", 100.25, 3 * 2**30)],
    "models": {"dense": "embedded", "pruned": "/data/ann/wanda-50"}, "pruning": None, "method": {"parameters": 1234},
    "versions": {"torch": "2.13.0"}, "inputs": {"training samples": "173c87a5"}, "device": "cpu",
    "seeds": {"training": 42}, "started": "2026-01-02T03:04:05",
}  # fmt: skip
HISTORY = [{"step": 0, "valid_loss": 3.0}, *({"step": n, "loss": 3 - n / 200} for n in range(1, 200))]
HISTORY += [{"step": 199, "valid_loss": 2.1}]


def examples(text: str = "an answer") -> dict:
    """Three prompts in one form, and each model's answer to them."""
    answers = {
        "dense": {"text": text, "tokens": 9, "ended": True, "loss": 1.25},
        "pruned": {"text": "a" * 300, "tokens": 48, "ended": False, "loss": 2.5},
        "restored": {"text": " ", "tokens": 3, "ended": False, "loss": None},
    }
    asked = [f"### Instruction:\nCount to {n}.\n{text}\n\n### Response:" for n in range(3)]
    return {"most_tokens": 48, "prompts": [{"prompt": each, "response": text, "answers": answers} for each in asked]}


@cache
def whole() -> Record:
    """A run that recorded all there is."""
    scores = torch.rand(LAYERS, HEADS, generator=torch.Generator().manual_seed(0))
    scores[3, 1] = -torch.inf
    shares = torch.linspace(1, 0.1, DIM).expand(LAYERS, HEADS, DIM)
    learned = {"magnitudes": torch.ones(2, DIM), "component": torch.full((2, DIM), 2.0)}
    heads = heads_record(scores, [(4, 0), (2, 2)], 2 * scores, learned.get)
    results = {
        **with_answers(), "proof": PROOF,
        "heads": {"selection": "random", "score_name": "mean squared activation gap", **without_nan(heads)},
        "spectrum": spectrum_record(shares / shares.sum(-1, keepdim=True)),
    }  # fmt: skip
    return Record(results, RUN, HISTORY, examples())


def hostile() -> Record:
    """A run in which every text that somebody else chose is markup."""
    results = {**make_results(**{HOSTILE: task(0.65, 0.5, 0.6, HOSTILE, higher=True)}), "proof": PROOF}
    results["heads"] = {"score_name": HOSTILE, "scores": [[0.1, 0.9]], "trained": [[0, 1]], "count": 2}
    run = {
        **RUN, "command": shlex.join(["python", HOSTILE]), "device": HOSTILE, "models": {"dense": HOSTILE},
        "arguments": {**RUN["arguments"], "output_dir": HOSTILE, "eval_limit": 3},
        "method": {"title": HOSTILE, "parameters": 3, "about": HOSTILE}, "versions": {HOSTILE: HOSTILE},
        "inputs": {HOSTILE: HOSTILE}, "stages": [stage(HOSTILE, 1.0, 5, HOSTILE, (HOSTILE,))],
    }  # fmt: skip
    return Record(results, run, HISTORY, examples(HOSTILE))
