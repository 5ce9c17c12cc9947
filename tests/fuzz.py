"""Mutated inputs for what reads files: python -m tests.fuzz -inputs 100000 -seed 0. Not collected by pytest.

Each input is a whole one that was changed, as bytes or in its values; the loader has to take it, or to answer with a
UserError of one line. Anything else is printed with the number that makes the same input again, and ends in status 1.
"""

import contextlib
import copy
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from data.loading import load_samples
from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config
from models.restoration import ABOUT, TENSORS, Restoration, file_identity, load_restoration, save_restoration
from tests.builders import HEADS, orthonormal, save_tiny_llama
from utils.common.commands import Parser, run
from utils.common.errors import Stopped, UserError
from utils.common.flag_types import at_least
from utils.common.flags import parse_arguments
from utils.common.methods import Options

STRANGE = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "0",
    "\ud800", "\0", "\n", "x" * 300, "none", "both", [], [[]], [None], {}, {"": None}, [[0, 0]], "café",
)  # fmt: skip

PIECES = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\\ud800", b"\xff", b"\x00", b"NaN", b"-", b"1e999", b"null",
    b"9" * 5000, b"[" * 5000, b"\xef\xbb\xbf", b"\r\n", b"\n", b"\xed\xa0\x80", b".", b"PK\x03\x04",
)  # fmt: skip

ROWS = [
    {"instruction": "Count to 3.", "input": "from 1", "output": "1, 2, 3"},
    {"instruction": "Say café.", "output": "café"},
    {"text": "A question\nAnswer:", "label": " yes"},
    {"instruction": "Name a tree.", "input": "", "response": "Oak"},
]

FLAGS = {
    "base_model_name": "llama_7B", "pruned_model_path": None, "lr": 1e-3, "num_epoch": 2, "batch_size": 8,
    "use_topk_heads": 0.25, "sparsity": "2:4", "eval_tasks": "none", "allow_dense": False, "seed": 42,
    "data_seed": None, "method": "restorelcc", "eval_batch_size": "auto", "output_dir": "out", "dtype": "bfloat16",
    "apply_to": "both", "train_norms": True, "max_grad_norm": 1.0, "eval_limit": 3,
}  # fmt: skip


def twisted(content: object, draw: random.Random) -> object:
    """A copy with one value, key or place in it exchanged for something strange."""
    content = copy.deepcopy(content)
    if isinstance(content, dict | list) and content and draw.random() < 0.9:
        key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
        what = draw.random()
        if what < 0.1:
            del content[key]
        elif what < 0.2 and isinstance(content, dict):
            content[draw.choice(("", "text", "label", "heads", "x" * 50, key))] = content.pop(key)
        elif what < 0.3 and isinstance(content, list):
            content.insert(key, copy.deepcopy(content[key]))
        else:
            content[key] = twisted(content[key], draw)
        return content
    return copy.deepcopy(draw.choice(STRANGE))


def torn(raw: bytes, draw: random.Random) -> bytes:
    """One to four changes of the bytes."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        place, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 8, 64))
        what = draw.randrange(6)
        if what == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif what == 1:
            del data[place : place + length]
        elif what == 2:
            data[place:place] = draw.choice(PIECES)
        elif what == 3:
            data[place:place] = data[draw.randrange(len(data) + 1) :][:length]
        elif what == 4:
            del data[place:]
        else:
            data[place : place + length] = draw.randbytes(length)
    return bytes(data)


def many_twists(content: object, draw: random.Random) -> object:
    """One to three strange values."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        content = twisted(content, draw)
    return content


def written(content: object, draw: random.Random) -> bytes:
    """The content as JSON, changed in its values, in its bytes, or in both."""
    in_values = draw.random() < 0.6
    raw = json.dumps(many_twists(content, draw) if in_values else content, ensure_ascii=draw.random() < 0.5)
    encoded = raw.encode(errors="surrogatepass")
    return encoded if in_values and draw.random() < 0.8 else torn(encoded, draw)


