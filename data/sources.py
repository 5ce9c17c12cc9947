"""Texts from the bundled set, a file, a folder or the hub: samples to train on, and rows of other kinds."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import UserError, explain, shortened
from utils.common.files import parse_json
from utils.common.hub import HUB_ID, asking
from utils.common.names import BUNDLED, C4

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
"""The set this project ships: 2,000 training and 250 validation samples."""

SUFFIXES = (".jsonl", ".json", ".pt")
CALIB_SUFFIXES = (".jsonl", ".json", ".txt")

_KINDS = f"give '{BUNDLED}', a .json, .jsonl or .pt file, a folder with a train file, or a hub id (owner/name)"


@dataclass(frozen=True)
class Sample:
    """One sample. The model reads `prompt.strip() + " " + response`; the loss is over the response only.

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


def alpaca_prompt(instruction: str, context: str) -> str:
    """The original release's Alpaca template: no preamble, the Input block left out when empty."""
    given = f"\n\n### Input:\n{context}" if context.strip() else ""
    return f"### Instruction:\n{instruction}{given}\n\n### Response:"


def check_calib_data(source: str) -> None:
    """Raise UserError if -calib_data can be known to be wrong without reading it or asking the hub."""
    kinds = f"give '{BUNDLED}', '{C4}' (from the hub), or a {', '.join(CALIB_SUFFIXES)} file"
    path = Path(source)
    if source not in (BUNDLED, C4):
        if path.suffix not in CALIB_SUFFIXES:
            raise UserError(f"-calib_data: '{source}' is not a calibration set; {kinds}")
        if not os.path.isfile(path):
            raise UserError(f"-calib_data: {source} does not exist; {kinds}")


def load_samples(data_path: str, num_train: int, num_valid: int) -> Split:
    """The first `num_train` and `num_valid` samples, in the order of the file.

    data_path: 'bundled'; a file of {"instruction", "input", "output"} objects (.json list or .jsonl; "input"
        may be missing, "response" is read as "output") or of {"text", "label"} (also .pt, the original
        release's list); a folder that holds train.* and perhaps valid.*; or the id of a data set on the hub.
    Validation samples come from the folder's validation file, else from the rows that follow the training rows.
    Samples with an empty response are left out, with a message. Raises UserError that names the file and the row.
    """
    train, valid = check_data_path(data_path)
    asked = [("-num_train_samples", num_train), ("-num_valid_samples", num_valid)]
    if valid is None:
        both = _take(train, asked)
        return Split(both[:num_train], both[num_train:])
    return Split(_take(train, asked[:1]), _take(valid, asked[1:]))


def bundled_text() -> list[str]:
    """The texts of the 2,000 bundled training samples, prompt and response: calibration text for pruning."""
    return [f"{sample.prompt.strip()} {sample.response}" for _, sample in _samples(BUNDLED_FOLDER / "train.jsonl")]


def read_text(path: Path, flag: str) -> str:
    """The content of a UTF-8 text file; UserError naming the flag if it can't be read."""
    with explain(f"{flag}: cannot read {path}", "check that it is UTF-8 text", (OSError, UnicodeDecodeError)):
        return path.read_text(encoding="utf-8-sig")


def json_rows(path: Path, flag: str) -> Iterator[tuple[int, object]]:
    """(line, content) of each row of a file of JSON lines, or (number, content) of the list in a .json file.

    Raises UserError naming the flag, the file and the line if a line is not valid JSON.
    """
    text, whole = read_text(path, flag), path.suffix == ".json"
    for number, line in enumerate([text] if whole else text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = parse_json(line)
        except ValueError as error:
            at = error.lineno if whole and isinstance(error, json.JSONDecodeError) else number
            hint = "one object a line belongs in a .jsonl file" if whole else "mend or remove the line"
            said = getattr(error, "msg", error)  # without its position, which counts within the line
            raise UserError(f"{flag}: {path}:{at}: not valid JSON ({said}); {hint}") from error
        if whole:
            yield from _listed(content, path, flag)
        else:
            yield number, content


def _listed(content: object, path: Path, flag: str) -> Iterator[tuple[int, object]]:
    if not isinstance(content, list):
        raise UserError(f"{flag}: {path} holds no list of samples; make it a list")
    return enumerate(content, start=1)


def check_data_path(name: str) -> tuple[Path | str, Path | None]:
    """The file or hub id behind -data_path, and the validation file beside it if it is a folder that has one.

    Raises UserError if it can be known to be wrong without reading it or asking the hub.
    """
    path = BUNDLED_FOLDER if name == BUNDLED else Path(name)
    if os.path.isdir(path):
        train, valid = (_first_file(path, stems) for stems in (("train",), ("valid", "validation", "val")))
        if train is None:
            raise UserError(f"-data_path: {name} holds no train.jsonl, train.json or train.pt; {_KINDS}")
        return train, valid
    if os.path.isfile(path):
        if path.suffix not in SUFFIXES:
            raise UserError(f"-data_path: {name} is none of {', '.join(SUFFIXES)}; {_KINDS}")
        return path, None
    if path.suffix in SUFFIXES or name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise UserError(f"-data_path: {name} does not exist; {_KINDS}")
    return name, None


def _first_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    names = (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in names if path.is_file()), None)


