"""A sweep's YAML file: configurations, rates and seeds as rows of runs, checked by the entry point's parser."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from models.model_names import RECORD, hub_name
from utils.common.errors import UserError
from utils.common.files import digest, sha256
from utils.common.flags import INPUTS, NOT_REPEATED, parse_arguments, read_yaml
from utils.common.methods import method_draws
from utils.common.names import BUNDLED, C4, EMBEDDED
from utils.evaluation.outcomes import Outcome
from utils.evaluation.task_loading import TASK_FILES

KEYS = ("flags", "prunings", "configurations", "seeds", "lr", "search", "compare_to")
PLACES = ("output_dir", "cache_dir")  # arguments that change no number

TAKEN = ("lr", "train_seed", *PLACES, *NOT_REPEATED)  # flags that the sweep gives; a file may set any other

CONTROL = "dense (control)"
"""Shown as the pruned model where the dense one is trained instead: a control of the rows of the same name."""


@dataclass(frozen=True)
class SweepRun:
    """One run."""

    id: str  # its folder in -output_dir
    rate: float | None  # None where nothing is trained
    seed: int
    words: tuple[str, ...] = ()  # its flags as they are typed
    arguments: dict = field(default_factory=dict)  # as parsed, without those that name inputs: the id has their content
    outcome: Outcome | None = None  # if it is done
    said: str | None = None  # the last line that it printed, if it ended without an outcome
    diverged: bool = False  # whether it ended because of its rate


@dataclass(frozen=True)
class SweepRow:
    """One row of the table."""

    name: str
    pruning: str
    search: str  # flags that only the searches have, in words
    compare_to: str  # the name of the row that it is compared to
    searches: tuple[SweepRun, ...]  # that choose its rate
    finals: tuple[SweepRun, ...]  # of all seeds, at each rate that may be chosen

    @property
    def rates(self) -> list[float]:
        """The rates to choose from; empty if nothing is trained."""
        return list(dict.fromkeys(run.rate for run in self.finals if run.rate is not None))

    @property
    def rate(self) -> float | None:
        """The rate whose search ended with the lowest validation loss, once all were tried; or the only one."""
        if not self.searches:
            return self.finals[0].rate
        losses = {run.rate: run.outcome.value("valid_loss") for run in self.searches if run.outcome}
        known = [rate for rate in losses if losses[rate] is not None]
        return min(known, key=losses.get) if known and all(r.outcome or r.diverged for r in self.searches) else None

    @property
    def chosen(self) -> list[SweepRun]:
        """The runs of all seeds at that rate; none until it is known."""
        return [run for run in self.finals if run.rate == self.rate]

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes of the runs in `chosen` that are done."""
        return [run.outcome for run in self.chosen if run.outcome]


def read_sweep(path: Path) -> list[SweepRow]:
    """The rows that a file describes; UserError, one line that names the file and the configuration, for flags that the
    entry point's parser would refuse, and for what makes rows not comparable."""
    content, rows, place = read_yaml(path, "a sweep's yaml file"), [], str(path)
    try:
        odd = [key for key in content if key not in KEYS] if isinstance(content, dict) else ["what it holds"]
        if odd:
            raise UserError(f"{odd[0]} is not a key of a sweep; give a mapping of {', '.join(KEYS)}, and no other key")
        content["prunings"] = content.get("prunings") or [{}]
        for name in ("seeds", "configurations", "prunings"):
            if not isinstance(content.get(name), list) or not content[name]:
                raise UserError(f"{name}: give a list of one or more")
        for pruning in content["prunings"]:
            for number, entry in enumerate(content["configurations"], start=1):
                place = f"{path}: configuration {number}"
                rows.append(_row(content, pruning, entry))
        place, compare_to = str(path), content.get("compare_to")
        names = [(row.name, row.pruning) for row in rows]
        if twice := [each for each in names if names.count(each) > 1]:
            cure = "give each configuration its own 'name:', and each pruning another method, sparsity or folder name"
            raise UserError(f"{' on '.join(twice[0])} appears twice; {cure}")
        counts = {len(row.rates): row.name for row in rows if row.rates}
        if len(counts) > 1:
            said = ", ".join(f"{name} chooses from {count} rates" for count, name in counts.items())
            raise UserError(f"{said}; a fair comparison gives every one the same number")
        if compare_to not in [None, *dict(names)]:
            raise UserError(f"compare_to: no configuration is named {compare_to!r}")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    # A control is run at the rate chosen by its namesake on a pruned model, if both have the same rates to choose from.
    chose = {(CONTROL, row.name, *row.rates): row.searches for row in reversed(rows) if row.pruning != CONTROL}
    rows = [replace(row, searches=chose.get((row.pruning, row.name, *row.rates), row.searches)) for row in rows]
    return [replace(row, compare_to=compare_to or names[0][0]) for row in rows]


