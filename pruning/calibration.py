"""Calibration sets: token windows drawn from C4, from the bundled text or from the user's own files."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.sources import bundled_text, check_calib_data, hub_rows, json_rows, read_text
from utils.common.errors import UserError
from utils.common.names import BUNDLED, C4

_C4_FILE = "en/c4-train.00000-of-01024.json.gz"
_C4_SHUFFLED = 10_000
"""Documents of C4 that are used at most, and the size of the shuffle buffer: it fills before the first is used."""


def check(source: str, length: int, longest: int) -> None:
    """Raise UserError if -calib_data or -calib_length is invalid, as far as that is known before reading any text.

    longest: the model's max_position_embeddings.
    """
    check_calib_data(source)
    if not 2 <= length <= longest:
        raise UserError(f"-calib_length: {length} tokens; give 2 to {longest}, the model's longest context")


def load(source: str, samples: int, length: int, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tensor:
    """`samples` windows of `length` tokens: (samples, length) int64.

    As in Wanda and SparseGPT: documents in random order, one random window from each that is long enough. If too few
    are (ours): all windows from the documents joined end to end, first those that don't overlap, then random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    windows, seen = [], [torch.empty(0, dtype=torch.long)]
    for text in _documents(source, generator):
        ids = torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.long)
        if len(ids) >= length:
            windows.append(_window(ids, length, generator))
        seen.append(ids)
        if len(windows) == samples:
            return torch.stack(windows)
    joined = torch.cat(seen)
    if len(joined) < length:
        raise UserError(
            f"-calib_data: {source} holds {len(joined)} tokens, fewer than one window of {length}; "
            "lower -calib_length or give a longer text"
        )
    print(
        f"calibration: {len(windows)} documents of {source} have {length} tokens or more, {samples} are needed; "
        f"drawing the windows from all {len(seen) - 1:,} documents joined ({len(joined):,} tokens)"
    )
    apart = joined[: len(joined) // length * length].view(-1, length)
    apart = apart[torch.randperm(len(apart), generator=generator)[:samples]]
    return torch.stack([*apart, *(_window(joined, length, generator) for _ in range(samples - len(apart)))])


def _window(ids: Tensor, length: int, generator: torch.Generator) -> Tensor:
    start = int(torch.randint(len(ids) - length + 1, (1,), generator=generator))
    return ids[start : start + length]


def _documents(source: str, generator: torch.Generator) -> Iterable[str]:
    """The documents in random order. C4's are from its first English training shard, streamed from the hub."""
    if source == C4:
        hint = f"give '{BUNDLED}' or a file of your own"
        order = {"seed": int(torch.randint(2**31, (1,), generator=generator)), "buffer_size": _C4_SHUFFLED}
        rows = hub_rows("allenai/c4", "-calib_data", hint, order, data_files={"train": _C4_FILE}, streaming=True)
        return (row["text"] for row in islice(rows, _C4_SHUFFLED))
    texts = bundled_text() if source == BUNDLED else _read(Path(source))
    return [texts[place] for place in torch.randperm(len(texts), generator=generator)]


def _read(path: Path) -> list[str]:
    """The documents of a file: a .txt is one, a .json holds a list, a .jsonl one a line."""
    if path.suffix == ".txt":
        rows = [read_text(path, "-calib_data")]
    else:
        rows = [row for _, row in json_rows(path, "-calib_data")]
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise UserError(f'-calib_data: document {number} of {path} has no text; give strings or {{"text": "…"}}')
    return [text for text in texts if text.strip()]
