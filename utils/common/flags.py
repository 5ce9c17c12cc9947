"""Every flag of RestoreLCC_train.py: its unit, range and default, checked before anything loads."""

from dataclasses import dataclass, fields
from pathlib import Path

from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, name_or_path
from utils.common.config_file import NOT_REPEATED, read_config
from utils.common.errors import UserError
from utils.common.flag_types import (
    above,
    at_least,
    at_least_real,
    auto_or_count,
    count_or_share,
    hub_id,
    layer_ranges,
    linear_names,
    seed,
    trackers,
    weight,
)
from utils.common.methods import METHODS
from utils.common.names import (
    BIAS_STARTS,
    BUNDLED,
    C4,
    DISTILL,
    DTYPE_NAMES,
    EMBEDDED,
    LINEAR_NAMES,
    RESPONSE,
    SPEC_TASKS,
    STREAMS,
    TRACKERS,
    layer_numbers,
)
from utils.common.recipes import RECIPES, as_flags

APPLY_TO = ("attention", "ffn", "both", "all")
HEAD_SELECTIONS = ("contrastive", "gap", "random", "lofit")
BASES = ("svd", "random")
RESUME = ("auto", "never")


HUB_ALPACA = "tatsu-lab/alpaca"
SPEC_TRAIN_SAMPLES = 100


@dataclass(frozen=True)
class Arguments:
    """The flags of a run; `build_parser` says what each means."""

    base_model_name: str
    pruned_model_path: str | None
    allow_dense: bool
    prune_method: str
    sparsity: str
    calib_data: str
    calib_samples: int
    calib_length: int
    data_path: str | None
    valid_data_path: str | None
    spec_task: str | None
    num_train_samples: int
    num_valid_samples: int
    max_length: int
    skip_bad_samples: bool
    strict_samples: bool
    num_components: int
    head_selection: str
    lofit_lr: float
    lofit_l1: float
    num_probe_samples: int
    sentence_encoder: str
    use_topk_heads: int | float
    recipe: str | None
    method: str
    apply_to: str | None
    lora_rank: int
    lora_alpha: float
    lora_targets: str | None
    lora_layers: str | None
    first: str | None
    stream: str | None
    bias_start: str
    reconstruct_lr: float
    reconstruct_epochs: int
    train_norms: bool
    basis: str
    lr: float
    num_epoch: float
    batch_size: int
    gradient_accumulation: int
    max_grad_norm: float
    random_batches: bool
    gradient_checkpointing: bool
    torch_compile: bool
    loss: str
    distill_weight: float
    teacher_cache_gb: float
    resume: str
    save_steps: int | None
    eval_tasks: str
    eval_limit: int | None
    eval_data_dir: Path | None
    eval_batch_size: int | str
    ppl_window: int
    ppl_windows: int | None
    report_prompts: int
    output_dir: Path
    overwrite: bool
    cache_dir: Path
    seed: int
    calib_seed: int | None
    data_seed: int | None
    train_seed: int | None
    dtype: str
    device: str
    quiet: bool
    report_to: str
    push_to_hub: str | None
    plan: str | None

    def head_count(self, layers: int, heads: int) -> int:
        """-use_topk_heads as a number of heads of a model with L·H; UserError if it has not so many."""
        if isinstance(self.use_topk_heads, float):
            return max(1, round(self.use_topk_heads * layers * heads))
        if self.use_topk_heads > layers * heads:
            raise UserError(
                f"-use_topk_heads: {self.use_topk_heads} heads asked for, but the model has {layers * heads} "
                f"({layers} layers of {heads}); give a smaller count, or a share (1.0: all)"
            )
        return self.use_topk_heads

    def check_layers(self, layers: int) -> None:
        """UserError if -lora_layers names one that a model of that many doesn't have."""
        if self.lora_layers is not None and (last := layer_numbers(self.lora_layers)[-1]) >= layers:
            raise UserError(
                f"-lora_layers: {self.lora_layers} names layer {last}, but the model has {layers}; "
                f"give some of 0-{layers - 1}"
            )

    @property
    def calibration_seed(self) -> int:
        """Of the calibration windows."""
        return self.seed if self.calib_seed is None else self.calib_seed

    @property
    def samples_seed(self) -> int:
        """Of which samples are drawn, and of the probes' split of them."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def training_seed(self) -> int:
        """Of all that is drawn for training: start values, order of batches, and the random controls."""
        return self.seed if self.train_seed is None else self.train_seed

    def inputs(self) -> dict[str, Path | str | None]:
        """Flag → what it names, of all that a run reads, or keeps for later runs: no output folder may touch these."""
        names = ("base_model_name", "pruned_model_path", "calib_data", "data_path", "valid_data_path")
        names += ("sentence_encoder", "eval_data_dir", "cache_dir")
        return {f"-{name}": getattr(self, name) for name in names}

    def as_json(self) -> dict:
        """The flags as run.json keeps them, for `-config run.json` to repeat; how a run is started is no part of it."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in NOT_REPEATED}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Arguments from the command line, with defaults from `-config` if it is given; UserError if any is wrong."""
    parser = build_parser()
    config = Parser(add_help=False)
    config.flag("config", type=folder_path)
    config.flag("recipe", choices=RECIPES)
    chosen, _ = config.parse_known_args(argv)
    of_file = read_config(chosen.config, parser) if chosen.config else {}
    if recipe := chosen.recipe or of_file.get("recipe"):
        # A run.json names its recipe and the flags that it ran with; one that is typed is asked for now.
        of_recipe = {"recipe": recipe, **RECIPES[recipe]}
        of_file = {**of_file, **of_recipe} if chosen.recipe else {**of_recipe, **of_file}
    parser.set_defaults(**of_file)
    values = vars(parser.parse_args(argv))
    values.pop("config")
    if values["strict_samples"] and values["skip_bad_samples"]:
        raise UserError("-strict_samples: asks for the opposite of -skip_bad_samples; give one of them")
    embedded = values["base_model_name"].lower() == EMBEDDED
    if values["calib_data"] is None:
        values["calib_data"] = BUNDLED if embedded else C4
    # Under -spec_task it stays None unless it was given, so that a path that is not used can be told.
    if values["data_path"] is None and values["spec_task"] is None:
        values["data_path"] = BUNDLED if embedded else HUB_ALPACA
    if values["eval_tasks"] is None:
        values["eval_tasks"] = BUNDLED if embedded else "paper"
    if values["head_selection"] is None:
        values["head_selection"] = METHODS[values["method"]].selection
    if values["num_train_samples"] is None:
        values["num_train_samples"] = SPEC_TRAIN_SAMPLES if values["spec_task"] else 2000
    return Arguments(**values)


