"""The control that restores nothing: the pruned checkpoint, through all stages."""

from collections.abc import Callable

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from models.contract import Given, Needs, Promise, State


class Nothing:
    """No tensors, and a merge that touches none."""

    needs = Needs()
    covers: frozenset[str] = frozenset()

    def start(self, given: Given) -> State:
        """Nothing."""
        return {}

    def neutral(self, state: State, read: Callable[[str], Tensor]) -> State:
        """Nothing."""
        return state

    def attach(self, model: LlamaForCausalLM, state: State) -> None:
        """The model stays as it is."""

    def read(self, model: LlamaForCausalLM, state: State) -> State:
        """Nothing."""
        return state

    def promise(self, config: LlamaConfig) -> Promise:
        """No tensor is touched."""
        return Promise()

    def shapes(self, state: State, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}

    def touched(self, state: State, config: LlamaConfig) -> list[str]:
        """None."""
        return []

    def merged(self, state: State, name: str, value: Tensor | None, read: Callable[[str], Tensor]) -> Tensor:
        """Never called: no tensor is touched."""
        raise LookupError(name)

    def describe(self, state: State) -> str:
        """ "nothing"."""
        return "nothing"