def _row(content: dict, pruning: object, entry: object) -> SweepRow:
    own = dict(_flags(entry, but=("name", "lr")))
    given, rates, seeds = own.pop("name", None), own.pop("lr", content.get("lr") or []), content["seeds"]
    rates = rates if isinstance(rates, list) else [rates]
    flags = {**_flags(content.get("flags")), **_flags(pruning), **own}
    args = parse_arguments(_words(flags))
    trains = args.trains
    if trains and not rates:
        raise UserError("has no learning rate; give 'lr: [RATE, …]', in it or for all")
    search = _flags(content.get("search"))
    parse_arguments(_words({**flags, **search}))
    searches = [_run({**flags, **search}, seeds[0], rate) for rate in rates] if trains and len(rates) > 1 else []
    if searches and (searches[0].arguments["spec_task"] or searches[0].arguments["num_valid_samples"] == 0):
        why = "-spec_task or num_valid_samples 0 leaves no validation samples"
        raise UserError(f"rates are chosen on validation loss, and {why}; give one rate, or such samples")
    # One run is enough if nothing depends on -train_seed.
    drawn = seeds if trains or method_draws(args.method, args.first) else seeds[:1]
    every = [(seed, rate) for rate in (rates if trains else [None]) for seed in drawn]
    finals = [_run(flags, *each) for each in every]
    if len({run.id for run in finals}) < len(finals):
        raise UserError("give each rate and each seed once")
    name = given or " ".join([args.method, *(f"{flag}={text}" for flag, text in own.items() if flag != "method")])
    pruned = Path(args.pruned_model_path).name if args.pruned_model_path else f"{args.prune_method} {args.sparsity}"
    told = ", ".join(f"{flag} {text}" for flag, text in search.items()) if searches else ""
    models = {str(Path(hub_name(each))).lower() for each in (args.base_model_name, args.pruned_model_path or "")}
    dense = args.allow_dense and len(models) == 1
    return SweepRow(name, CONTROL if dense else pruned, told, "", tuple(searches), tuple(finals))


def _flags(content: object, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Flag → text, as the file has them. but: keys that are no flags of one run."""
    if not isinstance(content or {}, dict):
        raise UserError(f"{content} is not a mapping of flags; write 'flag: value' lines")
    for name, value in (content or {}).items():
        if name in TAKEN and name not in but:
            raise UserError(f"{name}: the sweep gives it (by seeds:, lr:, its own flags, or not at all); take it out")
        if not isinstance(value, str) and name != "lr":
            raise UserError(f"{name} is {value}; give one value, as on the command line")
    return content or {}


def _words(flags: dict[str, str]) -> list[str]:
    """Flags as they are typed: `true` becomes a switch; `false`, null and empty ones are left out."""
    given = {name: value for name, value in flags.items() if value.lower() not in ("", "~", "null", "false")}
    return [f"-{name}" if value.lower() == "true" else f"-{name}={value}" for name, value in given.items()]


def _run(flags: dict[str, str], seed: object, rate: object) -> SweepRun:
    words = [*_words(flags), *([] if rate is None else [f"-lr={rate}"]), f"-train_seed={seed}"]
    args = parse_arguments(words)
    arguments = {name: value for name, value in args.as_json().items() if name not in PLACES}
    contents = {
        name: _content(str(value), TASK_FILES if name == "eval_data_dir" else ("**/*",))
        for name in INPUTS
        if (value := arguments.pop(name, None)) is not None
    }
    slug = "-".join([args.method, *([] if rate is None else [f"lr{args.lr:g}"]), f"seed{args.train_seed}"])
    name = f"{slug}-{digest(arguments, contents)[:10]}"
    return SweepRun(name, None if rate is None else args.lr, args.train_seed, tuple(words), arguments)


@cache
def _content(name: str, patterns: tuple[str, ...]) -> str:
    """Digest of the named file, or of the folder's files that match `patterns`; the name itself if there is none."""
    path = Path(name).expanduser()
    if name in (EMBEDDED, BUNDLED, C4) or not path.exists():
        return name
    found = sorted(file for pattern in patterns for file in path.glob(pattern)) if path.is_dir() else [path]
    files = [file for file in found if file.is_file()]
    # The same weights, pruned once more, are the same model.
    return digest(*([file.name, sha256(file)] for file in files if file.name not in (RECORD, "README.md")))
