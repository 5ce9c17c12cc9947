"""Restore a pruned Llama by lost component compensation: arguments, then the stages in order.

    python RestoreLCC_train.py                                            SmolLM2-135M, pruned by Wanda to 50 %
    python RestoreLCC_train.py -base_model_name llama_7B -pruned_model_path PRUNED
    python RestoreLCC_train.py --help

The order, the caches and the folders are decided here; nothing below knows where anything is stored.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.common.commands import check_output, run
from utils.common.errors import UserError
from utils.common.files import digest, digest_files, write_json, write_text
from utils.common.flags import Arguments, parse_arguments

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from models.modeling_llama import Restoration
    from utils.activations import Tree
    from utils.common.cache import Cache
    from utils.common.processes import Processes
    from utils.common.record import RunRecord
    from utils.evaluation.scoring import EvalPlan, Evaluation
    from utils.prompts import Encoded
    from utils.training import TrainingResult

RESULTS = ("results.json", "run.json", "report.md", "figures", "model", "compact", "restoration", "logs", "checkpoints")
"""What a run writes to -output_dir, and all that -overwrite removes from it."""

STAGES = 9
PROOF_SAMPLES = 4
SCORE_NAMES = {
    "contrastive": "validation accuracy of the probe",
    "gap": "mean squared activation gap",
    "random": "mean squared activation gap",
}
"""What the heat map of heads shows for each -head_selection; random heads are shown over the gap."""

NOT_RESUMED = ("resume", "overwrite", "cache_dir", "eval_batch_size", "device")
"""Flags that may differ between an interrupted run and the one that continues it."""


@dataclass(frozen=True)
class Inputs:
    """Everything that was checked before a weight was read."""

    dense: Path
    pruned: Path | None
    compact: bool
    device: str
    tokenizer: "PreTrainedTokenizerBase"
    shape: tuple[int, int, int]
    train: "list[Encoded]"
    valid: "list[Encoded]"
    prompts: list[str]
    responses: list[str]
    wrong_choices: list[list[str]] | None
    encoder: str | None
    plan: "EvalPlan"


@dataclass(frozen=True)
class Ranked:
    """Lost components (see utils.components), heads best first, and the (L, H) scores that ranked them."""

    basis: "Tensor"
    explained: "Tensor"
    heads: list[tuple[int, int]]
    scores: "Tensor"


@dataclass(frozen=True)
class Trained:
    """What is left of the attached model once it is gone: the restoration, and logits that the merged one must give."""

    restoration: "Restoration"
    token_ids: list[list[int]]
    logits: "list[Tensor]"
    training: "TrainingResult"


def main() -> None:
    """One run, from flags to report."""
    args = parse_arguments()
    if args.plan:
        from utils.plan.command import print_plan

        print_plan(args, read_samples)
        return
    check_result_folder(args)
    # From here on only, so that --help and a wrong flag are answered at once.
    from utils.common.processes import Processes

    processes = Processes(args.device)
    check_resumable(args, processes)
    from utils.common.cache import Cache
    from utils.common.record import RunRecord

    quiet_libraries()
    cache = Cache(args.cache_dir)
    record = RunRecord(STAGES, cache.reused)
    with record.stage("reading samples, tokenizer and tasks"), processes.main_first():
        inputs = prepare(args, processes)
    with record.stage("pruned checkpoint"), processes.main_first():
        pruned = pruned_checkpoint(args, inputs, cache)
    with record.stage("contrastive negatives"), processes.main_first():
        trees = probe_trees(args, inputs, cache)
    with record.stage("dense model: activations and scores"), processes.main_first():
        dense_keys, dense_scores = measure(args, inputs, cache, inputs.dense, trees, "dense")
    with record.stage("pruned model: activations and scores"), processes.main_first():
        pruned_keys, pruned_scores = measure(args, inputs, cache, pruned, prompt_trees(inputs), "pruned")
    with record.stage("lost components and head ranking"), processes.main_first():
        ranked = rank(args, inputs, cache, pruned, dense_keys, pruned_keys)
        heads = sorted(ranked.heads[: args.head_count(*inputs.shape[:2])])
    with record.stage(f"training β and b of {len(heads)} heads"):
        trained = train_restoration(args, inputs, processes, pruned, ranked, heads)
    if not processes.is_main:
        return
    with record.stage("merge and proof"):
        proof = merge_with_proof(args, inputs, pruned, trained)
        if inputs.compact:
            compact_result(args)
    with record.stage("restored model: scores"):
        restored_scores = scores(args, inputs, cache, args.output_dir / "model", "restored")
    evaluations = {"dense": dense_scores, "pruned": pruned_scores, "restored": restored_scores}
    write_results(args, inputs, processes, record, pruned, ranked, heads, trained.training, proof, evaluations)


def check_result_folder(args: Arguments) -> None:
    """Raise UserError unless -output_dir is free, may be replaced, or holds the run to resume."""
    if not args.resume:
        check_output(args.output_dir, args.overwrite)
    elif not (args.output_dir / "logs" / "arguments.json").is_file():
        raise UserError(f"-resume: {args.output_dir} holds no interrupted run; run without -resume")
    elif (args.output_dir / "results.json").is_file():
        raise UserError(f"-resume: the run in {args.output_dir} is finished; use -overwrite to replace it")
    else:
        before = json.loads((args.output_dir / "logs" / "arguments.json").read_text(encoding="utf-8"))
        now = args.as_json()
        if changed := [name for name in now if name not in NOT_RESUMED and now[name] != before.get(name)]:
            raise UserError(
                f"-resume: -{changed[0]} is {now[changed[0]]}, the interrupted run's was {before.get(changed[0])}; "
                "give its flags, or another -output_dir"
            )


def check_resumable(args: Arguments, processes: "Processes") -> None:
    """Raise UserError if -resume is asked of a sharded training, which writes no checkpoints."""
    if args.resume and processes.sharded:
        raise UserError("-resume: FSDP training writes no checkpoints to continue from; give -overwrite to start again")


def prepare(args: Arguments, processes: "Processes") -> Inputs:
    """Check every input that can be checked without reading a model's weights, in order of cost."""
    import pruning
    from data.loading import check_data_path
    from models.checkpoint import count_zeros
    from models.loading import (
        DTYPES,
        check_name,
        check_pair,
        head_shape,
        load_config,
        load_tokenizer,
        resolve,
        slow_half,
        usable_device,
    )
    from utils.evaluation.scoring import plan_tasks
    from utils.negatives import locate_encoder

    check_name(args.base_model_name, "-base_model_name")
    if args.pruned_model_path:
        check_name(args.pruned_model_path, "-pruned_model_path")
    if not args.spec_task:
        check_data_path(args.data_path, args.valid_data_path)
    device = usable_device(processes.device)
    if slow_half(device, DTYPES[args.dtype]):
        print(f"      this CPU computes {args.dtype} in software, several times slower than -dtype float32")
    needs_encoder = args.head_selection == "contrastive" and args.spec_task not in ("boolq", "rte")
    encoder = locate_encoder(args.sentence_encoder) if needs_encoder else None

    dense = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    config = load_config(dense, "-base_model_name")
    shape = head_shape(config)
    args.head_count(*shape[:2])
    pruned, compact = None, False
    if args.pruned_model_path:
        pruned = resolve(args.pruned_model_path, "-pruned_model_path", args.cache_dir)
        check_pair(dense, pruned, "-pruned_model_path")
        pruned, compact = in_dense_shapes(args, pruned)
        zeros, weights = count_zeros(pruned)
        if not sum(zeros) and not args.allow_dense:
            raise UserError(
                f"-pruned_model_path: {args.pruned_model_path} has no zeros, so nothing seems pruned; "
                "give the pruned checkpoint, or -allow_dense to go on"
            )
        print(f"      pruned model: {sum(zeros) / sum(weights):.2%} zeros in its {len(zeros)} layers")
        if not sum(zeros):
            print("      warning: the pruned model has no zeros; going on because of -allow_dense", file=sys.stderr)
    else:
        pruning.check(args.prune_method, args.sparsity, args.calib_data, args.calib_samples, args.calib_length, config)
    plan = plan_tasks(args.eval_tasks, args.eval_data_dir, args.eval_limit, args.ppl_window)
    tokenizer = load_tokenizer(dense, "-base_model_name")
    train, valid, prompts, responses, wrong_choices = read_samples(args, tokenizer)
    for line in plan.describe():
        print(f"      {line}")
    return Inputs(
        dense, pruned, compact, device, tokenizer, shape, train, valid, prompts, responses, wrong_choices, encoder, plan
    )


