"""What PEFT computes with the same numbers: an independent reading of the papers, where it is installed."""

import pytest
import torch

from models.checkpoint import LINEARS, Checkpoint
from models.loading import load_model
from models.restoration import Restoration
from tests.baselines.test_updates import ALPHA, IDS, RANK, attached, moved, started

peft = pytest.importorskip("peft")


def in_peft(folder, restoration: Restoration):
    """PEFT's model with the restoration's numbers in it."""
    settings = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=[name.split(".")[1] for name in LINEARS],
        use_dora=restoration.method == "dora",
        task_type="CAUSAL_LM",
    )
    model = load_model(folder, torch.float32, "cpu", "-p")
    wrapped = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for name, (term,) in restoration.terms.items():
            theirs = model.get_submodule(name.removesuffix(".weight"))
            theirs.lora_A["default"].weight.copy_(term.down)
            theirs.lora_B["default"].weight.copy_(term.up)
            if restoration.method == "dora":
                theirs.lora_magnitude_vector["default"].weight.add_(term.magnitudes)
    return wrapped


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_steps_numbers_and_merged_weights_are_pefts(make_tiny_llama, method):
    folder = make_tiny_llama(zeros=0.5, attention_bias=True)
    restoration = moved(started(folder, method))
    ours, theirs = attached(folder, restoration), in_peft(folder, restoration)
    losses = [model(IDS, labels=IDS).loss for model in (ours, theirs)]
    plain = load_model(folder, torch.float32, "cpu", "-p")(IDS, labels=IDS).loss
    assert torch.allclose(*losses, rtol=1e-6) and abs(plain - losses[1]) > 1e-3
    for loss in losses:
        loss.backward()
    trained = [[p for p in model.parameters() if p.requires_grad] for model in (ours, theirs)]
    assert sum(p.numel() for p in trained[0]) == sum(p.numel() for p in trained[1])
    sizes = [sorted(float(p.grad.norm()) for p in found) for found in trained]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    merged, read = theirs.merge_and_unload(), Checkpoint(folder).read
    assert len(restoration.terms) == 21
    for name in restoration.terms:
        found, wanted = restoration.merged(name, read), merged.get_parameter(name)
        assert torch.allclose(found.float(), wanted, rtol=1e-5, atol=1e-6), name
        assert not torch.allclose(read(name), wanted, rtol=1e-3), name
