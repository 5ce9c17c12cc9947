"""Task data for machines without the hub: rows as jsonl, lm_eval definitions that read them, and their digests.

python -m utils.evaluation.mirror -tasks paper -output_dir DIR        on a machine with the hub
python RestoreLCC_train.py -eval_data_dir DIR ...          anywhere
lm_eval --include_path DIR/lm_eval --tasks boolq ...       lm_eval alone, anywhere
"""

import json
import logging
import shutil
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from utils.common.commands import Parser, folder_path, run
from utils.common.errors import UserError
from utils.common.files import digest_files, whole_folder, workspace, write_json, write_text
from utils.common.names import BUNDLED, SPEC_TASKS
from utils.common.run_folder import check_apart
from utils.evaluation import mirror_rows, perplexity
from utils.evaluation.model import quiet
from utils.evaluation.plan import TaskLoader, task_names, wikitext_rows
from utils.evaluation.tasks import (
    DEFINITIONS,
    MIRROR_RECORD,
    WIKITEXT,
    needed_splits,
    paper_fault,
    read_rows,
    split_file,
)

FLAG = "-tasks"
DATA_FLAG = "-eval_data_dir"


class _Function(str):
    """A function reference of lm_eval's YAML."""


yaml.SafeDumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


def write_mirror(tasks: str, output: Path, data_dir: Path | None = None) -> dict:
    """Write the mirror of `tasks` (as -eval_tasks takes them) to `output`, whole or not at all; returns its record.

    data_dir: take the rows from this folder instead of the hub; definitions and digests are made all the same.
    Raises UserError for an unknown task, a hub out of reach or a damaged row.
    """
    names = [name for name in task_names(tasks, FLAG) if not name.startswith(BUNDLED)]
    if not names:
        raise UserError(f"{FLAG}: '{tasks}' needs no mirror; name tasks whose rows are on the hub, or 'paper'")
    with (
        workspace("mirror") as place,
        quiet(logging.ERROR),
        whole_folder(output) as partial,
    ):
        loader = TaskLoader(place, data_dir, FLAG)
        (partial / "lm_eval").mkdir()
        shutil.copy(mirror_rows.__file__, partial / "lm_eval" / "mirror_rows.py")
        for name in names:
            print(f"mirroring {name}")
            if name == WIKITEXT:
                rows, _ = wikitext_rows(data_dir)
                (partial / WIKITEXT).mkdir()
                write_text(partial / WIKITEXT / "test.txt", perplexity.raw_text(rows))
                continue
            for task, definition in loader.definitions(name).items():
                _mirror_task(loader, task, definition, data_dir, partial)
        record = {
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "lm_eval": version("lm_eval"),
            "from": "hub" if data_dir is None else "folder",
            "sha256": {
                str(file.relative_to(partial)): digest_files([file])
                for file in sorted(partial.rglob("*"))
                if file.suffix in (".jsonl", ".txt")
            },
        }
        write_json(partial / MIRROR_RECORD, record)
    return record


def _mirror_task(loader: TaskLoader, task: str, definition: Path, data_dir: Path | None, output: Path) -> None:
    config = load_yaml(definition, resolve_func=False)
    splits = needed_splits(config)
    if task in SPEC_TASKS and "train" not in splits:
        splits.append("train")
    loaded = None if data_dir is not None else loader.hub_task(task)
    files = {}
    for split in splits:
        if data_dir is None:
            rows = [dict(row) for row in loaded.dataset[split]]
        else:
            try:
                file = split_file(data_dir, task, split, DATA_FLAG)
            except UserError:
                if split == "train":  # only -spec_task reads it
                    continue
                raise
            rows = read_rows(file, DATA_FLAG, paper_fault(task))
        files[split] = f"tasks/{task}/{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write_text(output / files[split], "".join(lines))
    _write_definition(task, config, files, output / "lm_eval")


def _write_definition(task: str, config: dict, files: dict[str, str], folder: Path) -> None:
    """lm_eval's definition without its includes, its functions copied beside it, reading the mirror's rows."""
    kept = {name: _portable(value, folder) for name, value in config.items()}
    for name in ("dataset_path", "dataset_name", "tag", "group"):
        kept.pop(name, None)
    for kind in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if kept.get(kind) not in (None, *files):
            kept[kind] = None
    kept |= {"task": task, "custom_dataset": _Function("mirror_rows.load"), "dataset_kwargs": {"files": files}}
    write_text(folder / f"{task}.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _portable(value: object, folder: Path) -> object:
    if isinstance(value, dict):
        return {name: _portable(part, folder) for name, part in value.items()}
    if isinstance(value, list):
        return [_portable(part, folder) for part in value]
    # Unresolved, a function is its module's path and its name: /…/lm_eval/tasks/hellaswag/utils.process_docs
    if not isinstance(value, str) or not value.startswith(f"{DEFINITIONS}/"):
        return value
    module, _, function = value.rpartition(".")
    source = Path(f"{module}.py")
    if not source.is_file():
        return _Function(value.removeprefix(f"{source.parent}/"))
    name = f"{source.parent.name}_{source.stem}"
    shutil.copy(source, folder / f"{name}.py")
    return _Function(f"{name}.{function}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m utils.evaluation.mirror", description=__doc__.splitlines()[0])
    parser.flag("tasks", default="paper", metavar="TASKS", help="what -eval_tasks takes: paper, or lm_eval names")
    parser.flag("output_dir", required=True, type=folder_path, metavar="DIR", help="folder to write")
    parser.flag(
        "eval_data_dir",
        type=folder_path,
        metavar="DIR",
        help="take the rows from this folder of TASK/SPLIT.jsonl instead of the hub",
    )
    parser.switch("overwrite", "replace the mirror that -output_dir holds")
    args = parser.parse_args(argv)
    if args.eval_data_dir is not None and not args.eval_data_dir.is_dir():
        raise UserError(f"{DATA_FLAG}: {args.eval_data_dir} is not a folder; leave it out to use the hub")
    check_apart(args.output_dir, {DATA_FLAG: args.eval_data_dir})
    if args.output_dir.exists() and not args.overwrite:
        raise UserError(f"-output_dir: {args.output_dir} already holds files; give another folder, or -overwrite")
    record = write_mirror(args.tasks, args.output_dir, args.eval_data_dir)
    print(f"{len(record['sha256'])} files in {args.output_dir}; use them with: -eval_data_dir {args.output_dir}")


if __name__ == "__main__":
    run(main)