def in_dense_shapes(args: Arguments, pruned: Path) -> tuple[Path, bool]:
    """The pruned checkpoint in the dense model's shapes, and whether it came in smaller ones (SlimGPT, compact).

    Zeros stand where heads and channels are gone, so that what is restored means the same head in both models; a
    smaller checkpoint is made of the result again.
    """
    from models.checkpoint import fingerprint
    from models.compact import expand_checkpoint
    from models.compact_llama import CompactLlamaConfig
    from models.loading import load_config
    from utils.common.cache import Cache

    if not isinstance(load_config(pruned, "-pruned_model_path"), CompactLlamaConfig):
        return pruned, False
    folder = Cache(args.cache_dir).path("expanded", {"compact": fingerprint(pruned)})
    if not folder.is_dir():
        expand_checkpoint(pruned, folder)
    return folder, True


def read_samples(args: Arguments, tokenizer: "PreTrainedTokenizerBase"):
    """Encoded training and validation samples, the texts of the training ones, and a task's own wrong answers."""
    from data.loading import load_samples
    from utils.prompts import encode

    wrong_choices = None
    if args.spec_task:
        from utils.evaluation.spec_tasks import load_spec_samples

        found = load_spec_samples(args.spec_task, args.eval_data_dir, args.num_train_samples, args.seed)
        train_samples, valid_samples = found, []
        wrong_choices = [sample.negatives for sample in found]
    else:
        split = load_samples(
            args.data_path,
            args.num_train_samples,
            args.num_valid_samples,
            valid_path=args.valid_data_path,
            skip_bad=args.skip_bad_samples,
        )
        train_samples, valid_samples = split.train, split.valid
    encoded = [
        [encode(tokenizer, sample.prompt, sample.response, args.max_length) for sample in samples]
        for samples in (train_samples, valid_samples)
    ]
    kept = []
    for rows, what in zip(encoded, ("training", "validation"), strict=True):
        long = [row for row, sample in enumerate(rows) if sample.prompt_length >= args.max_length]
        if long:
            named = ", ".join(str(row + 1) for row in long[:10]) + (", …" if len(long) > 10 else "")
            message = (
                f"{len(long)} {what} sample{'s' * (len(long) > 1)} with a prompt of -max_length "
                f"{args.max_length} tokens or more, which leaves no response (samples {named})"
            )
            if not args.skip_bad_samples:
                raise UserError(f"-max_length: {message}; give a larger one, or -skip_bad_samples to leave them out")
            print(f"      left out {message}")
        cut = sum(len(sample.ids) == args.max_length for sample in rows) - len(long)
        if cut > 0:
            print(
                f"      {cut} of {len(rows)} {what} samples reach -max_length {args.max_length}; what is beyond is cut"
            )
        kept.append([row for row in range(len(rows)) if row not in set(long)])
    train = [encoded[0][row] for row in kept[0]]
    valid = [encoded[1][row] for row in kept[1]]
    print(f"      {len(train)} training and {len(valid)} validation samples, {sum(len(s.ids) for s in train):,} tokens")
    prompts, responses = ([getattr(train_samples[row], name) for row in kept[0]] for name in ("prompt", "response"))
    if wrong_choices is not None:
        wrong_choices = [wrong_choices[row] for row in kept[0]]
    return train, valid, prompts, responses, wrong_choices


