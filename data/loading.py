"""Training and validation samples from the bundled set, a file, a folder or the hub."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import UserError, first_line, shortened
from utils.common.files import fault, parse_json, read_json
from utils.common.names import BUNDLED, C4

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
"""The set this project ships: 2,000 training and 250 validation samples."""

SUFFIXES = (".jsonl", ".json", ".pt")

CALIB_SUFFIXES = (".jsonl", ".json", ".txt")

_VALID_NAMES = ("valid", "validation", "val")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KINDS = f"give '{BUNDLED}', a .json, .jsonl or .pt file, a folder with a train file, or a hub id (owner/name)"


@dataclass(frozen=True)
class Sample:
    """One sample; the text trained on is `prompt.strip() + " " + response`, the loss is the response's.

    negatives: the task's own wrong answers; None where r⁻ is another sample's response.
    """

    prompt: str
    response: str
    negatives: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Split:
    """Training and validation samples, in the order of their source."""

    train: list[Sample]
    valid: list[Sample]


@dataclass(frozen=True)
class _Source:
    """Where rows come from: a file on disk, or a hub id."""

    flag: str
    name: str
    file: Path | None


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The original release's Alpaca template: no preamble, the Input block left out when empty."""
    given = f"\n\n### Input:\n{context}" if context.strip() else ""
    return f"### Instruction:\n{instruction}{given}\n\n### Response:"


def check_data_path(data_path: str) -> None:
    """Raise UserError if it can be known to be wrong without reading it or asking the hub."""
    _source(data_path)


def check_calib_data(source: str) -> None:
    """Raise UserError if -calib_data can be known to be wrong without reading it or asking the hub."""
    kinds = f"give '{BUNDLED}', '{C4}' (from the hub), or a {', '.join(CALIB_SUFFIXES)} file"
    path = Path(source).expanduser()
    if source not in (BUNDLED, C4):
        if path.suffix not in CALIB_SUFFIXES:
            raise UserError(f"-calib_data: '{source}' is no calibration set; {kinds}")
        if not os.path.isfile(path):
            raise UserError(f"-calib_data: {source} does not exist; {kinds}")


def load_samples(data_path: str, num_train: int, num_valid: int) -> Split:
    """The first `num_train` and `num_valid` samples, in the order of the file.

    data_path: 'bundled'; a file of {"instruction", "input", "output"} objects (.json list or .jsonl; "input"
        may be missing, "response" is read as "output") or of {"text", "label"} (also .pt, the original
        release's list); a folder that holds train.* and perhaps valid.*; or the id of a data set on the hub.
    Validation samples come from the folder's validation file, else from the rows that follow the training rows.
    Samples with an empty response are left out, and that is said. Raises UserError that names the file and the row.
    """
    train_source, valid_source = _source(data_path)
    if valid_source is None:
        both = _take(train_source, num_train + num_valid, f"{num_train} + {num_valid}")
        return Split(both[:num_train], both[num_train:])
    return Split(
        _take(train_source, num_train, str(num_train)),
        _take(valid_source, num_valid, str(num_valid)),
    )


def bundled_text() -> list[str]:
    """The texts of the 2,000 bundled training samples, prompt and response: calibration text for pruning."""
    source, _ = _source(BUNDLED)
    return [f"{sample.prompt.strip()} {sample.response}" for _, sample in _samples(source)]


def _source(name: str) -> tuple[_Source, _Source | None]:
    """The source behind `name`, and the validation file beside it if it is a folder that has one."""
    path = BUNDLED_FOLDER if name == BUNDLED else Path(name).expanduser()
    if os.path.isdir(path):
        train = _first_file(path, ("train",))
        if train is None:
            raise UserError(f"-data_path: {name} holds no train.jsonl, train.json or train.pt; {_KINDS}")
        valid = _first_file(path, _VALID_NAMES)
        return _Source("-data_path", str(train), train), valid and _Source("-data_path", str(valid), valid)
    if os.path.isfile(path):
        if path.suffix not in SUFFIXES:
            raise UserError(f"-data_path: {name} is none of {', '.join(SUFFIXES)}; {_KINDS}")
        return _Source("-data_path", name, path), None
    if path.suffix in SUFFIXES or name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise UserError(f"-data_path: {name} does not exist; {_KINDS}")
    return _Source("-data_path", name, None), None


def _first_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    names = (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in names if path.is_file()), None)


