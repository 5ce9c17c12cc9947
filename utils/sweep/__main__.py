"""Many configurations, each at its own best rate and with the same seeds, in one table.

    python -m utils.sweep FILE.yaml -output_dir OUT
    python -m utils.sweep RUNS.json.gz -output_dir OUT     the table once more, of runs that are done elsewhere

Each run is a process of its own in OUT/ID, done when its results.json stands. What is not done is
tried by the next call, except a rate that diverged. The table is made from the runs' files.
"""

import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from pruning.prune_model import check_names
from utils.common.commands import DEFAULT_CACHE, Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.files import check_writable, write_text
from utils.common.flags import INPUTS, parse_arguments
from utils.common.names import counted
from utils.common.run_folder import check_apart, locked
from utils.evaluation.task_loading import plan_tasks
from utils.stages.inputs import check_inputs
from utils.sweep.grid import SweepRow, SweepRun, read_sweep
from utils.sweep.sweep_files import FILE, look, printed, read, write
from utils.sweep.table import build_table, markdown

ENTRY = Path(__file__).resolve().parents[2] / "RestoreLCC_train.py"


def main() -> None:
    """Run a sweep from its file, or read its runs, and write its table."""
    parser = Parser(prog="utils.sweep", description=__doc__, usage="python -m utils.sweep FILE [-flag value …]")
    parser.add_argument("file", type=folder_path, metavar="FILE", help=f"YAML file of a sweep, or its {FILE}")
    parser.flag("output_dir", type=folder_path, default=Path("sweep"), metavar="DIR", help="where runs and table go")
    parser.flag("cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="that all runs share")
    parser.flag("keep_models", default=False, help="keep each run's model/, compact/ and restoration/")
    args = parser.parse_args()
    table = args.output_dir / "table.md"
    if table.exists() and not (table.is_file() and table.read_bytes().startswith(b"# Sweep")):
        raise UserError(f"-output_dir: {table} is not a sweep's table; rename it, or give another folder")
    if args.file.suffix == ".gz":
        rows, kept, text = [], args.file, markdown(build_table(read(args.file)))
        check_writable(args.output_dir, "-output_dir")
        write_text(table, text)
    else:
        rows, kept = read_sweep(args.file), args.output_dir
        if (kept / "results.json").exists():
            raise UserError(f"-output_dir: {kept} is the folder of a run; give a sweep's, or a new one")
        check_writable(args.output_dir, "-output_dir")
        with locked(kept / ".lock", f"-output_dir: {kept}"):
            check_all(look(rows, kept), kept, args.cache_dir)
            rows = run_all(rows, kept, args.cache_dir, args.keep_models)
    page = shlex.join(["python", "-m", "utils.compare", str(kept), "-output", "FILE.html"])
    print(f"table: {table}\npage:  {page}")
    if left := needed(rows):
        print(f"{counted(len(left), 'run')} failed: the table says how; the same command tries again", file=sys.stderr)
        sys.exit(1)


def check_all(rows: list[SweepRow], output: Path, cache: Path) -> None:
    """Raise UserError, naming the configuration, for an input that a run would refuse before it began."""
    runs = [(row, each) for row in rows for each in (*row.searches, *row.finals) if not each.outcome]
    planned = set()
    for row, each in runs if needed(rows) else ():
        try:
            args = parse_arguments([*each.words, "-output_dir", str(output / each.id), "-cache_dir", str(cache)])
            check_apart(args, INPUTS)
            check_inputs(args)
            if not args.pruned_model_path:
                check_names(args.prune_method, args.sparsity)
            if args.evaluation not in planned:
                planned.add(args.evaluation)
                plan_tasks(*args.evaluation)
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from error


def run_all(rows: list[SweepRow], output: Path, cache: Path, keep: bool) -> list[SweepRow]:
    """Start all runs in `needed`, each once per call; returns the rows as they are then."""
    tried: set[str] = set()
    while True:
        rows = look(rows, output)
        write_text(output / "table.md", markdown(build_table(rows)))
        write(rows, output / FILE)
        row, run = next((each for each in needed(rows) if each[1].id not in tried), (None, None))
        if run is None:
            return rows
        tried.add(run.id)
        rate = "" if run.rate is None else f", rate {run.rate:g}"
        print(f"{row.name}, {row.pruning}{rate}, seed {run.seed}: {run.id}", flush=True)
        began, folder = time.monotonic(), output / run.id
        words = [*run.words, "-output_dir", str(folder), "-cache_dir", str(cache)]
        status = call([sys.executable, str(ENTRY), *words], log := output / f"{run.id}.log")
        ended = "done" if status == 0 else f"exit status {status}, see {log}: {printed(log)[-1]}"
        print(f"      {(time.monotonic() - began) / 60:.1f} min, {ended}", flush=True)
        for name in () if keep else ("model", "compact", "restoration"):  # no table needs them
            shutil.rmtree(folder / name, ignore_errors=True)


def needed(rows: list[SweepRow]) -> list[tuple[SweepRow, SweepRun]]:
    """The runs that are neither done nor diverged: all searches, and those of a row's rate once it is chosen."""
    runs = {run.id: (row, run) for row in reversed(rows) for run in (*reversed(row.chosen), *reversed(row.searches))}
    return [each for each in reversed(runs.values()) if not each[1].outcome and not each[1].diverged]


def call(words: list[str], log: Path) -> int:
    """Run a command, with its output in `log`; returns its exit status. It is terminated if this process is stopped."""
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    # In a session of its own: Ctrl-C reaches only this process, which then ends the child once.
    with log.open("w") as output, subprocess.Popen(words, start_new_session=True, stdout=output, **quiet) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(30)
            child.kill()
            raise


if __name__ == "__main__":
    run(main, then="the same command goes on")
