"""Restore a pruned Llama by lost component compensation: arguments, then the stages in order.

The stages are in utils/stages: what each one reads, what it caches under which key, and what it returns.
"""

from contextlib import nullcontext
from pathlib import Path

from models.model_names import check_found
from utils.common.commands import run
from utils.common.flags import INPUTS, Arguments, parse_arguments
from utils.common.processes import Processes, is_main_process, leave
from utils.common.run_folder import RESUMED, RunFolder, check_apart
from utils.stages.inputs import check_data, check_inputs
from utils.stages.push import push

MAY_DIFFER = ("output_dir", "cache_dir", "device")
"""Flags that may differ between an interrupted run and the one that continues it."""


def main() -> None:
    """One run, from flags to report."""
    args = parse_arguments()
    # Before torch is imported, so that a wrong flag or folder is answered at once.
    if args.plan is not None:
        check_found(args.base_model_name, "-base_model_name")
        check_data(args)
        from utils.plan import print_plan

        print_plan(args)
        return
    check_apart(args, INPUTS)
    flags = {name: value for name, value in args.as_json().items() if name not in MAY_DIFFER}
    # For resuming, only training checkpoints are kept: earlier stages are in the cache, later ones run again.
    folder = RunFolder(args.output_dir, flags, args.overwrite, keep=RESUMED)
    with folder if is_main_process() else nullcontext():
        check_inputs(args)
        processes = Processes(args.device)
        restore(args, processes, folder.partial)
        if processes.is_main:
            folder.finish()
    if processes.is_main:
        push(args)
    if processes.count > 1:
        leave()


def restore(args: Arguments, processes: Processes, folder: Path) -> None:
    """All stages in their order; what comes of them is in `folder`."""
    from models.loading import quiet_libraries, usable_device
    from utils.stages.context import LazyModel, Run
    from utils.stages.measure import measure, probe_trees, prompt_trees
    from utils.stages.prepare import check_heads, prepare, pruned_checkpoint
    from utils.stages.rank import rank
    from utils.stages.results import write_results
    from utils.stages.train import merge, train_restoration

    quiet_libraries()
    run = Run(args, processes, folder, usable_device(processes.device))
    with run.stage("samples", main_first=True):
        models, samples, plan = prepare(run)
    with run.stage("prune", main_first=True):
        models = pruned_checkpoint(run, models)
        check_heads(run, models)
    with run.stage("negatives", main_first=True):
        trees = probe_trees(run, models, samples)
    with run.stage("dense", main_first=True):
        dense = measure(LazyModel(run, "dense", models.dense), models, samples, plan, trees)
    with run.stage("pruned", main_first=True):
        trees = prompt_trees(run, samples)
        pruned = measure(LazyModel(run, "pruned", models.pruned), models, samples, plan, trees)
    with run.stage("rank"):
        ranked = rank(run, models, samples, dense.activations, pruned.activations)
    with run.stage("train"):
        trained = train_restoration(run, models, samples, ranked)
    if not processes.is_main:
        return
    with run.stage("merge"):
        merged, proofs = merge(run, models, trained)
    with run.stage("restored"):
        restored = measure(merged, models, samples, plan, [])
    measured = {"dense": dense, "pruned": pruned, "restored": restored}
    write_results(run, models, samples, ranked, trained, proofs, measured)


if __name__ == "__main__":
    run(main, then="the same command goes on from here")
