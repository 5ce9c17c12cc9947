"""Every flag of RestoreLCC_train.py: its unit, range and default, checked before anything loads; files of flags."""

import argparse
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from shlex import quote

import yaml

from utils.common.commands import (
    DEFAULT_CACHE,
    Parser,
    at_least,
    count_or_share,
    folder_path,
    hub_id,
    linear_names,
    name_or_path,
    rate,
    seed_number,
)
from utils.common.errors import UserError, explain, first_line, shortened
from utils.common.files import parse_json
from utils.common.methods import LINEAR_NAMES, METHODS, Needs, Options, needs_of, parts_of
from utils.common.names import C4, DISTILL, DTYPE_NAMES, EMBEDDED, RESPONSE, SPEC_TASKS, bundled_or

HUB_ALPACA = "tatsu-lab/alpaca"
SPEC_TRAIN_SAMPLES = 100

INPUTS = ("base_model_name", "pruned_model_path", "calib_data", "data_path", "eval_data_dir", "cache_dir")
"""The flags that name what a run reads or keeps for later runs."""

NOT_REPEATED = ("overwrite", "plan", "config", "push_to_hub")  # how a run is started: not in run.json, nor in a -config

RECIPES = {
    "biases": {"method": "output_bias", "apply_to": "all", "loss": "distill", "lr": 4e-3},
    "inside_mask": {
        "first": "admm_update",
        "method": "masked_lora",
        "lora_rank": 32,
        "apply_to": "all",
        "train_norms": True,
        "loss": "distill",
        "lr": 2e-3,
    },
}
"""The values of -recipe. `biases`: every weight keeps its bits. `inside_mask`: every zero stays; the weights are first
fitted to the dense model's outputs on the calibration set. Without a recipe a run is the paper's."""


def as_flags(values: dict[str, object]) -> str:
    """Flags as they would be typed: those that are None or False are left out."""
    given = {flag: value for flag, value in values.items() if value is not None and value is not False}
    return " ".join(f"-{flag}" if value is True else f"-{flag} {quote(str(value))}" for flag, value in given.items())


def flag(default: object, help: str, values: Callable | Collection[str] | None = None, **options) -> Field:
    """A field of Arguments that is a flag. values: an argparse type, or the allowed values; options: Parser.flag's."""
    checks = {} if values is None else {"type" if callable(values) else "choices": values}
    return field(default=default, metadata={"help": help, **checks, **options})


def _or_seed(name: str) -> property:
    """A property: the flag `name`, or -seed if it is not given."""
    return property(lambda args: args.seed if getattr(args, name) is None else getattr(args, name))


