"""Training speed: this project's step against a plain loop, and against what the matrix product would allow.

The step is driven by a bare loop, not by the Trainer: the project's patch, loss, collator, length-grouped batches and
clipping, and AdamW, so that both sides pay for nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.timing import (
    check_close,
    linear_parameters,
    matmul_rate,
    say,
    sharing_weights,
    speedup,
    spread,
    turn_by_turn,
)
from models.contract import MethodInputs
from models.cpu_attention import cpu_attention
from models.loading import head_shape
from models.restoration import Restoration
from utils.common.methods import Options
from utils.losses import IGNORED, ResponseLoss
from utils.probing import order_randomly
from utils.prompts import Encoded
from utils.training import Collator

BATCH_SIZE = 8
SHARE_OF_HEADS = 0.25
MAX_GRAD_NORM = 1.0
VISIBLE = 100
"""β and b are drawn this many times larger than training starts with, so that a loss without them would be noticed."""


@dataclass(frozen=True)
class Pass:
    """One pass over the samples: the loss summed over labelled tokens, their number, and the non-padding tokens."""

    loss: float
    labelled: int
    tokens: int
    padded_tokens: int


class Loop:
    """Forward, backward, clipping and AdamW, batch by batch.

    The learning rate is 0: every operation of a step is done, and the restoration stays as it is, so that each pass of
    either loop must give one and the same mean loss.
    """

    def __init__(self, model: LlamaForCausalLM, trained: list[nn.Parameter], loss: Callable[..., Tensor]):
        self.model, self.trained, self.loss = model.train(), trained, loss
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def run(self, batches: list[list[Encoded]]) -> Pass:
        """Train on the batches."""
        device = self.model.get_input_embeddings().weight.device
        collate = Collator(pad_id=self.model.config.pad_token_id or 0)
        total, labelled, tokens, padded = torch.zeros((), device=device), 0, 0, 0
        for samples in batches:
            batch = collate([{"input_ids": s.ids, "prompt_length": s.prompt_length} for s in samples])
            lengths = torch.tensor([len(s.ids) for s in samples])
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            self.optimizer.zero_grad()
            loss = self.loss(lengths=lengths.to(device), **{name: tensor.to(device) for name, tensor in batch.items()})
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)
            self.optimizer.step()
            total += loss.detach() * count
            labelled += count
            tokens += int(lengths.sum())
            padded += batch["input_ids"].numel()
        return Pass(float(total), labelled, tokens, padded)


def restoring_loop(
    model: LlamaForCausalLM,
    restoration: Restoration,
    attention: Callable[[LlamaForCausalLM], AbstractContextManager] = cpu_attention,
) -> Loop:
    """This project's: one bias a layer and step, logits at labelled tokens only, no mask, no gradient below.

    attention: a context within which the model attends in its way.
    """
    model = restoration.attach(sharing_weights(model))
    loss = ResponseLoss(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def attending(lengths: Tensor, **batch: Tensor) -> Tensor:
        with attention(model):
            return loss(**batch)["loss"]

    return Loop(model, trained, attending)


def reference_loop(model: LlamaForCausalLM, restoration: Restoration) -> Loop:
    """The plain way, as the original release goes it.

    Σ β_i v_i + b is added to z of each chosen head at every token, all logits are computed and held, padding is masked,
    and gradients flow down to the embeddings. The trained parameters are β, b of the first head, β, b of the second, …
    """
    model = sharing_weights(model)
    model.enable_input_require_grads()
    width = model.config.head_dim
    trained: list[nn.Parameter] = []
    by_layer: dict[int, list[tuple[int, nn.Parameter, nn.Parameter, Tensor]]] = {}
    for layer, head, values in by_head(restoration):
        device = model.model.layers[layer].self_attn.o_proj.weight.device
        magnitudes, component = (
            nn.Parameter(values[name].to(device, copy=True)) for name in ("magnitudes", "component")
        )
        trained += [magnitudes, component]
        by_layer.setdefault(layer, []).append((head, magnitudes, component, values["basis"].to(device)))

    for layer, heads in by_layer.items():

        def compensate(_, inputs: tuple[Tensor], heads=heads) -> tuple[Tensor]:
            z = inputs[0].clone()
            for head, magnitudes, component, basis in heads:
                z[..., head * width : (head + 1) * width] += (magnitudes @ basis + component).to(z.dtype)
            return (z,)

        model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(compensate)

    def loss(input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths.unsqueeze(1)
        return model(input_ids, attention_mask=mask.long(), labels=labels, use_cache=False).loss

    return Loop(model, trained, loss)


def visible_restoration(model: LlamaForCausalLM, seed: int, share: float = SHARE_OF_HEADS) -> Restoration:
    """Random heads with random orthonormal bases, and values large enough to change the loss."""
    layers, heads, width = head_shape(model.config)
    chosen = order_randomly(torch.ones(layers, heads, dtype=torch.bool), seed)[: max(1, round(share * layers * heads))]
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(layers, heads, width, width, generator=generator))[0]
    inputs = MethodInputs(config=model.config, seed=seed, heads=sorted(chosen), basis=basis)
    return times(Restoration.start("restorelcc", Options(), inputs), VISIBLE)


def by_head(restoration: Restoration) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """(layer, head, its basis, magnitudes and component), heads in order."""
    for name, (term,) in restoration.terms.items():
        tensors = term.tensors()
        for row, head in enumerate(tensors.pop("heads").tolist()):
            yield int(name.split(".")[2]), head, {key: tensor[row] for key, tensor in tensors.items()}


@torch.no_grad()
def times(restoration: Restoration, factor: float) -> Restoration:
    """The same, in place, with β and b times a factor."""
    for (term,) in restoration.terms.values():
        for parameter in term.parameters():
            parameter.mul_(factor)
    return restoration


def grouped_batches(samples: list[Encoded], count: int, seed: int) -> list[list[Encoded]]:
    """Batches that hold `count` samples, out of all batches that grouping the whole set by length makes.

    Grouping works the better the larger the set is, so the whole set is, as in a real run. Of its batches, sorted by
    length, some at even distances are taken, which keeps the lengths distributed as they are.
    """
    lengths = [len(sample.ids) for sample in samples]
    order = list(LengthGroupedSampler(BATCH_SIZE, lengths=lengths, generator=torch.Generator().manual_seed(seed)))
    batches = [
        [samples[index] for index in order[begin : begin + BATCH_SIZE]] for begin in range(0, len(order), BATCH_SIZE)
    ]
    batches.sort(key=lambda batch: max(len(sample.ids) for sample in batch))
    wanted = min(len(batches), -(-count // BATCH_SIZE))
    taken = [batches[int((index + 0.5) * len(batches) / wanted)] for index in range(wanted)]
    left = count
    for index, batch in enumerate(taken):
        taken[index], left = batch[:left], left - len(batch)
    return taken


def random_batches(samples: list[Encoded], seed: int) -> list[list[Encoded]]:
    """The samples in random order, eight by eight."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        [samples[index] for index in order[begin : begin + BATCH_SIZE]] for begin in range(0, len(order), BATCH_SIZE)
    ]