def pruned_checkpoint(args: Arguments, inputs: Inputs, cache: "Cache") -> Path:
    """The given pruned checkpoint, or one made from the dense model, kept in the cache by content."""
    if inputs.pruned:
        return inputs.pruned
    import pruning
    from models.checkpoint import fingerprint
    from models.loading import DTYPES

    key = {
        "dense": fingerprint(inputs.dense),
        "method": args.prune_method,
        "sparsity": args.sparsity,
        "calibration": [calibration_digest(args.calib_data), args.calib_samples, args.calib_length],
        "dtype": args.dtype,
        "seed": args.seed,
        "code": digest_files(list(Path(pruning.__file__).parent.glob("*.py"))),
    }
    folder = cache.path("pruned", key)
    if not folder.is_dir():
        print(f"      {args.prune_method} at {args.sparsity}, {args.calib_samples} × {args.calib_length} tokens")
        pruning.prune(
            inputs.dense,
            folder,
            args.prune_method,
            args.sparsity,
            calib_data=args.calib_data,
            calib_samples=args.calib_samples,
            calib_length=args.calib_length,
            dtype=DTYPES[args.dtype],
            device=inputs.device,
            seed=args.seed,
            base_name=args.base_model_name,
        )
    else:
        cache.reused.append("pruned")
    print(f"      {folder}")
    return folder


