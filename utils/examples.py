"""Greedy answers of a model to held-out prompts."""

import torch
from transformers import DynamicCache, LlamaForCausalLM

MOST_TOKENS = 48
"""Maximum number of tokens in a greedy answer: enough to see what a model does, and cheap on a CPU."""


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt: list[int], most: int, ends: frozenset[int]) -> tuple[list[int], bool]:
    """Decode at most `most` tokens greedily: (new ids, whether one of `ends` stopped it). That one is left out.

    This is a loop of its own, so that no penalty or temperature in a checkpoint's generation_config.json applies.
    """
    device = model.device
    cache = DynamicCache(config=model.config)  # filled in place
    made, ids = [], prompt
    for _ in range(min(most, model.config.max_position_embeddings - len(prompt))):
        logits = model(torch.tensor([ids], device=device), use_cache=True, logits_to_keep=1, cache=cache).logits
        likeliest = int(logits[0, -1].argmax())
        if likeliest in ends:
            return made, True
        made.append(likeliest)
        ids = [likeliest]
    return made, False


def ends_of(model: LlamaForCausalLM) -> frozenset[int]:
    """The end-of-sequence ids in the checkpoint's generation config."""
    found = model.generation_config.eos_token_id
    return frozenset([] if found is None else [found] if isinstance(found, int) else found)
