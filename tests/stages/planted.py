"""A method as somebody else would add one: this file, and a line in the table (see test_command_line)."""

from models.contract import Needs, Promise
from models.modeling_llama import restored_norm, whole

NORM = "model.norm"


class LastNorm:
    """Trains the scale of the last norm."""

    needs = Needs(training=True)
    covers: frozenset[str] = frozenset()

    def start(self, given):
        return {"scale": given.read(f"{NORM}.weight").float()}

    def neutral(self, state, read):
        return {"scale": read(f"{NORM}.weight").float()}

    def attach(self, model, state):
        restored_norm(model, NORM, state["scale"])

    def read(self, model, state):
        return {"scale": whole(model.model.norm.scale)}

    def promise(self, config):
        return Promise(changed=frozenset({f"{NORM}.weight"}))

    def shapes(self, state, config):
        return {"scale": (config.hidden_size,)}

    def touched(self, state, config):
        return [f"{NORM}.weight"]

    def merged(self, state, name, value, read):
        return state["scale"].double()

    def describe(self, state):
        return "the last norm's scale"
