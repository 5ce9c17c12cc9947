"""A restoration: a method's parts with their states, and the `restoration/` folder that keeps it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import Checkpoint
from models.contract import Given, Method, Needs, Promise, State
from models.loading import load_config
from models.methods import Options, parts_of
from models.modeling_llama import explicit_biases
from utils.common.errors import UserError, first_line, shortened
from utils.common.files import read_json, whole_folder, write_json
from utils.common.flag_types import MOST
from utils.common.manifest import MANIFEST, read_manifest, write_manifest
from utils.common.methods import METHODS

FORMAT = 2
TENSORS, ABOUT = "restoration.safetensors", "restoration.json"


@dataclass(frozen=True)
class Restoration:
    """What a run learned, or will: a method by its name, what the options add to it, and a state for each part."""

    method: str
    options: Options
    states: tuple[State, ...]

    @classmethod
    def start(
        cls,
        method: str,
        options: Options,
        given: Given,
        keep: Callable[[str, Method, Callable[[], State]], State] | None = None,
    ) -> "Restoration":
        """All parts before training, each given the checkpoint as the closed forms before it restored it.

        keep: returns a part's kept state, or what it is given to make it with.
        """
        states = []
        for name, part in parts_of(method, options):
            make = partial(part.start, given)
            states.append(keep(name, part, make) if keep else make())
            if not part.needs.training:
                given = given_after(given, part, states[-1])
        return cls(method, options, tuple(states))

    @property
    def state(self) -> State:
        """The method's own state."""
        return next(state for name, _, state in self.parts if name == self.method)

    @property
    def parts(self) -> list[tuple[str, Method, State]]:
        """(name, method, state) of each part."""
        return [(*part, state) for part, state in zip(parts_of(self.method, self.options), self.states, strict=True)]

    def neutral(self, read: Callable[[str], Tensor]) -> "Restoration":
        """The same, but what would be trained restores nothing. read: the pruned checkpoint's tensors by name."""
        return self._with(
            tuple(part.neutral(state, read) if part.needs.training else state for _, part, state in self.parts)
        )

    def attach(self, model: LlamaForCausalLM) -> LlamaForCausalLM:
        """Attach all parts to the pruned model, in place; only what they train requires gradients afterwards."""
        model.requires_grad_(False)
        for _, part, state in self.parts:
            part.attach(model, state)
        return model

    def read_from(self, model: LlamaForCausalLM) -> "Restoration":
        """The restoration as it stands in a model that it is attached to, on the CPU."""
        return self._with(tuple(part.read(model, state) for _, part, state in self.parts))

    def promise(self, config: LlamaConfig) -> Promise:
        """What a merge may touch, all parts together."""
        return reduce(or_, (part.promise(config) for _, part, _ in self.parts))

    def touched(self, config: LlamaConfig) -> list[str]:
        """Names of the tensors that this restoration gives values to."""
        return list(dict.fromkeys(name for _, part, state in self.parts for name in part.touched(state, config)))

    def merged(self, name: str, config: LlamaConfig, stored: Checkpoint) -> Tensor:
        """The new value, fp64, of the touched tensor `name` of the pruned checkpoint, each part's change in turn."""
        value = stored.read(name).double() if name in stored else None
        for _, part, state in self.parts:
            if name in part.touched(state, config):
                value = part.merged(state, name, value, stored.read)
        return value

    def check(self, config: LlamaConfig, where: str) -> None:
        """Raise UserError, with `where` before it, unless all states are whole, finite, and of this model's shapes."""
        for name, part, state in self.parts:
            try:
                shapes = part.shapes(state, config)
                if set(shapes) != set(state):
                    raise ValueError(f"it holds {sorted(state)}, not {sorted(shapes)}")
                for key, shape in shapes.items():
                    if tuple(state[key].shape) != shape:
                        raise ValueError(f"{key} has the shape {tuple(state[key].shape)}, not {shape}")
                    if state[key].dtype not in (torch.float32, torch.int64) or not bool(state[key].isfinite().all()):
                        raise ValueError(f"{key} holds something else than finite fp32 numbers")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{where}: no restoration of this model ({name}: {first_line(error)}); copy it again"
                ) from error

    def describe(self) -> str:
        """What is trained, in words."""
        return " and ".join(part.describe(state) for _, part, state in self.parts)

    def _with(self, states: tuple[State, ...]) -> "Restoration":
        return Restoration(self.method, self.options, states)


