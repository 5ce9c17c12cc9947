"""What each pruner costs and what RestoreLCC gives back, in one table: WikiText-2 and the bundled tasks.

python -m benchmarks.quality -output_dir DIR -calib_data C4.jsonl -data_path ALPACA -eval_data_dir DATA

Every pruner's checkpoint is made by `python -m pruning` and restored by RestoreLCC_train.py, each a process of its own.
What is finished in -output_dir is not done again, so a table that was stopped goes on where it was.
"""

import json
import subprocess
import sys
from pathlib import Path

from transformers import LlamaForCausalLM

from models.checkpoint import weight_files
from models.compact import RECORD, expand_checkpoint
from models.loading import DTYPES, load_model, load_tokenizer, resolve
from utils.common.commands import DEFAULT_CACHE, Parser, run
from utils.common.files import write_json, write_text
from utils.common.names import BUNDLED, EMBEDDED
from utils.evaluation import paired_statistics, perplexity
from utils.evaluation.in_memory_lm import token_budget
from utils.evaluation.task_loading import wikitext_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = "magnitude 0.5,wanda 0.5,sparsegpt 0.5,wanda 2:4,sparsegpt 2:4,slimgpt 0.2"
TASKS = {
    "bundled_response": ("acc", 100.0, 1),
    "bundled_facts": ("acc", 100.0, 1),
    "bundled_arithmetic": ("acc", 100.0, 1),
    "bundled_heldout": ("bits_per_byte", 1.0, 3),
}
"""The metric of each bundled task, what it is multiplied by, and its decimals."""


def main() -> None:
    """Make what is missing, then the table."""
    args, passed_on = parser().parse_known_args()
    place = Perplexity(args)
    rows = {}
    for name in args.rows.split(","):
        method, sparsity = name.split()
        folder = args.output_dir / f"{method}-{sparsity.replace(':', 'of')}"
        pruned = folder / "pruned"
        smaller = method == "slimgpt"
        if not (pruned / RECORD).is_file():
            prune(args, method, sparsity, pruned)
        if not (folder / "restored" / "results.json").is_file():
            restore(args, pruned, folder / "restored", passed_on)
        rows[name] = row(folder, place, smaller)
        write_json(args.output_dir / "quality.json", {"dense": place.dense(), "rows": rows})
    text = table(rows, place.dense())
    write_text(args.output_dir / "quality.md", text)
    print(f"\n{text}\ntable: {args.output_dir / 'quality.md'}")


def prune(args, method: str, sparsity: str, output: Path) -> None:
    """A pruned checkpoint; SlimGPT's in its smaller shapes."""
    flags = ["-base_model_name", args.base_model_name, "-prune_method", method, "-sparsity", sparsity]
    flags += ["-calib_data", args.calib_data, "-calib_samples", args.calib_samples, "-calib_length", args.calib_length]
    flags += ["-mode", "compact"] if method == "slimgpt" else []
    command(["-m", "pruning", *flags, "-output_dir", output, "-device", args.device, "-seed", args.seed])


def restore(args, pruned: Path, output: Path, passed_on: list[str]) -> None:
    """The whole run of RestoreLCC_train.py on that checkpoint."""
    flags = ["-base_model_name", args.base_model_name, "-pruned_model_path", pruned, "-data_path", args.data_path]
    flags += ["-eval_tasks", BUNDLED, "-eval_limit", args.eval_limit, "-device", args.device, "-seed", args.seed]
    command(["RestoreLCC_train.py", *flags, *passed_on, "-output_dir", output, "-overwrite"])