def calibration_digest(calib_data: str) -> str:
    """What identifies the calibration text: the content of a file, or the name of a published set."""
    from data.loading import bundled_text

    if calib_data == "bundled":
        return digest(bundled_text())
    return digest_files([Path(calib_data)]) if Path(calib_data).is_file() else calib_data


def prompt_trees(inputs: Inputs) -> "list[Tree]":
    """Each training prompt alone: what the pruned model reads."""
    from utils.activations import Tree

    token_ids = inputs.tokenizer([prompt.strip() for prompt in inputs.prompts]).input_ids
    return [Tree(ids, [[]]) for ids in token_ids]


def probe_trees(args: Arguments, inputs: Inputs, cache: "Cache") -> "list[Tree]":
    """What the dense model reads: the first -num_probe_samples as q, q + r⁺, q + r⁻ over one trunk, the rest as q."""
    from utils.activations import Tree
    from utils.prompts import common_prefix, encode

    plain = prompt_trees(inputs)
    if args.head_selection != "contrastive":
        return plain
    trees = []
    contrasted = zip(inputs.prompts, inputs.responses, wrong_answers(args, inputs, cache), strict=False)
    for prompt, response, wrong in contrasted:
        question = inputs.tokenizer(prompt.strip()).input_ids
        answers = [encode(inputs.tokenizer, prompt, text, args.max_length).ids for text in (response, wrong)]
        shared = common_prefix([question, *answers])
        trees.append(Tree(question[:shared], [ids[shared:] for ids in (question, *answers)]))
    return trees + plain[len(trees) :]


def wrong_answers(args: Arguments, inputs: Inputs, cache: "Cache") -> list[str]:
    """r⁻ of the samples that train the probes: the most similar other answer, or the task's own wrong one."""
    import torch

    from utils.negatives import most_similar_choice, most_similar_other

    count = min(args.num_probe_samples, len(inputs.prompts))
    if inputs.wrong_choices is None:
        embeddings = kept_embeddings(inputs, cache, inputs.responses)
        nearest = most_similar_other(embeddings, inputs.responses)
        return [inputs.responses[row] for row in nearest[:count]]
    choices = inputs.wrong_choices[:count]
    if all(len(wrong) == 1 for wrong in choices):
        return [wrong[0] for wrong in choices]
    right = inputs.responses[:count]
    embeddings = kept_embeddings(inputs, cache, [*right, *(text for wrong in choices for text in wrong)])
    return most_similar_choice(embeddings[:count], torch.split(embeddings[count:], [len(w) for w in choices]), choices)


