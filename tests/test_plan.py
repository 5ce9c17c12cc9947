"""What -plan prints follows from the model's shapes, counts of tokens and the machine; nothing is read or written."""

import json
import sys
from dataclasses import replace

import pytest
from transformers import LlamaConfig

import RestoreLCC_train
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.methods import METHODS
from utils.common.record import STAGES
from utils.plan import CARDS, HERE, Batches, Machine, Plan, count_samples, count_tasks, find_card

LOPSIDED = LlamaConfig(
    hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    head_dim=8, vocab_size=300,
)  # fmt: skip
CPU = Machine("cpu", False, 10**12, 1e11, 1e11, 0.5, 0.5, "")
SAMPLES = [(30, 170)] * 200


def plan(*flags: str, machine: Machine = CPU, config: LlamaConfig = LOPSIDED) -> Plan:
    args = parse_arguments(["-base_model_name=a/b", "-pruned_model_path=a/c", *flags])
    return Plan(args, config, machine, SAMPLES, SAMPLES[:9], count_tasks(args)[0])


def by_key(*flags: str, **how) -> dict:
    return dict(zip([stage.key for stage in STAGES], plan(*flags, **how).stages(), strict=True))


def test_batches_are_of_similar_lengths_and_count_their_padding():
    seen = Batches.of([(4, 10), (2, 30), (8, 20), (9, 20)], size=2)
    assert (seen.tokens, seen.pairs) == (2 * 30 + 2 * 20, 2 * 30**2 + 2 * 20**2)
    assert (seen.rows, seen.longest, seen.scored, seen.scored_at_once) == (2, 30, 6 + 28 + 12 + 11, 28 + 12)
    assert Batches.of([(4, 10)] * 7, budget=30).rows == 3


def test_what_a_method_does_not_need_costs_nothing():
    heads, bias, nothing = (by_key("-method", name) for name in ("restorelcc", "output_bias", "none"))
    assert heads["rank"].seconds > 0 == bias["rank"].seconds and heads["negatives"].seconds > 0
    assert heads["dense"].tokens > bias["dense"].tokens
    assert bias["train"].seconds > 10 * nothing["train"].seconds
    assert by_key("-method", "lofit")["rank"].seconds == pytest.approx(by_key("-method", "lofit")["train"].seconds)
    once, both = (
        by_key("-method", "none", *more)["train"] for more in (("-first", "flap_bias"), ("-first", "reconstruct"))
    )
    assert nothing["train"].seconds < once.seconds < both.seconds


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan(method):
    assert all(stage.seconds >= 0 and stage.host_bytes > 0 for stage in plan("-method", method).stages())


def test_trained_numbers_are_those_of_the_methods():
    # q, k, v, o, gate, up, down: (out, in)
    shapes = [(48, 24), (16, 24), (16, 24), (24, 48), (56, 24), (56, 24), (24, 56)]
    outputs = sum(out for out, _ in shapes)
    lora = 8 * sum(map(sum, shapes))
    expected = {
        "restorelcc": 5 * 8 * 2, "bias_only": 5 * 8, "output_bias": 3 * 24, "norms_biases": 3 * outputs,
        "lora": 3 * lora, "masked_dora": 3 * (lora + outputs), "masked_full": 3 * sum(a * b for a, b in shapes),
    }  # fmt: skip
    found = {name: plan("-method", name, "-use_topk_heads", "5").trained for name in expected}
    assert found == expected


def test_memory_and_time_grow_with_what_is_asked_for():
    less, more = by_key("-batch_size", "4")["train"], by_key("-batch_size", "16")["train"]
    assert less.host_bytes < more.host_bytes
    assert by_key("-gradient_checkpointing")["train"].host_bytes < by_key()["train"].host_bytes
    assert by_key("-num_epoch", "6")["train"].seconds > 1.8 * by_key("-num_epoch", "3")["train"].seconds
    assert by_key(machine=replace(CPU, flops=2e11))["dense"].seconds < by_key()["dense"].seconds
    card = by_key(machine=replace(CPU, on_card=True))["train"]
    assert card.card_bytes and by_key()["train"].card_bytes is None


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 3060", None),
        ("cpu (2 threads)", None),
    ],
)
def test_a_card_is_found_by_its_own_name_and_by_its_drivers(name, card):
    assert find_card(name) == card
    assert all(find_card(known) == known for known in CARDS)


def test_limits_and_known_tasks_are_counted():
    args = parse_arguments(["-eval_tasks", "paper,bundled,mmlu", "-eval_limit", "30"])
    tasks, unknown = count_tasks(args)
    assert len(tasks) == 7 + 1 + 4 and unknown == ["mmlu"]
    assert sum(task.rows == 30 for task in tasks) == 11


def test_samples_out_of_reach_are_taken_as_long_as_alpacas():
    args = parse_arguments(["-base_model_name", "llama_7B", "-max_length", "300"])
    samples, valid, said = count_samples(args, None)
    assert (len(samples), len(valid), max(length for _, length in samples)) == (
        2000,
        250,
        300,
    ) and "not at hand" in said


def run(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["RestoreLCC_train.py", *arguments])
    RestoreLCC_train.main()


@pytest.mark.parametrize("card", ["A100-40GB", HERE])
def test_the_flag_needs_a_configuration_only_and_writes_nothing(monkeypatch, capsys, tmp_path, card):
    (tmp_path / "config.json").write_text(json.dumps(LOPSIDED.to_dict()))
    before = sorted(tmp_path.rglob("*"))
    flags = ["-base_model_name", str(tmp_path), "-eval_tasks", "paper", "-output_dir", str(tmp_path / "out")]
    run(
        monkeypatch,
        [*flags, "-cache_dir", str(tmp_path / "cache"), "-calib_length", "128", "-device", "cpu", "-plan", card],
    )
    printed = capsys.readouterr().out
    assert "training: restorelcc, 4 heads" in printed and "all stages fit" in printed and "assumed" in printed
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("layers", "said"),
    [(36, "try -gradient_checkpointing, or -batch_size"), (90, "try several GPUs, accelerate launch --use_fsdp")],
)
def test_what_does_not_fit_is_said_with_what_would(monkeypatch, capsys, tmp_path, layers, said):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": layers, "vocab_size": 32000}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps(LlamaConfig(**sizes, **heads).to_dict()))
    run(monkeypatch, ["-base_model_name", str(tmp_path), "-plan", "h100-80gb", "-calib_length", "128"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"training: does not fit; {said}" in printed and "NO" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-base_model_name", "embedded", "-plan", "H900"], "^-plan: unknown card 'H900'; give here or one of"),
        (["-base_model_name", "nobody/nothing", "-plan", "L4"], "^-base_model_name: cannot get 'nobody/nothing' from"),
    ],
)
def test_what_cannot_be_planned_is_one_line(monkeypatch, flags, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, flags)
