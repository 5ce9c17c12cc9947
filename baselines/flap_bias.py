"""FLAP's bias compensation in closed form: what pruning took from a layer's output on average, given back as a bias.

An et al., AAAI 2024, section on bias compensation, in its general form: b = (W - Ŵ) E[x] minimises E‖(W - Ŵ) x - b‖²
over constants b, whatever was pruned. x is the layer's input in the dense model.
"""

import torch

from baselines.output_bias import OutputBias
from models.contract import SITES, Given, Needs, State


class FlapBias(OutputBias):
    """A bias on o_proj, down_proj or both of every decoder layer; nothing is trained."""

    needs = Needs(calibration=True, teacher=True)

    def start(self, given: Given) -> State:
        """b = (W - Ŵ) E[x], for each layer and site."""
        layers = range(given.config.num_hidden_layers)
        return {
            site: torch.stack([lost_on_average(given, f"model.layers.{layer}.{SITES[site]}") for layer in layers])
            for site in self.sites
        }


def lost_on_average(given: Given, name: str) -> torch.Tensor:
    """(W - Ŵ) E[x] of the linear layer `name`: (out,) fp32."""
    lost = given.teacher(f"{name}.weight").double() - given.read(f"{name}.weight").double()
    return (lost @ given.statistics[name].double()).float()
