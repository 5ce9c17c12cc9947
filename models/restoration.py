"""A restoration: a dictionary from parameters' names to their terms, and the `restoration/` folder that keeps it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models.checkpoint import Checkpoint, pruned_layer
from models.contract import MethodInputs
from models.loading import load_config
from models.modeling_llama import attach, explicit_biases
from models.terms import HeadConstant, Term, restored
from utils.common.errors import UserError, first_line
from utils.common.files import read_json, read_manifest, whole_folder, write_json, write_manifest
from utils.common.methods import METHODS, Options, Part, parts_of

FORMAT = 3
TENSORS, ABOUT = "restoration.safetensors", "restoration.json"

Terms = Mapping[str, list[Term]]


@dataclass(frozen=True)
class Restoration:
    """What a run learned, or will: the name of its method, and by parameter what is added to it, in this order."""

    method: str
    terms: Terms

    @classmethod
    def start(
        cls,
        method: str,
        options: Options,
        inputs: MethodInputs,
        keep: Callable[[Part, Callable[[], Terms]], Terms] | None = None,
    ) -> "Restoration":
        """All terms before training, each part's given the checkpoint as the closed forms before it restored it.

        keep: returns a part's kept terms, or what it is given to make them with.
        """
        found: dict[str, list[Term]] = {}
        for part in parts_of(method, options):

            def make(part: Part = part, inputs: MethodInputs = inputs) -> Terms:
                made = part.spec.function()(replace(inputs, options=options, sites=part.sites))
                return {name: [term] for name, term in made.items()}

            terms = keep(part, make) if keep else make()
            for name, some in terms.items():
                found.setdefault(name, []).extend(term.requires_grad_(part.needs.training) for term in some)
            if not part.needs.training:
                inputs = inputs_after(inputs, terms)
        return cls(method, found)

    @cached_property
    def zeros(self) -> str:
        """`kept`, if every zero of the pruned checkpoint stays one; else `reported`: their number is a finding."""
        return "kept" if all(term.keeps_zeros for some in self.terms.values() for term in some) else "reported"

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The compensated heads: pairs (layer, head), ascending."""
        return [(layer, head) for layer, term in self._of_heads() for head in term.heads.tolist()]

    def of_heads(self, name: str) -> Tensor | None:
        """(n, d): `magnitudes` or `component` of all compensated heads, in their order; None where there are none."""
        values = [term.tensors().get(name) for _, term in self._of_heads()]
        return torch.cat(values) if values and values[0] is not None else None

    def _of_heads(self) -> list[tuple[int, HeadConstant]]:
        found = ((int(name.split(".")[2]), self.terms[name]) for name in self.terms if name.endswith("o_proj.bias"))
        return [(layer, term) for layer, some in found for term in some if isinstance(term, HeadConstant)]

    def untrained(self) -> "Restoration":
        """What is left if nothing is trained: the closed forms."""
        fixed = {
            name: [term for term in some if not any(parameter.requires_grad for parameter in term.parameters())]
            for name, some in self.terms.items()
        }
        return Restoration(self.method, {name: some for name, some in fixed.items() if some})

    def tensors(self) -> dict[str, Tensor]:
        """All terms as PARAMETER.PLACE.KIND.TENSOR, on the CPU; of a sharded model, by all processes."""
        return packed(self.terms)

    def gathered(self) -> "Restoration":
        """The same, independent of the model that it is attached to; of a sharded one, by all processes."""
        return Restoration(self.method, unpacked(self.tensors()))

    def attach(self, model: LlamaForCausalLM) -> LlamaForCausalLM:
        """Attach the terms to the pruned model, in place; only what they train requires gradients afterwards."""
        return attach(model, self.terms)

    def merged(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The new value, fp64, of the parameter `name` of the pruned checkpoint. read: its tensors by name."""
        return merged(name, self.terms[name], read)

    def check(self, config: LlamaConfig, where: str) -> None:
        """Raise UserError, with `where` before it, unless all terms are finite, and of this model's parameters."""
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        for name in self.terms:
            try:
                _check(name, self.terms[name], model)
            except (ValueError, RuntimeError, IndexError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{where}: no restoration of this model ({name}: {first_line(error)}); copy it again"
                ) from error

    def describe(self) -> str:
        """What it holds, in words: "β and b of 68 heads and changes of 30 biases"."""
        found: dict[tuple[type[Term], str], list[Term]] = {}
        for name, some in self.terms.items():
            places = "biases" if name.endswith("bias") else "norms" if "norm" in name else "weights"
            for term in some:
                found.setdefault((type(term), places), []).append(term)
        return " and ".join(kind.describe(terms, places) for (kind, places), terms in found.items()) or "nothing"


@torch.no_grad()
def merged(name: str, terms: list[Term], read: Callable[[str], Tensor]) -> Tensor:
    """A parameter with its terms, fp64; a bias that the checkpoint lacks is zero before."""
    stem, _, part = name.rpartition(".")
    weight = read(f"{stem}.weight")
    if part == "weight":
        return restored(weight.double(), map(Term.exact, terms))
    try:
        own = read(name).double()
    except KeyError:
        own = torch.zeros(len(weight), dtype=torch.float64)
    return restored(own, map(Term.exact, terms), weight)


def inputs_after(inputs: MethodInputs, terms: Terms) -> MethodInputs:
    """The same, but pruned tensors and model are as a merge of these terms would have them, before they are rounded."""

    def read(name: str) -> Tensor:
        return merged(name, terms[name], inputs.read) if name in terms else inputs.read(name)

    def pruned() -> LlamaForCausalLM:
        model = explicit_biases(inputs.pruned(), [name for name in terms if name.endswith(".bias")])
        for name in terms:
            model.get_parameter(name).copy_(read(name))
        return model

    return replace(inputs, read=read, pruned=inputs.pruned and pruned) if terms else inputs


def packed(terms: Terms) -> dict[str, Tensor]:
    """All terms' tensors, by names that say all they are rebuilt from: PARAMETER.PLACE.KIND.TENSOR."""
    return {
        f"{name}.{place}.{type(term).__name__}.{key}": tensor.contiguous()
        for name, some in terms.items()
        for place, term in enumerate(some)
        for key, tensor in term.tensors().items()
    }


def unpacked(tensors: dict[str, Tensor]) -> dict[str, list[Term]]:
    """The terms of `packed`; ValueError if they are none."""
    parts: dict[tuple[str, int], tuple[str, dict[str, Tensor]]] = {}
    for full, tensor in tensors.items():
        name, place, kind, key = split(full)
        parts.setdefault((name, place), (kind, {}))[1][key] = tensor
    terms: dict[str, list[Term]] = {}
    for (name, _), (kind, own) in sorted(parts.items(), key=lambda part: part[0][1]):
        if kind not in Term.kinds:
            raise ValueError(f"no term is called {kind}")
        terms.setdefault(name, []).append(Term.kinds[kind](**own))
    return terms


def split(full: str) -> tuple[str, int, str, str]:
    """(parameter, place among its terms, kind, tensor) of a packed name; ValueError if it is none."""
    name, place, kind, key = full.rsplit(".", 3)
    return name, int(place), kind, key


def _check(name: str, terms: list[Term], model: LlamaForCausalLM) -> None:
    """Raise what a term that can't be this parameter's raises."""
    stem, _, part = name.rpartition(".")
    layer = model.get_submodule(stem)
    if pruned_layer(f"{stem}.weight") is None and not (part == "weight" and isinstance(layer, LlamaRMSNorm)):
        raise ValueError("nothing can be added to it")
    shape = layer.weight.shape if part == "weight" else layer.weight.shape[:1]
    for term in terms:
        tensors = term.tensors()
        for key, tensor in tensors.items():
            if tensor.dtype not in (torch.float32, torch.int64) or not bool(tensor.isfinite().all()):
                raise ValueError(f"{key} holds something else than finite fp32 numbers")
        # A weight's shape is known without computing it; heads of a bias must be there in its weight.
        on = "meta" if part == "weight" else "cpu"
        moved = type(term)(**{key: tensor.to(on) for key, tensor in tensors.items()})
        found = moved(torch.zeros(layer.weight.shape, device=on)).shape
        if found != shape:
            raise ValueError(f"it is of the shape {tuple(found)}, not {tuple(shape)}")


class _Saved(Mapping):
    """The terms in a safetensors file, each read when it is asked for, and kept by nobody."""

    def __init__(self, file: Path):
        self.file, self.keys_of = file, {}
        with safe_open(file, framework="pt") as opened:
            for full in opened.keys():  # noqa: SIM118
                self.keys_of.setdefault(split(full)[0], []).append(full)
        # As the layers are, so that heads are in their order.
        self.names = sorted(self.keys_of, key=lambda name: [int(p) if p.isdigit() else -1 for p in name.split(".")])

    def __getitem__(self, name: str) -> list[Term]:
        keys = self.keys_of[name]
        with safe_open(self.file, framework="pt") as opened:
            return unpacked({key: opened.get_tensor(key) for key in keys})[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def save_restoration(folder: Path, restoration: Restoration, about: dict) -> None:
    """Write restoration.safetensors, restoration.json, and the manifest of both.

    about: everything else a reader needs to know (JSON-serialisable); `pruned_sha256`, the fingerprint of the
    checkpoint it was trained on, and `expanded_sha256`, that of a compact one in the dense model's shapes, are checked
    when it is loaded again.
    """
    with whole_folder(folder) as partial:
        save_file(restoration.tensors(), partial / TENSORS)
        own = {"format": FORMAT, "method": restoration.method, "heads": restoration.heads}
        write_json(partial / ABOUT, {**about, **own})
        write_manifest(partial)


def load_restoration(folder: Path, flag: str = "-restoration") -> tuple[Restoration, dict]:
    """The restoration in `folder`, whose terms are read when they are asked for, and what its json says about it."""
    try:
        about = read_json(folder / ABOUT)
        written = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{ABOUT} names no format" if isinstance(error, KeyError | TypeError) else first_line(error)
        raise UserError(
            f"{flag}: {folder} is no restoration folder ({reason}); give OUT/restoration of a run"
        ) from error
    if written != FORMAT:
        raise UserError(
            f"{flag}: {folder} has format {written}, this version reads {FORMAT}; merge it with the version that wrote "
            "it, or restore again"
        )
    try:
        read_manifest(folder)
        if (method := about["method"]) in METHODS:
            METHODS[method].function()  # which brings the terms that only it has
        return Restoration(method, _Saved(folder / TENSORS)), about
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = f"{first_line(error)} is missing" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{flag}: {folder} is damaged ({reason}); copy it again") from error


def check_belongs(restoration: Restoration, about: dict, given: Path, flag: str, own: str = "-restoration") -> None:
    """Raise UserError unless the checkpoint in `given` is the very one that the restoration was trained on.

    flag: the checkpoint's. own: the restoration's, where it can't be one of this model.
    """
    if Checkpoint(given, flag).survey().sha256 not in (about.get("pruned_sha256"), about.get("expanded_sha256")):
        raise UserError(
            f"{flag}: {given} is not the pruned checkpoint this restoration was trained on "
            f"({about.get('pruned_model', 'unknown')}); give that one"
        )
    restoration.check(load_config(given, flag), own)
