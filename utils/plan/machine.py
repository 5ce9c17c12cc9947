"""What `-plan` can plan for: cards by their datasheets, and this machine by a measurement of a second or two."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from models import cpu_attention
from models.loading import usable_device
from utils.common.errors import UserError
from utils.common.record import device_name
from utils.plan.costs import Machine, Sequences, backward_flops, forward_flops

HERE = "here"
GIB = 2**30


@dataclass(frozen=True)
class Card:
    """From the vendor's datasheet: memory in 10⁹ bytes, dense (not sparse) TFLOP/s in 16 bit, and in fp32."""

    memory_gb: float
    tflops: float
    fp32_tflops: float


CARDS = {
    "H100-80GB": Card(80, 989, 67),
    "H100-PCIe": Card(80, 756, 51),
    "H200": Card(141, 989, 67),
    "B200": Card(180, 2250, 75),
    "A100-40GB": Card(40, 312, 19.5),
    "A100-80GB": Card(80, 312, 19.5),
    "A6000": Card(48, 155, 38.7),
    "L40S": Card(48, 362, 91.6),
    "L4": Card(24, 121, 30.3),
    "RTX4090": Card(24, 165, 82.6),
    "RTX3090": Card(24, 71, 35.6),
}
"""NVIDIA's datasheets and architecture papers. Where they give tensor throughput with sparsity only, half of it."""

FORWARD_SHARE, BACKWARD_SHARE = 0.45, 0.40
"""Assumed on cards, not measured: the share of the datasheet's rate that a decoder reaches in stock PyTorch."""

CARD_BASELINE = int(0.6 * GIB)
"""Assumed: CUDA's context and the libraries' workspaces, which no allocator counts."""

CARD_HOST_BASELINE = 2 * GIB
"""Assumed: what a process with CUDA's libraries holds of the host's memory."""

CARD_REQUEST_SECONDS = 0.0005
"""Assumed: lm_eval's own time a request on a card's host, whose CPU is faster than the measured one."""

FITS = 0.95
"""The share of a memory that may be planned for; the rest goes to fragments."""

_ROWS, _LENGTH = 4, 128
"""The batch that a layer is measured with: about as long as samples and questions are, since a CPU is slower at the
T² part than at the rest."""


