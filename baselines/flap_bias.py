"""FLAP's bias compensation in closed form: what pruning took from a layer's output on average, given back as a bias.

An et al., AAAI 2024, section on bias compensation, in its general form: b = (W - Ŵ) E[x] minimises E‖(W - Ŵ) x - b‖²
over constants b, whatever was pruned.
"""

import torch

from baselines.output_bias import OutputBias
from baselines.streams import walk
from models.contract import SITES, Given, Needs, State
from models.modeling_llama import FixedConstant


class FlapBias(OutputBias):
    """A bias on the linear layers of the named sites of every decoder layer; nothing is trained.

    x is the layer's input in the dense model.
    """

    needs = Needs(calibration=True, teacher=True)
    term = FixedConstant

    def start(self, given: Given) -> State:
        """b = (W - Ŵ) E[x], for each layer and site."""
        found: dict[str, list[torch.Tensor]] = {site: [] for site in self.sites}
        for block in walk(given, "calibration means", restored=False):
            for site in self.sites:
                name = f"model.layers.{block.index}.{SITES[site]}.weight"
                lost = given.teacher(name).double() - given.read(name).double()
                found[site].append((lost @ block.dense.mean_input(site)).float())
        return {site: torch.stack(rows) for site, rows in found.items()}
