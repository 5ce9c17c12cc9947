"""What a method is: a function from what it asks for to the terms that parameters of the pruned model gain.

    def last_bias(inputs: MethodInputs) -> dict[str, Term]

It has one line in utils.common.methods; attaching, training, saving, merge and proof follow from the dictionary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from utils.common.methods import SITES, Options


@dataclass(frozen=True)
class MethodInputs:
    """What a method starts from; parts that its line doesn't ask for are None.

    config: the pruned model's. seed: of random starts. read, teacher: the pruned and the dense checkpoint's tensors by
    name. heads: pairs (layer, head). basis: (L, H, d, d). tokens: (S, T) int64, the calibration set's windows, without
    padding. dense, pruned: load that model anew, in the run's dtype and on the CPU, for the caller to run and to
    change. device: where the caller runs their layers. options: the flags. sites: of SITES, where it adds constants.
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
