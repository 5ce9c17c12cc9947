"""The runs of a sweep: what each is known by, and when it is done.

OUT/ID is a run's own result, as the entry point leaves it, with `sweep.json` beside results.json once it is done, or
`error.json` when it failed; OUT/ID.log is what it printed.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from models.names import RECORD
from utils.common.files import digest
from utils.common.flags import parse_arguments
from utils.common.names import BUNDLED, C4, EMBEDDED
from utils.sweep.file import CONTROL, Configuration, Sweep, command_line

ROOT = Path(__file__).resolve().parents[2]

DONE, FAILED = "sweep.json", "error.json"
"""In a run's folder: as what it is done; how it failed."""

ROWS = "sweep.json"
"""In OUT: what the rows of the table are, so that it can be rebuilt without the sweep's file."""

REFERENCE = "restorelcc"
"""The method whose configuration others are held against, where the file names none."""

PLACES = ("output_dir", "cache_dir", "report_prompts")
"""Arguments that change no result: where it goes, and what its report shows beside it."""

_TOLD = (RECORD, "README.md")
"""Files of a model that no run takes a number from."""

_CODE = ("models", "pruning", "baselines", "data", "utils")
_NOT_CODE = ("utils/sweep/", "utils/compare", "utils/report/", "utils/plan/")
"""Folders whose files decide a run's numbers, and those within that don't."""


@dataclass(frozen=True)
class Member:
    """A run as the table knows it. rate: None where nothing is trained."""

    id: str
    rate: float | None
    seed: int


@dataclass(frozen=True)
class Row:
    """One row of the table: the runs that choose its rate, and those of all seeds at each rate that may be chosen.

    compare_to: the name of the row on the same pruned model that it is held against.
    """

    name: str
    pruning: str
    compare_to: str | None
    searches: tuple[Member, ...]
    finals: tuple[Member, ...]

    @classmethod
    def from_json(cls, content: dict) -> "Row":
        """The row that `dataclasses.asdict` made `content` of."""
        members = {name: tuple(Member(**each) for each in content[name]) for name in ("searches", "finals")}
        return cls(**{**content, **members})

    def at(self, rate: float | None) -> list[Member]:
        """The runs of all seeds at that rate."""
        return [each for each in self.finals if each.rate == rate]


@dataclass(frozen=True)
class Command:
    """What a run is: its flags, all resolved arguments that may change its result, and what it is called.

    search: whether it has the flags of a search.
    """

    id: str
    words: list[str]
    arguments: dict
    title: str
    search: bool


@dataclass
class Ledger:
    """What is done in the folder `output`, by which versions of libraries and which code.

    accept: count runs of other versions and code too. here: ids of the runs that ended since the command began, which
    count whatever becomes of the code meanwhile.
    """

    output: Path
    versions: dict[str, str]
    code: str
    accept: bool = False
    here: set[str] = field(default_factory=set)

    def done(self, command: Command) -> bool:
        """Whether the run's result stands, of the same arguments, and of the same versions and code."""
        record = finished(self.output / command.id)
        if record is None or record.get("arguments") != command.arguments:
            return False
        return self._counts(command, record)

    def failed(self, command: Command) -> bool:
        """Whether the run failed with these versions and this code; with others it is tried again."""
        record = read_json(self.output / command.id / FAILED)
        return record is not None and self._counts(command, record)

    def tried(self, command: Command) -> bool:
        """Whether the run is done, or ended with a line about its own flags: at such a rate no loss is a number."""
        return self.done(command) or (self.failed(command) and refused(self.output / command.id))

    def _counts(self, command: Command, record: dict) -> bool:
        same = (record.get("versions"), record.get("code")) == (self.versions, self.code)
        return same or self.accept or command.id in self.here


def refused(folder: Path) -> bool:
    """Whether the run in `folder` failed by a mistake in its flags, and not by a kill or an error of another kind."""
    return (read_json(folder / FAILED) or {}).get("exit_status") == 2


def planned(sweep: Sweep) -> tuple[list[Row], dict[str, Command]]:
    """The rows of a sweep's table, and every run that they may need, by id."""
    commands: dict[str, Command] = {}
    rows = []
    for each in sweep.configurations:
        searched = each.rates if len(each.rates) > 1 else ()
        chooser = _restored(sweep, each)
        searches = [_member(commands, chooser, rate, sweep.seeds[0], search=True) for rate in searched]
        # What trains nothing draws nothing by -train_seed: one run says all.
        seeds = sweep.seeds if each.rates else sweep.seeds[:1]
        finals = [_member(commands, each, rate, seed, search=False) for rate in each.rates or [None] for seed in seeds]
        rows.append(Row(each.name, each.pruning, _compared(sweep, each), tuple(searches), tuple(finals)))
    return rows, commands