def kept_embeddings(inputs: Inputs, cache: "Cache", texts: list[str]) -> "Tensor":
    """Sentence embeddings (N, E) of the texts, from the cache if the same encoder embedded the same texts before."""
    import utils.negatives
    from utils.common.cache import code_version

    key = {
        "encoder": utils.negatives.encoder_identity(inputs.encoder),
        "texts": digest(texts),
        "device": inputs.device.partition(":")[0],
        "code": code_version(utils.negatives),
    }
    kept = cache.tensors(
        "embeddings",
        key,
        lambda: {"embeddings": utils.negatives.sentence_embeddings(texts, inputs.encoder, inputs.device)},
    )
    return kept["embeddings"]


def measure(
    args: Arguments, inputs: Inputs, cache: "Cache", folder: Path, trees: "list[Tree]", label: str
) -> "tuple[list[dict], Evaluation]":
    """A model's activations (kept in the cache; their keys are returned) and its scores, from one loading of it."""
    from models.checkpoint import fingerprint

    groups = by_branches(trees)
    keys = [activation_key(args, fingerprint(folder), part) for part in groups]
    with Loaded(args, inputs, folder) as model:
        for key, part in zip(keys, groups, strict=True):
            cache.tensors("activations", key, lambda part=part: {"z": activations(args, model(), part, label)})
        return keys, scores(args, inputs, cache, folder, label, model)


def by_branches(trees: "list[Tree]") -> "list[list[Tree]]":
    """The trees with branches for probing first, then the plain ones; a list may be missing, order is kept."""
    groups: dict[int, list] = {}
    for tree in trees:
        groups.setdefault(len(tree.branches), []).append(tree)
    return list(groups.values())


def activation_key(args: Arguments, model: str, trees: "list[Tree]") -> dict:
    """The token ids say all about data, template, length and negatives.

    The device is left out: directions found on another differ by rounding, and β is resumed for those it began with.
    """
    import models.cpu_attention
    import utils.activations
    from utils.common.cache import code_version

    return {
        "model": model,
        "tokens": digest([[tree.trunk, tree.branches] for tree in trees]),
        "dtype": args.dtype,
        "code": code_version(utils.activations, models.cpu_attention),
    }


def activations(args: Arguments, model: "LlamaForCausalLM", trees: "list[Tree]", label: str) -> "Tensor":
    """z (branches, L, H, N, d) in the model's dtype, which holds it exactly."""
    from models.loading import DTYPES
    from utils.activations import last_token_activations

    return last_token_activations(model, trees, f"{label} activations").to(DTYPES[args.dtype])


class Loaded:
    """A model that is loaded when first called for, and gone after the block: a cached stage never loads it."""

    def __init__(self, args: Arguments, inputs: Inputs, folder: Path):
        self.args, self.inputs, self.folder = args, inputs, folder
        self.model: LlamaForCausalLM | None = None

    def __enter__(self) -> "Callable[[], LlamaForCausalLM]":
        return self.get

    def __exit__(self, *_) -> None:
        self.model = None

    def get(self) -> "LlamaForCausalLM":
        """The model in the run's dtype, on its device; with -device auto, spread over what there is if it must be."""
        from models.loading import DTYPES, load_model

        if self.model is None:
            device = reading_device(self.args, self.inputs, self.folder)
            self.model = load_model(self.folder, DTYPES[self.args.dtype], device, "-base_model_name")
        return self.model


def reading_device(args: Arguments, inputs: Inputs, folder: Path) -> str:
    """Where a model that is only read goes: the run's device, or with -device auto all there is, if it must."""
    from models.loading import DTYPES, placement

    if args.device != "auto":
        return inputs.device
    return placement(folder, DTYPES[args.dtype], inputs.device)