def find_card(name: str) -> str | None:
    """The one of CARDS that `name` is, as a user or the card's driver writes it; None if it is none of them.

    A driver's name holds all words of ours among others: 'NVIDIA A100-SXM4-80GB', 'NVIDIA GeForce RTX 4090'. Upper and
    lower case are one.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    held = {*words, *(first + second for first, second in pairwise(words))}
    return next((card for card in CARDS if set(card.lower().split("-")) <= held), None)


def machine(name: str, config: LlamaConfig, dtype: torch.dtype, device: str) -> Machine:
    """The machine behind -plan's value, with rates for decoder layers of this configuration.

    name: `here`, or what `find_card` finds; UserError for others. device: -device's, for `here`.
    """
    if name.lower() == HERE:
        return here(config, dtype, usable_device(device))
    known = find_card(name)
    if known is None:
        raise UserError(f"-plan: unknown card '{name}'; give {HERE} or one of {', '.join(CARDS)}")
    card = CARDS[known]
    flops = card.fp32_tflops if dtype == torch.float32 else card.tflops
    return Machine(
        name=known,
        device="cuda",
        memory=int(card.memory_gb * 1e9),
        flops=flops * 1e12,
        fp32_flops=card.fp32_tflops * 1e12,
        forward_share=FORWARD_SHARE,
        backward_share=BACKWARD_SHARE,
        baseline=CARD_HOST_BASELINE,
        device_baseline=CARD_BASELINE,
        request_seconds=CARD_REQUEST_SECONDS,
        source=f"datasheet: {flops:g} TFLOP/s dense; assumed, not measured: {FORWARD_SHARE:.0%} of it forward, "
        f"{BACKWARD_SHARE:.0%} backward, disk at 1 GB/s",
    )


def here(config: LlamaConfig, dtype: torch.dtype, device: str) -> Machine:
    """This machine: its memory, and its rates on one random decoder layer of this configuration."""
    on_card = device.startswith("cuda")
    layer, inputs = _layer(config, dtype, device)
    tokens = _ROWS * _LENGTH
    one = Sequences(tokens=tokens, pairs=_ROWS * _LENGTH**2, rows=_ROWS, longest=_LENGTH)
    single = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1})
    weight = layer.mlp.down_proj.weight
    product = torch.randn(tokens, weight.shape[1], dtype=dtype, device=device)
    wide = product.float(), weight.float()
    with torch.no_grad():
        flops = 2 * tokens * weight.numel() / _fastest(lambda: product @ weight.T, device)
        fp32_flops = 2 * tokens * weight.numel() / _fastest(lambda: wide[0] @ wide[1].T, device)
        forward_seconds = _fastest(lambda: layer(**inputs), device)
    own_seconds = forward_seconds
    if not on_card:
        layer.self_attn.config._attn_implementation = cpu_attention.NAME  # as activations and training have it
        with torch.no_grad():
            own_seconds = _fastest(lambda: layer(**inputs), device)
    inputs["hidden_states"].requires_grad_(True)

    def both() -> None:
        layer(**inputs).sum().backward()

    backward_seconds = max(_fastest(both, device) - own_seconds, own_seconds / 4)
    forward, own_forward = (forward_flops(single, one) / seconds for seconds in (forward_seconds, own_seconds))
    backward = backward_flops(single, one) / backward_seconds
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = torch.cuda.get_device_properties(device).total_memory if on_card else ram
    return Machine(
        name=torch.cuda.get_device_name(device) if on_card else f"this machine's {device_name(device)}",
        device="cuda" if on_card else "cpu",
        memory=memory,
        flops=flops,
        fp32_flops=fp32_flops,
        forward_share=forward / flops,
        backward_share=backward / flops,
        own_forward_share=own_forward / flops,
        host_memory=ram if on_card else None,
        host_flops=Machine.host_flops if on_card else fp32_flops,
        host_bandwidth=_bandwidth(),
        baseline=CARD_HOST_BASELINE if on_card else Machine.baseline,
        device_baseline=CARD_BASELINE if on_card else 0,
        request_seconds=CARD_REQUEST_SECONDS if on_card else Machine.request_seconds,
        source=f"measured now: {flops / 1e9:.0f} GFLOP/s in matrix products, of which a decoder layer reaches "
        f"{forward / flops:.0%} forward and {backward / flops:.0%} backward; assumed: disk at 1 GB/s",
    )


def _layer(config: LlamaConfig, dtype: torch.dtype, device: str) -> tuple[LlamaDecoderLayer, dict]:
    """One decoder layer with random weights, frozen, and the arguments of a call on a batch of tokens."""
    config = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1}, attn_implementation="sdpa")
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0)
    layer = layer.to(dtype).to_empty(device=device).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_(0, 0.02)
    hidden = torch.randn(_ROWS, _LENGTH, config.hidden_size, dtype=dtype, device=device)
    positions = torch.arange(_LENGTH, device=device)[None]
    rotation = LlamaRotaryEmbedding(config).to(device)(hidden, positions)
    return layer, {"hidden_states": hidden, "position_embeddings": rotation}


def _fastest(work: Callable[[], object], device: str, seconds: float = 0.3) -> float:
    """Seconds of the fastest of several calls: what else runs on the machine only ever slows one down."""
    best, began = float("inf"), time.perf_counter()
    calls = 0
    while calls < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def _bandwidth() -> float:
    """Bytes a second that the CPU reads from memory, in fp32."""
    block = torch.ones(16 * 2**20)
    return block.numel() * block.element_size() / _fastest(block.sum, "cpu", 0.1)
