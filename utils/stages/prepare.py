"""First stage: every input that can be checked without running a model is, in order of cost."""

import sys
from pathlib import Path

from transformers import LlamaConfig

import pruning
from models.checkpoint import Checkpoint, check_finite, check_weights
from models.compact import in_dense_shapes
from models.loading import check_pair, check_vocabulary, load_config, load_tokenizer, resolve, slow_half
from pruning import calibration
from utils.common.errors import UserError
from utils.common.flags import Arguments
from utils.common.recipes import as_flags
from utils.distillation import check_loss
from utils.evaluation.spec_tasks import load_texts
from utils.evaluation.task_loading import EvalPlan, plan_tasks
from utils.negatives import locate_encoder
from utils.samples import Samples, read_samples
from utils.stages.context import Models, Run
from utils.stages.teacher import check_states


def prepare(run: Run) -> tuple[Models, Samples, EvalPlan]:
    """The models' folders, the samples as token ids, and what will be evaluated; UserError for what is wrong."""
    args = run.args
    if args.recipe:
        print(f"      recipe {args.recipe}: {as_flags(args.recipe)}")
    check_loss(args, run.needs)
    if asks_encoder(run):
        locate_encoder(args.sentence_encoder)
    if slow_half(run.device, run.dtype):
        hint = f"this CPU computes {args.dtype} in software, several times slower than -dtype float32"
        print(f"      {hint}")
    dense = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    config = load_config(dense, "-base_model_name")
    args.check_layers(config.num_hidden_layers)
    if run.needs.heads:
        args.head_count(config.num_hidden_layers, config.num_attention_heads)
    check_checkpoint(dense, config, "-base_model_name")
    tokenizer = load_tokenizer(dense, "-base_model_name")
    check_vocabulary(tokenizer, config, "-base_model_name")
    given, pruned = None, None
    if args.pruned_model_path:
        given, pruned = given_checkpoint(args, dense)
        if run.needs.teacher and pruned != given:
            asked = [args.method, *([f"-first {args.first}"] if args.first else [])]
            asked += [f"-bias_start {args.bias_start}"] * (args.bias_start != "zero")
            raise UserError(
                f"-method: {' with '.join(asked)} holds pruned weights against the dense ones, and a compact "
                "checkpoint doesn't say which channels are left; prune with -mode masked"
            )
        config = load_config(pruned, "-pruned_model_path")
    else:
        pruning.check(args.prune_method, args.sparsity, args.calib_data, args.calib_samples, args.calib_length, config)
    if run.needs.calibration:
        calibration.check(args.calib_data, args.calib_samples, args.calib_length, config.max_position_embeddings)
    plan = plan_tasks(args.eval_tasks, args.eval_data_dir, args.eval_limit, args.ppl_window, args.ppl_windows)
    plan.check_model(tokenizer, config.max_position_embeddings)
    samples = read_samples(args, tokenizer, load_texts(args))
    check_states(run, config.hidden_size, samples)
    for line in plan.describe():
        print(f"      {line}")
    return Models(dense, pruned, given, config, tokenizer, dense), samples, plan


def asks_encoder(run: Run) -> bool:
    """Whether sentence embeddings will be needed: not where a task has but one wrong answer."""
    return run.needs.heads and run.args.head_selection == "contrastive" and run.args.spec_task not in ("boolq", "rte")


def check_checkpoint(folder: Path, config: LlamaConfig, flag: str) -> Checkpoint:
    """The checkpoint, if its files hold all that its configuration asks for, and only finite numbers."""
    checkpoint = Checkpoint(folder, flag)
    check_weights(checkpoint, config)
    check_finite(checkpoint)
    return checkpoint


def given_checkpoint(args: Arguments, dense: Path) -> tuple[Path, Path]:
    """(-pruned_model_path, the same in the dense model's shapes), checked; UserError if nothing in it is pruned."""
    flag = "-pruned_model_path"
    given = resolve(args.pruned_model_path, flag, args.cache_dir)
    check_pair(dense, given, flag)
    checkpoint = check_checkpoint(given, load_config(given, flag), flag)
    pruned, compact = in_dense_shapes(given, args.cache_dir)
    if compact:
        checkpoint = Checkpoint(pruned, flag)
    zeros, weights = checkpoint.survey().counts()
    if not sum(zeros) and not args.allow_dense:
        raise UserError(
            f"{flag}: {args.pruned_model_path} has no zeros, so nothing seems pruned; "
            "give the pruned checkpoint, or -allow_dense to go on"
        )
    print(f"      pruned model: {sum(zeros) / sum(weights):.2%} zeros in its {len(zeros)} layers")
    if not sum(zeros):
        print("      warning: the pruned model has no zeros; going on because of -allow_dense", file=sys.stderr)
    return given, pruned
