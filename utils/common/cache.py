"""Cache results by what they were made from, and by nothing else.

    @cached("components", code=(utils.components,))
    def components(gap: Tensor, count: int, *, seen: bool) -> dict[str, Tensor]: ...

    components(cache, gap, 10, seen=True)          from the cache, or made now and kept
    components.later(cache, gap, 10, seen=True)    the same as a `Kept`, made when that is called

The key holds the content of all arguments before `*`, the code, and the versions of the libraries. Arguments after `*`
must not change the result: names for a progress bar, models that are loaded when needed.
"""

import functools
import hashlib
import inspect
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import PARTIAL, digest, read_json, read_manifest, whole_folder, write_json, write_manifest
from utils.common.run_folder import locked

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate")  # whose versions may change a number
TENSORS, DOCUMENT = "tensors.safetensors", "document.json"  # files for a return value that is not a folder


class Cache:
    """Folders with a manifest, each found by the digest of a key.

    reused: the kind of each entry found, in order. saved: seconds that earlier runs took to make these, each once.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.reused: list[str] = []
        self.saved, self.counted = 0.0, set[Path]()

    def clean(self) -> None:
        """Remove unfinished entries of killed processes. Those of running processes are locked, and stay."""
        for partial in self.folder.glob(f"*/.*{PARTIAL}-*"):
            entry = partial.name[1:].partition(PARTIAL)[0]
            with suppress(UserError), locked(partial.with_name(f"{entry}.lock"), str(partial)):
                shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Kept:
    """A call whose result is in the cache, or is made by `write` when needed. In other keys its key stands for it.

    before: the seconds that were spent on it before `write`.
    """

    cache: Cache
    kind: str
    key: dict
    write: Callable[[Path], None]
    before: float = 0.0

    @property
    def path(self) -> Path:
        """The folder of the result, whether or not it exists yet."""
        return self.cache.folder / self.kind / digest(self.kind, self.key)[:24]

    def known(self) -> dict | None:
        """The manifest if the cache holds the result intact, else None; nothing is computed."""
        with suppress(ValueError):
            return read_manifest(self.path)

    def entry(self) -> Path:
        """The result's folder, verified but not loaded. One process makes a missing or damaged one; others wait."""
        came = time.perf_counter()
        if not (manifest := self.known()):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock"), str(self.path), wait=True):
                if not (manifest := self.known()):
                    if self.path.exists():
                        print(f"      cache: {self.path} is damaged or incomplete; it is made again")
                        shutil.rmtree(self.path)
                    began = time.perf_counter()
                    with whole_folder(self.path) as partial:
                        self.write(partial)
                        write_manifest(partial, key=self.key, seconds=self.before + time.perf_counter() - began)
                    self.cache.counted.add(self.path)
                    return self.path
        self.cache.reused.append(self.kind)
        if self.path not in self.cache.counted:
            self.cache.counted.add(self.path)
            # Less what passed here, which its stage counts: waiting for the process that made it, or reading it.
            self.cache.saved += max(0, manifest.get("seconds", 0) - (time.perf_counter() - came))
        return self.path

    def __call__(self) -> dict | Path:
        """The result."""
        entry = self.entry()
        if (entry / TENSORS).is_file():
            return load_file(entry / TENSORS)
        return read_json(entry / DOCUMENT) if (entry / DOCUMENT).is_file() else entry


def cached(kind: str, code: tuple[ModuleType, ...] = (), libraries: tuple[str, ...] = LIBRARIES) -> Callable:
    """Cache what a function returns (tensors by name, a JSON document) or writes to its first parameter, `folder`.

    code: modules, besides the function itself, whose source is in the key. libraries: packages whose versions are.
    """

    def decorate(make: Callable) -> Callable:
        signature = inspect.signature(make)
        writes = next(iter(signature.parameters)) == "folder"
        positional = [name for name, each in signature.parameters.items() if each.kind != each.KEYWORD_ONLY]
        # Read when the code is imported, since its files may change while it runs.
        source = [digest(inspect.getsource(make))[:16], code_version(*code)]

        def later(cache: Cache, *given: object, **how: object) -> Kept:
            bound = signature.bind(*[None] * writes, *given, **how)
            bound.apply_defaults()

            def write(folder: Path) -> None:
                made = make(*[folder] * writes, *given, **how)
                if made and all(isinstance(value, Tensor) for value in made.values()):
                    save_file({name: tensor.contiguous() for name, tensor in made.items()}, folder / TENSORS)
                elif not writes:
                    write_json(folder / DOCUMENT, made)

            key = {
                "arguments": {name: identity(bound.arguments[name]) for name in positional[writes:]},
                "code": source,
                "libraries": {name: version(name) for name in libraries},
            }
            return Kept(cache, kind, key, write)

        @functools.wraps(make)
        def call(cache: Cache, *given: object, **how: object) -> dict | Path:
            return later(cache, *given, **how)()

        call.later = later
        return call

    return decorate


def identity(value: object) -> object:
    """A value's form in a key: its content, or what its method `key` returns; TypeError for others, such as a path."""
    if isinstance(value, Tensor):
        return digest_tensors({"": value})
    if isinstance(value, Kept):
        return value.key
    if callable(own := getattr(value, "key", None)):
        return identity(own())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: identity(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): identity(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        found = [identity(each) for each in value]
        return found if len(found) < 30 else digest(found)  # a long list is known by its digest
    if isinstance(value, set | frozenset):  # which has no order of its own
        return sorted(identity(each) for each in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is known by no content, so it can't be in a key")


def raw_bytes(tensor: Tensor) -> Tensor:
    """uint8, one dimension: the bytes of a CPU tensor in row-major order; no copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def hash_tensor(whole: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    """Add a tensor's name, dtype, shape and bytes to a hash."""
    whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    whole.update(raw_bytes(tensor).numpy())


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and bytes."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        hash_tensor(whole, name, tensors[name])
    return whole.hexdigest()


def code_version(*modules: ModuleType) -> str:
    """Digest of the modules' source, for a package of all its files: a change in it gives new cache keys."""
    files: set[Path] = set()
    for module in modules:
        file = Path(inspect.getsourcefile(module))
        files.update(file.parent.rglob("*.py") if hasattr(module, "__path__") else [file])
    return digest(*(file.read_text(encoding="utf-8") for file in sorted(files)))[:16]