def build_parser() -> Parser:
    """The parser of RestoreLCC_train.py."""
    parser = Parser(
        prog="RestoreLCC_train.py",
        usage="python RestoreLCC_train.py [-flag value …]",
        description="Restore a pruned Llama by lost component compensation, keep every zero, prove it, evaluate it.",
        epilog="All flags take one or two dashes. Without any, SmolLM2-135M from its PyPI package is pruned by Wanda "
        "to 50 % and restored with the paper's sizes; `bash train.sh` does the same job smaller. Examples:\n"
        "\n"
        "  python RestoreLCC_train.py -base_model_name llama_7B -pruned_model_path PRUNED -lr 1e-3\n"
        "  python RestoreLCC_train.py -base_model_name DENSE -prune_method sparsegpt -sparsity 2:4 -plan here\n"
        "  python RestoreLCC_train.py -config OUT/run.json -use_topk_heads 0.1 -output_dir OUT2\n"
        "  python RestoreLCC_train.py -recipe constants -train_seed 2 -eval_tasks paper",
    )
    parser.flag(
        "config",
        metavar="FILE",
        help="defaults: flags in a JSON or .yaml file, or a run.json of a run (but -overwrite, -resume, -plan)",
    )

    parser.group("models")
    parser.flag(
        "base_model_name",
        type=name_or_path,
        default=EMBEDDED,
        metavar="MODEL",
        help="the dense model: folder, hub id, GGUF file, short name (llama_7B, llama3_8B, vicuna_7B, …) or "
        f"'{EMBEDDED}' (SmolLM2-135M)",
    )
    parser.flag(
        "pruned_model_path",
        type=name_or_path,
        metavar="MODEL",
        help="the pruned checkpoint to restore: folder, hub id or GGUF file; without it -prune_method makes one",
    )
    parser.switch("allow_dense", "go on although the pruned model has no zeros")
    parser.flag("dtype", choices=DTYPE_NAMES, default="bfloat16", help="of both models; what is trained is always fp32")
    parser.flag(
        "device",
        default="auto",
        help="cpu, cuda, cuda:N, mps; auto takes a GPU if there is one, and spreads a model that doesn't fit",
    )

    parser.group("pruning (only without -pruned_model_path), and calibration")
    parser.flag("prune_method", default="wanda", metavar="METHOD", help="wanda, sparsegpt, slimgpt or magnitude")
    parser.flag("sparsity", default="0.5", metavar="RATIO|N:M", help="share of zeros in (0, 1), or N:M as in 2:4")
    parser.flag(
        "calib_data",
        type=name_or_path,
        metavar="TEXT",
        help="calibration text: bundled, c4 (hub), or a .jsonl or .txt file (default: bundled for the embedded model, "
        "else c4)",
    )
    parser.flag("calib_samples", type=at_least(1), default=128, metavar="N", help="calibration windows")
    parser.flag("calib_length", type=at_least(1), default=2048, metavar="TOKENS", help="tokens in a window")

    parser.group("samples")
    parser.flag(
        "data_path",
        type=name_or_path,
        metavar="DATA",
        help="training samples: hub id, .json, .jsonl, the original release's .pt, a folder with train.* and valid.*, "
        f"or bundled (default: bundled for the embedded model, else {HUB_ALPACA})",
    )
    parser.flag(
        "valid_data_path",
        type=name_or_path,
        metavar="FILE",
        help="validation samples (default: the rows after the training rows)",
    )
    parser.flag(
        "spec_task",
        choices=SPEC_TASKS,
        help=f"task-specific: train on that task's own training split ({SPEC_TRAIN_SAMPLES} samples unless "
        "-num_train_samples says otherwise), found as -eval_data_dir says",
    )
    parser.flag(
        "num_train_samples",
        type=at_least(2),
        metavar="N",
        help="training samples, the first N in order (default: 2000)",
    )
    parser.flag("num_valid_samples", type=at_least(0), default=250, metavar="N", help="validation samples; 0 for none")
    parser.flag(
        "max_length", type=at_least(2), default=500, metavar="TOKENS", help="prompt and response; the end is cut off"
    )
    parser.switch("skip_bad_samples", "leave out samples with empty responses or too long prompts, however many")
    parser.switch(
        "strict_samples", "stop at any prompt that leaves no room for a response (default: at more than a tenth)"
    )

    parser.group("components and heads")
    parser.flag(
        "num_components",
        type=at_least(1),
        default=10,
        metavar="K",
        help="directions kept in a lost component c, Eq. 4; only probes read c, the same constant in both classes, "
        "which their intercepts absorb",
    )
    parser.flag(
        "head_selection",
        choices=HEAD_SELECTIONS,
        help="contrastive probing, size of the activation gap, random, or lofit: the heads whose output LoFiT's first "
        "step scales most, which trains as long as the method itself (default: the method's, contrastive or lofit)",
    )
    parser.flag(
        "lofit_lr", type=above(0), default=5e-3, metavar="RATE", help="AdamW's in that step, falling linearly to 0"
    )
    parser.flag(
        "lofit_l1",
        type=at_least_real(0),
        default=5e-4,
        metavar="LAMBDA",
        help="that step's loss has LAMBDA times the sum of all scales' sizes added",
    )
    parser.flag("num_probe_samples", type=at_least(10), default=1000, metavar="N", help="samples that train the probes")
    parser.flag(
        "sentence_encoder",
        type=name_or_path,
        default=EMBEDDED,
        metavar="MODEL",
        help="finds each answer's most similar other one: a hub id, a folder, or MiniLM-L6 from its PyPI package",
    )
    parser.flag(
        "use_topk_heads",
        type=count_or_share,
        default=0.25,
        metavar="COUNT|SHARE",
        help="heads to train: a count, or a share of all (1.0: all heads; 1: one)",
    )
    parser.flag(
        "recipe",
        choices=RECIPES,
        help="a set of flags with a name (what was measured: docs/results.md); flags that are typed win over it. "
        + "; ".join(f"{name}: {as_flags(name)}" for name in RECIPES),
    )
    parser.flag(
        "method",
        choices=METHODS,
        default="restorelcc",
        help="; ".join(f"{name}: {line.what}" for name, line in METHODS.items()),
    )
    parser.flag(
        "apply_to",
        choices=APPLY_TO,
        help="where constants are added: attention (o_proj), ffn (down_proj), both, or all seven linear layers; where "
        "the method has none of its own, a bias of the whole projection (default: where the method's own are)",
    )
    parser.flag(
        "lora_rank",
        type=at_least(1),
        default=8,
        metavar="R",
        help="of the updates of lora, dora, masked_lora, masked_dora, hira, eora; shira trains as many numbers",
    )
    parser.flag(
        "lora_alpha",
        type=above(0),
        default=16.0,
        metavar="ALPHA",
        help="updates of lora, dora, masked_lora and masked_dora are scaled by ALPHA / R",
    )
    parser.flag(
        "lora_targets",
        type=linear_names,
        metavar="NAMES",
        help="the linear layers that these, hira and shira change, separated by commas: "
        f"{', '.join(LINEAR_NAMES)} (default: all)",
    )
    parser.flag(
        "lora_layers",
        type=layer_ranges,
        metavar="LAYERS",
        help="the decoder layers in which they do: numbers from 0 and ranges, as 0-3,7 (default: all)",
    )
    parser.flag(
        "first",
        choices=METHODS,
        metavar="METHOD",
        help="a closed form that restores first; -method then goes on from there, and only its own part is trained",
    )
    parser.flag(
        "stream",
        choices=STREAMS,
        help="of closed forms, what is held against each other on the calibration set: the dense layers on the dense "
        "model's stream, or on the restored model's (pruned), or each model's on its own (sequential: earlier layers "
        "are restored already) (default: the method's authors')",
    )
    parser.flag(
        "bias_start",
        choices=BIAS_STARTS,
        default="zero",
        help="where free biases that are trained start: at zero, or where -method flap_bias leaves them, by -stream",
    )
    parser.flag(
        "reconstruct_lr", type=above(0), default=1e-5, metavar="RATE", help="AdamW's, of the windows of reconstruct"
    )
    parser.flag(
        "reconstruct_epochs",
        type=at_least(1),
        default=10,
        metavar="N",
        help="passes of each window of reconstruct over the calibration set",
    )
    parser.switch("train_norms", "train the scales of all RMSNorms too")
    parser.flag(
        "basis", choices=BASES, default="svd", help="V of Eq. 8: the lost components', or a random orthogonal one"
    )

    parser.group("training")
    parser.flag("lr", type=above(0), default=1e-3, metavar="RATE", help="AdamW's, falling linearly to 0")
    parser.flag(
        "num_epoch", type=at_least_real(0), default=3.0, metavar="N", help="passes over the samples; 0 restores nothing"
    )
    parser.flag("batch_size", type=at_least(1), default=8, metavar="N", help="samples a step and process")
    parser.flag(
        "gradient_accumulation", type=at_least(1), default=1, metavar="N", help="batches whose gradients make one step"
    )
    parser.flag(
        "max_grad_norm",
        type=at_least_real(0),
        default=1.0,
        metavar="NORM",
        help="gradients are clipped to it; 0: never",
    )
    parser.switch("random_batches", "mix short and long samples in a batch, as the original release does: more padding")
    parser.switch("gradient_checkpointing", "recompute activations in the backward pass: less memory, more time")
    parser.switch("torch_compile", "compile the decoder layers for training: minutes at the start, faster steps after")
    parser.flag(
        "loss",
        choices=(RESPONSE, DISTILL),
        default=RESPONSE,
        help="at response tokens: response, the paper's cross-entropy, or distill, the forward KL to the dense model "
        "mixed with it",
    )
    parser.flag(
        "distill_weight",
        type=weight,
        default=0.5,
        metavar="W",
        help="of KL under -loss distill, in (0, 1]: (1 - W)·CE + W·KL; 1 is KL alone",
    )
    parser.flag(
        "teacher_cache_gb",
        type=at_least_real(0),
        default=4.0,
        metavar="GB",
        help="under -loss distill, how large the dense model's states may be that are kept in -cache_dir, 10^9 bytes; "
        "beyond that it runs beside the pruned model at every step",
    )
    parser.flag(
        "resume",
        nargs="?",
        choices=RESUME,
        const="auto",
        default="auto",
        metavar="auto|never",
        help="whether an interrupted run in -output_dir with the same flags is continued, or begun anew",
    )
    parser.flag(
        "save_steps",
        type=at_least(1),
        metavar="N",
        help="steps from one checkpoint of training to the next (default: ten minutes' steps, or an epoch's)",
    )

    parser.group("evaluation")
    parser.flag(
        "eval_tasks",
        metavar="TASKS",
        help="bundled (offline), paper (seven tasks and WikiText-2), wikitext2_tokens (its token perplexity alone), "
        "none, or lm_eval names separated by commas "
        "(default: bundled for the embedded model, else paper)",
    )
    parser.flag("eval_limit", type=at_least(1), metavar="N", help="rows of a task (default: all)")
    parser.flag(
        "eval_data_dir",
        type=folder_path,
        metavar="DIR",
        help="offline task data: DIR/<task>/<split>.jsonl",
    )
    parser.flag(
        "eval_batch_size", type=auto_or_count, default="auto", metavar="N|auto", help="sequences at once in lm_eval"
    )
    parser.flag("ppl_window", type=at_least(2), default=2048, metavar="TOKENS", help="perplexity's window")
    parser.flag("ppl_windows", type=at_least(1), metavar="N", help="windows of the text (default: -eval_limit)")

    parser.flag(
        "report_prompts",
        type=at_least(0),
        default=5,
        metavar="N",
        help="validation prompts that the report shows each model's greedy answer to; 0 for none",
    )

    parser.group("output")
    parser.flag("output_dir", type=folder_path, default=Path("output"), metavar="DIR", help="where the result goes")
    parser.switch("overwrite", "rename what is in -output_dir to DIR.1 (.2, …) when the new result is whole")
    parser.flag(
        "cache_dir",
        type=folder_path,
        default=DEFAULT_CACHE,
        metavar="DIR",
        help="what can be used again by other runs, keyed by content",
    )
    parser.flag("seed", type=seed, default=42, metavar="N", help="of everything random that has no seed of its own")
    parser.flag("calib_seed", type=seed, metavar="N", help="of the calibration windows (default: -seed)")
    parser.flag(
        "data_seed",
        type=seed,
        metavar="N",
        help="of which samples -spec_task draws, and of the probes' split (default: -seed)",
    )
    parser.flag(
        "train_seed",
        type=seed,
        metavar="N",
        help="of start values, the order of batches, a random basis and random heads; another one uses "
        "the same pruned model, activations and components (default: -seed)",
    )
    parser.switch("quiet", "print the result only: no stages, no progress")
    parser.flag(
        "report_to",
        type=trackers,
        default="none",
        metavar="NAMES",
        help=f"where else training's losses go, as transformers' Trainer sends them: some of {', '.join(TRACKERS)}, "
        "separated by commas, or none",
    )
    parser.flag(
        "push_to_hub",
        type=hub_id,
        metavar="NAME",
        help="upload the restored model to the hub once the result stands, as owner/name or name; whether the hub is "
        "reached and knows the token (HF_TOKEN, or hf auth login) is asked before anything is computed",
    )
    parser.flag(
        "plan",
        metavar="CARD",
        help="run nothing: print the time and memory that each stage will take on this machine (here) or on a card "
        "(H100-80GB, A100-40GB, RTX4090, …)",
    )
    return parser