def _take(source: _Source, wanted: int, asked: str) -> list[Sample]:
    """The first `wanted` samples that have a response; the others are left out and named."""
    good, empty = [], []
    if wanted:
        for row, sample in _samples(source):
            if sample.response.strip():
                good.append(sample)
            else:
                empty.append(row)
            if len(good) == wanted:
                break
    if empty:
        print(f"{_name_empty(source, empty)}: left out")
    if len(good) < wanted:
        amount = "-num_train_samples + -num_valid_samples" if "+" in asked else "the split"
        left = " with a response" if empty else ""
        raise UserError(
            f"{source.flag}: {source.name} has {len(good)} samples{left}, but {amount} asks for {asked}; "
            "lower -num_train_samples or -num_valid_samples, or give a larger set"
        )
    return good


def _name_empty(source: _Source, rows: list[int]) -> str:
    named = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
    if len(rows) == 1:
        return f"{source.name}: 1 sample has an empty response (row {named})"
    return f"{source.name}: {len(rows)} samples have an empty response (rows {named})"


def _samples(source: _Source) -> Iterator[tuple[int, Sample]]:
    """(row, sample) pairs, rows counted from 1 (in .jsonl: the number of the line)."""
    for row, content in _rows(source):
        yield row, _sample(content, f"{source.flag}: {source.name}:{row}")


def _sample(content: object, where: str) -> Sample:
    if not isinstance(content, dict):
        raise UserError(f"{where}: not an object with fields; each row needs 'instruction' and 'output'")
    if "text" in content and "label" in content:
        return Sample(
            _text(content, "text", where), _text(content, "label", where, may_be_empty=True).removeprefix(" ")
        )
    answer = "response" if "output" not in content and "response" in content else "output"
    context = content.get("input")
    if context is not None and not isinstance(context, str):
        raise UserError(f"{where}: field 'input' is no text; make it a string")
    prompt = alpaca_prompt(_text(content, "instruction", where), context or "")
    return Sample(prompt, _text(content, answer, where, may_be_empty=True))


def _text(content: dict, field: str, where: str, may_be_empty: bool = False) -> str:
    if field not in content:
        has = shortened(", ".join(map(str, content)), 200) or "none"
        raise UserError(
            f"{where}: field '{field}' is missing (it has: {has}); "
            "each row needs 'instruction' and 'output', or 'text' and 'label'"
        )
    value = content[field]
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' is no text; make it a string")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{where}: field '{field}' is empty; fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: field '{field}' holds half of a surrogate pair; mend or remove the row") from error
    return value


def _rows(source: _Source) -> Iterator[tuple[int, object]]:
    if source.file is None:
        return enumerate(_hub_rows(source), start=1)
    if source.file.suffix == ".jsonl":
        return _jsonl_rows(source)
    content = _read_pt(source) if source.file.suffix == ".pt" else _read_json(source)
    if not isinstance(content, list):
        raise UserError(f"{source.flag}: {source.name} holds no list of samples; make it a list of objects")
    return enumerate(content, start=1)


def _jsonl_rows(source: _Source) -> Iterator[tuple[int, object]]:
    try:
        with source.file.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    content = parse_json(line)
                except ValueError as error:
                    where = f"{source.flag}: {source.name}:{number}"
                    raise UserError(f"{where}: not valid JSON ({fault(error)}); mend or remove the line") from error
                yield number, content
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error


def _read_json(source: _Source) -> object:
    try:
        return read_json(source.file)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{source.flag}: {source.name}{line}: not valid JSON ({fault(error)}); "
            "one object a line belongs in a .jsonl file"
        ) from error


def _read_pt(source: _Source) -> object:
    import torch  # only here: a wrong path is told before the seconds that it takes

    try:
        return torch.load(source.file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or evil pickle makes torch raise
        raise UserError(
            f"{source.flag}: cannot read {source.name} as a PyTorch file of plain lists and strings; "
            "save a list of {'text', 'label'} with torch.save, or give a .jsonl file"
        ) from error


def _hub_rows(source: _Source) -> Iterator[object]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return iter(load_dataset(source.name, split="train"))
    except (DatasetsError, OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"{source.flag}: cannot get '{source.name}' from the hub ({reason}); "
            "check the name and your access, or give a file"
        ) from error


def _unreadable(source: _Source, error: Exception) -> UserError:
    return UserError(f"{source.flag}: cannot read {source.name} ({error}); check that it is UTF-8 text")
