"""What the benchmark times: this project's training step as a bare loop, and the plain ways it is held against."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.trainer_pt_utils import get_length_grouped_indices

from models.checkpoint import LINEARS
from models.contract import MethodInputs
from models.cpu_attention import cpu_attention
from models.loading import head_shape
from models.restoration import Restoration
from utils.common.methods import Options
from utils.losses import ResponseLoss
from utils.packing import PromptWithContinuations
from utils.probing import EPOCHS, LEARNING_RATE, TRAIN_SHARE, ProbeScores, order_randomly
from utils.prompts import IGNORED, Encoded, collate

BATCH_SIZE, SHARE_OF_HEADS, MAX_GRAD_NORM = 8, 0.25, 1.0
VISIBLE = 100
"""β and b are drawn this many times larger than training starts with, so that a loss without them would be noticed."""


def sharing_weights(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A second model that can be patched by itself; the weights stay the first one's tensors."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def linear_parameters(layer: nn.Module, names: Sequence[str] = LINEARS) -> int:
    """Weights of a decoder layer's linear layers: what a token is multiplied with."""
    return sum(layer.get_submodule(name).weight.numel() for name in names)


class Loop:
    """Forward, backward, clipping and AdamW, batch by batch, without the Trainer, so both sides pay for nothing else.

    The learning rate is 0: every operation of a step is done, and each pass must give one and the same mean loss.
    """

    def __init__(self, model: LlamaForCausalLM, trained: list[nn.Parameter], loss: Callable[..., Tensor]):
        self.model, self.trained, self.loss = model.train(), trained, loss
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def run(self, batches: list[list[Encoded]]) -> tuple[float, int, int]:
        """(mean loss, labelled tokens, tokens with padding) of a pass over the batches."""
        total, labelled, padded = torch.zeros((), device=self.model.device), 0, 0
        for samples in batches:
            batch = collate(samples, self.model.config.pad_token_id or 0)
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            batch["lengths"] = torch.tensor([len(s.ids) for s in samples])
            self.optimizer.zero_grad()
            loss = self.loss(**{name: tensor.to(self.model.device) for name, tensor in batch.items()})
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)
            self.optimizer.step()
            total, labelled, padded = total + loss.detach() * count, labelled + count, padded + batch["labels"].numel()
        return float(total) / labelled, labelled, padded


def restoring_loop(model: LlamaForCausalLM, restoration: Restoration) -> Loop:
    """This project's: one bias a layer and step, logits at labelled tokens only, no mask, no gradient below."""
    model = restoration.attach(sharing_weights(model))
    response_loss = ResponseLoss(model)

    def loss(lengths: Tensor, **batch: Tensor) -> Tensor:
        with cpu_attention(model):
            return response_loss(**batch)["loss"]

    return Loop(model, [parameter for parameter in model.parameters() if parameter.requires_grad], loss)


def plain_loop(model: LlamaForCausalLM, restoration: Restoration) -> Loop:
    """The original release's way: padding is masked, and all logits are computed and held."""
    model = sharing_weights(model)

    def loss(input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths.unsqueeze(1)
        return model(input_ids, attention_mask=mask.long(), labels=labels, use_cache=False).loss

    return Loop(model, add_to_every_token(model, restoration), loss)


def visible_restoration(model: LlamaForCausalLM, seed: int) -> Restoration:
    """Random heads with random orthonormal bases, and values large enough to change the loss."""
    layers, heads, width = head_shape(model.config)
    chosen = order_randomly(torch.ones(layers, heads, dtype=torch.bool), seed)
    chosen = sorted(chosen[: max(1, round(SHARE_OF_HEADS * layers * heads))])
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(layers, heads, width, width, generator=generator))[0]
    inputs = MethodInputs(config=model.config, seed=seed, heads=chosen, basis=basis)
    restoration = Restoration.start("restorelcc", Options(), inputs)
    for (term,) in restoration.terms.values():
        for parameter in term.parameters():
            parameter.data.mul_(VISIBLE)
    return restoration


def in_batches(samples: list[Encoded], order: list[int]) -> list[list[Encoded]]:
    """The samples in this order, eight by eight."""
    return [[samples[i] for i in order[begin : begin + BATCH_SIZE]] for begin in range(0, len(order), BATCH_SIZE)]


