"""Speed of reading head activations: shared prompts and batches against one sequence at a time."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.timing import (
    check_close,
    linear_parameters,
    matmul_rate,
    say,
    speedup,
    spread,
    turn_by_turn,
)
from models.loading import head_shape
from utils.activations import last_token_activations
from utils.packing import PromptWithContinuations
from utils.prompts import Encoded


def contrastive_trees(samples: list[Encoded]) -> list[PromptWithContinuations]:
    """q, q + r⁺ and q + r⁻ of each sample over one prompt; r⁻ is the next sample's answer, since only lengths count."""
    answers = [sample.ids[sample.prompt_length :] for sample in samples]
    return [
        PromptWithContinuations(sample.ids[: sample.prompt_length], [[], right, wrong])
        for sample, right, wrong in zip(samples, answers, answers[1:] + answers[:1], strict=True)
    ]


@torch.no_grad()
def one_by_one(model: LlamaForCausalLM, trees: list[PromptWithContinuations]) -> Tensor:
    """What `last_token_activations` gives, the plain way: a pass a sequence, a hook a layer, all logits."""
    layers, heads, width = head_shape(model.config)
    found = torch.empty(len(trees[0].continuations), layers, heads, len(trees), width)
    captured: dict[int, Tensor] = {}

    def keep(layer: int):
        return lambda _, inputs: captured.__setitem__(layer, inputs[0][0, -1].float().cpu())

    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(keep(index)) for index, layer in enumerate(model.model.layers)
    ]
    try:
        for row, tree in enumerate(trees):
            for number, continuation in enumerate(tree.continuations):
                model(torch.tensor([tree.prompt + continuation], device=model.device), use_cache=False)
                for layer, z in captured.items():
                    found[number, layer, :, row] = z.unflatten(-1, (heads, width))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def extraction_speed(model: LlamaForCausalLM, samples: list[Encoded], repeats: int) -> dict[str, dict]:
    """Rows `extraction_vs_loop` and `extraction_vs_limit`, from all activations of the same samples.

    The limit is 2 FLOPs a weight of the decoder and distinct token, shared prompts counted once. Raises Disagreement
    unless both ways give the same activations, to the dtype's precision.
    """
    trees = contrastive_trees(samples)
    last_token_activations(model, trees[:1], "warming up")
    one_by_one(model, trees[:1])
    turns = turn_by_turn(
        {
            "ours": lambda _: last_token_activations(model, trees, "activations"),
            "loop": lambda _: one_by_one(model, trees),
        },
        repeats,
        lambda: matmul_rate(model.device, model.dtype),
    )
    # fp32's sums differ in order; in half precision each layer rounds, to eight units of the last place in all.
    tolerance = 1e-4 if model.dtype == torch.float32 else 8 * torch.finfo(model.dtype).eps
    expected = turns["loop"][0].found
    for turn in turns["ours"]:
        error = float((turn.found - expected).norm() / expected.norm())
        check_close(1 + error, 1, tolerance, "activations, relative error + 1")
    tokens = sum(map(len, trees))
    separate = sum(len(tree.prompt) + len(ids) for tree in trees for ids in tree.continuations)
    flops = 2.0 * sum(map(linear_parameters, model.model.layers)) * tokens
    rates = {name: spread([tokens / turn.seconds for turn in found]) for name, found in turns.items()}
    say(
        f"extraction: {rates['ours']['median']:,.0f} distinct tokens/s, loop {rates['loop']['median']:,.0f}; "
        f"{len(trees)} samples, {tokens:,} distinct tokens in place of {separate:,}"
    )
    about = {
        "tokens_per_second": rates["ours"],
        "samples": len(trees),
        "tokens": tokens,
        "tokens_of_separate_passes": separate,
        "relative_error": error,
    }
    return {
        "extraction_vs_loop": spread(
            speedup(turns["loop"], turns["ours"]), goal=2.0, loop_tokens_per_second=rates["loop"], **about
        ),
        "extraction_vs_limit": spread(
            [flops / turn.seconds / turn.rate for turn in turns["ours"]],
            goal=0.7,
            matmul_flops_per_second=spread([turn.rate for turn in turns["ours"]]),
            useful_flops=flops,
            **about,
        ),
    }