@dataclass(frozen=True)
class Arguments:
    """The flags of a run, each with its default, its text in --help, and its allowed values."""

    base_model_name: str = flag(
        EMBEDDED, "dense: llama_7B, …, folder, hub id, GGUF or embedded (SmolLM2-135M)", name_or_path, group="models"
    )
    pruned_model_path: str | None = flag(
        None, "the pruned checkpoint to restore; without it -prune_method makes one", name_or_path
    )
    allow_dense: bool = flag(False, "go on although the pruned model has no zeros, or is the dense one")
    dtype: str = flag("bfloat16", "dtype of both models; what is trained is always fp32", DTYPE_NAMES)
    device: str = flag(
        "auto", "cpu, cuda, cuda:N, mps (not to prune); auto: cuda if there is one, and it spreads what doesn't fit"
    )

    prune_method: str = flag(
        "wanda", "wanda, sparsegpt, slimgpt or magnitude", group="pruning without -pruned_model_path, and calibration"
    )
    sparsity: str = flag("0.5", "share of zeros in (0, 1), or N:M as in 2:4", metavar="RATIO|N:M")
    calib_data: str = flag(
        None, 'bundled, c4 (hub), .txt, or .json(l) of {"text"} (default: bundled for embedded, else c4)', name_or_path
    )
    calib_samples: int = flag(128, "calibration windows", at_least(1))
    calib_length: int = flag(2048, "tokens in a window", at_least(2), metavar="TOKENS")

    data_path: str | None = flag(
        None,
        "training samples: hub id, .json, .jsonl, the original release's .pt, a folder with train.* and valid.*, "
        f"or bundled (default: bundled for the embedded model, else {HUB_ALPACA})",
        name_or_path,
        group="samples",
    )
    spec_task: str | None = flag(
        None, f"train on its training split ({SPEC_TRAIN_SAMPLES} samples), from -eval_data_dir, or the hub", SPEC_TASKS
    )
    num_train_samples: int = flag(None, "training samples (default: the first 2000)", at_least(2))
    num_valid_samples: int = flag(250, "validation samples; 0 for none", at_least(0))
    max_length: int = flag(500, "tokens of prompt and response; the end is cut off", at_least(2), metavar="TOKENS")

    num_components: int = flag(
        10, "directions kept in a lost component (Eq. 4), which probes read", at_least(1), group="components and heads"
    )
    head_selection: str = flag(
        None,
        "contrastive probing, size of the activation gap, random, or lofit: the heads whose output LoFiT's first "
        "step scales most, which trains as long as the method itself (default: the method's, contrastive or lofit)",
        ("contrastive", "gap", "random", "lofit"),
    )
    num_probe_samples: int = flag(1000, "samples for the probes: 7 of 10 train them, the rest judge", at_least(10))
    use_topk_heads: int | float = flag(0.25, "heads to train: a count, or a share (1.0: all; 1: one)", count_or_share)
    recipe: str | None = flag(
        None,
        "a set of flags with a name (what was measured: docs/results.md); flags that are typed win over it. "
        + "; ".join(f"{name}: {as_flags(flags)}" for name, flags in RECIPES.items()),
        RECIPES,
    )
    method: str = flag("restorelcc", "how it is restored: one of the methods below", METHODS, metavar="METHOD")
    apply_to: str | None = flag(
        None,
        "where constants are added: attention (o_proj), ffn (down_proj), both, or all seven linear layers; where "
        "the method has none of its own, a bias of the whole projection (default: where the method's own are)",
        ("attention", "ffn", "both", "all"),
    )
    lora_rank: int = flag(8, "rank of the updates of lora, dora, masked_lora, masked_dora, eora", at_least(1))
    lora_targets: str | None = flag(
        None,
        f"linear layers that LoRA and DoRA, masked or not, change, with commas (default: {','.join(LINEAR_NAMES)})",
        linear_names,
    )
    first: str | None = flag(
        None,
        "flap_bias, eora, admm_update, admm_residual or reconstruct: restore by it first, then train; none: off",
        METHODS,
        metavar="METHOD",
    )
    train_norms: bool = flag(False, "train the scales of all RMSNorms too")
    basis: str = flag("svd", "V of Eq. 8: the lost components', or a random orthogonal one", ("svd", "random"))

    lr: float = flag(1e-3, "AdamW's learning rate, with linear decay", rate, metavar="RATE", group="training")
    num_epoch: float = flag(3.0, "passes over the samples, in whole steps; 0 trains nothing", at_least(0.0))
    batch_size: int = flag(8, "samples a batch and process", at_least(1))
    gradient_accumulation: int = flag(1, "batches whose gradients make one step", at_least(1))
    max_grad_norm: float = flag(1.0, "gradients are clipped to it; 0: never", at_least(0.0), metavar="NORM")
    random_batches: bool = flag(False, "mix short and long samples in a batch, as the original release does")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    loss: str = flag(
        RESPONSE,
        "cross-entropy at response tokens, or distill: KL to the dense model too, there and on a window of -calib_data",
        (RESPONSE, DISTILL),
    )

    eval_tasks: str = flag(
        None,
        "tasks to score: bundled (offline), paper (seven tasks and WikiText-2), wikitext2, wikitext2_tokens (its "
        "token perplexity alone), none, or lm_eval names, with commas (default: bundled for embedded, else paper)",
        metavar="TASKS",
        group="evaluation",
    )
    eval_limit: int | None = flag(None, "score the first N rows of each task (default: all)", at_least(1))
    eval_data_dir: Path | None = flag(None, "offline task data: DIR/<task>/<split>.jsonl", folder_path)
    ppl_window: int = flag(2048, "window of the perplexity", at_least(2), metavar="TOKENS")
    ppl_windows: int | None = flag(None, "number of these windows (default: -eval_limit)", at_least(1))

    output_dir: Path = flag(Path("output"), "where the result goes", folder_path, group="output")
    overwrite: bool = flag(False, "rename what is in -output_dir to DIR.1 (.2, …) when the new result is whole")
    cache_dir: Path = flag(DEFAULT_CACHE, "results that other runs can reuse, keyed by content", folder_path)
    seed: int = flag(42, "seed of everything random that has no seed of its own", seed_number)
    calib_seed: int | None = flag(None, "seed of the calibration windows (default: -seed)", seed_number)
    data_seed: int | None = flag(
        None, "seed of -spec_task's samples and the probes' split (default: -seed)", seed_number
    )
    train_seed: int | None = flag(
        None, "seed of start values, order of batches, random basis and heads (default: -seed)", seed_number
    )
    push_to_hub: str | None = flag(
        None, "upload model/ to the hub in the end, by a token (HF_TOKEN, hf auth login) that is checked first", hub_id
    )
    plan: str | None = flag(
        None, "run nothing: print each stage's time and memory, here or on a card (H100-80GB, …)", metavar="CARD"
    )

    def head_count(self, layers: int, heads: int) -> int:
        """-use_topk_heads as a count, for a model of `layers` with `heads` each; UserError if there are fewer."""
        if isinstance(self.use_topk_heads, float):
            return max(1, round(self.use_topk_heads * layers * heads))
        if self.use_topk_heads > layers * heads:
            raise UserError(
                f"-use_topk_heads: asks for {self.use_topk_heads} heads, but the model has {layers * heads} "
                f"({layers} layers of {heads}); give a smaller count, or a share (1.0: all)"
            )
        return self.use_topk_heads

    calibration_seed = _or_seed("calib_seed")
    samples_seed = _or_seed("data_seed")
    training_seed = _or_seed("train_seed")

    @property
    def needs(self) -> Needs:
        """What the method and all that other flags add to it need; UserError for flags that don't fit it."""
        needs = needs_of(self.method, Options.of(self))
        if self.loss == DISTILL and not needs.training:
            raise UserError(f"-loss: {DISTILL} is a loss of training, and {self.method} trains nothing; leave it out")
        return needs

    @property
    def trains(self) -> bool:
        """Whether there is any training."""
        return self.needs.training and self.num_epoch > 0

    @property
    def calibrates(self) -> bool:
        """Whether closed forms or the loss read the calibration text."""
        return self.needs.calibration or (self.trains and self.loss == DISTILL)

    @property
    def evaluation(self) -> tuple:
        """The arguments of `plan_tasks`."""
        return self.eval_tasks, self.eval_data_dir, self.eval_limit, self.ppl_window, self.ppl_windows

    def unused(self) -> list[str]:
        """Flags of pruning, heads, rank and training that differ from their defaults but have no effect in this run."""
        options, plain = Options.of(self), Arguments(head_selection=METHODS[self.method].selection)
        needs = self.needs
        used = {
            "prune_method sparsity": not self.pruned_model_path,
            "calib_samples calib_length calib_seed": self.calibrates
            or not (self.pruned_model_path or self.prune_method == "magnitude"),
            "use_topk_heads head_selection": needs.heads,
            "num_components num_probe_samples": needs.heads and self.head_selection == "contrastive",
            "basis": needs.basis,
            "num_epoch": needs.training,
            "lr batch_size gradient_accumulation max_grad_norm random_batches gradient_checkpointing": self.trains,
            "num_valid_samples": not self.spec_task,
            "lora_rank": any("lora_rank" in part.spec.takes for part in parts_of(self.method, options)),
        }
        idle = " ".join(names for names, use in used.items() if not use).split()
        return [f"-{name}" for name in idle if getattr(self, name) != getattr(plain, name)]

    def as_json(self) -> dict:
        """The flags as run.json keeps them, for `-config run.json` to repeat: all but NOT_REPEATED."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in NOT_REPEATED}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Arguments from the command line, with defaults from `-config` if it is given; UserError if any is wrong."""
    typed, parser = sys.argv[1:] if argv is None else argv, build_parser()
    chosen = parser.parse_args(typed)
    of_file = read_config(chosen.config, parser) if chosen.config else {}
    if chosen.recipe:  # it replaces the file's method and options
        restores = {"method", "head_selection", *(field.name for field in fields(Options))}
        of_file = {name: value for name, value in of_file.items() if name not in restores}
    if recipe := chosen.recipe or of_file.get("recipe"):
        # The file's own flags win over its recipe (a run.json has both); a typed recipe wins over the file.
        of_recipe = {"recipe": recipe, **RECIPES.get(str(recipe), {})}
        of_file = {**of_file, **of_recipe} if chosen.recipe else {**of_recipe, **of_file}
    try:
        values = vars(parser.parse_args([*as_words(of_file, parser), *typed]))
    except UserError as error:  # typed flags have passed, so the file is wrong
        raise UserError(f"-config: {chosen.config}: {error}") from error
    del values["config"]
    return Arguments(**values | {name: value for name, value in following(values).items() if values[name] is None})


