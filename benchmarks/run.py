"""Speed of training, activations, probes and inference, as ratios measured side by side in one run.

python benchmarks/run.py -json speed.json

Both sides of a ratio take turns, so that whatever else the machine does falls on both, and must compute the same.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python put this folder first

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from data.sources import load_samples
from models.compact_llama import CompactLlamaConfig, CompactLlamaForCausalLM
from models.contract import MethodInputs, linear_shapes
from models.cpu_attention import cpu_attention
from models.loading import DTYPES, head_shape, load_model, load_tokenizer, quiet_libraries, resolve, usable_device
from models.modeling_llama import explicit_biases
from models.restoration import Restoration
from pruning.slimgpt import plan
from utils.activations import last_token_activations
from utils.common.commands import DEFAULT_CACHE, Parser, at_least, folder_path, name_or_path, run
from utils.common.errors import UserError
from utils.common.files import check_writable, write_json
from utils.common.methods import Options
from utils.common.names import BUNDLED, EMBEDDED
from utils.common.record import device_name, reset_peak_memory, versions
from utils.components import lost_components
from utils.distillation import predicted
from utils.losses import ResponseLoss
from utils.packing import PromptWithContinuations
from utils.probing import EPOCHS, LEARNING_RATE, TRAIN_SHARE, order_randomly, probe_heads
from utils.prompts import Encoded, collate, encode_all
from utils.report.tables import markdown_table

TRAIN_SAMPLES, MAX_LENGTH, BATCH_SIZE, SHARE_OF_HEADS = 2000, 500, 8, 0.25
PROBE_SAMPLES, COMPONENTS = 300, 10
READ, WRITE_AFTER, NEW = 512, 64, 24  # tokens of a prefill, of the prompt before decoding, and decoded
VISIBLE = 100  # how many times larger β and b are than at the start of training


class Turn(NamedTuple):
    """One turn of a piece of work: what it returned, its seconds, and the matrix product's FLOP/s around it."""

    found: object
    seconds: float
    rate: float = 0.0


def timed(work: Callable[[], object]) -> Turn:
    """Run `work` and time it, including all GPU work that it has queued."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start, found, _ = time.perf_counter(), work(), wait()
    return Turn(found, time.perf_counter() - start)


def matmul_rate(model: LlamaForCausalLM) -> float:
    """FLOP/s of a large square matrix product in the model's dtype: the machine's own limit at this moment."""
    size = 8192 if model.device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=model.device).to(model.dtype) for _ in range(2))
    product = torch.empty_like(left)
    # A weight is stored (out, in), so what the models compute is x Wᵀ.
    return 2 * size**3 / min(timed(lambda: torch.mm(left, right.T, out=product)).seconds for _ in range(8))


def turn_by_turn(works: dict, repeats: int, rate: Callable[[], float] = float) -> dict[str, list[Turn]]:
    """Run all works `repeats` times, every other time in reverse, to cancel drift; `rate` is measured around each."""
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            before, turn = rate(), timed(works[name])
            turns[name].append(turn._replace(rate=(before + rate()) / 2))
    return turns


def spread(values: Iterable[float], **more) -> dict:
    """Median, least and greatest of the repeats, the repeats themselves, and whatever else belongs to the row."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": values, **more}


def speedup(slow: list[Turn], fast: list[Turn]) -> list[float]:
    """How many times faster `fast` is than `slow`, turn by turn."""
    return [a.seconds / b.seconds for a, b in zip(slow, fast, strict=True)]


def tolerance(dtype: torch.dtype) -> float:
    """How far results may differ, relatively: 1e-4 in fp32, else one unit in the last place."""
    return 1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps


def compared(what: str, other: str, goal: float, turns: dict, flops: float, **about) -> dict[str, dict]:
    """Two rows: our speed over the other way's, and our FLOP/s over the matrix product's around the same turns."""
    ours = turns["ours"]
    rates = {way: spread(about["tokens"] / turn.seconds for turn in turns[way]) for way in turns}
    about |= {"tokens_per_second": rates["ours"], "useful_flops": flops}
    achieved = {"useful_flops_per_second": spread(flops / turn.seconds for turn in ours)}
    achieved["matmul_flops_per_second"] = spread(turn.rate for turn in ours)
    more = {f"{other}_tokens_per_second": rates[other], **about}
    return {
        f"{what}_vs_{other}": spread(speedup(turns[other], ours), goal=goal, **more),
        f"{what}_vs_limit": spread((flops / turn.seconds / turn.rate for turn in ours), goal=0.7, **achieved, **about),
    }


