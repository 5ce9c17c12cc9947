"""Losses and merged bits of every method on a tiny Llama. python -m tests.goldens_tmp [write]"""

import hashlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from models.checkpoint import Checkpoint
from models.loading import load_config, load_model
from tests.builders import HEADS, orthonormal, save_tiny_llama
from utils.prompts import Encoded
from utils.training import TrainingSettings, train

FILE = Path(__file__).with_suffix(".json")
SHAPES = {"plain": {}, "biased": {"attention_bias": True, "mlp_bias": True}}
CASES = {
    "restorelcc": {}, "bias_only": {}, "magnitudes_only": {}, "lofit": {},
    "output_bias": {}, "output_bias both": {"apply_to": "both"}, "output_bias all": {"apply_to": "all"},
    "output_bias closed": {"apply_to": "both", "bias_start": "closed_form"},
    "restorelcc everywhere": {"apply_to": "all", "train_norms": True},
    "bias_only ffn": {"apply_to": "both"},
    "flap_bias": {}, "flap_bias all": {"apply_to": "all", "stream": "sequential"},
    "bias_only after flap_bias": {"apply_to": "both", "first": "flap_bias"},
    "norms_biases": {}, "norms_biases after admm_update": {"first": "admm_update"},
    "norms_biases closed": {"bias_start": "closed_form", "stream": "sequential", "first": "admm_update"},
    "masked_lora": {"lora_rank": 3}, "masked_lora after admm_update": {"first": "admm_update", "lora_rank": 2},
    "masked_lora everywhere": {"apply_to": "all", "train_norms": True, "lora_rank": 2, "first": "flap_bias"},
    "masked_dora": {"lora_rank": 2}, "masked_dora after admm_update": {"first": "admm_update", "lora_rank": 2},
    "masked_full": {}, "masked_full norms": {"train_norms": True, "apply_to": "all"},
    "lora": {"lora_rank": 3, "lora_alpha": 2.0},
    "lora after eora": {"first": "eora", "lora_rank": 2, "apply_to": "ffn"},
    "lora in places": {"lora_rank": 2, "lora_targets": "k_proj,down_proj", "lora_layers": "0,2"},
    "dora": {"lora_rank": 3, "lora_alpha": 2.0}, "dora after eora": {"first": "eora", "lora_rank": 2},
    "eora": {"lora_rank": 3}, "eora after flap_bias": {"lora_rank": 3, "first": "flap_bias"},
    "admm_update": {}, "admm_update dense": {"stream": "dense"}, "admm_update sequential": {"stream": "sequential"},
    "reconstruct": {"reconstruct_epochs": 1, "reconstruct_lr": 1e-3},
    "reconstruct sequential": {"reconstruct_epochs": 2, "reconstruct_lr": 1e-3, "stream": "sequential"},
    "none": {}, "none norms": {"train_norms": True},
}  # fmt: skip
GENERATOR = torch.Generator().manual_seed(5)
SAMPLES = [
    Encoded(torch.randint(0, 256, (n,), generator=GENERATOR).tolist(), 2)
    for n in torch.randint(4, 14, (20,), generator=GENERATOR).tolist()
]
SETTINGS = TrainingSettings(lr=5e-3, epochs=2, batch_size=4)


def digest(folder):
    found, stored = hashlib.sha256(), Checkpoint(folder)
    for name in sorted(stored.headers):
        tensor = stored.read(name)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def one(name, options, dtype, shape, place):
    from models.contract import MethodInputs
    from models.merge import merge
    from models.restoration import Restoration
    from utils.common.methods import Options, needs_of

    method, options = name.split()[0], Options(**options)
    folder = save_tiny_llama(place / "pruned", 0, 0.5, dtype, **shape)
    dense = save_tiny_llama(place / "dense", 0, 0.0, dtype, **shape)

    def load(at):
        return partial(load_model, at, dtype, "cpu", "-p")

    tokens = torch.randint(0, 256, (6, 12), generator=torch.Generator().manual_seed(8))
    given = MethodInputs(
        load_config(folder, "-p"), 1, read=Checkpoint(folder).read, heads=HEADS, basis=orthonormal(),
        teacher=Checkpoint(dense).read, tokens=tokens, dense=load(dense), pruned=load(folder),
    )  # fmt: skip
    restoration = Restoration.start(method, options, given)
    model = restoration.attach(load(folder)())
    losses = []
    if needs_of(method, options).training:
        result = train(model, SAMPLES, [], SETTINGS, "cpu", place / "checkpoints", False)
        losses = [row["loss"] for row in result.history]
    merge(folder, restoration, place / "merged", folder)
    return {"losses": losses, "digest": digest(place / "merged")}


def lofit(dtype, shape, place):
    from baselines.lofit import scale_norms

    folder = save_tiny_llama(place / "pruned", 0, 0.5, dtype, **shape)
    return scale_norms(load_model(folder, dtype, "cpu", "-p"), SAMPLES, SETTINGS, 1e-3, "cpu").tolist()


def main():
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for kind, shape in SHAPES.items():
            for name, options in CASES.items():
                if len(sys.argv) > 2 and sys.argv[2] not in name:
                    continue
                with tempfile.TemporaryDirectory() as place:
                    key = f"{name} | {dtype} | {kind}"
                    found[key] = one(name, options, dtype, shape, Path(place))
                    print(key, found[key]["losses"][-1:], found[key]["digest"][:8], flush=True)
            if len(sys.argv) <= 2:
                with tempfile.TemporaryDirectory() as place:
                    found[f"lofit | {dtype} | {kind}"] |= {"norms": lofit(dtype, shape, Path(place))}
    if sys.argv[1:2] == ["write"]:
        FILE.write_text(json.dumps(found, indent=0))
        return
    kept = json.loads(FILE.read_text())
    for key, value in found.items():
        same = {part: kept[key].get(part) == value.get(part) for part in value}
        if not all(same.values()):
            apart = max([abs(a - b) for a, b in zip(kept[key]["losses"], value["losses"], strict=True)], default=0)
            print("DIFFERS", key, same, f"losses by {apart:.1e}")
    print(len(found), "compared")


if __name__ == "__main__":
    main()
