"""What tests of all packages build: tiny lopsided Llamas, a byte tokenizer, restorations, samples."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.checkpoint import Checkpoint
from models.contract import MethodInputs
from models.loading import load_config, load_model
from models.modeling_llama import restored_layers
from models.restoration import Restoration
from utils.common.errors import UserError
from utils.common.methods import Options
from utils.prompts import Encoded, collate

LOPSIDED = {
    "vocab_size": 300, "hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
"""Layers ≠ heads ≠ KV heads and head_dim·heads (48) ≠ hidden (24), so that a wrong axis cannot pass."""


def mistake(says: str | None, ask: Callable, *given: object, **named: object) -> str:
    """The one line by which `ask` refuses what it is given; says: a pattern in it."""
    with pytest.raises(UserError, match=says) as found:
        ask(*given, **named)
    line = str(found.value)
    assert "\n" not in line and len(line) < 1100, line
    return line


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: 256 of them, then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def save_tiny_llama(folder: Path, seed: int = 0, zeros: float = 0.0, dtype=torch.float32, **overrides) -> Path:
    """A random Llama folder with a byte tokenizer; `zeros` is the share of its linear weights set to zero."""
    return save_tiny(folder, LlamaConfig(**{**LOPSIDED, **overrides}), seed, zeros, dtype)


@torch.no_grad()
def save_tiny(folder: Path, config, seed: int, zeros: float, dtype=torch.float32, norms: float = 0.0) -> Path:
    """Such a model of any family. norms: the size of random numbers that are added to norms, and are its biases."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and (norms or name.endswith("bias")):
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype), alpha=norms or 0.1)
        elif parameter.dim() == 2 and "layers" in name:
            parameter.normal_(0, 0.15, generator=generator)
            parameter[torch.rand(parameter.shape, generator=generator) < zeros] = 0
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Apply `change` to the tensors of a folder with one safetensors file: in place, or it gives a new dictionary."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors = changed if isinstance(changed := change(tensors), dict) else tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_files(folder: Path, files: dict[str, str | Path]) -> None:
    """Files by their names in the folder: texts are content, paths are what links lead to."""
    for name, given in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(given, Path):
            (folder / name).symlink_to(given)
        else:
            (folder / name).write_text(given, encoding="utf-8")


def shard(folder: Path, pickled: bool = False) -> list[str]:
    """Save the model in the folder again as shards, of PyTorch's own format if `pickled`: their safetensors names."""
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="8KB")
    (folder / "model.safetensors").unlink()
    names = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if pickled:
        for name in names:  # the first as older versions of torch did
            new, file = name != names[0], folder / f"pytorch_{Path(name).stem}.bin"
            torch.save(load_file(folder / name), file, _use_new_zipfile_serialization=new)
            (folder / name).unlink()
        index = folder / "model.safetensors.index.json"
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        index.rename(folder / "pytorch_model.bin.index.json").write_text(text)
    return names


def inputs_of(dense: Path, pruned: Path, tokens: Tensor, dtype=torch.float32, seed: int = 0, **more) -> MethodInputs:
    """What a closed form starts from, given a dense and a pruned folder and the calibration set."""
    loads = [partial(load_model, folder, dtype, "cpu", "-p") for folder in (dense, pruned)]
    own = {"teacher": Checkpoint(dense).read, "tokens": tokens, "dense": loads[0], "pruned": loads[1]}
    return MethodInputs(load_config(pruned, "-p"), seed, Checkpoint(pruned).read, **own, **more)


HEADS = [(2, 5), (0, 1), (2, 0)]
"""Heads of a tiny Llama that tests restore: two of the last layer, none of the middle one."""


def orthonormal(layers: int = 3, heads: int = 6, width: int = 8) -> Tensor:
    """A random basis for each head of a tiny Llama: (L, H, d, d)."""
    return torch.linalg.qr(torch.randn(layers, heads, width, width, generator=torch.Generator().manual_seed(9)))[0]


def trained(method: str = "restorelcc") -> Restoration:
    """A restoration of HEADS with values large enough to see."""
    inputs = MethodInputs(LlamaConfig(**LOPSIDED), 1, heads=list(HEADS), basis=orthonormal())
    return scaled(Restoration.start(method, Options(), inputs), 200)


def attached(folder: Path, restoration: Restoration | None = None, dtype=torch.float32) -> LlamaForCausalLM:
    """The model in the folder, restored: as `trained`, if nothing else is given."""
    return (restoration or trained()).attach(load_model(folder, dtype, "cpu", "-p"))


@torch.no_grad()
def scaled(restoration: Restoration, by: float = 1, noise: float = 0) -> Restoration:
    """The same with all that is trained times a number, and random numbers of about that size added, in place."""
    generator = torch.Generator().manual_seed(3)
    for term in chain.from_iterable(restoration.terms.values()):
        for parameter in term.parameters():
            parameter.mul_(by).add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return restoration


def learned_in(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """β and b of all heads of a model that restores nothing else, by name: (n, d)."""
    terms = [layer.terms["bias"][0].tensors() for layer in restored_layers(model)]
    return {name: torch.cat([tensors[name] for tensors in terms]) for name in ("magnitudes", "component")}


def masks_of(model: LlamaForCausalLM) -> list[Tensor | None]:
    """A list that the mask of each layer's attention is added to from now on; None is plain causal attention."""
    seen = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _module, _inputs, named: seen.append(named["attention_mask"]), with_kwargs=True
        )
    return seen


SAMPLES = [Encoded([5, 9, 77, 30], 2), Encoded([8, 1, 2, 3, 4, 60, 61], 3), Encoded([7, 7, 9], 1)]


def batch(samples: list[Encoded]) -> dict[str, Tensor]:
    return collate(samples, 257)
