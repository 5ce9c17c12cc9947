"""RestoreLCC itself: learned compensations on chosen heads (Eq. 8), and its controls that train b or β alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.contract import SITES, Given, Needs, Promise, State, bias_promise
from models.modeling_llama import HeadCompensation, folded_compensation, restored_linear, terms_of, whole

INITIAL_STD = 1e-3
"""Standard deviation of β and b before training [P]."""

O_PROJ = SITES["attention"]
TRAINED = {"magnitudes": "β", "component": "b"}


class HeadCompensations:
    """c_learned = Σ_i β_i v_i + b on chosen heads, merged into o_proj.bias.

    trained: which of `magnitudes` (β) and `component` (b) there are. The state: heads (n, 2) int64, ascending pairs
    (layer, head); basis (n, d, d) fp32, row i of a head is v_i, or the identity where only b is trained and V was not
    computed; the trained ones (n, d) fp32.
    """

    covers = frozenset({"attention"})

    def __init__(self, trained: tuple[str, ...] = tuple(TRAINED)):
        self.trained = trained
        self.needs = Needs(heads=True, basis="magnitudes" in trained, training=True)

    def start(self, given: Given) -> State:
        """β and b from N(0, 1e-3), V of the chosen heads; where nobody asked for V, b alone is trained."""
        heads = sorted(given.heads)
        layers, within = (list(column) for column in zip(*heads, strict=True))
        if given.basis is None:
            basis = torch.eye(given.config.head_dim).repeat(len(heads), 1, 1)
        else:
            basis = given.basis[layers, within].float()
        generator = torch.Generator().manual_seed(given.seed)
        drawn = {name: INITIAL_STD * torch.randn(basis.shape[:2], generator=generator) for name in TRAINED}
        return {"heads": torch.tensor(heads), "basis": basis, **{name: drawn[name] for name in self.trained}}

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """β = b = 0."""
        return {**state, **{name: torch.zeros_like(state[name]) for name in self.trained}}

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """One term on o_proj of each layer that has chosen heads."""
        for layer, rows in _rows_by_layer(state):
            restored_linear(model, layer, O_PROJ).add(HeadCompensation(*_parts(state, rows)))

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """β and b as they stand now."""
        terms = [term for _, term in sorted(terms_of(model, O_PROJ, HeadCompensation).items())]
        trained = {name: torch.cat([whole(getattr(term, name)) for term in terms]) for name in self.trained}
        return {**state, **trained}

    def promise(self, config: LlamaConfig) -> Promise:
        """o_proj.bias."""
        return bias_promise(config, frozenset({O_PROJ}))

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """(n, 2), (n, d, d) and (n, d); ValueError unless the heads are the model's, ascending and each there once."""
        heads = [tuple(pair) for pair in state["heads"].tolist()]
        within = [0 <= layer < config.num_hidden_layers and 0 <= h < config.num_attention_heads for layer, h in heads]
        if state["heads"].dtype != torch.int64 or not heads or not all(within) or heads != sorted(set(heads)):
            raise ValueError("its heads are not ascending pairs (layer, head) of this model")
        count, width = len(heads), config.head_dim
        shapes = {"heads": (count, 2), "basis": (count, width, width)}
        return shapes | dict.fromkeys(self.trained, (count, width))

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """o_proj.bias of the layers that have chosen heads."""
        return [f"model.layers.{layer}.{O_PROJ}.bias" for layer, _ in _rows_by_layer(state)]

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """The bias there is, plus Σ_h W_O[:, h] c_h."""
        rows = dict(_rows_by_layer(state))[int(name.split(".")[2])]
        added = folded_compensation(read(f"{name.removesuffix('bias')}weight"), *_parts(state, rows))
        return added if value is None else value + added

    def describe(self, state: State) -> str:
        """ "β and b of 68 heads"."""
        return f"{' and '.join(TRAINED[name] for name in self.trained)} of {len(state['heads'])} heads"


def _rows_by_layer(state: State) -> Iterator[tuple[int, list[int]]]:
    """(layer, rows of its heads in the state), by layer."""
    rows: dict[int, list[int]] = {}
    for row, layer in enumerate(state["heads"][:, 0].tolist()):
        rows.setdefault(layer, []).append(row)
    yield from rows.items()


def _parts(state: State, rows: list[int]) -> tuple[Tensor | None, ...]:
    """Head numbers in their layer (m,), basis (m, d, d), β and b (m, d) of these rows; None for what isn't trained."""
    tensors = [state.get(name) for name in ("basis", *TRAINED)]
    return state["heads"][rows, 1], *(None if tensor is None else tensor[rows] for tensor in tensors)
