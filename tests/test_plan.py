"""What -plan prints follows from the model's shapes, counts of tokens and the machine; nothing is read or written."""

import json
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from tests.builders import LOPSIDED, mistake
from tests.runs import in_words, run
from utils.common.flags import parse_arguments
from utils.common.methods import METHODS
from utils.common.record import STAGES
from utils.plan import HERE, Machine, Plan, Texts, count_samples, count_tasks

CPU = Machine("cpu", False, 10**12, 5e10, 5e10, 5e10, "")
SAMPLES = [(30, 170)] * 200
MATRICES = 3 * (2 * 24 * 48 + 2 * 24 * 16 + 3 * 24 * 56)  # linear weights of three layers


def plan(*flags: str, machine: Machine = CPU, layers: int = 3) -> Plan:
    config = LlamaConfig(**LOPSIDED | {"num_hidden_layers": layers})
    args = parse_arguments(["-base_model_name=a/b", "-pruned_model_path=a/c", *flags])
    return Plan(args, config, machine, SAMPLES, SAMPLES[:9], count_tasks(args)[0])


def by_key(*flags: str, **how) -> dict:
    return dict(zip([stage.key for stage in STAGES], plan(*flags, **how).stages(), strict=True))


def test_every_method_has_a_plan_and_what_it_does_not_need_costs_nothing():
    for method in METHODS:
        assert all(stage.seconds >= 0 and stage.host_bytes > 0 for stage in plan("-method", method).stages()), method
    heads, bias, nothing = (by_key("-method", name) for name in ("restorelcc", "output_bias", "none"))
    assert heads["rank"].seconds > 0 == bias["rank"].seconds and heads["negatives"].seconds > 0
    assert heads["dense"].seconds > bias["dense"].seconds
    read = [heads[key].host_bytes - bias[key].host_bytes for key in ("dense", "pruned")]
    assert read == [3 * 200 * 3 * 48 * 6, 200 * 3 * 48 * 6]  # z of every sample, in the dense model of both answers too
    assert bias["train"].seconds > 10 * nothing["train"].seconds
    *_, first, second, _, _ = replace(plan("-method", "lofit"), valid=[]).stages()
    assert first.seconds == pytest.approx(second.seconds)
    # The first step has no closed form, no teacher and no validation.
    more = by_key("-method", "lofit", "-first", "admm_update", "-loss", "distill")
    assert more["rank"] == first and more["train"].seconds > second.seconds
    assert by_key("-method", "lofit")["dense"] == nothing["dense"]  # it chooses heads without their activations
    once, both = (by_key("-method", "none", "-first", form)["train"] for form in ("flap_bias", "reconstruct"))
    assert nothing["train"].seconds < once.seconds < both.seconds
    assert both.host_bytes - once.host_bytes == 8 * MATRICES  # what it found for each, twice in fp32
    kept, teacher = (by_key("-method", "lora", "-loss", loss)["train"] for loss in ("response", "distill"))
    assert teacher.seconds > kept.seconds and teacher.host_bytes - kept.host_bytes > 209 * 140 * 24 * 2


def test_a_steps_memory_and_operations_are_those_of_its_tensors():
    # A token of a layer: two norms' inputs in fp32; gate, SiLU of it, up; q and z; k and v. 16 bit, 8 samples of 170.
    token, lora = 2 * 4 * 24 + 2 * (3 * 56 + 2 * 48 + 2 * 16), 2 * (2 * 24 + 56)
    outputs = 48 + 2 * 16 + 24 + 2 * 56 + 24
    low_rank = 8 * (2 * (24 + 48) + 2 * (24 + 16) + 3 * (24 + 56))
    constants = plan("-method", "output_bias").training_bytes()
    more = {
        "lora": 3 * 8 * 170 * lora + 16 * 3 * (low_rank - outputs),
        "dora": 3 * 8 * 170 * (lora + 2 * outputs) + 16 * 3 * (low_rank - outputs),
        "masked_lora": 3 * 8 * 170 * lora + 16 * 3 * (low_rank - outputs),
        "masked_full": 3 * 8 * 170 * lora + 16 * (MATRICES - 3 * outputs) + 3 * MATRICES,
    }
    assert {name: plan("-method", name).training_bytes() - constants for name in more} == pytest.approx(more)
    assert plan("-method", "output_bias", "-train_norms").training_bytes() - constants == 3 * 8 * 170 * 2 * 24 * 2
    one_layer, two = (plan("-method", "output_bias", layers=n) for n in (1, 2))
    assert two.training_bytes() - one_layer.training_bytes() == 8 * 170 * token + 16 * outputs
    uneven = replace(plan("-method", "output_bias"), samples=[(30, 170)] * 100 + [(30, 85)] * 100)
    assert uneven.training_bytes() - constants == 0.25 * 3 * 8 * 170 * token
    assert plan().operations(Texts(5, 10, 4)) == 5 * (10 * (2 * MATRICES + 2 * 3 * 48 * 10) + 2 * 24 * 300 * 4)