def following(values: dict) -> dict[str, object]:
    """Defaults of flags that depend on other flags."""
    model, method, task = (values.get(name) for name in ("base_model_name", "method", "spec_task"))
    own = METHODS.get(str(method))
    return {
        "calib_data": bundled_or(C4, str(model)),
        # Under -spec_task it stays None unless it was given, so that `load_texts` can report an unused path.
        "data_path": None if task else bundled_or(HUB_ALPACA, str(model)),
        "eval_tasks": bundled_or("paper", str(model)),
        "head_selection": own and own.selection,
        "num_train_samples": SPEC_TRAIN_SAMPLES if task else 2000,
    }


def build_parser() -> Parser:
    """The parser of RestoreLCC_train.py, made from Arguments."""
    rows = [f"  {name:<16} {m.what}{'; merged, it fills the zeros' * m.fills}" for name, m in METHODS.items()]
    methods = "\n".join(rows)
    parser = Parser(
        prog="RestoreLCC_train.py",
        usage="python RestoreLCC_train.py [-flag value …]",
        description="Restore a pruned Llama by lost component compensation, keep every zero, prove it, evaluate it.",
        epilog=f"methods:\n{methods}\n\n"
        "All flags take one or two dashes. Without any, SmolLM2-135M-Instruct (a PyPI package) is pruned by\n"
        "Wanda to 50 % and restored with the paper's sizes; `bash train.sh` does it smaller. Examples:\n\n"
        "  python RestoreLCC_train.py -base_model_name llama_7B -pruned_model_path PRUNED -lr 1e-3\n"
        "  python RestoreLCC_train.py -base_model_name DENSE -prune_method sparsegpt -sparsity 2:4 -plan here\n"
        "  python RestoreLCC_train.py -config OUT/run.json -recipe biases -output_dir OUT2",
    )
    parser.flag("config", type=folder_path, metavar="FILE", help="defaults: flags in JSON or YAML, or a run's run.json")
    for declared in fields(Arguments):
        parser.flag(declared.name, default=declared.default, **declared.metadata)
    return parser


