"""What linear layers are fed on a calibration set: the mean of each one's input."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaForCausalLM

from models.contract import SITES
from models.loading import input_device

TOKENS_A_BATCH = 4096


@torch.no_grad()
def input_means(model: LlamaForCausalLM, tokens: Tensor, description: str) -> dict[str, Tensor]:
    """E[x] of the inputs of o_proj and down_proj in every decoder layer, over all tokens: by name, (in,) fp64, CPU.

    tokens: (S, T) int64, windows without padding. Names are as `model.layers.3.mlp.down_proj`.
    """
    sums: dict[str, Tensor] = {}

    def watch(name: str):
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            summed = inputs[0].flatten(0, -2).sum(0, dtype=torch.float32).cpu().double()
            sums[name] = sums.get(name, 0) + summed

        return add

    with ExitStack() as hooks:
        for layer in range(model.config.num_hidden_layers):
            for site in SITES.values():
                name = f"model.layers.{layer}.{site}"
                hooks.callback(model.get_submodule(name).register_forward_pre_hook(watch(name)).remove)
        size = max(1, TOKENS_A_BATCH // tokens.shape[1])
        for batch in tqdm(tokens.split(size), desc=description, unit="batch"):
            model.model(batch.to(input_device(model)), use_cache=False)
    return {name: total / tokens.numel() for name, total in sums.items()}