def read_samples(path: Path) -> None:
    """Load it as a run does, and hold what comes to what is promised of it."""
    split = load_samples(str(path), 2, 1, skip_bad=True)
    for sample in (*split.train, *split.valid):
        assert sample.prompt.encode() and sample.response.encode()


def jsonl(folder: Path, draw: random.Random) -> None:
    """-data_path: a row a line."""
    lines = [json.dumps(row).encode() for row in ROWS]
    place = draw.randrange(len(lines))
    lines[place] = written(ROWS[place], draw)
    (folder / "samples.jsonl").write_bytes(b"\n".join(lines))
    read_samples(folder / "samples.jsonl")


def a_list(folder: Path, draw: random.Random) -> None:
    """-data_path: a list."""
    (folder / "samples.json").write_bytes(written(ROWS, draw))
    read_samples(folder / "samples.json")


def pt(folder: Path, draw: random.Random) -> None:
    """-data_path: a file of torch.save."""
    buffer = io.BytesIO()
    content = [{"text": row.get("text", row.get("instruction")), "label": "a"} for row in ROWS]
    if draw.random() < 0.7:
        content = many_twists(content, draw)
        if isinstance(content, list) and draw.random() < 0.2:
            content.insert(0, draw.choice((torch.ones(2), (1, 2), b"bytes", {3: 4}, torch.float16, {torch.ones(1): 1})))
    torch.save(content, buffer)
    raw = buffer.getvalue()
    (folder / "samples.pt").write_bytes(raw if draw.random() < 0.5 else torn(raw, draw))
    read_samples(folder / "samples.pt")


def config(folder: Path, draw: random.Random) -> None:
    """-config: an object of flags, or a run.json."""
    content = FLAGS if draw.random() < 0.5 else {"arguments": FLAGS, "seconds": 3}
    (folder / "config.json").write_bytes(written(content, draw))
    parse_arguments(["-config", str(folder / "config.json")])


class Restorations:
    """-restoration: saved ones of several methods, changed in json, tensors or bytes."""

    def __init__(self, folder: Path):
        model = save_tiny_llama(folder / "model")
        self.config: LlamaConfig = load_config(model, "-pruned_model_path")
        given = MethodInputs(self.config, 1, Checkpoint(model).read, HEADS, orthonormal())
        self.whole = []
        for method, options in (
            ("restorelcc", Options()),
            ("restorelcc", Options("both", train_norms=True)),
            ("output_bias", Options()),
            ("lora", Options()),
        ):
            restoration = Restoration.start(method, options, given)
            place = folder / f"whole{len(self.whole)}"
            save_restoration(place, restoration, {"pruned_sha256": "0" * 64, "arguments": {"dtype": "float32"}})
            about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            self.whole.append((about, load_file(place / TENSORS), (place / TENSORS).read_bytes()))

    def __call__(self, folder: Path, draw: random.Random) -> None:
        about, tensors, raw = draw.choice(self.whole)
        what = draw.random()
        (folder / TENSORS).write_bytes(torn(raw, draw) if 0.4 < what < 0.6 else raw)
        if what >= 0.6:
            tensors = self.changed(tensors, draw)
            save_file(tensors, folder / TENSORS)
            about = {**about, "files": {TENSORS: file_identity(folder / TENSORS)}}
        (folder / ABOUT).write_bytes(written(about, draw) if what < 0.5 else json.dumps(about).encode())
        restoration, _ = load_restoration(folder)
        restoration.check(self.config, "-restoration")
        assert all(bool(tensor.isfinite().all()) for tensor in restoration.tensors().values())
        assert restoration.terms and restoration.describe()

    @staticmethod
    def changed(tensors: dict[str, torch.Tensor], draw: random.Random) -> dict[str, torch.Tensor]:
        """Another shape, type, value or name of one tensor."""
        found = {name: tensor.clone() for name, tensor in tensors.items()}
        name = draw.choice(list(found))
        tensor = found.pop(name)
        what = draw.randrange(7)
        if what == 0:
            found[name] = tensor.flatten()[: draw.randrange(tensor.numel() + 1)].clone()
        elif what == 1:
            found[name] = tensor.to(draw.choice((torch.float16, torch.float64, torch.int32, torch.bool, torch.int64)))
        elif what == 2 and tensor.is_floating_point():
            tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice((float("nan"), float("inf"), -float("inf")))
            found[name] = tensor
        elif what == 3:
            found[draw.choice(("", "x", "norms.scales", "constants.bias", f"norms.{name}"))] = tensor
        elif what == 4:
            found[name] = draw.choice((tensor[None].clone(), torch.tensor(3), torch.zeros(0), tensor[:0].clone()))
        elif what == 5 and not tensor.is_floating_point():
            tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice((-1, 0, 5, 6, 2**40, -(2**63)))
            found[name] = tensor
        elif what == 6 and not tensor.is_floating_point():
            found[name] = tensor.flip(0).contiguous()
        return found or {"x": torch.zeros(1)}


