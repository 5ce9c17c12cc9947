"""FLAP's bias compensation in closed form: what pruning took from a layer's output on average, given back as a bias.

An et al., AAAI 2024, section on bias compensation, in its general form: b = (W - Ŵ) E[x] minimises E‖(W - Ŵ) x - b‖²
over constants b, whatever was pruned.
"""

from baselines.mean_gap import mean_gaps
from baselines.output_bias import OutputBias
from models.contract import Given, Needs, State
from models.modeling_llama import FixedConstant


class FlapBias(OutputBias):
    """A bias on the linear layers of the named sites of every decoder layer; nothing is trained.

    stream: one of utils.common.names.STREAMS, None for FLAP's own, the dense one.
    """

    needs = Needs(calibration=True, teacher=True)
    term = FixedConstant

    def __init__(self, sites: frozenset[str], stream: str | None = None):
        super().__init__(sites, "closed_form", stream)

    def start(self, given: Given) -> State:
        """The mean gap of each layer and site."""
        return mean_gaps(given, self.sites, self.stream)
