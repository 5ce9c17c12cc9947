"""What can be made again is kept by what it was made from, and by nothing else."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.common.files import digest, digest_files, whole_file, write_json


class Cache:
    """Tensors and documents under `folder`, found by the digest of a key.

    A key holds the content that determines the result (fingerprints of weights, digests of data, settings, seed, the
    version of the code that computes it): never a path, so that another model or data set cannot be mistaken for it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.reused: list[str] = []
        """The kind of everything that was found rather than made, in the order it was asked for."""

    def tensors(self, kind: str, key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The named tensors kept for `key`, or what `make` returns, which is then kept."""
        path = self.path(kind, key, ".safetensors")
        written = json.dumps(key, sort_keys=True)
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if file.metadata().get("key") == written:
                    self.reused.append(kind)
                    return load_file(path)
        made = make()
        with whole_file(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in made.items()}, partial, metadata={"key": written})
        return made

    def document(self, kind: str, key: dict, make: Callable[[], dict]) -> dict:
        """The JSON document kept for `key`, or what `make` returns, which is then kept."""
        path = self.path(kind, key, ".json")
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == json.loads(json.dumps(key)):
                self.reused.append(kind)
                return kept["content"]
        made = make()
        write_json(path, {"key": key, "content": made})
        return made

    def path(self, kind: str, key: dict, suffix: str = "") -> Path:
        """Where what belongs to `key` is kept."""
        return self.folder / kind / f"{digest(kind, key)[:24]}{suffix}"


def code_version(*modules: ModuleType) -> str:
    """Digest of the modules' source: a cache outlives no change of the maths that filled it."""
    return digest_files([Path(inspect.getsourcefile(module)) for module in modules])[:16]
