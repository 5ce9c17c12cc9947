"""The supported families of models: which biases a checkpoint of each can hold, and as which family it is written.

Everything else that is special to a family is left to its class in transformers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig

from models.model_names import COMPACT, LLAMA
from utils.common.errors import UserError
from utils.common.methods import SITES, Options, Part, parts_of

LINEARS = tuple(SITES.values())  # of a decoder layer: what pruning methods prune
ATTENTION, MLP = LINEARS[:4], LINEARS[4:]

BIASES = {"attention_bias": ATTENTION, "mlp_bias": MLP}
"""Switches of config.json. If one is on, all of these linear layers have a bias, in every decoder layer."""


@dataclass(frozen=True)
class Family:
    """A family: what its class in transformers reads in config.json, and which runtimes ignore its biases.

    switches: the keys of BIASES that it reads. as_llama: None; or for a family with Llama's computation and tensor
    names, the settings to add to Llama's config.json: its models are loaded and written as Llama. ignored: settings
    that Llama's config.json lacks, each with the values that have no effect, or None for any value. dropped: by
    runtime, the linear layers whose biases it ignores without an error (docs/running.md has the versions).
    """

    switches: tuple[str, ...] = tuple(BIASES)
    as_llama: dict[str, bool] | None = None
    ignored: dict[str, tuple | None] | None = None
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)


_NO_WINDOW = {"use_sliding_window": (False, None), "sliding_window": (None,), "max_window_layers": None}
_ATTENTION_ONLY = ("attention_bias",)

FAMILIES = {
    LLAMA: Family(dropped={"SGLang": MLP}),
    COMPACT: Family(),
    "qwen2": Family(as_llama={"attention_bias": True}, ignored={**_NO_WINDOW, "use_mrope": (False, None)}),
    "mistral": Family(as_llama={}, ignored=_NO_WINDOW),
    "granite": Family(dropped={"SGLang": ATTENTION + MLP}),
    "smollm3": Family(),
    "qwen3": Family(_ATTENTION_ONLY, dropped={"vLLM": ("self_attn.o_proj",)}),
    "olmo2": Family(_ATTENTION_ONLY),
    "gemma2": Family(_ATTENTION_ONLY),
    "gemma3_text": Family(_ATTENTION_ONLY),
}
"""By model_type. Facts are those of the classes in transformers."""

SUPPORTED = "Llama, Qwen2, Mistral, Granite, SmolLM3, Qwen3, OLMo-2, Gemma 2 and Gemma 3 (text)"


def as_llama(config: PreTrainedConfig) -> PreTrainedConfig:
    """The equivalent LlamaConfig for a family with `Family.as_llama`; else the configuration itself.

    Raises ValueError naming the setting that LlamaConfig can't express, such as a sliding window.
    """
    family = FAMILIES[config.model_type]
    if family.as_llama is None:
        return config
    known, settings = LlamaConfig().to_dict(), {}
    for name, value in config.to_dict().items():
        if name == "sliding_window" and value is not None and value >= config.max_position_embeddings:
            continue  # a window of at least the longest context has no effect
        if name == "layer_types" and set(value or ()) <= {"full_attention"}:
            continue
        if name in family.ignored:
            allowed = family.ignored[name]
            if allowed is not None and value not in allowed:
                raise ValueError(f"{name} is {value}, and only a {config.model_type} without it is the same as a Llama")
        elif name in known:
            settings[name] = value
        else:
            raise ValueError(f"{name} is not a setting of Llama, and this {config.model_type} would be written as one")
    settings |= {"model_type": LLAMA, "architectures": ["LlamaForCausalLM"], **family.as_llama}
    return LlamaConfig.from_dict(settings)


def carried_parts(method: str, options: Options, config: PreTrainedConfig) -> tuple[Part, ...]:
    """`parts_of` the method and options, with only those sites where a checkpoint of this model can hold a bias.

    Sites that `-apply_to all` adds to the method's own, or that are a default, are left out where it can't. Any other
    such site is a UserError, and so is a method that supports Llama alone.
    """
    family = FAMILIES[config.model_type]
    able = frozenset(site for site, name in SITES.items() if any(name in BIASES[each] for each in family.switches))
    carried = []
    for part in parts_of(method, options):
        if part.spec.llama_only and config.model_type != LLAMA:
            raise UserError(
                f"-method: {part.name} supports Llama layers only, and this is a {config.model_type} model; give "
                "admm_update, or -recipe inside_mask"
            )
        narrowed = options.apply_to is None or (options.apply_to == "all" and part.name != method)
        if not part.sites <= able and not narrowed:
            lacking = ", ".join(SITES[site] for site in SITES if site in part.sites - able)
            raise UserError(
                f"-apply_to: a {config.model_type} checkpoint carries no bias of {lacking}; "
                "give -recipe inside_mask, or -method output_bias -apply_to attention"
            )
        carried.append(replace(part, sites=part.sites & able))
    return tuple(carried)


def dropped_by(terms: Iterable[str], config: PreTrainedConfig) -> dict[str, str]:
    """By runtime, the linear layers whose restored biases it would ignore, as text. terms: parameter names."""
    biased = {name.split(".", 3)[-1].removesuffix(".bias") for name in terms if name.endswith(".bias")}
    known = FAMILIES[config.model_type].dropped.items()
    return {runtime: ", ".join(lost) for runtime, linears in known if (lost := [n for n in linears if n in biased])}


def final_logits(config: PreTrainedConfig, logits: Tensor) -> Tensor:
    """The model's logits from the output head's output (any shape): scaled and soft-capped as in its stock class."""
    if (scale := getattr(config, "logits_scaling", 1.0)) != 1:
        logits = logits / scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
