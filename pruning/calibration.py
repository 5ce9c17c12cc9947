"""Calibration sets: token windows drawn from C4, from the bundled text or from the user's own files."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data.sources import bundled_text, check_calib_data, json_rows
from utils.common.errors import UserError, first_line
from utils.common.files import digest, digest_files
from utils.common.names import BUNDLED, C4

_C4_FILE = "en/c4-train.00000-of-01024.json.gz"
_C4_SHUFFLED = 10_000
"""Documents of C4 that are shuffled among each other; more of them would be downloaded before the first is used."""


def check(source: str, samples: int, length: int, longest: int) -> None:
    """Raise UserError if the calibration flags can be known to be wrong without reading any text.

    longest: the model's max_position_embeddings.
    """
    check_calib_data(source)
    if samples < 1:
        raise UserError(f"-calib_samples: {samples} is too few; give 1 or more (the papers take 128)")
    if not 2 <= length <= longest:
        raise UserError(
            f"-calib_length: {length} tokens; give at least 2 and at most {longest}, the model's longest context"
        )


def load(
    source: str, samples: int, length: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[torch.Tensor, dict]:
    """`samples` windows of `length` tokens, and a record of where they came from.

    As in Wanda and SparseGPT: documents in random order, one random window from each that is long enough. When
    those do not suffice, random windows over all documents joined end to end. Returns ((samples, length)
    int64, {"source", "source_digest", "samples", "length", "seed", "windows", "tokens_digest"}).
    """
    generator = torch.Generator().manual_seed(seed)
    documents, source_digest = _documents(source, generator)
    windows, seen = [], []
    for text in documents:
        ids = torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.long)
        if len(ids) >= length:
            windows.append(_window(ids, length, generator))
        seen.append(ids)
        if len(windows) == samples:
            break
    kind = "one a document"
    if len(windows) < samples:
        joined = torch.cat(seen) if seen else torch.empty(0, dtype=torch.long)
        if len(joined) < length:
            raise UserError(
                f"-calib_data: {source} holds {len(joined)} tokens, fewer than one window of {length}; "
                "lower -calib_length or give a longer text"
            )
        print(
            f"calibration: {len(windows)} documents of {source} have {length} tokens, {samples} are asked for: "
            f"drawing windows from all {len(seen)} joined ({len(joined)} tokens)"
        )
        kind = "over the joined documents"
        windows = [_window(joined, length, generator) for _ in range(samples)]
    tokens = torch.stack(windows)
    return tokens, {
        "source": source,
        "source_digest": source_digest,
        "samples": samples,
        "length": length,
        "seed": seed,
        "windows": kind,
        "tokens_digest": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
    }


def _window(ids: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    start = int(torch.randint(len(ids) - length + 1, (1,), generator=generator))
    return ids[start : start + length]


def _documents(source: str, generator: torch.Generator) -> tuple[Iterable[str], str]:
    """The documents in random order, and a digest of what they were read from."""
    if source == C4:
        return _c4(int(torch.randint(2**31, (1,), generator=generator))), f"allenai/c4:{_C4_FILE}"
    if source == BUNDLED:
        texts = bundled_text()
        source_digest = digest(texts)
    else:
        path = Path(source).expanduser()
        texts, source_digest = _read(path), digest_files([path])
    order = torch.randperm(len(texts), generator=generator).tolist()
    return (texts[place] for place in order), source_digest


def _read(path: Path) -> list[str]:
    """The documents of a file: a .txt is one, a .json holds a list, a .jsonl one a line."""
    if path.suffix == ".txt":
        try:
            texts = [path.read_text(encoding="utf-8-sig")]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"-calib_data: cannot read {path} ({error}); give UTF-8 text") from error
    else:
        rows = (row for _, row in json_rows(path, "-calib_data"))
        texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise UserError(f'-calib_data: document {number} of {path} has no text; give strings or {{"text": "…"}}')
    return [text for text in texts if text.strip()]


def _c4(seed: int) -> Iterator[str]:
    """Documents of C4's first English training shard, streamed from the hub."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset("allenai/c4", data_files={"train": _C4_FILE}, split="train", streaming=True)
        for row in islice(rows.shuffle(seed=seed, buffer_size=_C4_SHUFFLED), _C4_SHUFFLED):
            yield row["text"]
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"-calib_data: cannot get C4 from the hub ({first_line(error)}); give '{BUNDLED}' or a file of your own"
        ) from error