def _take(source: Path | str, asked: list[tuple[str, int]]) -> list[Sample]:
    """The first samples that have a response, as many as the flags ask for; the others are left out and named."""
    wanted, good, empty = sum(count for _, count in asked), [], []
    for row, sample in _samples(source) if wanted else ():
        if sample.response.strip():
            good.append(sample)
        else:
            empty.append(row)
        if len(good) == wanted:
            break
    if empty:
        rows, s = ", ".join(map(str, empty[:10])) + (", …" if len(empty) > 10 else ""), "s" * (len(empty) > 1)
        print(f"{source}: left out {len(empty)} sample{s} with an empty response (row{s} {rows})")
    if len(good) < wanted:
        flags, counts = (" + ".join(map(str, column)) for column in zip(*asked, strict=True))
        left = "s" * (len(good) != 1) + " with a response" * bool(empty)
        raise UserError(
            f"-data_path: {source} has {len(good)} sample{left}, but {flags} is {counts}; "
            f"lower {flags.replace(' + ', ' or ')}, or give a larger set"
        )
    return good


def _samples(source: Path | str) -> Iterator[tuple[int, Sample]]:
    """(row, sample) pairs, rows counted from 1 (in .jsonl: the number of the line)."""
    if isinstance(source, str):
        hint = "check the name and your access, or give a file"
        rows = enumerate(hub_rows(source, "-data_path", hint), start=1)
    elif source.suffix == ".pt":
        rows = _listed(_read_pt(source), source, "-data_path")
    else:
        rows = json_rows(source, "-data_path")
    for row, content in rows:
        yield row, _sample(content, f"-data_path: {source}:{row}")


def _sample(content: object, where: str) -> Sample:
    if not isinstance(content, dict):
        raise UserError(f"{where}: not an object with fields; each row needs 'instruction' and 'output'")
    if "text" in content and "label" in content:
        label = _text(content, "label", where, may_be_empty=True)
        return Sample(_text(content, "text", where), label.removeprefix(" "))
    answer = "response" if "output" not in content and "response" in content else "output"
    context = _text(content, "input", where, may_be_empty=True) if "input" in content else ""
    prompt = alpaca_prompt(_text(content, "instruction", where), context)
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
        raise UserError(f"{where}: field '{field}' is not a string; make it one")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{where}: field '{field}' is empty; fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: field '{field}' holds half of a surrogate pair; mend or remove the row") from error
    return value


def _read_pt(path: Path) -> object:
    import torch  # only here: it takes seconds, and a wrong path is reported before

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or evil pickle makes torch raise
        raise UserError(
            f"-data_path: cannot read {path} as a PyTorch file of plain lists and strings; "
            "save a list of {'text', 'label'} with torch.save, or give a .jsonl file"
        ) from error


def hub_rows(name: str, flag: str, hint: str, shuffled: dict | None = None, **options) -> Iterator[dict]:
    """Rows of a training split on the hub; UserError naming the flag on failure. shuffled: arguments of `shuffle`."""
    from datasets import load_dataset

    with asking(flag, f"'{name}' from the hub", hint):
        rows = load_dataset(name, split="train", **options)
        yield from rows.shuffle(**shuffled) if shuffled else rows