def _restored(sweep: Sweep, each: Configuration) -> Configuration:
    """Whose searches choose the rate: a control is run at that of the same configuration on the first pruned model."""
    if each.pruning != CONTROL:
        return each
    same = (other for other in sweep.configurations if other.name == each.name and other.pruning != CONTROL)
    found = next(same, each)
    return found if found.rates == each.rates else each


def _member(commands: dict[str, Command], each: Configuration, rate: float | None, seed: int, search: bool) -> Member:
    more = {"train_seed": seed} if rate is None else {"lr": rate, "train_seed": seed}
    words = command_line(each.search if search else each.flags, **more)
    arguments = resolved(words)
    slug = "-".join([arguments["method"], *([] if rate is None else [f"lr{rate:g}"]), f"seed{seed}"])
    name = f"{re.sub(r'[^a-zA-Z0-9_.-]+', '-', slug)}-{digest(arguments)[:10]}"
    what = f"{each.name}, {each.pruning}" + ("" if rate is None else f", rate {rate:g}")
    # Without flags of its own, a search is the run of the first seed.
    commands.setdefault(name, Command(name, words, arguments, f"{what}, seed {seed}", search))
    return Member(name, rate, seed)


def _compared(sweep: Sweep, each: Configuration) -> str | None:
    alike = [other for other in sweep.configurations if other.pruning == each.pruning]
    if sweep.compare_to:
        found = [other.name for other in alike if other.name == sweep.compare_to]
    else:
        found = [other.name for other in alike if other.args.method == REFERENCE]
    return found[0] if found else None


def resolved(words: list[str]) -> dict:
    """Every argument that may change a result; a file or folder by its content, so that it may be moved."""
    args = parse_arguments(words)
    found = {name: value for name, value in args.as_json().items() if name not in PLACES}
    for flag, value in args.inputs().items():
        name = flag.removeprefix("-")
        if name in found and value is not None and value not in (EMBEDDED, BUNDLED, C4):
            path = Path(value).expanduser()
            found[name] = f"sha256:{content_digest(path)}" if path.exists() else str(value)
    return found


_CONTENTS: dict[Path, str] = {}


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of all files below a folder and of their names in it; read once a process.

    Of a model's folder without the files that only tell how it was made, and how long that took: the same weights,
    pruned once more, are the same model.
    """
    whole = path.resolve()
    if whole not in _CONTENTS:
        _CONTENTS[whole] = _sha256(whole) if whole.is_file() else _of_files(whole, _read(whole))
    return _CONTENTS[whole]


def _read(folder: Path) -> list[Path]:
    """Files of a folder that may change a run's numbers."""
    told = _TOLD if (folder / "config.json").is_file() else ()
    return [each for each in _visible(folder) if each.relative_to(folder).as_posix() not in told]


def code_digest() -> str:
    """SHA-256 (hex) of the code, and of the data shipped with it, that a run's numbers come from."""
    files = [ROOT / "RestoreLCC_train.py"]
    for folder in _CODE:
        files += [each for each in _visible(ROOT / folder) if each.suffix != ".md"]
    return _of_files(ROOT, [each for each in files if not each.relative_to(ROOT).as_posix().startswith(_NOT_CODE)])


def _of_files(folder: Path, files: list[Path]) -> str:
    return digest({each.relative_to(folder).as_posix(): _sha256(each) for each in files})


def _visible(folder: Path) -> list[Path]:
    """All files below a folder, but hidden ones and compiled code."""
    found = [each for each in folder.rglob("*") if each.is_file()]
    hidden = re.compile(r"\..*|__pycache__")
    return [each for each in found if not any(map(hidden.fullmatch, each.relative_to(folder).parts))]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def finished(folder: Path) -> dict | None:
    """As what the run in `folder` is done (its DONE), whatever it is wanted as; None if it is not."""
    whole = all((folder / name).is_file() for name in ("results.json", "run.json"))
    return read_json(folder / DONE) if whole else None


def read_json(path: Path) -> dict | None:
    """The JSON object in a file; None without one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def valid_loss(folder: Path) -> float | None:
    """The last validation loss (nats a token) of a finished run; None if it has none, or none that is finite."""
    try:
        lines = (folder / "logs" / "history.jsonl").read_text(encoding="utf-8").splitlines()
        found = [row["valid_loss"] for row in map(json.loads, lines) if row.get("valid_loss") is not None]
    except (OSError, ValueError):
        return None
    return found[-1] if found and math.isfinite(found[-1]) else None


def best_rate(row: Row, losses: dict[str, float | None]) -> float | None:
    """The rate whose search ended with the lowest validation loss, or the only one; None if no search has a loss.

    losses: by run id; None, or missing, where a run failed.
    """
    if not row.searches:
        return row.finals[0].rate
    found = [(losses[each.id], each.rate) for each in row.searches if losses.get(each.id) is not None]
    return min(found)[1] if found else None