def grouped_batches(samples: list[Encoded], count: int, seed: int) -> list[list[Encoded]]:
    """About `count` samples in batches that grouping the whole set by length makes, as a real run does.

    Sorted by length, some at even distances are taken, which keeps the lengths distributed as they are.
    """
    lengths, generator = [len(sample.ids) for sample in samples], torch.Generator().manual_seed(seed)
    batches = in_batches(samples, get_length_grouped_indices(lengths, BATCH_SIZE, generator=generator))
    batches.sort(key=lambda batch: max(len(sample.ids) for sample in batch))
    wanted = min(len(batches), -(-count // BATCH_SIZE))
    return [batches[int((index + 0.5) * len(batches) / wanted)] for index in range(wanted)]


def useful_flops(model: LlamaForCausalLM, heads: list[tuple[int, int]], tokens: int, labelled: int) -> float:
    """FLOPs of the matrix products that training can't do without.

    2 a weight and non-padding token forward, and 2 for the gradient of its input where a trained head is below: not in
    the layers under the lowest one, nor in that layer's own attention. The output head's 2 + 2 count at labelled tokens
    only. The quadratic part of attention, norms and the compensation are left out.
    """
    layers = model.model.layers
    lowest = min(layer for layer, _ in heads)
    backward = sum(map(linear_parameters, layers[lowest + 1 :]))
    backward += linear_parameters(layers[lowest], ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
    decoder = sum(map(linear_parameters, layers)) + backward
    return 2.0 * decoder * tokens + 4.0 * model.lm_head.weight.numel() * labelled


def add_to_every_token(model: LlamaForCausalLM, restoration: Restoration) -> list[nn.Parameter]:
    """Add Σ β_i v_i + b to z of each chosen head at every token, as the original release does.

    Gradients flow down to the embeddings. Returns what is trained: β, b of the first head, β, b of the second, …
    """
    model.enable_input_require_grads()
    width, device, trained = model.config.head_dim, model.device, []
    for name, (term,) in restoration.terms.items():
        heads, tensors = [], term.tensors()
        for row, head in enumerate(tensors["heads"].tolist()):
            beta, b = (nn.Parameter(tensors[key][row].to(device, copy=True)) for key in ("magnitudes", "component"))
            heads.append((head, beta, tensors["basis"][row].to(device), b))
            trained += [beta, b]

        def compensate(_, inputs: tuple[Tensor], heads=heads) -> tuple[Tensor]:
            z = inputs[0].clone()
            for head, beta, basis, b in heads:
                z[..., head * width : (head + 1) * width] += (beta @ basis + b).to(z.dtype)
            return (z,)

        model.get_submodule(name.removesuffix(".bias")).register_forward_pre_hook(compensate)
    return trained


@torch.no_grad()
def one_by_one(model: LlamaForCausalLM, trees: list[PromptWithContinuations]) -> Tensor:
    """What `last_token_activations` gives: a pass a sequence, a hook a layer, all logits."""
    layers, heads, width = head_shape(model.config)
    found = torch.empty(len(trees[0].continuations), layers, heads, len(trees), width)
    z: list[Tensor] = []
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: z.append(inputs[0][0, -1].float().cpu()))
        for layer in model.model.layers
    ]
    for row, tree in enumerate(trees):
        for number, branch in enumerate(tree.continuations):
            z.clear()
            model(torch.tensor([tree.prompt + branch], device=model.device), use_cache=False)
            found[number, :, :, row] = torch.stack(z).unflatten(-1, (heads, width))
    for hook in hooks:
        hook.remove()
    return found


def synthetic(layers: int, heads: int, samples: int, width: int, seed: int) -> list[Tensor]:
    """z of the dense and the pruned model at q, of the dense one at q + r⁺ and q + r⁻, (L, H, N, d) fp32 each.

    The gap has strong directions and weak ones, and a head tells right from wrong the better the later it is.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = layers, heads, samples, width
    dense, gap, right, wrong = (torch.randn(shape, generator=generator) for _ in range(4))
    gap = (gap + 1) * torch.linspace(2, 0.1, width)
    step = torch.linspace(0, 1, layers * heads).view(layers, heads, 1, 1) / width**0.5
    return [dense, dense - gap, dense + right + step, dense + wrong - step]


def head_by_head(
    dense: Tensor, pruned: Tensor, right: Tensor, wrong: Tensor, components: int, seed: int
) -> tuple[Tensor, ProbeScores]:
    """c (L, H, d) and the probes' scores, from z (L, H, N, d) each: an SVD, a Linear and an Adam a head.

    The starts and the split are those of `probe_heads`.
    """
    layers, heads, samples, width = dense.shape
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(samples, generator=generator).tensor_split([int(TRAIN_SHARE * samples)])
    bound = (2 * width) ** -0.5
    weights, biases = (torch.empty(heads, n).uniform_(-bound, bound, generator=generator) for n in (2 * width, 1))
    component = torch.empty(layers, heads, width)
    accuracy, losses = torch.empty(2, layers, heads)
    loss = nn.functional.binary_cross_entropy_with_logits
    for layer in range(layers):
        for head in range(heads):
            u, s, v = torch.linalg.svd(dense[layer, head] - pruned[layer, head], full_matrices=False)
            component[layer, head] = (u * s).mean(0)[:components] @ v[:components]
            shared = pruned[layer, head] + component[layer, head]
            features = [torch.cat([shared, answer[layer, head]], dim=1) for answer in (right, wrong)]
            train, held_out = (torch.cat([each[rows] for each in features]) for rows in parts)
            labels, judged = (torch.arange(2 * len(rows)) < len(rows) for rows in parts)
            probe = nn.Linear(2 * width, 1)
            probe.load_state_dict({"weight": weights[head : head + 1], "bias": biases[head]})
            optimizer = torch.optim.Adam(probe.parameters(), lr=LEARNING_RATE)
            for _ in range(EPOCHS):
                optimizer.zero_grad()
                loss(probe(train).squeeze(1), labels.float()).backward()
                optimizer.step()
            logits = probe(held_out).squeeze(1).detach()
            losses[layer, head] = loss(logits, judged.float())
            accuracy[layer, head] = ((logits > 0) == judged).float().mean()
    return component, ProbeScores(accuracy, losses)