SHARES = {"jsonl": 0.3, "json": 0.25, "pt": 0.2, "restoration": 0.15, "config": 0.1}
"""Of all inputs; a -config takes the longest, since a parser is built for it each time."""


def outcome(read: Callable[[Path, random.Random], None], folder: Path, draw: random.Random) -> str:
    """Read one input: "accepted", "our errors", or "others" and the traceback."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read(folder, draw)
    except UserError as error:
        return "our errors" if str(error) and "\n" not in str(error) else f"others: not one line: {error}"
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException:  # a panic of Rust's is no Exception
        return f"others: {traceback.format_exc()}"
    return "accepted"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.flag("inputs", type=at_least(10), default=100_000, metavar="N", help="in all")
    parser.flag("seed", type=at_least(0), default=0, metavar="N", help="of all inputs")
    parser.flag("only", metavar="LOADER:N", help="one input again, by the number that was printed")
    args = parser.parse_args(argv)
    began, bad = time.perf_counter(), 0
    with tempfile.TemporaryDirectory(prefix="restorelcc-fuzz-") as place:
        loaders = {"jsonl": jsonl, "json": a_list, "pt": pt, "restoration": Restorations(Path(place)), "config": config}
        print(f"{'loader':<12} {'inputs':>8} {'our errors':>11} {'accepted':>9} {'other exceptions':>17}")
        total: Counter[str] = Counter()
        for name, read in loaders.items():
            chosen = range(round(SHARES[name] * args.inputs))
            if args.only:
                loader, _, number = args.only.partition(":")
                chosen = range(int(number), int(number) + 1) if loader == name else range(0)
            folder = Path(place) / name
            found: Counter[str] = Counter()
            for number in chosen:
                folder.mkdir()
                said = outcome(read, folder, random.Random(f"{args.seed}/{name}/{number}"))
                shutil.rmtree(folder)
                kind = said.partition(":")[0]
                found[kind] += 1
                if kind == "others" and found[kind] <= 3:
                    print(f"-seed {args.seed} -only {name}:{number}\n{said.partition(': ')[2]}", file=sys.stderr)
            total += found
            print(row(name, found), flush=True)
        bad = total["others"]
        print(f"{row('all', total)}\n{time.perf_counter() - began:.0f} s, seed {args.seed}")
    sys.exit(1 if bad else 0)


def row(name: str, found: Counter[str]) -> str:
    """A line of the table."""
    kinds = ("our errors", "accepted", "others")
    numbers = (found.total(), *(found[kind] for kind in kinds))
    widths = (8, 11, 9, 17)
    return f"{name:<12} " + " ".join(f"{number:>{width},}" for number, width in zip(numbers, widths, strict=True))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run(main)