def command(words: list) -> None:
    """Run this project's Python in its own process; its failure is ours."""
    print(f"\n$ python {' '.join(map(str, words))}", flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


class Perplexity:
    """WikiText-2's token perplexity of a folder, kept beside it: {"value", "stderr", "losses"}."""

    def __init__(self, args):
        self.args = args
        self.base = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
        text = perplexity.joined(wikitext_rows(args.eval_data_dir)[0])
        tokenizer = load_tokenizer(self.base, "-base_model_name")
        self.windows = perplexity.token_windows(tokenizer, text, args.ppl_window, args.ppl_windows)

    def dense(self) -> dict:
        """Of the dense model."""
        return self.of(self.base, self.args.output_dir / "dense.json")

    def of(self, folder: Path, kept: Path) -> dict:
        """Of the model in `folder`, with its parameters and the bytes of its weight files."""
        if not kept.is_file():
            model: LlamaForCausalLM = load_model(folder, DTYPES[self.args.dtype], self.args.device, "-base_model_name")
            batch = max(1, token_budget(model.device) // self.windows.shape[1])
            losses = perplexity.window_losses(model, self.windows, batch, f"WikiText-2: {kept.stem}")
            found = {
                "value": paired_statistics.aggregate(losses, "exp_mean"),
                "stderr": paired_statistics.stderr(losses, "exp_mean"),
                "losses": losses,
                "parameters": model.num_parameters(),
                "bytes": sum(file.stat().st_size for file in weight_files(folder)),
            }
            write_json(kept, found)
        return json.loads(kept.read_text(encoding="utf-8"))


def row(folder: Path, place: Perplexity, smaller: bool) -> dict:
    """All figures of one pruner; `forms` has one entry, or SlimGPT's two shapes of the same model."""
    results = json.loads((folder / "restored" / "results.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "pruned" / RECORD).read_text(encoding="utf-8"))
    pairs = {"masked": (folder / "pruned", folder / "restored" / "model")}
    if smaller:
        pairs["compact"] = folder / "pruned", folder / "restored" / "compact"
        if not (folder / "masked").is_dir():
            expand_checkpoint(folder / "pruned", folder / "masked")
        pairs["masked"] = folder / "masked", folder / "restored" / "model"
    forms = {}
    for form, (before, after) in pairs.items():
        scores = [
            place.of(path, folder / f"{form}-{name}.json") for name, path in (("pruned", before), ("restored", after))
        ]
        difference, spread = paired_statistics.paired_difference(*(s["losses"] for s in reversed(scores)), "exp_mean")
        forms[form] = dict(zip(("pruned", "restored"), scores, strict=True))
        forms[form]["paired"] = {"difference": difference, "stderr": spread}
    return {
        "forms": forms,
        "sparsity_reached": record["sparsity_reached"],
        "prune_seconds": record["seconds"]["prune"],
        "peak_memory_bytes": record["peak_memory_bytes"],
        "scores": results["scores"],
        "paired": results["paired"],
    }


def table(rows: dict, dense: dict) -> str:
    """Markdown: pruned → restored in every cell, the standard error of the paired difference behind it."""
    heads = ["model", "zeros or gone", "parameters", "checkpoint", "WikiText-2", *(f"`{task}`" for task in TASKS)]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|" + "---|" * (1 + len(TASKS))]
    first = next(iter(rows.values()))["scores"]["dense"]
    cells = [f"{dense['value']:.2f} ± {dense['stderr']:.2f}"]
    cells += [f"{first[task][metric]['value'] * by:.{digits}f}" for task, (metric, by, digits) in TASKS.items()]
    lines.append(f"| dense | 0 | {size(dense)} | {' | '.join(cells)} |")
    for name, found in rows.items():
        for form, score in found["forms"].items():
            title = name if len(found["forms"]) == 1 else f"{name}, {form}"
            cells = [arrow(score["pruned"]["value"], score["restored"]["value"], score["paired"]["stderr"], 1, 2)]
            for task, (metric, by, digits) in TASKS.items():
                before, after = (found["scores"][which][task][metric]["value"] for which in ("pruned", "restored"))
                cells.append(arrow(before, after, found["paired"][task][metric]["stderr"], by, digits))
            shares = f"{found['sparsity_reached']:.1%}"
            lines.append(f"| {title} | {shares} | {size(score['pruned'])} | {' | '.join(cells)} |")
    lines += ["", "| pruner | seconds | peak memory |", "|---|---|---|"]
    for name, found in rows.items():
        lines.append(f"| {name} | {found['prune_seconds']:.0f} | {found['peak_memory_bytes'] / 2**30:.2f} GiB |")
    return "\n".join(lines) + "\n"


def size(score: dict) -> str:
    """Two cells: parameters, and the weight files on disk."""
    return f"{score['parameters'] / 1e6:.1f} M | {score['bytes'] / 2**20:.0f} MiB"


def arrow(before: float, after: float, spread: float, by: float, digits: int) -> str:
    """'before → after (± the standard error of their difference)'."""
    return f"{before * by:.{digits}f} → {after * by:.{digits}f} (± {spread * by:.{digits}f})"


def parser() -> Parser:
    """Flags of the table; others are passed on to RestoreLCC_train.py."""
    flags = Parser(prog="python -m benchmarks.quality", description=__doc__)
    flags.flag("output_dir", required=True, type=Path, help="folder of all checkpoints and results")
    flags.flag("rows", default=ROWS, help="'METHOD SPARSITY', separated by commas")
    flags.flag("base_model_name", default=EMBEDDED, help="dense model: folder, hub id, GGUF file or short name")
    flags.flag("calib_data", default=BUNDLED, help="'bundled', 'c4' (hub), or a .jsonl, .json or .txt file")
    flags.flag("calib_samples", default=64, type=int, help="calibration windows")
    flags.flag("calib_length", default=512, type=int, help="tokens in a window")
    flags.flag("data_path", default=BUNDLED, help="training samples, as RestoreLCC_train.py takes them")
    flags.flag("eval_limit", default=100, type=int, help="rows of each bundled task")
    flags.flag("eval_data_dir", type=Path, help="folder with wikitext2/test.txt (default: the hub)")
    flags.flag("ppl_window", default=1024, type=int, help="tokens in a window of WikiText-2")
    flags.flag("ppl_windows", default=40, type=int, help="windows of WikiText-2")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="of the perplexity, one of %(choices)s")
    flags.flag("device", default="cpu", help="cpu or cuda")
    flags.flag("seed", default=42, type=int, help="of everything random")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, help="where GGUF models are unpacked")
    return flags


if __name__ == "__main__":
    run(main)
