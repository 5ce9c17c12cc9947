"""Restore a pruned Llama by lost component compensation: arguments, then the stages in order.

    python RestoreLCC_train.py                                            SmolLM2-135M, pruned by Wanda to 50 %
    python RestoreLCC_train.py -base_model_name llama_7B -pruned_model_path PRUNED
    python RestoreLCC_train.py --help

Each stage is a module of utils/stages, which holds its cache key, what it reads and what it hands on.
"""

import os
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING

from models.names import check_found
from utils.common.commands import run
from utils.common.disk import Need, check_room, told
from utils.common.flags import Arguments, parse_arguments
from utils.common.processes import Processes, speaks
from utils.common.progress import OFF
from utils.common.result import Result
from utils.stages.begin import check_inputs, result_folder
from utils.stages.push import push

if TYPE_CHECKING:
    from utils.evaluation.task_loading import EvalPlan
    from utils.samples import Samples
    from utils.stages.context import Models, Run


def main() -> None:
    """One run, from flags to report."""
    args = parse_arguments()
    # Before torch is imported, so that a wrong flag or folder is answered at once.
    if args.plan:
        check_found(args.base_model_name, "-base_model_name")
        from utils.plan.command import print_plan

        print_plan(args)
        return
    result = result_folder(args, check=speaks())
    check_inputs(args)
    if result.done:
        print(f"the interrupted run was done but for its place; report: {args.output_dir / 'report.html'}")
        if not args.dry_run:
            push(args)
        return
    processes = Processes(args.device)
    if args.quiet:
        os.environ[OFF] = "1"
    if args.dry_run:
        rehearse(begun(args, processes, result))
        return
    with result.working() if processes.is_main else nullcontext():
        restore(begun(args, processes, result))


def begun(args: Arguments, processes: Processes, result: Result) -> "Run":
    """The context that all stages share."""
    from models.loading import usable_device
    from utils.common.libraries import quiet_libraries
    from utils.stages.context import Run

    quiet_libraries()
    return Run.of(args, processes, result, usable_device(processes.device))


def rehearse(run: "Run") -> None:
    """Read and check all inputs as a run does, and say what it would do."""
    from utils.stages.dry_run import print_dry_run

    inputs, _ = prepared(run)
    if run.processes.is_main:
        print_dry_run(run, *inputs)


def prepared(run: "Run") -> tuple[tuple["Models", "Samples", "EvalPlan"], list[Need]]:
    """All inputs, read and checked, and what the run will write, for which the disks have room."""
    from utils.stages.prepare import prepare
    from utils.stages.room import needs

    with run.main_first("samples"):
        models, samples, plan = prepare(run)
        wanted = needs(run, models, samples, len(plan.parts()))
        check_room(wanted)
    return (models, samples, plan), wanted


def restore(run: "Run") -> None:
    """Read and check all inputs, ask the disks for room, go on stage by stage, write and upload what they came to."""
    from utils.stages.results import write_results

    with open(os.devnull, "w") as nowhere:
        hidden = redirect_stdout(nowhere) if run.args.quiet else nullcontext()
        with hidden:
            inputs, wanted = prepared(run)
        with told(wanted):
            with hidden:
                found = stages(run, *inputs)
            if found:
                write_results(run, *found)
    if found:
        push(run.args)


def stages(run: "Run", models: "Models", samples: "Samples", plan: "EvalPlan") -> tuple | None:
    """The other stages in order: what the result is written from; None in any process but the main one."""
    from utils.stages.measure import measure
    from utils.stages.merge import merge, score_merged
    from utils.stages.negatives import probe_trees, prompt_trees
    from utils.stages.prune import pruned_checkpoint
    from utils.stages.rank import rank
    from utils.stages.scales import head_norms
    from utils.stages.train import train_restoration

    with run.main_first("prune"):
        models = pruned_checkpoint(run, models)
    with run.main_first("negatives"):
        trees = probe_trees(run, models, samples)
    with run.main_first("dense"):
        dense = measure(run, models, samples, plan, "dense", trees)
    with run.main_first("pruned"):
        pruned = measure(run, models, samples, plan, "pruned", prompt_trees(run, samples))
    with run.stage("rank"):
        norms = head_norms(run, models, samples)
        ranked = rank(run, models, dense.activations, pruned.activations, norms)
    with run.stage("train"):
        trained = train_restoration(run, models, samples, ranked)
    if not run.processes.is_main:
        return None
    with run.stage("merge"):
        merged = merge(run, models, trained)
    with run.stage("restored"):
        restored = score_merged(run, models, samples, plan, merged)
    measured = {"dense": dense, "pruned": pruned, "restored": restored}
    return models, samples, ranked, trained, merged, measured


if __name__ == "__main__":
    run(main, then="the same command goes on from here")