def scores(
    args: Arguments,
    inputs: Inputs,
    cache: "Cache",
    folder: Path,
    label: str,
    model: "Callable[[], LlamaForCausalLM] | None" = None,
) -> "Evaluation":
    """A model's scores, each task's from the cache if the same weights were scored on it the same way before."""
    from models.checkpoint import fingerprint
    from utils.evaluation.scoring import Evaluation, evaluate

    model_key = {
        "model": fingerprint(folder),
        "dtype": args.dtype,
        # Half precision rounds by what is computed together, so these are part of what was measured.
        "batch_size": args.eval_batch_size,
        "device": inputs.device.partition(":")[0],
    }
    with Loaded(args, inputs, folder) as own:
        get = model or own
        parts = [
            cache.document(
                "scores",
                {**model_key, "plan": part.key()},
                lambda part=part: evaluate(
                    get(), inputs.tokenizer, part, batch_size=args.eval_batch_size, label=label
                ).to_json(),
            )
            for part in inputs.plan.parts()
        ]
    return Evaluation.joined([Evaluation.from_json(part) for part in parts])


def rank(
    args: Arguments, inputs: Inputs, cache: "Cache", pruned: Path, dense_keys: list[dict], pruned_keys: list[dict]
) -> Ranked:
    """Lost components of all heads, and the heads in the order in which they are chosen."""
    import utils.components
    import utils.probing
    from models.checkpoint import restorable_heads
    from utils.common.cache import code_version
    from utils.probing import ProbeScores, order_randomly, rank_by_score, rank_heads

    key = {
        "dense": dense_keys,
        "pruned": pruned_keys,
        "num_components": args.num_components,
        "selection": args.head_selection,
        "seed": args.seed,
        "code": code_version(utils.components, utils.probing),
    }
    found = cache.tensors("components", key, lambda: find_components(args, cache, dense_keys, pruned_keys))
    usable = restorable_heads(pruned, *inputs.shape[:2])
    if args.head_selection == "contrastive":
        heads = rank_heads(ProbeScores(found["accuracy"], found["loss"]), usable)
        head_scores = found["accuracy"]
    elif args.head_selection == "gap":
        heads, head_scores = rank_by_score(found["gap"], usable), found["gap"]
    else:
        heads = order_randomly(usable, args.seed)
        head_scores = found["gap"]
    wanted = args.head_count(*inputs.shape[:2])
    if wanted > len(heads):
        raise UserError(
            f"-use_topk_heads: {wanted} heads asked for, but {len(heads)} can be restored "
            "(the o_proj columns of the others are all zero); give a smaller count"
        )
    basis = found["basis"]
    if args.basis == "random":
        basis = utils.components.random_basis(basis, args.seed)
    first = float(found["explained"][..., : args.num_components].sum(-1).mean())
    kept = min(args.num_components, basis.shape[-1])
    print(f"      the first {kept} of {basis.shape[-1]} directions carry {first:.1%} of the gap")
    return Ranked(basis, found["explained"], heads, head_scores)


def find_components(
    args: Arguments, cache: "Cache", dense_keys: list[dict], pruned_keys: list[dict]
) -> "dict[str, Tensor]":
    """Eqs. 3-4 for all heads, and what ranks them: the probes' scores, or the size of the gap."""
    import torch

    from utils.components import lost_components
    from utils.probing import probe_heads

    # Kept by `measure` a moment ago, or by an earlier run: nothing is computed here.
    dense = [cache.tensors("activations", key, dict)["z"].float() for key in dense_keys]
    of_pruned = torch.cat([cache.tensors("activations", key, dict)["z"][0] for key in pruned_keys], dim=2).float()
    gap = torch.cat([z[0] for z in dense], dim=2) - of_pruned
    components = lost_components(gap, args.num_components)
    found = {
        "basis": components.basis,
        "explained": components.explained,
        "gap": gap.square().mean((2, 3)),
    }
    if args.head_selection == "contrastive":
        _, right, wrong = dense[0]
        restored = of_pruned[:, :, : right.shape[2]] + components.component.unsqueeze(2)
        probes = probe_heads(restored, right, wrong, args.seed, progress=True)
        found |= {"accuracy": probes.accuracy, "loss": probes.loss}
    return found


