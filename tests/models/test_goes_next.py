"""Where a merged checkpoint goes next: it is a plain one to transformers, peft, the compiler and a quantiser."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from models.checkpoint import Checkpoint
from tests.builders import save_tiny_llama
from tests.models import test_merge

IDS = torch.tensor([[5, 9, 77, 30, 8, 1, 60]])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("next") / "pruned", zeros=0.5)


@pytest.fixture(scope="module")
def merged(pruned) -> Path:
    """The pruned model with three heads restored, visibly."""
    assert test_merge.merged(pruned, pruned.parent)["passed"]
    return pruned.parent / "merged"


def plain(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


def test_pipeline_makes_the_same_text_and_what_is_saved_again_is_the_same(merged, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(merged), plain(merged)
    ids = tokenizer("Once", return_tensors="pt").input_ids
    made = model.generate(ids, do_sample=False, max_new_tokens=7, attention_mask=torch.ones_like(ids))
    text = pipeline("text-generation", model=str(merged), device="cpu")("Once", do_sample=False, max_new_tokens=7)
    assert text[0]["generated_text"] == tokenizer.decode(made[0], skip_special_tokens=True)
    model.save_pretrained(tmp_path / "again")
    before, after = Checkpoint(merged), Checkpoint(tmp_path / "again")
    assert before.headers.keys() == after.headers.keys() and any(n.endswith("o_proj.bias") for n in after.headers)
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.headers)


def test_lora_of_peft_trains_on_top_and_keeps_the_restored_biases(merged):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain(merged), config)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1.0)
    losses = []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    whole = model.merge_and_unload().model.layers[2].self_attn.o_proj
    assert torch.equal(whole.bias, plain(merged).model.layers[2].self_attn.o_proj.bias) and whole.bias.abs().max() > 0


def test_a_compiled_model_has_the_same_logits(merged):
    model = plain(merged)
    expected = logits(model)
    model.compile(backend="aot_eager")
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_eight_bits_keep_what_was_restored(merged, pruned):
    """Linear layers in int8, their biases as they are: the restored model stays nearer to itself than the pruned is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this will move to a package of its own
        small = torch.ao.quantization.quantize_dynamic(plain(merged), {torch.nn.Linear}, dtype=torch.qint8)
    bias = small.model.layers[2].self_attn.o_proj.bias()
    assert torch.equal(bias, plain(merged).model.layers[2].self_attn.o_proj.bias.detach())
    expected = logits(plain(merged))
    rounding, gap = ((other - expected).norm() for other in (logits(small), logits(plain(pruned))))
    assert rounding < gap / 3