def test_memory_and_time_grow_with_what_is_asked_for():
    less, more = by_key("-batch_size", "4")["train"], by_key("-batch_size", "16")["train"]
    assert less.host_bytes < more.host_bytes
    assert by_key("-gradient_checkpointing")["train"].host_bytes < by_key()["train"].host_bytes
    assert by_key("-num_epoch", "6")["train"].seconds > 1.8 * by_key("-num_epoch", "3")["train"].seconds
    assert by_key(machine=CPU._replace(inference=2e11))["dense"].seconds < by_key()["dense"].seconds
    slow = CPU._replace(fp32=5e9)  # products of a closed form's inputs are of fp32
    fast, slower = (by_key("-method", "admm_update", machine=each)["train"].seconds for each in (CPU, slow))
    assert slower > 2 * fast
    on_card = {"machine": CPU._replace(on_card=True)}
    assert by_key(**on_card)["train"].card_bytes > 0 == by_key()["train"].card_bytes
    # The weight with ADMM's change, or the change in fp32.
    for method, size in (("masked_lora", 2), ("masked_full", 4)):
        begun, own = (by_key("-method", method, "-first", name, **on_card)["train"] for name in ("admm_update", "none"))
        assert begun.card_bytes - own.card_bytes == size * MATRICES
    *two, nothing = (by_key("-method", name, **on_card)["train"].card_bytes for name in ("admm_update", "eora", "none"))
    merged = 2 * MATRICES + 36 * 24 * 56  # all weights, and one of them in fp64
    assert [each - nothing for each in two] == [merged] * 2
    short, long = (by_key("-loss", "distill", "-calib_length", length)["train"] for length in ("64", "512"))
    assert short.seconds < long.seconds and short.host_bytes < long.host_bytes
    held = [plan("-loss", "distill", "-calib_length", n, **on_card).training_bytes() for n in ("64", "1360", "1361")]
    assert held[0] == held[1] < held[2]  # of a step's samples and its text one is there at a time
    assert CPU.fits(0.95e12) and not CPU.fits(0.96e12) and not CPU._replace(on_card=True).fits(0, 0.96e12)


def test_limits_and_known_tasks_are_counted_and_samples_out_of_reach_taken_as_long_as_alpacas():
    tasks, unknown = count_tasks(parse_arguments(["-eval_tasks", "paper,bundled,mmlu", "-eval_limit", "30"]))
    assert len(tasks) == 7 + 1 + 4 and unknown == ["mmlu"] and sum(task.rows == 30 for task in tasks) == 11
    samples, valid, said = count_samples(parse_arguments(["-base_model_name", "llama_7B", "-max_length", "300"]), None)
    assert len(samples) == 2000 and len(valid) == 250 and max(length for _, length in samples) == 300
    assert "no local data and tokenizer" in said


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """What -plan prints for a folder that holds a configuration alone, spaces of any kind as one."""

    def print_plan(config: dict, **flags) -> str:
        (tmp_path / "config.json").write_text(json.dumps(LlamaConfig(**config).to_dict()))
        run(monkeypatch, in_words({"base_model_name": tmp_path, "calib_length": 128, **flags}))
        return " ".join(capsys.readouterr().out.split())

    return print_plan


def test_the_flag_needs_a_configuration_only_and_writes_nothing(printed, tmp_path):
    output = {"output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache"}
    for card in ("A100-40GB", HERE):
        told = printed(LOPSIDED, eval_tasks="paper", device="cpu", plan=card, **output)
        assert "training: restorelcc, 4 heads" in told and "all stages fit" in told and "assumed" in told
    assert [path.name for path in tmp_path.rglob("*")] == ["config.json"]


def test_what_does_not_fit_is_said_with_what_would(printed):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000}
    sizes |= {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    more = "take more memory, or several GPUs"
    for layers, ranks, trains in ((36, "lower -num_train_samples", "lower -batch_size"), (90, more, more)):
        sizes["num_hidden_layers"] = layers
        told = printed(sizes, plan="h100-80gb")
        assert f"training: does not fit; {trains}" in told and "NO" in told
        assert f"training: does not fit; {more}" in printed(sizes, plan="H100-80GB", method="masked_full")
        assert f"ranking: does not fit; {ranks}" in printed(sizes, plan="H100-80GB", method="lofit")


def test_what_cannot_be_planned_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for words, says in (
        ("embedded -plan H900", "-plan: unknown card 'H900'; give here or one of"),
        ("embedded -plan=", "-plan: unknown card ''; give here or one of"),
        ("nobody/nothing -plan L4", "-base_model_name: cannot get 'nobody/nothing' from"),
        ("embedded -plan L4 -pruned_model_path a/b -recipe biases -calib_length 9999", "-calib_length: 9999 tokens"),
        ("embedded -plan L4 -method eora -loss distill", "-loss: distill is a loss of training"),
    ):
        mistake(f"^{says}", run, monkeypatch, ["-base_model_name", *words.split()])