def clear_results(args: Arguments) -> None:
    """Make room in -output_dir; a resumed run keeps what it continues from."""
    if not args.resume:
        for name in RESULTS:
            path = args.output_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(args.output_dir / "logs" / "arguments.json", args.as_json())


def train_restoration(
    args: Arguments,
    inputs: Inputs,
    processes: "Processes",
    pruned: Path,
    ranked: Ranked,
    heads: list[tuple[int, int]],
) -> Trained | None:
    """Train a restoration attached to the pruned model, and save it to -output_dir/restoration.

    All processes train it together; the main one saves it, and the others have nothing to return.
    """
    from models.checkpoint import fingerprint
    from models.merge import probe_logits
    from models.modeling_llama import attach, initial_restoration, read_restoration
    from models.restoration import save_restoration
    from utils.training import TrainingResult, TrainingSettings, train

    if processes.is_main:
        clear_results(args)
    start = initial_restoration(heads, ranked.basis, args.method, args.seed)
    model = attach(model_to_train(args, inputs, processes, pruned), start if args.num_epoch else start.zeroed())
    checkpoints = args.output_dir / "checkpoints"
    result = TrainingResult()
    if args.num_epoch:
        settings = TrainingSettings(
            lr=args.lr,
            epochs=args.num_epoch,
            batch_size=args.batch_size,
            accumulation=args.gradient_accumulation,
            max_grad_norm=args.max_grad_norm,
            group_by_length=not args.random_batches,
            gradient_checkpointing=args.gradient_checkpointing,
            torch_compile=args.torch_compile,
            seed=args.seed,
        )
        result = train(
            model, inputs.train, inputs.valid, settings, inputs.device, checkpoints, args.resume, processes.sharded
        )
    restoration = read_restoration(model)
    processes.end()
    if not processes.is_main:
        return None
    about = {
        "base_model": args.base_model_name,
        "pruned_model": args.pruned_model_path or f"{args.prune_method} {args.sparsity} of {args.base_model_name}",
        "pruned_sha256": fingerprint(pruned),
        "method": args.method,
        "layers_heads_head_dim": inputs.shape,
        "arguments": args.as_json(),
    }
    save_restoration(args.output_dir / "restoration", restoration, about)
    lines = [json.dumps(row) for row in result.history]
    write_text(args.output_dir / "logs" / "history.jsonl", "".join(f"{line}\n" for line in lines))
    token_ids = [sample.ids for sample in (inputs.valid or inputs.train)[:PROOF_SAMPLES]]
    if processes.sharded:
        # What is left of the sharded model is a part of it: the saved restoration is attached to a whole one again.
        del model
        with Loaded(args, inputs, pruned) as get:
            model = attach(get(), restoration)
    return Trained(restoration, token_ids, probe_logits(model, token_ids), result)


def model_to_train(args: Arguments, inputs: Inputs, processes: "Processes", pruned: Path) -> "LlamaForCausalLM":
    """The pruned model on this process's device, or on the CPU where FSDP will shard it from."""
    from models.loading import DTYPES, load_model

    dtype = DTYPES[args.dtype]
    if processes.sharded:
        return load_model(pruned, dtype, "cpu", "-pruned_model_path")
    if reading_device(args, inputs, pruned) == "auto":
        raise UserError(
            f"-device: the model does not fit into {inputs.device}, and its training cannot be offloaded; "
            "use several GPUs: accelerate launch --use_fsdp (see the README)"
        )
    return load_model(pruned, dtype, inputs.device, "-pruned_model_path")


