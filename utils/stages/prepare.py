"""First stages: check, in order of cost, every input that can be checked without running a model; then prune."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

import data.sources
import models
import pruning.prune_model
from models import loading
from models.checkpoint import Checkpoint, check_weights, restorable_heads
from models.compact import RECORD, in_dense_shapes
from models.families import carried_parts
from pruning import calibration
from pruning.pruners import METHODS as PRUNERS
from utils.common.cache import cached
from utils.common.errors import UserError
from utils.common.files import as_bytes, digest, free_bytes, sha256
from utils.common.flags import RECIPES, Arguments, as_flags
from utils.common.methods import METHODS, Options
from utils.common.names import BUNDLED
from utils.common.record import device_name
from utils.evaluation.task_loading import EvalPlan, load_texts, plan_tasks
from utils.negatives import locate_encoder
from utils.report.tables import share_text
from utils.samples import Samples, read_samples
from utils.stages.context import Models, Run


def prepare(run: Run) -> tuple[Models, Samples, EvalPlan]:
    """The models' folders, the samples as token ids, and what will be evaluated; UserError for what is wrong."""
    args = run.args
    print(f"      on {device_name(run.device)}, {args.dtype}")
    if args.recipe:
        print(f"      recipe {args.recipe}: {as_flags({flag: getattr(args, flag) for flag in RECIPES[args.recipe]})}")
    if unused := args.unused():
        print(f"      not used in this run: {', '.join(unused)}")
    # Sentence embeddings are not needed where a task has but one wrong answer.
    if run.needs.heads and args.head_selection == "contrastive" and args.spec_task not in ("boolq", "rte"):
        locate_encoder()
    if not args.pruned_model_path:
        pruning.prune_model.check_names(args.prune_method, args.sparsity)
    # Tasks are checked before a model is downloaded, but after a local one, which takes less time to read.
    plan = None if Path(args.base_model_name).exists() else plan_tasks(*args.evaluation)
    folder = loading.resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    config = loading.load_config(folder, "-base_model_name")
    carried_parts(args.method, Options.of(args), config)
    if run.needs.heads:
        args.head_count(*loading.head_shape(config)[:2])
    dense, config, tokenizer = loading.check_model(folder, "-base_model_name")
    given, pruned = None, None
    calibration_set = args.calib_data, args.calib_length
    if args.pruned_model_path:
        given, pruned = given_checkpoint(args, dense)
        if run.needs.calibration and pruned is not given:
            asked, cure = args.method, "prune with -mode masked"
            if args.first and not METHODS[args.method].needs.calibration:
                asked, cure = f"{asked} with -first {args.first}", f"{cure}, or give -first none"
            raise UserError(
                f"-method: {asked} compares pruned weights with the dense ones, but a compact "
                f"checkpoint doesn't record which channels it kept; {cure}"
            )
        if METHODS[args.method].fills and args.trains and pruned is not given:
            raise UserError(
                f"-method: {args.method} would fill in heads and channels that a compact checkpoint has removed; give "
                "masked_lora or masked_dora, which keep its shapes"
            )
        config = loading.load_config(pruned.folder, "-pruned_model_path")
    else:
        pruning.prune_model.check(args.prune_method, args.sparsity, *calibration_set, config)
    if args.calibrates:
        calibration.check(*calibration_set, config.max_position_embeddings)
        run.calibration_windows(tokenizer)  # raises now if the text cannot be had
    plan = plan or plan_tasks(*args.evaluation)
    positions = loading.longest_context(config)
    plan.check_model(positions)
    samples = read_samples(args, tokenizer, load_texts(args))
    if (longest := max(len(sample.ids) for sample in samples.train + samples.valid)) > positions:
        said = f"-max_length: a sample of {longest} tokens is beyond the model's longest context"
        raise UserError(f"{said}; give {positions} or less")
    for line in plan.describe():
        print(f"      {line}")
    needed, free = sum(file.stat().st_size for file in (pruned or dense).files), free_bytes(args.output_dir)
    if free < needed:  # the merged checkpoint takes as much as the pruned one's files
        room = f"{as_bytes(free)} are free, and the restored model takes {as_bytes(needed)}"
        print(f"      warning: -output_dir: {room}", file=sys.stderr)
    models = Models(dense, given, pruned, config, tokenizer, folder, loading.tokenizer_digest(folder))
    return models, samples, plan