def useful_flops(model: LlamaForCausalLM, heads: list[tuple[int, int]], tokens: int, labelled: int) -> float:
    """FLOPs of the matrix products that training can't do without.

    2 a weight and non-padding token forward, and 2 for the gradient of its input where a trained head is below: not in
    the layers under the lowest one, nor in that layer's own attention. The output head's 2 + 2 count at labelled tokens
    only. The quadratic part of attention, norms and the compensation are left out.
    """
    layers = model.model.layers
    lowest = min(layer for layer, _ in heads)
    forward = sum(map(linear_parameters, layers))
    backward = sum(map(linear_parameters, layers[lowest + 1 :]))
    backward += linear_parameters(layers[lowest], ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
    return 2.0 * (forward + backward) * tokens + 4.0 * model.lm_head.weight.numel() * labelled


def training_speed(
    model: LlamaForCausalLM, samples: list[Encoded], count: int, repeats: int, seed: int
) -> dict[str, dict]:
    """Rows `training_vs_reference` and `training_vs_limit`, from passes over the same `count` of `samples`.

    Raises Disagreement unless every pass of both loops gives the same mean loss, to the dtype's precision.
    """
    restoration = visible_restoration(model, seed)
    batches = grouped_batches(samples, count, seed)
    same = [sample for batch in batches for sample in batch]
    shuffled = [random_batches(same, seed + number) for number in range(repeats)]
    ours, reference = restoring_loop(model, restoration), reference_loop(model, restoration)
    warm_up = batches[-1:]  # the longest, after which memory is as large as it will be
    reference.run(warm_up)
    nothing = times(restoration.gathered(), 0)
    shows = abs(ours.run(warm_up).loss / restoring_loop(model, nothing).run(warm_up).loss - 1)
    dtype = model.dtype
    turns = turn_by_turn(
        {"ours": lambda _: ours.run(batches), "reference": lambda number: reference.run(shuffled[number])},
        repeats,
        lambda: matmul_rate(model.device, dtype),
    )
    tolerance = loss_tolerance(dtype)
    if shows <= tolerance:
        say(f"training: the restoration changes the loss by {shows:.1e} only, so the losses can't tell if it is there")
    expected = turns["reference"][0].found
    for turn in turns["ours"] + turns["reference"]:
        found = turn.found
        check_close(found.loss / found.labelled, expected.loss / expected.labelled, tolerance, "mean training loss")
    done = turns["ours"][0].found
    flops = useful_flops(model, restoration.heads, done.tokens, done.labelled)
    rates = {name: spread([done.tokens / turn.seconds for turn in found]) for name, found in turns.items()}
    padding = {
        name: sum(t.found.padded_tokens for t in found) / sum(t.found.tokens for t in found)
        for name, found in turns.items()
    }
    say(
        f"training: {rates['ours']['median']:,.0f} tokens/s, plain loop {rates['reference']['median']:,.0f}; "
        f"{len(same)} samples, {done.tokens:,} tokens; padded to {padding['ours']:.2f}× and {padding['reference']:.2f}×"
    )
    about = {
        "tokens_per_second": rates["ours"],
        "samples": len(same),
        "tokens": done.tokens,
        "labelled_tokens": done.labelled,
        "mean_loss": done.loss / done.labelled,
        "loss_changed_by_restoration": shows,
        "useful_flops": flops,
    }
    return {
        "training_vs_reference": spread(
            speedup(turns["reference"], turns["ours"]),
            goal=2.5,
            reference_tokens_per_second=rates["reference"],
            padded_to=padding,
            **about,
        ),
        "training_vs_limit": spread(
            [flops / turn.seconds / turn.rate for turn in turns["ours"]],
            goal=0.7,
            matmul_flops_per_second=spread([turn.rate for turn in turns["ours"]]),
            useful_flops_per_second=spread([flops / turn.seconds for turn in turns["ours"]]),
            **about,
        ),
    }


def loss_tolerance(dtype: torch.dtype) -> float:
    """How far mean losses may differ, relatively: 1e-4 in fp32, else one unit in the last place of a logit."""
    return 1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps
