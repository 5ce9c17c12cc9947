"""The interface of a method: a function from MethodInputs to the term that is added to each parameter, by its name.

    def last_bias(inputs: MethodInputs) -> dict[str, Term]

A method has one line in utils.common.methods. Attaching, training, saving, merge and proof work on the dictionary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from utils.common.methods import SITES, Options


@dataclass(frozen=True)
class MethodInputs:
    """What a method is given. Fields that its line in utils.common.methods doesn't ask for are None.

    config: the pruned model's. seed: of the method's random numbers. read, teacher: return a tensor of the pruned or
    the dense checkpoint by name. heads: pairs (layer, head). basis: V of each head, (L, H, d, d). tokens: (S, T) int64,
    calibration windows, without padding. dense, pruned: load a new copy of that model, in the run's dtype, on the CPU;
    it may be changed. device: where to run their layers. options: the flags. sites: keys of SITES that get constants.
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
    options: Options = field(default_factory=Options)
    sites: frozenset[str] = frozenset()


def linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of a decoder layer, by its name in SITES."""
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    rows += [(inner, hidden), (inner, hidden), (hidden, inner)]
    return dict(zip(SITES.values(), rows, strict=True))
