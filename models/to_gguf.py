"""Write a plain Llama checkpoint, biases included, as a GGUF file for llama.cpp.

python -m models.to_gguf OUT/model restored.gguf
"""

import os
import shlex
from pathlib import Path

from models.names import COMPACT, check_found, read_settings
from utils.common.commands import DEFAULT_CACHE, Parser, check_cache, folder_path, name_or_path, run
from utils.common.disk import as_bytes, check_writable
from utils.common.errors import UserError
from utils.common.names import GGUF_DTYPES
from utils.common.result import check_apart
from utils.common.temporary import remove_abandoned


def build_parser() -> Parser:
    """The parser of `python -m models.to_gguf`."""
    parser = Parser(
        prog="models.to_gguf",
        usage="python -m models.to_gguf MODEL FILE.gguf [-flag value …]",
        description="Write a plain Llama checkpoint, biases included, as a GGUF file for llama.cpp.",
    )
    parser.add_argument("model", type=name_or_path, metavar="MODEL", help="OUT/model of a run; folder, hub id, GGUF")
    parser.add_argument("file", type=folder_path, metavar="FILE", help="the file to write, ending in .gguf")
    parser.flag(
        "dtype",
        choices=GGUF_DTYPES,
        help="of matrices; norms and biases stay f32 (default: that of the checkpoint, f32 for float64)",
    )
    parser.flag(
        "pre",
        metavar="NAME",
        help="llama.cpp's name for how the tokenizer splits a text, where it is not recognised",
    )
    parser.switch("overwrite", "replace FILE")
    parser.flag(
        "cache_dir", type=folder_path, default=DEFAULT_CACHE, metavar="DIR", help="where a GGUF file is unpacked"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = build_parser().parse_args(argv)
    # Before torch is imported, so that a wrong path is answered at once.
    check_file(args.file, args.overwrite)
    check_apart(args.file, {"MODEL": args.model, "-cache_dir": args.cache_dir}, "FILE")
    check_found(args.model, "MODEL")
    if os.path.isdir(args.model):
        check_plain(Path(args.model))
    check_writable(args.file.parent, "FILE")
    remove_abandoned(args.file.parent)
    check_cache(args.cache_dir)
    from models.gguf_writing import write_gguf
    from models.loading import resolve

    folder = resolve(args.model, "MODEL", args.cache_dir)
    check_plain(folder)
    written = write_gguf(folder, args.file, args.dtype, args.pre)
    lost = f"; {written.rounded:,} smaller weights are zero in {args.dtype} too" if written.rounded else ""
    print(f"{written.tensors} tensors, {written.zeros:,} zeros kept{lost}")
    command = shlex.join(["llama-cli", "-m", str(args.file), "-p", "Name three rivers."])
    print(f"GGUF file: {args.file} ({as_bytes(written.size)}); run it with: {command}")


def check_file(file: Path, overwrite: bool) -> None:
    """UserError unless `file` may be written: a GGUF file's name, and free or to be replaced."""
    if file.suffix != ".gguf":
        raise UserError(f"FILE: {file} must end in .gguf, by which llama.cpp and this project know such a file")
    if file.is_dir():
        raise UserError(f"FILE: {file} is a folder; name a file")
    if file.exists() and not overwrite:
        raise UserError(f"FILE: {file} exists; name another file, or give -overwrite to replace it")


def check_plain(folder: Path) -> None:
    """UserError for a checkpoint in smaller shapes, one layer's other than the next's, which llama.cpp doesn't read."""
    if read_settings(folder, "MODEL")["model_type"] == COMPACT:
        raise UserError(
            f"MODEL: {folder} is in SlimGPT's smaller shapes, which llama.cpp's Llama doesn't have; give the model/ of "
            "the run, which has the dense shapes, or prune again without -mode compact"
        )


if __name__ == "__main__":
    run(main)
