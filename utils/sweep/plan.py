"""`-plan`: the hours that a sweep's runs will take, before they are spent."""

import io
from contextlib import redirect_stdout

import pruning
from models.loading import DTYPES, check_name
from utils.common.flags import Arguments, parse_arguments
from utils.plan.command import count_samples, count_tasks, duration, read_model, workload
from utils.plan.costs import Machine, StagePlan
from utils.plan.machine import machine
from utils.plan.planner import plan
from utils.sweep.runs import Command, Row

_MODEL = ("base_model_name", "dtype", "device", "seed")
_PRUNED = (*_MODEL, "pruned_model_path", "prune_method", "sparsity", "calib_data", "calib_samples", "calib_length")
_READ = (
    *_MODEL, "data_path", "spec_task", "data_seed", "num_train_samples", "max_length", "head_selection",
    "num_probe_samples", "sentence_encoder", "eval_tasks", "eval_limit", "eval_data_dir", "ppl_window",
)  # fmt: skip

SHARED = {
    "prune": (*_PRUNED, "calib_seed"),
    "negatives": _READ,
    "dense": _READ,
    "pruned": (*_PRUNED, *_READ),
    "rank": (*_PRUNED, *_READ, "num_components"),
}
"""Stages that runs share through the cache, and the flags that make one the same as another."""

_APART = ("lr", "train_seed")
"""Flags that change no stage's time."""


class Planner:
    """Expected stages of runs on one machine. card: as -plan of the entry point takes it."""

    def __init__(self, card: str):
        self.card = card
        self._machines: dict[tuple, Machine] = {}
        self._stages: dict[tuple, list[StagePlan]] = {}
        self.unknown: set[str] = set()
        """Tasks whose size is not known, so that their time is not planned."""

    def stages(self, args: Arguments) -> list[StagePlan]:
        """What each stage of such a run takes; UserError as the run would raise it."""
        key = tuple(sorted((name, str(value)) for name, value in args.as_json().items() if name not in _APART))
        if key not in self._stages:
            with redirect_stdout(io.StringIO()):
                self._stages[key] = self._planned(args)
        return self._stages[key]

    @property
    def machine(self) -> str:
        """The name of what was planned for."""
        return next(iter(self._machines.values())).name if self._machines else self.card

    def _planned(self, args: Arguments) -> list[StagePlan]:
        check_name(args.base_model_name, "-base_model_name")
        config, tokenizer, stored = read_model(args.base_model_name)
        if args.pruned_model_path:
            check_name(args.pruned_model_path, "-pruned_model_path")
        else:
            calibration = (args.calib_data, args.calib_samples, args.calib_length)
            pruning.check(args.prune_method, args.sparsity, *calibration, config)
        where = (args.base_model_name, args.dtype, args.device)
        if where not in self._machines:  # measured once, so that all runs are planned for the same rates
            self._machines[where] = machine(self.card, config, DTYPES[args.dtype], args.device)
        samples, valid, _ = count_samples(args, tokenizer)
        tasks, unknown = count_tasks(args)
        self.unknown |= set(unknown)
        work = workload(args, config, stored, samples, valid, tasks)
        return plan(config, work, self._machines[where])


def plan_text(rows: list[Row], commands: list[Command], card: str) -> str:
    """A table: of each row the runs that are left and their time, then what they share, and the total.

    commands: the runs that are left.
    """
    planner = Planner(card)
    shared: dict[tuple, float] = {}
    own: dict[str, float] = {}
    for command in commands:
        args = parse_arguments(command.words)
        own[command.id] = 0.0
        for stage in planner.stages(args):
            if stage.key in SHARED:
                key = (stage.key, *(str(getattr(args, name)) for name in SHARED[stage.key]))
                # A method without heads takes a part of it.
                shared[key] = max(shared.get(key, 0.0), stage.seconds)
            else:
                own[command.id] += stage.seconds
    lines = []
    told: set[str] = set()
    for row in rows:
        searches, runs = (
            [each.id for each in members if each.id in own and each.id not in told]
            for members in (row.searches, _apart(row))
        )
        told |= {*searches, *runs}
        seconds = sum(own[name] for name in (*searches, *runs))
        cells = [str(len(searches)), str(len(runs)), duration(seconds)]
        lines.append([_short(f"{row.name}, {row.pruning}"), *cells])
    whole = sum(own.values()) + sum(shared.values())
    lines.append(["pruning, activations, dense and pruned scores: shared", "", "", duration(sum(shared.values()))])
    lines.append(["total", "", str(len(own)), duration(whole)])
    widths = [max(len(line[column]) for line in [_HEADER, *lines]) for column in range(len(_HEADER))]
    shown = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in [_HEADER, *lines]
    ]
    rule = "-" * len(shown[0])
    about = [f"{len(own)} runs left, on {planner.machine}; what the cache already holds is not taken off"]
    if planner.unknown:
        about.append(f"not planned, since their size is not known here: {', '.join(sorted(planner.unknown))}")
    return "\n".join([*about, "", shown[0], rule, *shown[1:-1], rule, shown[-1]])


_HEADER = ["configuration", "searches", "runs", "time"]


def _apart(row: Row) -> list:
    """The runs of one row that are no searches too."""
    searched = {each.id for each in row.searches}
    return [each for each in row.finals if each.id not in searched]


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