def given_after(given: Given, part: Method, state: State) -> Given:
    """The same, but pruned tensors and model are as a merge of this part would have them, before they are rounded."""
    touched = set(part.touched(state, given.config))

    def read(name: str) -> Tensor:
        if name not in touched:
            return given.read(name)
        try:
            value = given.read(name).double()
        except KeyError:
            value = None
        return part.merged(state, name, value, given.read)

    def pruned() -> LlamaForCausalLM:
        model = explicit_biases(given.pruned(), [name for name in touched if name.endswith(".bias")])
        for name in touched:
            model.get_parameter(name).copy_(read(name))
        return model

    return replace(given, read=read, pruned=given.pruned and pruned) if touched else given


def needs_of(method: str, options: Options) -> Needs:
    """What the method and all that the options add to it need; UserError if they don't go together."""
    return reduce(or_, (part.needs for _, part in parts_of(method, options)))


def save_restoration(folder: Path, restoration: Restoration, about: dict) -> None:
    """Write restoration.safetensors and restoration.json.

    The method's own tensors have their plain names (`heads`, `basis`, `magnitudes`, …), those of other parts the part's
    before them (`norms.scales`). about: everything else a reader needs to know (JSON-serialisable); `pruned_sha256`,
    the fingerprint of the checkpoint it was trained on, and `expanded_sha256`, that of a compact one in the dense
    model's shapes, are checked when it is loaded again.
    """
    tensors = {}
    for name, _, state in restoration.parts:
        own = name == restoration.method
        tensors |= {key if own else f"{name}.{key}": tensor.contiguous() for key, tensor in state.items()}
    own = {"format": FORMAT, "method": restoration.method, "options": asdict(restoration.options)}
    if "heads" in tensors:
        own["heads"] = tensors["heads"].tolist()
    with whole_folder(folder) as partial:
        save_file(tensors, partial / TENSORS)
        write_json(partial / ABOUT, {**about, **own})
        write_manifest(partial)


def load_restoration(folder: Path, flag: str = "-restoration") -> tuple[Restoration, dict]:
    """The restoration in `folder` and what its json says about it; UserError if a file is not as it was written."""
    try:
        if (folder / MANIFEST).is_file():  # which those of earlier versions lack
            read_manifest(folder)
    except ValueError as error:
        raise UserError(f"{flag}: {folder} {error}; copy it again") from error
    try:
        about = read_json(folder / ABOUT)
        tensors = load_file(folder / TENSORS)
        written = about["format"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{ABOUT} names no format" if isinstance(error, KeyError | TypeError) else first_line(error)
        raise UserError(
            f"{flag}: {folder} is no restoration folder ({reason}); give OUT/restoration of a run"
        ) from error
    if written != FORMAT:
        raise UserError(f"{flag}: {folder} has format {written}, this version reads {FORMAT}; restore again")
    try:
        method, options = about["method"], _options(about["options"])
        if method not in METHODS:
            raise ValueError(f"unknown method {shortened(str(method))}")
        if "heads" in tensors and about.get("heads") != tensors["heads"].tolist():
            raise ValueError(f"its heads are not those of {TENSORS}")
        names = [name for name, _ in parts_of(method, options)]
        others = [name for name in names if name != method]
        own = {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] not in others}
        states = (
            own
            if name == method
            else {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
            for name in names
        )
        return Restoration(method, options, tuple(states)), about
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        reason = f"{first_line(error)} is missing" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{flag}: {folder}/{ABOUT} is damaged ({reason}); copy it again") from error


def _options(given: dict) -> Options:
    """The options as they were written; TypeError, ValueError or KeyError for what no flag can say."""
    kinds = get_type_hints(Options)
    for name, value in given.items():
        kind = kinds[name] if kinds[name] is not float else int | float
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"option {name} is {shortened(repr(value))}")
    options = Options(**given)
    for name, least in (("lora_rank", 1), ("lora_alpha", 0)):
        if not least <= getattr(options, name) <= MOST:
            raise ValueError(f"option {name} is {shortened(repr(getattr(options, name)))}")
    return options


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