def training_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Rows `training_vs_reference` and `training_vs_limit`, from passes over about -samples of the samples."""
    restoration = visible_restoration(model, args.seed)
    # Batches of similar lengths, as in a real run, chosen at even distances from all.
    batches = in_batches(sorted(samples, key=lambda sample: len(sample.ids)))
    wanted = min(len(batches), -(-args.samples // BATCH_SIZE))
    batches = [batches[int((index + 0.5) * len(batches) / wanted)] for index in range(wanted)]
    same = [sample for batch in batches for sample in batch]
    order = torch.randperm(len(same), generator=torch.Generator().manual_seed(args.seed))
    passes = {"ours": batches, "reference": in_batches([same[number] for number in order])}
    loops = {"ours": restoring_loop(model, restoration), "reference": plain_loop(model, restoration)}
    for loop in loops.values():
        loop.run(batches[-1:])  # the longest batch, so that memory does not grow later
    works = {name: lambda name=name: loops[name].run(passes[name]) for name in loops}
    turns = turn_by_turn(works, args.repeats, lambda: matmul_rate(model))
    expected, losses = turns["reference"][0].found, [turn.found for some in turns.values() for turn in some]
    assert_close(losses, [expected] * len(losses), rtol=tolerance(model.dtype), atol=0)
    about = {"samples": len(same), "tokens": sum(len(sample.ids) for sample in same), "mean_loss": losses[0]}
    about["labelled_tokens"] = sum(map(predicted, same))
    padded = {name: sum(len(b) * max(len(s.ids) for s in b) for b in some) for name, some in passes.items()}
    about["padded_to"] = {name: tokens / about["tokens"] for name, tokens in padded.items()}
    flops = useful_flops(model.config, about["tokens"], min(restoration.heads)[0], about["labelled_tokens"])
    return compared("training", "reference", 2.5, turns, flops, **about)


def inside_mask_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Row `inside_mask_vs_lora`: LoRA's time over that of masked LoRA, whose mask here has all weights."""
    batches = in_batches(samples[: args.samples])
    inputs = MethodInputs(config=model.config, seed=args.seed)
    starts = {name: Restoration.start(name, Options(), inputs) for name in ("lora", "masked_lora")}
    loops = {name: restoring_loop(model, start) for name, start in starts.items()}
    works = {name: lambda loop=loop: loop.run(batches) for name, loop in loops.items()}
    for loop in loops.values():
        loop.run(batches[:1])
    turns = turn_by_turn(works, args.repeats)
    losses = [turn.found for some in turns.values() for turn in some]
    assert_close(losses, losses[:1] * len(losses), rtol=tolerance(model.dtype), atol=0)
    times = speedup(turns["lora"], turns["masked_lora"])
    return {"inside_mask_vs_lora": spread(times, goal=0.87, samples=args.samples)}


def extraction_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Rows `extraction_vs_loop` and `extraction_vs_limit`: q, q + r⁺ and q + r⁻. r⁻ is the next sample's answer."""
    samples = samples[: args.samples]
    answers = [sample.ids[sample.prompt_length :] for sample in samples]
    trees = [
        PromptWithContinuations(sample.ids[: sample.prompt_length], [[], right, wrong])
        for sample, right, wrong in zip(samples, answers, answers[1:] + answers[:1], strict=True)
    ]
    works = {
        "ours": lambda trees=trees: last_token_activations(model, trees, "activations"),
        "loop": lambda trees=trees: one_by_one(model, trees),
    }
    for work in works.values():
        work(trees[:1])  # warming up
    turns = turn_by_turn(works, args.repeats, lambda: matmul_rate(model))
    expected = turns["loop"][0].found
    error = float((turns["ours"][0].found - expected).norm() / expected.norm())
    # In fp32 only the order of sums differs; in half precision each layer rounds, up to eight units in the last place.
    bound = tolerance(model.dtype) * (1 if model.dtype == torch.float32 else 8)
    assert_close(error, 0.0, rtol=0, atol=bound)
    tokens = sum(map(len, trees))
    flops = useful_flops(model.config, tokens)
    separate = sum(len(tree.prompt) + len(branch) for tree in trees for branch in tree.continuations)
    about = {"samples": len(trees), "tokens": tokens, "tokens_of_separate_passes": separate, "relative_error": error}
    return compared("extraction", "loop", 2.0, turns, flops, **about)


