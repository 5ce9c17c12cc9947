"""What can be made again is kept by what it was made from, and by nothing else."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.common.disk import writing
from utils.common.errors import UserError
from utils.common.files import digest, digest_files, read_json, whole_file, write_json
from utils.common.raw import hash_tensor
from utils.common.temporary import stamp


class Cache:
    """Tensors and documents under `folder`, found by the digest of a key.

    A key holds the content that determines the result (fingerprints of weights, digests of data, settings, seed, the
    version of the code that computes it): never a path, so that another model or data set cannot be mistaken for it.
    What is read is checked against the digest it was kept with; what differs is dropped and made again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.reused: list[str] = []
        """The kind of everything that was found rather than made, in the order it was asked for."""

    def tensors(self, kind: str, key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The named tensors kept for `key`, or what `make` returns, which is then kept."""
        found = self.found(kind, key)
        if found is not None:
            return found
        path = self.path(kind, key, ".safetensors")
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        with whole_file(path) as partial:
            save_file(made, partial, metadata={"key": _written(key), "sha256": digest_tensors(made)})
        return made

    def found(self, kind: str, key: dict) -> dict[str, Tensor] | None:
        """The named tensors kept for `key`; None if there are none, or none that are whole."""
        path = self.path(kind, key, ".safetensors")
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    about = file.metadata() or {}
                kept = load_file(path)
                whole = about.get("key") == _written(key) and about.get("sha256") == digest_tensors(kept)
            except (SafetensorError, OSError, ValueError):
                whole = False
            if whole:
                self.reused.append(kind)
                return kept
            _drop(path)
        return None

    def document(self, kind: str, key: dict, make: Callable[[], dict]) -> dict:
        """The JSON document kept for `key`, or what `make` returns, which is then kept."""
        path = self.path(kind, key, ".json")
        if path.is_file():
            try:
                kept = read_json(path)
                whole = kept["key"] == json.loads(json.dumps(key)) and kept["sha256"] == digest(kept["content"])
            except (OSError, ValueError, KeyError, TypeError):
                whole = False
            if whole:
                self.reused.append(kind)
                return kept["content"]
            _drop(path)
        made = json.loads(json.dumps(make()))  # as it will be read
        write_json(path, {"key": key, "content": made, "sha256": digest(made)})
        return made

    def tree(self, kind: str, key: dict, make: Callable[[Path], None], identity: Callable[[Path], str]) -> Path:
        """The folder kept for `key`, or one that `make` writes, whole or not at all, to the path it is given.

        identity: the digest of a folder's content; what it raises for an unreadable one is a UserError.
        """
        path, record = self.path(kind, key), self.path(kind, key, ".json")
        if path.is_dir():
            try:
                whole = read_json(record)["sha256"] == identity(path)
            except (OSError, ValueError, KeyError, TypeError, UserError):
                whole = False
            if whole:
                self.reused.append(kind)
                return path
            _drop(path)
        unfinished = path.with_name(f".{path.name}.making-{stamp()}")
        try:
            with writing(path.parent):
                make(unfinished)
            # Before the folder has its name, so that no other run finds one without its digest.
            write_json(record, {"key": key, "sha256": identity(unfinished)})
            if not path.exists():  # else another run made it meanwhile
                with writing(path.parent):
                    unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return path

    def holds(self, kind: str, key: dict, suffix: str = ".safetensors") -> bool:
        """Whether something is kept for `key`, unread: tensors, or a document (".json")."""
        return self.path(kind, key, suffix).is_file()

    def path(self, kind: str, key: dict, suffix: str = "") -> Path:
        """Where what belongs to `key` is kept."""
        return self.folder / kind / f"{digest(kind, key)[:24]}{suffix}"


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and bytes."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        hash_tensor(whole, name, tensors[name])
    return whole.hexdigest()


def _written(key: dict) -> str:
    return json.dumps(key, sort_keys=True)


def _drop(path: Path) -> None:
    """Remove what is not what was kept, and say so: it is made again."""
    print(f"      cache: {path} is damaged or incomplete; it is made again")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def code_version(*modules: ModuleType) -> str:
    """Digest of the modules' source: a cache outlives no change of the maths that filled it."""
    return digest_files([Path(inspect.getsourcefile(module)) for module in modules])[:16]
