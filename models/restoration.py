"""A restoration: a dictionary from parameters' names to their terms, and the `restoration/` folder that keeps it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.families import carried_parts
from models.modeling_llama import attach, explicit_biases, trains
from models.terms import HeadConstant, Term, merged
from utils.common.errors import UserError, explain
from utils.common.files import read_json, read_manifest, whole_folder, write_json, write_manifest
from utils.common.methods import METHODS, Options, Part

FORMAT = 3
TENSORS, ABOUT = "restoration.safetensors", "restoration.json"

Terms = Mapping[str, list[Term]]


@dataclass(frozen=True)
class Restoration:
    """The terms of a run, trained or not. method: its name. terms: by parameter name, those added, in order."""

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
        """All terms before training. Each part is given the checkpoint as restored by the closed forms before it.

        keep: called with a part and the function that makes its terms. Returns that function's terms, or cached ones.
        """
        found: dict[str, list[Term]] = {}
        for part in carried_parts(method, options, inputs.config):

            def make(part: Part = part, inputs: MethodInputs = inputs) -> Terms:
                made = part.spec.function()(replace(inputs, options=options, sites=part.sites))
                return {name: [term] for name, term in made.items()}

            terms = keep(part, make) if keep else make()
            for name, some in terms.items():
                found.setdefault(name, []).extend(term.requires_grad_(part.spec.needs.training) for term in some)
            if not part.spec.needs.training:
                inputs = inputs_after(inputs, terms)
        return cls(method, found)

    @property
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
        layers = sorted((int(name.split(".")[2]), name) for name in self.terms if name.endswith("o_proj.bias"))
        return [(layer, term) for layer, name in layers for term in self.terms[name] if isinstance(term, HeadConstant)]

    def untrained(self) -> "Restoration":
        """A restoration without the terms that are trained: closed forms only."""
        fixed = {name: [term for term in some if not trains(term)] for name, some in self.terms.items()}
        return Restoration(self.method, {name: some for name, some in fixed.items() if some})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all terms on the CPU, named PARAMETER.PLACE.KIND.TENSOR, from which `unpacked` rebuilds the
        terms. If they are sharded, all processes must call it."""
        return {
            f"{name}.{place}.{type(term).__name__}.{key}": tensor.contiguous()
            for name, some in self.terms.items()
            for place, term in enumerate(some)
            for key, tensor in term.tensors().items()
        }

    def gathered(self, keep: bool = True) -> "Restoration":
        """A frozen copy that shares no memory with the attached model; it is empty unless `keep`.

        If the model is sharded, all processes must call it. What a process does not keep goes parameter by parameter:
        eight processes that kept ADMM's changes of a 7B model would take 200 GB of host memory.
        """

        def copied(term: Term) -> Term:
            tensors = {name: tensor.clone() for name, tensor in term.tensors().items()}
            return type(term)(**tensors).requires_grad_(False)

        copies = ((name, [copied(term) for term in some]) for name, some in self.terms.items())
        return Restoration(self.method, {name: some for name, some in copies if keep})

    def attach(self, model: LlamaForCausalLM) -> LlamaForCausalLM:
        """Attach the terms to the pruned model, in place; only what they train requires gradients afterwards."""
        return attach(model, self.terms)

    def merged(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The new value, fp64, of a parameter of the pruned checkpoint. read: its tensors by name."""
        stem, _, part = name.rpartition(".")
        own = weight = read(f"{stem}.weight")
        if part == "bias":
            try:
                own = read(name)
            except KeyError:
                own = None
        return merged(part, own, self.terms[name], weight)

    def describe(self) -> str:
        """What it holds, in words: "β and b of 68 heads; changes of 30 biases"."""
        found: dict[tuple[type[Term], str], dict[str, Term]] = {}
        for name, some in self.terms.items():
            place = "bias" if name.endswith("bias") else "norm" if "norm" in name else "weight"
            for term in some:
                found.setdefault((type(term), place), {})[name] = term  # two terms of a kind on a parameter count once
        return "; ".join(kind.describe([*of.values()], place) for (kind, place), of in found.items()) or "nothing"


def inputs_after(inputs: MethodInputs, terms: Terms) -> MethodInputs:
    """The inputs with these terms merged into the pruned tensors and model, before rounding to the stored dtype."""
    found = Restoration("", terms)

    def read(name: str) -> Tensor:
        return found.merged(name, inputs.read) if name in terms else inputs.read(name)

    def pruned() -> LlamaForCausalLM:
        model = explicit_biases(inputs.pruned(), [name for name in terms if name.endswith(".bias")])
        for name in terms:
            model.get_parameter(name).copy_(read(name))
        return model

    return replace(inputs, read=read, pruned=inputs.pruned and pruned) if terms else inputs


def unpacked(tensors: dict[str, Tensor]) -> dict[str, list[Term]]:
    """The terms rebuilt from what `Restoration.tensors` returned, frozen. They use these tensors, not copies."""
    parts: dict[tuple[str, int], tuple[str, dict[str, Tensor]]] = {}
    for full, tensor in tensors.items():
        name, place, kind, key = full.rsplit(".", 3)
        parts.setdefault((name, int(place)), (kind, {}))[1][key] = tensor
    terms: dict[str, list[Term]] = {}
    for (name, _), (kind, own) in sorted(parts.items(), key=lambda part: part[0][1]):
        terms.setdefault(name, []).append(Term.kinds[kind](**own).requires_grad_(False))
    return terms


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
    """(restoration, content of restoration.json) of a folder. Tensors are memory-mapped: they are read when used."""
    cure = "give OUT/restoration of a run"
    with explain(f"{flag}: {folder} is not a restoration folder", cure, (OSError, ValueError, AttributeError)):
        about = read_json(folder / ABOUT)
        written = about.get("format")
    if written != FORMAT:
        raise UserError(
            f"{flag}: {folder} has format {written}, this version reads {FORMAT}; merge it with the version that wrote "
            "it, or restore again"
        )
    with explain(f"{flag}: {folder} does not match its manifest.json", "copy it again", ValueError):
        read_manifest(folder)  # fails if a file is not as it was written
    for name in (about["method"], about.get("arguments", {}).get("first")):
        if name in METHODS:
            METHODS[name].function()  # imports its module, which registers its own kinds of terms
    with explain(f"{flag}: {folder} holds terms of a kind unknown here", "add its method to METHODS", KeyError):
        return Restoration(about["method"], unpacked(load_file(folder / TENSORS))), about


def check_belongs(about: dict, given: Path, flag: str) -> None:
    """Raise UserError unless the checkpoint in `given` is the very one that a restoration was trained on.

    about: the content of restoration.json. flag: the one that named `given`, for messages.
    """
    if Checkpoint(given, flag).fingerprint not in (about.get("pruned_sha256"), about.get("expanded_sha256")):
        raise UserError(
            f"{flag}: {given} is not the pruned checkpoint this restoration was trained on "
            f"({about.get('pruned_model', 'unknown')}); give that one"
        )