def merge_with_proof(args: Arguments, inputs: Inputs, pruned: Path, trained: Trained) -> dict:
    """Merge what was trained into -output_dir/model, and hold it against the pruned checkpoint."""
    from models.loading import DTYPES, has_tokenizer
    from models.merge import merge_and_prove

    return merge_and_prove(
        pruned,
        trained.restoration,
        args.output_dir / "model",
        tokenizer_from=pruned if has_tokenizer(pruned) else inputs.dense,
        attached_logits=trained.logits,
        token_ids=trained.token_ids,
        dtype=DTYPES[args.dtype],
        device=reading_device(args, inputs, pruned),
    )


def compact_result(args: Arguments) -> None:
    """The merged checkpoint in the smaller shapes that the pruned one came in, to -output_dir/compact."""
    from models.compact import compact_checkpoint

    compact_checkpoint(args.output_dir / "model", args.output_dir / "compact")
    print(f"      as small as the pruned checkpoint: {args.output_dir / 'compact'}")


def write_results(
    args: Arguments,
    inputs: Inputs,
    processes: "Processes",
    record: "RunRecord",
    pruned: Path,
    ranked: Ranked,
    heads: list[tuple[int, int]],
    training: "TrainingResult",
    proof: dict,
    evaluations: "dict[str, Evaluation]",
) -> None:
    """results.json, run.json, the report and the model's card; the tables go to the terminal."""
    from models.checkpoint import fingerprint
    from models.compact import RECORD
    from utils.common.record import device_name, versions
    from utils.evaluation.scoring import compare, recovered
    from utils.evaluation.tasks import main_metric
    from utils.report.page import model_card, write_report
    from utils.report.tables import proof_table, score_table, stage_table

    dense, before, after = (evaluations[name] for name in ("dense", "pruned", "restored"))
    record_file = pruned / RECORD
    results = {
        "scores": {name: evaluation.scores for name, evaluation in evaluations.items()},
        "paired": compare(after, before),
        "recovered": recovered(dense, before, after),
        "main_metric": {task: main_metric(task, metrics) for task, metrics in after.scores.items()},
        "proof": proof,
        "heads": {
            "selection": args.head_selection,
            "score_name": SCORE_NAMES[args.head_selection],
            "count": ranked.scores.numel(),
            "trained": heads,
        },
        "provenance": {name: evaluation.provenance for name, evaluation in evaluations.items()},
    }
    run_record = {
        "command": shlex.join(["python", *sys.argv]),
        "arguments": args.as_json(),
        "seed": args.seed,
        "started": record.started,
        "device": device_name(inputs.device),
        "processes": processes.count,
        "versions": versions(),
        "models": {"dense": args.base_model_name, "pruned": args.pruned_model_path},
        "pruning": json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else None,
        "inputs": {
            "dense model": fingerprint(inputs.dense),
            "pruned model": fingerprint(pruned),
            "training samples": digest([inputs.prompts, inputs.responses]),
        },
        "training": {
            "tokens": training.tokens,
            "padded_tokens": training.padded_tokens,
            "seconds": training.seconds,
        },
        "seconds_by_task": {name: evaluation.seconds for name, evaluation in evaluations.items()},
        "stages": record.stages,
    }
    # Numbers first: a picture that cannot be drawn must not cost hours of training.
    write_json(args.output_dir / "run.json", run_record)
    write_json(args.output_dir / "results.json", results)
    write_text(args.output_dir / "model" / "README.md", model_card(results, run_record))
    report = write_report(
        args.output_dir, results, run_record, training.history, ranked.scores, heads, ranked.explained
    )
    shutil.rmtree(args.output_dir / "checkpoints", ignore_errors=True)
    for table in (score_table(results), proof_table(proof), stage_table(run_record)):
        print(f"\n{table}")
    model = args.output_dir / "model"
    print(f"\nreport: {report}\nmodel:  {model}")
    print(f"next:   lm_eval --model hf --model_args pretrained={model} --tasks arc_easy --device {inputs.device}")


def quiet_libraries() -> None:
    """Libraries' own bars and notes would bury the run's; errors still show."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    run(main)
