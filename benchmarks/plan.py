"""Hold `-plan` against finished runs, stage by stage; or count what a tokenizer makes of the tasks that it plans.

python -m benchmarks.plan RUN_FOLDER …
python -m benchmarks.plan -count_tasks DIR
"""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.loading import DTYPES, load_tokenizer, resolve
from utils.common.commands import DEFAULT_CACHE, Parser, run
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.names import BUNDLED, EMBEDDED
from utils.evaluation.in_memory_lm import CPU_TOKENS, InMemoryLM
from utils.evaluation.task_loading import plan_tasks
from utils.evaluation.tasks import WIKITEXT
from utils.plan.command import count_samples, read_model, workload
from utils.plan.command import count_tasks as count_tasks_of
from utils.plan.machine import GIB, HERE, machine
from utils.plan.planner import plan

REUSED = {
    "prune": {"pruned"},
    "negatives": {"embeddings"},
    "dense": {"activations", "scores"},
    "pruned": {"activations", "scores"},
    "rank": {"components"},
    "restored": {"scores"},
}
"""By key of the stage, what makes it no measurement if it came from the cache."""


def main() -> None:
    """Compare, or count."""
    args = parser().parse_args()
    if args.count_tasks:
        count_tasks(args.count_tasks, args.base_model_name, args.cache_dir)
    elif not args.runs:
        raise UserError("name the folders of finished runs, or -count_tasks DIR")
    for folder in args.runs:
        compare(folder)


def compare(folder: Path) -> None:
    """Print, stage by stage, what is expected with the run's own flags on this machine now, and what was measured."""
    file = folder / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable run.json ({error}); give the folder of a finished run") from error
    run_flags = parse_arguments(["-config", str(file)])
    config, tokenizer, stored = read_model(run_flags.base_model_name)
    here = machine(HERE, config, DTYPES[run_flags.dtype], run_flags.device)
    with redirect_stdout(StringIO()):
        samples, valid, _ = count_samples(run_flags, tokenizer)
    tasks, unknown = count_tasks_of(run_flags)
    stages = plan(config, workload(run_flags, config, stored, samples, valid, tasks), here)
    print(f"\n{folder}: measured on {record['device']}, planned for {here.name}; {here.source}")
    if unknown:
        print(f"  not planned: {', '.join(unknown)}")
    print(f"  {'':38}{'GiB':>17} {'ratio':>6}{'seconds':>18} {'ratio':>6}")
    used = "peak_gpu_memory_bytes" if here.device == "cuda" else "peak_memory_bytes"
    known = {stage.name: stage for stage in stages}
    for stage in record["stages"]:
        expected = known.get(stage["name"])
        kept = expected and REUSED.get(expected.key, set()) & set(stage.get("reused", []))
        if expected is None or kept:
            print(f"  {stage['name']:38} not compared ({'from the cache' if kept else 'not planned'})")
            continue
        sizes = expected.bytes_on(here) / GIB, stage[used] / GIB
        times = expected.seconds, stage["seconds"]
        print(
            f"  {stage['name'][:37]:38}{sizes[0]:8.2f} {sizes[1]:8.2f} {sizes[0] / sizes[1]:6.2f}"
            f"{times[0]:9.1f} {times[1]:8.1f} {times[0] / max(times[1], 1e-9):6.2f}"
        )
    print("  expected, measured, expected / measured")


class _Counter(InMemoryLM):
    """Scores nothing; keeps the shape of each batch: (rows, tokens, scored)."""

    batches: list[tuple[int, int, int]]

    def _batch_scores(self, batch):
        self.batches.append((*batch.ids.shape, len(batch.targets)))
        return torch.zeros(len(batch.targets), dtype=torch.float64), torch.ones(len(batch.targets), dtype=torch.bool)


def count_tasks(folder: Path, tokenizer_name: str, cache: Path) -> None:
    """Print utils.plan.command.TASKS: what the evaluation reads of the tasks in `folder` and of the bundled ones."""
    tokenizer = load_tokenizer(resolve(tokenizer_name, "-base_model_name", cache), "-base_model_name")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=2048,
    )  # fmt: skip
    lm = _Counter(LlamaForCausalLM(config), tokenizer, "auto", "counting")
    for planned in (part for names in (BUNDLED, "paper") for part in plan_tasks(names, folder, None, 2048).planned):
        for name, task in planned.tasks.items():
            lm.batches = []
            task.build_all_requests(rank=0, world_size=1)
            kind = task.instances[0].request_type
            getattr(lm, kind)(task.instances)
            rows = planned.rows[name].scored
            tokens, pairs, scored = (
                sum(values) / rows for values in zip(*((b * t, b * t * t, p) for b, t, p in lm.batches), strict=True)
            )
            longest = max(t for _, t, _ in lm.batches)
            requests = len(task.instances) / rows
            print(
                f'    "{name}": TaskTokens({rows}, {tokens:.1f}, {pairs:.0f}, {scored:.1f}, {requests:.1f}, {longest}),'
            )
            if name == WIKITEXT:
                text = plan_tasks("wikitext2", folder, None, 2048).wikitext
                print(f"{len(tokenizer(text).input_ids)} tokens, {len(text.split())} words")
    print(f"batches of {CPU_TOKENS} tokens")


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m benchmarks.plan", description=__doc__)
    flags.add_argument("runs", nargs="*", type=Path, metavar="RUN_FOLDER", help="-output_dir of finished runs")
    flags.flag(
        "count_tasks",
        type=Path,
        metavar="DIR",
        help="print utils.plan.command.TASKS as counted over the bundled tasks and those in DIR (as -eval_data_dir)",
    )
    flags.flag("base_model_name", default=EMBEDDED, metavar="MODEL", help="whose tokenizer counts")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, metavar="DIR", help="where GGUF models are unpacked")
    return flags


if __name__ == "__main__":
    run(main)
