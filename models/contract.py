"""What a way of restoring must tell and do: the contract that every method keeps, and that merge and proof hold it to.

A method is a class in one file and one line in `utils.common.methods`; nothing outside that table asks which it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

KEPT, REPORTED = "kept", "reported"

SITES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attention": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "ffn": "mlp.down_proj",
}
"""Where a constant may be added: the linear layers of a decoder layer, in the order of the forward pass."""

RESIDUAL = frozenset({"attention", "ffn"})
"""Those that write into the residual stream: the last linear layer of attention, and of the MLP."""


@dataclass(frozen=True)
class Needs:
    """What must be computed before a method can start, and whether it is trained.

    heads: ranked heads. basis: V of each. calibration: the calibration set, and both models to run it through.
    training: samples and steps. teacher: the dense checkpoint's weights, of the pruned one's shapes.
    calibration_epochs: how often a start trains all weights on the calibration set, for -plan.

    Of a training step, for -plan: updates: changes of weights are trained, so what linear layers are fed is kept for
    the backward pass; outputs: and what they give. weights: changed weights are computed whole, and kept; weight_bytes:
    with so many bytes more for each weight, in half precision.
    """

    heads: bool = False
    basis: bool = False
    calibration: bool = False
    training: bool = False
    teacher: bool = False
    calibration_epochs: int = 0
    updates: bool = False
    outputs: bool = False
    weights: bool = False
    weight_bytes: int = 0

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(**{name: max(value, getattr(other, name)) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Promise:
    """Names of tensors that a merge may touch, whatever was learned.

    added: those that may be new. changed: those that may have other values. zeros: `kept`, if every zero of the pruned
    checkpoint stays one (the proof fails otherwise), or `reported`, if their number is a finding of the run.
    """

    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    zeros: Literal["kept", "reported"] = KEPT

    def __or__(self, other: "Promise") -> "Promise":
        zeros = KEPT if {self.zeros, other.zeros} == {KEPT} else REPORTED
        return Promise(self.added | other.added, self.changed | other.changed, zeros)


@dataclass(frozen=True)
class Given:
    """What a method starts from; the parts that it doesn't need are None.

    config: the pruned model's. seed: of random starts. read, teacher: the pruned and the dense checkpoint's tensors by
    name. heads: pairs (layer, head), in ascending order. basis: (L, H, d, d). tokens: (S, T) int64, the calibration
    set's windows, without padding. dense, pruned: load that model anew, in the run's dtype and on the CPU, for the
    caller to run and to change. device: where the caller runs their layers.
    """

    config: LlamaConfig
    seed: int
    read: Callable[[str], Tensor] | None = None
    heads: list[tuple[int, int]] | None = None
    basis: Tensor | None = None
    teacher: Callable[[str], Tensor] | None = None
    tokens: Tensor | None = None
    dense: Callable[[], LlamaForCausalLM] | None = None
    pruned: Callable[[], LlamaForCausalLM] | None = None
    device: str = "cpu"


State = dict[str, Tensor]
"""What a method learns, and what it needs to be attached again, by name; fp32 or integers, on the CPU."""


class Method(Protocol):
    """One way of restoring. `models.methods` makes it from a run's options; it holds no tensors itself."""

    needs: Needs
    covers: frozenset[str]
    """Which of SITES it adds constants to by itself."""

    def start(self, given: Given) -> State:
        """The state before training; fp32 whatever the model's dtype."""

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """The same state with values that restore nothing."""

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """Put the state's tensors into the loaded pruned model, in place; what is trained requires gradients."""

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """`state` with the values that are in the model now, on the CPU; of a sharded model, by all processes."""

    def promise(self, config: LlamaConfig) -> Promise:
        """What a merge may touch in a checkpoint of this configuration."""

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """The shapes that the state's tensors must have for this model; ValueError if the state can't be one of its."""

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """Names of the tensors that this state gives values to; all of them within the promise."""

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The new value, fp64, of the touched tensor `name`.

        value: what it is before, fp64, None where the checkpoint has no such tensor. read: the pruned checkpoint's
        tensors by name. On one machine the same state gives the same bits.
        """

    def describe(self, state: State) -> str:
        """What is trained, in words: "β and b of 68 heads"."""


def linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of a decoder layer, by its name in SITES."""
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    rows += [(inner, hidden), (inner, hidden), (hidden, inner)]
    return dict(zip(SITES.values(), rows, strict=True))


def bias_promise(config: LlamaConfig, sites: frozenset[str]) -> Promise:
    """The biases of these linear layers (names as `self_attn.o_proj`) in every decoder layer: new, or changed."""
    has = {"self_attn": config.attention_bias, "mlp": config.mlp_bias}
    names = {site: {f"model.layers.{n}.{site}.bias" for n in range(config.num_hidden_layers)} for site in sites}
    changed = {name for site, found in names.items() if has[site.partition(".")[0]] for name in found}
    return Promise(frozenset().union(*names.values()) - changed, frozenset(changed))