def given_checkpoint(args: Arguments, dense: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """(-pruned_model_path, the same in the dense model's shapes), checked; UserError if nothing in it is pruned."""
    flag = "-pruned_model_path"
    given = Checkpoint(loading.resolve(args.pruned_model_path, flag, args.cache_dir), flag)
    loading.check_pair(dense.folder, given.folder, flag)
    check_weights(given, loading.load_config(given.folder, flag))
    one, two = (each.read("model.embed_tokens.weight")[:256].double().flatten() for each in (dense, given))
    if torch.cosine_similarity(one, two, 0) < 0.9:
        print(f"      warning: {flag}: its embeddings differ from -base_model_name's: another model?", file=sys.stderr)
    if (record := given.folder / RECORD).is_file():
        loading.read_settings(record, flag)  # checked now; the run's record will quote it
    expanded, compact = in_dense_shapes(given.folder, args.cache_dir)
    pruned = Checkpoint(expanded, flag) if compact else given
    zeros, weights = pruned.survey().counts()
    same = given.fingerprint == dense.fingerprint
    if (same or not sum(zeros)) and not args.allow_dense:
        found = "is -base_model_name's model itself" if same else "has no zeros, so nothing seems pruned"
        raise UserError(f"{flag}: {args.pruned_model_path} {found}; give the pruned one, or -allow_dense to go on")
    print(f"      pruned model: {share_text(sum(zeros) / sum(weights))} zeros in its {len(zeros)} layers")
    if not sum(zeros):
        print("      warning: the pruned model has no zeros; going on because of -allow_dense", file=sys.stderr)
    return given, pruned


def pruned_checkpoint(run: Run, models: Models) -> Models:
    """The same models with a pruned checkpoint: the given one, or one made from the dense model."""
    if models.pruned:
        return models
    args = run.args
    text: str = args.calib_data  # a file by its content, a published set by its name
    if text == BUNDLED:
        text = digest(data.sources.bundled_text())
    elif Path(text).is_file():
        text = Path(text).suffix + sha256(Path(text))  # the suffix says how to read it
    how = args.prune_method, args.sparsity, [text, args.calib_samples, args.calib_length, args.calibration_seed]
    found = Checkpoint(prune(run.cache, models.dense, models.tokenizer_sha256, *how, args.dtype, run=run))
    print(f"      {found.folder}")
    return replace(models, given=found, pruned=found, config=loading.load_config(found.folder, found.flag))


def check_heads(run: Run, models: Models) -> None:
    """UserError if the pruned checkpoint has fewer heads that can be restored than -use_topk_heads asks for."""
    if not run.needs.heads:
        return
    shape = loading.head_shape(models.config)[:2]
    wanted, able = run.args.head_count(*shape), int(restorable_heads(models.pruned, *shape).sum())
    if wanted > able and not (able and isinstance(run.args.use_topk_heads, float)):  # a share is of what there is
        cure = "give a smaller count" if able else "give -method output_bias"
        raise UserError(
            f"-use_topk_heads: asks for {wanted} heads, but {able} can be restored "
            f"(the o_proj columns of the others are all zero); {cure}"
        )


@cached("pruned", code=(pruning, models, data.sources))
def prune(
    folder: Path, dense: Checkpoint, tokenizer: str, method: str, pattern: str, windows: list, dtype: str, *, run: Run
) -> None:
    """Prune the dense model. windows: calibration text, number of windows, tokens of a window, seed."""
    args = run.args
    windows = f", {args.calib_samples} × {args.calib_length} tokens" if PRUNERS[method].statistic else ""
    print(f"      {method} at {pattern}{windows}")
    calib = {name: getattr(args, name) for name in ("calib_data", "calib_samples", "calib_length")}
    how = {"dtype": run.dtype, "device": run.device, "seed": args.calibration_seed, "base_name": args.base_model_name}
    pruning.prune_model.prune_into(dense.folder, folder, method, pattern, **calib, **how)