class _Loader(yaml.BaseLoader):
    """Load every scalar as the text that is written: YAML would read 2:4 as 124."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if problem := _twice([self.construct_object(key, deep=True) for key, _ in node.value]):
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str, place: str = "") -> object:
    """Read a YAML file of mappings, lists and texts. In a UserError, `place` comes first and `what` is what to give."""
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}{path}: cannot be read ({first_line(error)}); give {what}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{place}{path}: is not valid YAML{where} ({problem}); mend it") from error


def read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    """The flags in a JSON object or YAML mapping, or a run.json's "arguments"; their values are not yet checked."""
    if path.suffix in (".yaml", ".yml"):
        content = read_yaml(path, "flags and their values, or a run.json", "-config: ")
    else:
        cure = "give a JSON object of flags, or a run.json"
        with explain(f"-config: cannot read {path}", cure, (OSError, ValueError)):
            content = parse_json(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    given = content.get("arguments", content) if isinstance(content, dict) else content
    if given is not content and isinstance(given, dict):  # a run.json: without defaults that depended on other flags
        followed = following(given)
        given = {name: value for name, value in given.items() if name not in followed or value != followed[name]}
    if not isinstance(given, dict) or not given:
        raise UserError(f"-config: {path} holds no flags; give a JSON object or YAML mapping of them, or a run.json")
    if found := [name for name in given if name in NOT_REPEATED]:
        raise UserError(f"-config: {path}: {', '.join(found)}: given on the command line only; take it out of the file")
    if unknown := given.keys() - ({action.dest for action in parser._actions} - {"help"}):
        raise UserError(f"-config: {path} names unknown flags: {', '.join(sorted(unknown))}; --help has all")
    return given


def as_words(values: dict, parser: argparse.ArgumentParser) -> list[str]:
    """The flags as they would be typed; UserError for a value that can't be. A None that is the default is left out."""
    actions, words = {action.dest: action for action in parser._actions}, []
    for name, value in values.items():
        switch = actions[name].nargs == 0
        if isinstance(value, str):  # from YAML, where booleans and null are text too
            value = {"true": True, "false": False, "null": None}.get(value, value)
        if value is None and not switch and actions[name].default is None:
            continue
        if switch != isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "a switch is true or false" if switch else "give a number or a text, as on the command line"
            raise UserError(f"{name} is {shortened(json.dumps(value))}; {kind}")
        words += [f"-{name}"] * value if switch else [f"-{name}={value}"]
    return words


def _object(pairs: list[tuple[str, object]]) -> dict:
    if problem := _twice([name for name, _ in pairs]):
        raise ValueError(problem)
    return dict(pairs)


def _twice(names: list) -> str | None:
    """A message if a name occurs twice, else None: one of its two values would be dropped in silence."""
    return next((f"{name!r} stands there twice" for name in names if names.count(name) > 1), None)