def probes_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Row `probes_vs_loop`: c and probes of all heads, from random activations (L, H, N, d), on the CPU."""
    layers, heads, width = head_shape(model.config)
    generator = torch.Generator().manual_seed(args.seed)
    dense, gap, right, wrong = torch.randn(4, layers, heads, PROBE_SAMPLES, width, generator=generator)
    gap = gap * torch.linspace(2, 0.1, width)  # strong and weak directions

    def ours() -> list[Tensor]:
        component = lost_components(gap, COMPONENTS).component
        scores = probe_heads(dense - gap + component.unsqueeze(2), right, wrong, args.seed)
        return [component, scores["accuracy"], scores["loss"]]

    works = {"ours": ours, "loop": lambda: head_by_head(dense - gap, gap, right, wrong, args.seed)}
    turns = turn_by_turn(works, args.repeats)
    # A held-out feature may lie on the boundary, and 200 steps of Adam carry fp32's rounding along.
    bounds = 1e-3, 1.5 / (2 * (PROBE_SAMPLES - int(TRAIN_SHARE * PROBE_SAMPLES))), 1e-3
    for mine, other, bound in zip(turns["ours"][0].found, turns["loop"][0].found, bounds, strict=True):
        assert_close(mine, other, rtol=0, atol=bound)
    return {"probes_vs_loop": spread(speedup(turns["loop"], turns["ours"]), goal=4.0, samples=PROBE_SAMPLES)}


def head_by_head(pruned: Tensor, gap: Tensor, right: Tensor, wrong: Tensor, seed: int) -> list[Tensor]:
    """The same c (L, H, d), accuracies and losses (L, H), computed with an SVD, a Linear and an Adam for each head."""
    layers, heads, samples, width = gap.shape
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(samples, generator=generator).tensor_split([int(TRAIN_SHARE * samples)])
    bound = (2 * width) ** -0.5
    weights, biases = (torch.empty(heads, n).uniform_(-bound, bound, generator=generator) for n in (2 * width, 1))
    components, (accuracy, losses) = torch.empty(layers, heads, width), torch.empty(2, layers, heads)
    loss = nn.functional.binary_cross_entropy_with_logits
    for place in itertools.product(range(layers), range(heads)):
        u, s, v = torch.linalg.svd(gap[place], full_matrices=False)
        components[place] = (u * s).mean(0)[:COMPONENTS] @ v[:COMPONENTS]
        features = [torch.cat([pruned[place] + components[place], z[place]], dim=1) for z in (right, wrong)]
        train, held_out = (torch.cat([each[rows] for each in features]) for rows in parts)
        labels, judged = ((torch.arange(2 * len(rows)) < len(rows)).float() for rows in parts)
        probe = nn.Linear(2 * width, 1)
        probe.load_state_dict({"weight": weights[place[1]][None], "bias": biases[place[1]]})
        optimizer = torch.optim.Adam(probe.parameters(), lr=LEARNING_RATE)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss(probe(train).squeeze(1), labels).backward()
            optimizer.step()
        logits = probe(held_out).squeeze(1).detach()
        accuracy[place], losses[place] = ((logits > 0) == judged.bool()).float().mean(), loss(logits, judged)
    return [components, accuracy, losses]


@torch.no_grad()
def inference_speed(model: LlamaForCausalLM, samples: list[Encoded], args: argparse.Namespace) -> dict[str, dict]:
    """Rows `inference_*` (with a merged model's biases), `attached_*`, `slimgpt_compact_*`: speed over the model's.

    prefill: the decoder reads READ tokens. decode: the model reads WRITE_AFTER tokens and generates NEW more greedily.
    """
    config = model.config
    biases = [f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(config.num_hidden_layers)]
    heads, channels = zip(*plan(config, 0.2), strict=True)  # that are removed
    sizes = {"kept_kv_heads": [list(range(config.num_key_value_heads - gone)) for gone in heads]}
    sizes["intermediate_sizes"] = [config.intermediate_size - gone for gone in channels]
    small = CompactLlamaConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"}, **sizes)
    forms = {
        "": model,
        "inference": explicit_biases(sharing_weights(model), biases),
        "attached": visible_restoration(model, args.seed).attach(sharing_weights(model)),
        "slimgpt_compact": CompactLlamaForCausalLM(small).to(model.device, model.dtype).eval(),
    }
    ids = [token for sample in samples for token in sample.ids][: min(READ, config.max_position_embeddings)]
    prompt, exactly = torch.tensor([ids], device=model.device), {"min_new_tokens": NEW, "max_new_tokens": NEW}
    exactly |= {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt[:, :WRITE_AFTER])}
    works = {}
    for name, each in forms.items():
        works[name, "prefill"] = lambda each=each: float(each.model(prompt, use_cache=False)[0][0, 0, 0])
        works[name, "decode"] = lambda each=each: each.generate(prompt[:, :WRITE_AFTER], **exactly)
    turn_by_turn(works, 1)  # warming up
    turns = turn_by_turn(works, 3 * args.repeats)
    rows = {f"{name}_{kind}": speedup(turns["", kind], turns[name, kind]) for name, kind in works if name}
    return {name: spread(times, **({} if "compact" in name else {"goal": 0.98})) for name, times in rows.items()}


def sharing_weights(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A second model that can be patched by itself; the weights stay the first one's tensors."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


class Loop:
    """Forward, backward, clipping and AdamW, batch by batch, without the Trainer: both sides pay for nothing else."""

    def __init__(self, model: LlamaForCausalLM, trained: list[nn.Parameter], loss: Callable[..., Tensor]):
        self.model, self.trained, self.loss = model.train(), trained, loss
        # At rate 0 a step does all its operations, and each pass must give the same mean loss.
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def run(self, batches: list[list[Encoded]]) -> float:
        """The mean loss of a pass over the batches."""
        total = torch.zeros((), device=self.model.device)
        for samples in batches:
            batch = collate(samples, self.model.config.pad_token_id or 0)
            batch["lengths"] = torch.tensor([len(s.ids) for s in samples])
            self.optimizer.zero_grad()
            loss = self.loss(**{name: tensor.to(self.model.device) for name, tensor in batch.items()})
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            total += loss.detach() * sum(map(predicted, samples))
        return float(total) / sum(predicted(sample) for samples in batches for sample in samples)


def restoring_loop(model: LlamaForCausalLM, restoration: Restoration) -> Loop:
    """This project's loop: one bias per layer and step, logits only at labelled tokens, no mask, no gradient below."""
    model = restoration.attach(sharing_weights(model))
    response_loss = ResponseLoss(model)

    def loss(lengths: Tensor, **batch: Tensor) -> Tensor:
        with cpu_attention(model):
            return response_loss(**batch)["loss"]

    return Loop(model, [parameter for parameter in model.parameters() if parameter.requires_grad], loss)


def plain_loop(model: LlamaForCausalLM, restoration: Restoration) -> Loop:
    """The original release's loop: padding is masked, and all logits are computed and held."""
    model = sharing_weights(model)

    def loss(input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths.unsqueeze(1)
        return model(input_ids, attention_mask=mask.long(), labels=labels, use_cache=False).loss

    return Loop(model, add_to_every_token(model, restoration), loss)


def visible_restoration(model: LlamaForCausalLM, seed: int) -> Restoration:
    """Random heads with random orthonormal bases; β and b are VISIBLE times as large, so that losses show them."""
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


def in_batches(samples: list[Encoded]) -> list[list[Encoded]]:
    """Split the samples into batches of BATCH_SIZE, in their order."""
    return [samples[begin : begin + BATCH_SIZE] for begin in range(0, len(samples), BATCH_SIZE)]


def useful_flops(config: LlamaConfig, tokens: int, lowest: int | None = None, labelled: int = 0) -> float:
    """FLOPs of the matrix products that are needed to read z of all layers; or to train, from layer `lowest` on.

    Per weight and non-padding token: 2 forward, and 2 for the input's gradient if a trained head is below, so not in
    the layers under the lowest one, nor in that layer's own attention. The output head takes 2 + 2 per labelled token.
    """
    sizes = {name: out * width for name, (out, width) in linear_shapes(config).items()}
    layer, mlp = sum(sizes.values()), sum(size for name, size in sizes.items() if name.startswith("mlp"))
    # Reading z needs neither o_proj nor the MLP of the last layer.
    more = -mlp - sizes["self_attn.o_proj"] if lowest is None else (config.num_hidden_layers - 1 - lowest) * layer + mlp
    head = config.vocab_size * config.hidden_size * labelled
    return 2.0 * (config.num_hidden_layers * layer + more) * tokens + 4.0 * head


def add_to_every_token(model: LlamaForCausalLM, restoration: Restoration) -> list[nn.Parameter]:
    """Add Σ β_i v_i + b to z of each chosen head at every token, as the original release does; returns all β and b."""
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
    """The same as `last_token_activations`, with one pass per sequence, one hook per layer, and all logits."""
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


def main(argv: list[str] | None = None) -> None:
    """Measure all ratios, print the table, and write -json if it is given; exit status 1 if two ways disagree."""
    flags = Parser(prog="python benchmarks/run.py", description=__doc__.splitlines()[0])
    flags.flag("base_model_name", default=EMBEDDED, type=name_or_path, help="folder, hub id, GGUF file or short name")
    flags.flag("device", default="auto", help="cpu, cuda, cuda:N; auto takes a GPU if there is one")
    flags.flag("dtype", default="bfloat16", choices=DTYPES, help="of model and matrix product, one of %(choices)s")
    flags.flag("repeats", default=3, type=at_least(1), help="turns of each measurement")
    flags.flag("samples", default=24, type=at_least(1), help="bundled samples in a pass, of training in whole batches")
    flags.flag("json", type=folder_path, metavar="FILE", help="JSON file for all figures")
    flags.flag("seed", default=42, type=int, help="of heads and batches")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=folder_path, metavar="DIR", help="where a GGUF is unpacked")
    args = flags.parse_args(argv)
    device = usable_device(args.device)
    if args.json and args.json.is_dir():
        raise UserError(f"-json: {args.json} is a folder; give a file")
    if args.json:
        check_writable(args.json.parent, "-json")
    quiet_libraries()
    reset_peak_memory()  # makes the process keep freed memory, as a run's stages do
    base = resolve(args.base_model_name, "-base_model_name", args.cache_dir)
    tokenizer = load_tokenizer(base, "-base_model_name")
    texts = load_samples(BUNDLED, TRAIN_SAMPLES, 0).train
    samples, _ = encode_all(tokenizer, [t.prompt for t in texts], [t.response for t in texts], MAX_LENGTH)
    samples = [sample for sample in samples if sample.prompt_length < len(sample.ids)]
    model = load_model(base, DTYPES[args.dtype], device, "-base_model_name")
    about = {name: getattr(args, name) for name in ("dtype", "repeats", "seed")}
    about |= {"model": args.base_model_name, "device": device_name(device), "versions": versions()}
    about["matmul_flops_per_second"] = matmul_rate(model)
    print(f"{about['device']}, {args.dtype}: matrix product {about['matmul_flops_per_second'] / 1e12:.3f} TFLOP/s")
    rows, lines, refused = {}, [], []
    parts = {"training": training_speed, "inside the mask": inside_mask_speed, "extraction": extraction_speed}
    parts |= {"probes": probes_speed, "inference": inference_speed}
    for part, measured in parts.items():
        try:
            rows |= measured(model, samples, args)
        except AssertionError as error:  # two ways that should compute the same do not
            refused.append(part)
            print(f"{part}: no ratio, because the two implementations disagree: {error}", flush=True)
    for name, row in rows.items():
        cells = [f"{row['median']:.3f}", f"{row['min']:.3f} – {row['max']:.3f}"]
        lines.append([name, *cells, f"≥ {row['goal']:g}" if "goal" in row else ""])
    print(f"\n{markdown_table(['ratio', 'median', 'min – max', 'goal'], lines, right={1, 2, 3})}\n")
    if args.json:
        write_json(args.json, {**rows, "about": about, "refused": refused})
    if refused:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
