"""Inference speed of several models side by side: reading a prompt, and writing after it with the KV cache."""

import copy
import tempfile
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from benchmarks.timing import say, sharing_weights, spread, turn_by_turn
from benchmarks.training import visible_restoration
from models.checkpoint import LINEARS
from models.compact import compact
from models.loading import load_model
from models.merge import merge
from pruning import Pattern, magnitude
from pruning.slimgpt import plan

PREFILL, DECODE = "prefill", "decode"
TURNS = 5
"""Turns that make one repeat; the best counts, since all that disturbs a turn makes it slower."""

READ_LENGTH, WRITE_AFTER, NEW = 512, 64, 24
"""Tokens read at once, tokens of the prompt that is written after, and tokens written."""


def measure(
    models: dict[str, LlamaForCausalLM], prompt: torch.Tensor, new: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Tokens per second of each model, a number a repeat: name -> {"prefill": [...], "decode": [...]}.

    prompt: (B, T) int64. Prefill reads all of it; decode writes `new` tokens greedily after the first 64 of its first
    row, the reading of those included. All models take turns.
    """
    short = prompt[:1, :WRITE_AFTER]
    for model in models.values():
        plain_forward(model, prompt[:1])
        generate(model, short, 2)
    works = {}
    for name, model in models.items():
        works[name, PREFILL] = lambda _, model=model: plain_forward(model, prompt)
        works[name, DECODE] = lambda _, model=model: generate(model, short, new)
    tokens = {PREFILL: prompt.numel(), DECODE: new}
    found: dict[str, dict[str, list[float]]] = {name: {PREFILL: [], DECODE: []} for name in models}
    for _ in range(repeats):
        for (name, kind), turns in turn_by_turn(works, TURNS).items():
            found[name][kind].append(tokens[kind] / min(turn.seconds for turn in turns))
    return found


@torch.no_grad()
def plain_forward(model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    """The decoder on all of `tokens` (B, T), in batches of about 4,096."""
    for batch in tokens.split(max(1, 4096 // tokens.shape[1])):
        model.model(batch.to(model.device), use_cache=False)


def generate(model: LlamaForCausalLM, prompt: torch.Tensor, new: int) -> None:
    """Exactly `new` tokens, greedily."""
    model.generate(
        prompt.to(model.device),
        attention_mask=torch.ones_like(prompt).to(model.device),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )


def slim(model: LlamaForCausalLM, ratio: float) -> LlamaForCausalLM:
    """The model with as many heads and channels zeroed as slimgpt removes at `ratio`; it shares all other weights.

    Speed depends on the sizes only, so the first ones are removed, whatever they are worth.
    """
    masked = sharing_weights(model)
    shared = model.config.num_attention_heads // model.config.num_key_value_heads
    for layer, removal in zip(masked.model.layers, plan(model.config, ratio), strict=True):
        gone = {layer.self_attn.o_proj: removal.kv_heads * shared * model.config.head_dim}
        gone[layer.mlp.down_proj] = removal.channels
        for linear, columns in gone.items():
            weight = linear.weight.detach().clone()
            weight[:, :columns] = 0
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return masked


@torch.no_grad()
def restored_forms(model: LlamaForCausalLM, tokenizer_from: Path, seed: int) -> dict[str, LlamaForCausalLM]:
    """`pruned` (magnitude, half the weights), it `restored` (merged, as a user loads it), and `attached` (not merged).

    Where the zeros stand makes no difference to speed, so neither calibration nor training is needed.
    """
    pruned = copy.deepcopy(model)
    for layer in pruned.model.layers:
        for name in LINEARS:
            weight = layer.get_submodule(name).weight
            weight.copy_(magnitude.prune(weight, None, Pattern(0.5)))
    restoration = visible_restoration(pruned, seed)
    with tempfile.TemporaryDirectory() as place:
        folders = Path(place, "pruned"), Path(place, "merged")
        pruned.save_pretrained(folders[0])
        merge(folders[0], restoration, folders[1], tokenizer_from)
        restored = load_model(folders[1], model.dtype, str(model.device), "-base_model_name")
    attached = restoration.attach(sharing_weights(pruned)).requires_grad_(False)
    return {"pruned": pruned, "restored": restored, "attached": attached}


def inference_speed(
    model: LlamaForCausalLM, tokenizer_from: Path, prompt: torch.Tensor, repeats: int, seed: int
) -> dict[str, dict]:
    """Rows `inference_*` (restored ÷ pruned), `attached_*` (attached ÷ pruned) and `slimgpt_compact_*` (÷ dense)."""
    models = {"dense": model, **restored_forms(model, tokenizer_from, seed), "compact": compact(slim(model, 0.2))}
    rates = measure(models, prompt, NEW, repeats)
    rows = {}
    for row, name, base in (
        ("inference", "restored", "pruned"),
        ("attached", "attached", "pruned"),
        ("slimgpt_compact", "compact", "dense"),
    ):
        for kind in (PREFILL, DECODE):
            mine, other = rates[name][kind], rates[base][kind]
            rows[f"{row}_{kind}"] = spread(
                [a / b for a, b in zip(mine, other, strict=True)],
                tokens_per_second=spread(mine),
                base_tokens_per_second=spread(other),
                base=base,
                **({} if base == "dense" else {"goal": 0.98}),
            )
            say(
                f"{kind}: {name} {spread(mine)['median']:,.0f} tokens/s, "
                f"{base} {spread(other)['median']:,.0f}: {rows[f'{row}_{kind}']['median']:.3f}×"
            )
    return rows
