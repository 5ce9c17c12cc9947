"""`-plan`: its arithmetic against real tiny Llamas, and the flag itself."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import RestoreLCC_train
from models.contract import MethodInputs
from models.cpu_attention import cpu_attention
from models.restoration import Restoration
from tests.builders import LOPSIDED, compensation
from utils.common.cache import Cache
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.common.methods import Needs, Options
from utils.common.record import STAGES, RunRecord
from utils.losses import ResponseLoss
from utils.plan.command import count_samples, count_tasks, wikitext, workload
from utils.plan.costs import (
    Machine,
    Sequences,
    TaskTokens,
    Workload,
    forward_flops,
    layer_parameters,
    parameters,
    saved_bytes,
    training_bytes,
    update_bytes,
)
from utils.plan.counts import changed_weights, numbers
from utils.plan.disk import BESIDE, written
from utils.plan.machine import CARDS, find_card
from utils.plan.planner import plan

CONFIG = LlamaConfig(**LOPSIDED)
CARD = Machine("card", "cuda", 10**9, 1e12, 1e11, 0.5, 0.5)
CPU = Machine("cpu", "cpu", 10**9, 1e11, 1e11, 0.5, 0.5)


def work(**changes) -> Workload:
    values = {
        "dtype_bytes": 2,
        "stored_bytes": 4,
        "converted": True,
        "pruner": "wanda",
        "calibration": (8, 64),
        "samples": [(10, 40), (12, 30), (9, 50), (11, 25)] * 10,
        "valid": [(10, 30)] * 4,
        "probes": 20,
        "heads": 5,
        "epochs": 2.0,
        "batch_size": 4,
        "learned": 5 * (2 + 8 * 8 + 2 * 8),
        "trained": 5 * 2 * 8,
        "tasks": {"arc_easy": TaskTokens(100, 40, 2000, 15, 4, 60)},
    }
    return Workload(**{**values, **changes})


def stage(name: str, machine: Machine = CARD, **changes):
    (found,) = [row for row in plan(CONFIG, work(**changes), machine) if row.name.startswith(name)]
    return found


@pytest.mark.parametrize(
    "shape",
    [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 6}, {"attention_bias": True}, {"mlp_bias": True}],
)
def test_parameters_are_those_of_a_real_llama(shape):
    config = LlamaConfig(**{**LOPSIDED, **shape})
    assert parameters(config) == LlamaForCausalLM(config).num_parameters()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lowest", [0, 1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", [cpu_attention, nullcontext])
def test_saved_activations_are_those_that_autograd_saves(dtype, lowest, checkpointing, attention):
    rows, length = 2, 48
    layers, heads, width = CONFIG.num_hidden_layers, CONFIG.num_attention_heads, CONFIG.head_dim
    basis = torch.eye(width).expand(layers, heads, width, width)
    attach = compensation([(lowest, 1), (2, 4)], basis, seed=0).attach

    def saved(checkpointing: bool) -> int:
        kept = saved_by_autograd(attach, dtype, checkpointing, attention)
        return kept((rows, length)) - kept((1, 2)) + saved_bytes(CONFIG, dtype.itemsize, 1, 2, lowest)

    found = saved(checkpointing)
    if checkpointing:
        assert found < saved(False) / 2
        return
    on_card = attention is not cpu_attention
    expected = saved_bytes(CONFIG, dtype.itemsize, rows, length, lowest, on_card)
    # What grows with the batch; the restoration's own tensors do not.
    assert found == pytest.approx(expected, rel=0.02)


def saved_by_autograd(
    attach: Callable[[LlamaForCausalLM], object],
    dtype: torch.dtype,
    checkpointing: bool = False,
    attention: Callable = nullcontext,
) -> Callable[[tuple[int, int]], int]:
    """From a batch's shape to the bytes in the storages that the decoder's forward pass saves."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).to(dtype).train()
    attach(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def count(batch: tuple[int, int]) -> int:
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = tensor
            return tensor

        ids = torch.ones(batch, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # All but the last token is prompt: the loss itself keeps next to nothing.
            labels = ids.clone()
            labels[:, :-1] = -100
            with attention(model):
                loss = ResponseLoss(model)(ids, labels)["loss"]
        del loss
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    return count


UPDATES = [
    ("output_bias", {"apply_to": "all"}),
    ("lora", {}),
    ("dora", {}),
    ("masked_lora", {}),
    ("masked_dora", {}),
    ("masked_full", {}),
    ("lora", {"first": "admm_update"}),
    ("masked_lora", {"first": "flap_bias", "lora_targets": "q_proj,down_proj"}),
    ("output_bias", {"apply_to": "all", "first": "admm_update"}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("method", "options"), UPDATES)
def test_what_changed_weights_keep_is_what_autograd_saves(dtype, method, options):
    """A token's share within 2 %, or 6 % less where few matrices change; the rest within 0.6 byte a weight: rank 1 and
    biases are not little in so small a model, and of the first layer q, k and v need no gradient of their input."""
    flags = {**options, "lora_rank": 1, "dtype": dtype, "method": method}
    args = parse_arguments(["-base_model_name=a/b", "-pruned_model_path=a/c", *(f"-{k}={v}" for k, v in flags.items())])
    planned = workload(args, CONFIG, torch.float32, [(2, 9)], [], {})
    options = Options.of(args)
    inputs = MethodInputs(CONFIG, 1)
    # A closed form holds memory as what is trained at the same places does.
    closed = {"admm_update": "masked_full", "flap_bias": "output_bias"}.get(options.first)
    restoration = Restoration.start(method, replace(options, first=None), inputs)
    for name, some in Restoration.start(closed or "none", Options(), inputs).terms.items():
        restoration.terms.setdefault(name, []).insert(0, some[0].requires_grad_(False))
    saved = saved_by_autograd(restoration.attach, getattr(torch, dtype))
    small, large = (saved((rows, 48)) for rows in (2, 4))

    def kept(rows: int) -> int:
        size = planned.dtype_bytes
        return saved_bytes(CONFIG, size, rows, 48, -1) + update_bytes(CONFIG, planned, rows * 48)

    few = args.lora_targets
    assert (0.94 if few else 0.98) < (large - small) / (kept(4) - kept(2)) < 1.02
    weights = update_bytes(CONFIG, planned, 0)
    assert 2 * small - large == pytest.approx(weights, abs=0.6 * CONFIG.num_hidden_layers * layer_parameters(CONFIG))


@pytest.mark.parametrize("machine", [CARD, CPU])
def test_a_teacher_costs_one_more_pass_or_one_more_model_at_every_step(machine):
    plain, kept, beside = (stage("training", machine, teacher_bytes=bound) for bound in (None, 1e9, 0))
    work_of = work()
    once = sum(length for _, length in (*work_of.samples, *work_of.valid))
    # Padded as in training, in batches of like lengths: two epochs, and validation before and after each.
    student = plain.tokens - stage("training", machine, epochs=0).tokens // 2  # without asking the pruned model
    assert once <= kept.tokens - plain.tokens < 1.1 * once < beside.tokens - plain.tokens == student
    assert plain.seconds < kept.seconds < beside.seconds
    tokens = sum(length - prompt for prompt, length in (*work_of.samples, *work_of.valid))
    softmax, weights, states = 256 * 300 * 4, parameters(CONFIG) * 2, tokens * 24 * 2
    on_card = machine is CARD
    assert kept.bytes_on(machine) - plain.bytes_on(machine) == softmax + (0 if on_card else states)
    assert beside.bytes_on(machine) - plain.bytes_on(machine) == softmax + weights
    assert not on_card or kept.host_bytes - plain.host_bytes == states
    assert stage("training", machine, teacher_bytes=states) == kept
    assert stage("training", machine, teacher_bytes=states - 1) == beside


def test_what_is_not_trained_is_validated_too():
    validated, alone = stage("training", epochs=0), stage("training", epochs=0, valid=[])
    lengths = [length for _, length in work().valid]
    # The pruned model, and the restored one.
    assert sum(lengths) <= (validated.tokens - alone.tokens) / 2 <= len(lengths) * max(lengths)
    assert validated.seconds > alone.seconds


def test_checkpointing_needs_less_memory_and_more_time():
    plain, less = stage("training"), stage("training", gradient_checkpointing=True)
    assert less.device_bytes < plain.device_bytes
    assert less.seconds > plain.seconds


def test_training_memory_grows_with_the_batch_and_the_longest_sample_not_with_the_samples():
    plain = stage("training").device_bytes
    assert stage("training", samples=work().samples * 3).device_bytes == plain
    assert stage("training", batch_size=8).device_bytes > plain
    assert stage("training", samples=[*work().samples, (10, 90)]).device_bytes > plain


def test_disks_are_planned_from_what_is_written():
    config, heads = CONFIG, 3 * 6
    plain = work(pruner=None, tasks={}, probes=5, heads=4, learned=1000, trained=100)
    count, size = len(plain.samples), plain.dtype_bytes
    found = written(config, plain)
    assert found.cache["pruned"] == found.cache["scores"] == 0
    assert found.cache["activations"] == (2 * count + 2 * 5) * heads * 8 * size
    assert found.cache["components"] == heads * 4 * (8 * 8 + 4 * 8)
    # Two checkpoints kept while a third is written, each of values and two moments.
    assert found.output == parameters(config) * size + 4 * 1000 + 3 * 3 * 4 * 100 + BESIDE
    assert written(config, replace(plain, epochs=0)).output == found.output - 3 * 3 * 4 * 100
    assert written(config, plain, pruned=10**9).output - 10**9 == found.output - parameters(config) * size
    assert written(config, replace(plain, pruner="wanda")).cache["pruned"] == parameters(config) * size
    tokens = sum(length - prompt for prompt, length in (*plain.samples, *plain.valid))
    states = tokens * config.hidden_size * size
    taught = [written(config, replace(plain, teacher_bytes=bound)).cache["teacher"] for bound in (states, states - 1)]
    assert taught == [states, 0]
    assert "activations" not in written(config, replace(plain, heads=0)).cache


@pytest.mark.parametrize(
    ("method", "options", "learned", "trained"),
    [
        ("restorelcc", {}, 4 * (1 + 8 * 8 + 2 * 8), 4 * 2 * 8),
        ("output_bias", {}, 3 * 24, 3 * 24),
        ("lora", {"lora_rank": 2}, 2784, 2784),
        ("eora", {"lora_rank": 2}, 2784, 0),
        ("none", {"train_norms": True}, 7 * 24, 7 * 24),
    ],
)
def test_what_a_method_keeps_and_trains_is_counted(method, options, learned, trained):
    assert numbers(method, Options(**options), CONFIG, 4 * (method == "restorelcc")) == (learned, trained)


@pytest.mark.parametrize(
    ("method", "options", "matrices"),
    [
        ("restorelcc", {}, {}),
        ("masked_lora", {"lora_targets": "k_proj,down_proj", "lora_layers": "1-2"}, {(16, 24): 2, (24, 56): 2}),
        ("output_bias", {"first": "admm_update"}, {(48, 24): 6, (16, 24): 6, (24, 56): 9}),
    ],
)
def test_weights_of_the_matrices_that_a_method_may_change_are_counted(method, options, matrices):
    expected = sum(rows * columns * count for (rows, columns), count in matrices.items())
    assert changed_weights(method, Options(**options), CONFIG) == expected


def test_trained_weights_take_gradients_moments_what_they_are_fed_and_one_product_more():
    frozen, trained = (
        stage("training", CARD, changed=10**6, trained=10**6, learned=10**6, needs=needs)
        for needs in (Needs(), Needs(updates=True, weights=True))
    )
    nothing = stage("training", CARD, learned=0, trained=0)
    assert frozen.device_bytes - nothing.device_bytes == 4 * 4 * 10**6
    fed = 3 * (4 * 50) * (2 * 24 + 56)
    assert trained.device_bytes - frozen.device_bytes == 2 * (10**6 + fed)
    tokens = 2 * Sequences.by_count(work().samples, 4, grouped=True).tokens
    assert trained.seconds - frozen.seconds == pytest.approx(tokens * 2 * 10**6 / (1e12 * 0.5))


def test_the_largest_batch_decides_not_the_average():
    samples = [(2, 100), *[(2, 10)] * 39]
    seen = Sequences.by_count(samples, 4, grouped=True)
    assert (seen.rows, seen.longest) == (4, 100)
    assert seen.tokens < 40 * 100 / 2
    assert training_bytes(CONFIG, work(), seen, on_card=True) > saved_bytes(CONFIG, 2, 4, 100)


def test_a_card_holds_a_whole_chunk_of_logits_and_a_cpu_the_rows_it_fills():
    seen = Sequences.by_count([(2, 10)] * 8, 4, grouped=True)
    assert seen.scored_at_once == 4 * 8
    wider = LlamaConfig(**{**LOPSIDED, "vocab_size": LOPSIDED["vocab_size"] + 1})
    for on_card, rows in ((True, 256), (False, 32)):
        more = training_bytes(wider, work(), seen, on_card) - training_bytes(CONFIG, work(), seen, on_card)
        assert more == rows * (4 + 2)


def test_kernels_of_half_precision_stay_from_the_first_activations_on():
    here = Machine("here", "cpu", 2**40, 1e12, 1e11, 0.5, 0.5)
    more = replace(here, kernels=here.kernels + 1000)
    for dtype_bytes, expected in ((2, [0, 0, 0] + 6 * [1000]), (4, 9 * [0])):
        stages = [plan(CONFIG, work(dtype_bytes=dtype_bytes), machine) for machine in (more, here)]
        assert [a.host_bytes - b.host_bytes for a, b in zip(*stages, strict=True)] == expected


def test_activations_and_training_go_forward_at_their_own_rate():
    here = Machine("here", "cpu", 2**40, 1e12, 1e11, 0.4, 0.4)
    slower = replace(here, own_forward_share=0.2)
    for name, changes in (("dense", {"tasks": {}}), ("training", {})):
        assert stage(name, slower, **changes).seconds > stage(name, here, **changes).seconds
    assert stage("restored", slower).seconds == stage("restored", here).seconds > 0


def test_batches_hold_a_budget_of_padded_tokens():
    seen = Sequences.by_budget([10, 30, 20, 20], 60)
    assert seen.tokens == 2 * 30 + 2 * 20
    assert seen.pairs == 2 * 30**2 + 2 * 20**2
    assert (seen.rows, seen.longest) == (2, 30)


def test_forward_operations_are_twice_the_weights_a_token_and_attention():
    # The counter knows no CPU kernel of fused attention; plain attention is the same products.
    model = LlamaForCausalLM(LlamaConfig(**LOPSIDED, attn_implementation="eager"))
    tokens = 32
    with FlopCounterMode(display=False) as counter:
        model.model(torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    expected = forward_flops(CONFIG, Sequences(tokens, tokens**2, masked=True))
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_given_pruned_checkpoint_costs_no_pruning():
    assert stage("pruned checkpoint", pruner=None).seconds == 0
    assert stage("pruned checkpoint").seconds > 0
    assert stage("pruned checkpoint", pruner="sparsegpt").seconds > stage("pruned checkpoint").seconds


def test_pruning_on_a_card_holds_one_layer_there_and_the_model_on_the_host():
    weights = 2 * parameters(CONFIG)
    config = LlamaConfig(**{**LOPSIDED, "num_hidden_layers": 30})
    few, many = (plan(shape, work(), CARD)[1] for shape in (CONFIG, config))
    assert few.device_bytes == many.device_bytes
    assert many.host_bytes - few.host_bytes > 5 * weights


def test_all_is_the_hosts_memory_on_a_cpu():
    for row in plan(CONFIG, work(), CPU):
        assert row.device_bytes is None
        assert row.bytes_on(CPU) == row.host_bytes >= CPU.baseline


@pytest.mark.parametrize("machine", [CPU, CARD])
def test_the_stages_are_those_of_a_run(machine):
    stages = plan(CONFIG, work(), machine)
    assert [(row.key, row.name) for row in stages] == [(stage.key, stage.name) for stage in STAGES]


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("h100-80gb", "H100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 3060", None),
        ("H100", None),
        ("cpu (2 threads)", None),
    ],
)
def test_a_card_is_found_by_its_own_name_and_by_its_drivers(name, card):
    assert find_card(name) == card
    assert all(find_card(known) == known for known in CARDS)


def test_samples_that_spec_task_does_not_read_are_told(capsys):
    flags = ["-spec_task", "rte", "-num_train_samples", "10"]
    count_samples(parse_arguments(flags), None)
    assert "not used" not in capsys.readouterr().out
    count_samples(parse_arguments([*flags, "-data_path", "mine.jsonl", "-valid_data_path", "v.jsonl"]), None)
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert told == [
        f"-{name} is not used: -spec_task trains on rte's own training split"
        for name in ("data_path", "valid_data_path")
    ]


def test_limits_and_known_tasks_are_counted():
    tasks, unknown = count_tasks(parse_arguments(["-eval_tasks", "paper,bundled,mmlu", "-eval_limit", "30"]))
    assert len(tasks) == 7 + 1 + 4 and unknown == ["mmlu"]
    assert tasks["boolq"].rows == 30
    assert wikitext(3, 512).tokens < wikitext(None, 512).tokens
    assert wikitext(None, 512).tokens > 2 * 300_000


def test_samples_out_of_reach_are_taken_as_long_as_alpacas():
    args = parse_arguments(["-base_model_name", "llama_7B", "-max_length", "300"])
    samples, valid, said = count_samples(args, None)
    assert (len(samples), len(valid)) == (2000, 250)
    assert max(length for _, length in samples) == 300
    assert "not at hand" in said


@pytest.fixture
def shape_only(tmp_path):
    """A folder that holds a configuration and nothing else."""
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


def run(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["RestoreLCC_train.py", *arguments])
    RestoreLCC_train.main()


def test_the_flag_needs_a_configuration_only_and_writes_nothing(monkeypatch, capsys, tmp_path, shape_only):
    output, cache = tmp_path / "out", tmp_path / "cache"
    before = sorted(tmp_path.rglob("*"))
    flags = ["-base_model_name", str(shape_only), "-eval_tasks", "paper", "-output_dir", str(output)]
    flags += ["-cache_dir", str(cache), "-calib_length", "128"]
    for card in ("A100-40GB", "here"):
        run(monkeypatch, [*flags, "-device", "cpu", "-plan", card])
        printed = capsys.readouterr().out
        assert "training: restorelcc, 4 heads" in printed
        assert "all stages fit" in printed
        assert "assumed" in printed
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (36, "try -gradient_checkpointing, or -batch_size"),
        (80, "try several GPUs, accelerate launch --use_fsdp --fsdp_version 2"),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(monkeypatch, capsys, tmp_path, layers, said):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": layers, "vocab_size": 32000}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps(LlamaConfig(**sizes, **heads).to_dict()))
    run(monkeypatch, ["-base_model_name", str(tmp_path), "-plan", "h100-80gb", "-calib_length", "128"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"training: restorelcc, {layers * 16} heads" in printed
    assert f"training: does not fit; {said}" in printed
    assert "NO" in printed


def test_a_stage_records_what_the_cache_answered(tmp_path):
    for again in (False, True):
        cache = Cache(tmp_path)
        record = RunRecord(cache.reused)
        with record.stage("dense"):
            cache.make("scores", {"a": 1}, lambda folder: None)
        with record.stage("pruned"):
            cache.make("activations", {"b": 2}, lambda folder: None)
        assert [stage["reused"] for stage in record.stages] == [["scores"] * again, ["activations"] * again]


def test_a_stage_has_its_number_and_name_from_its_place_and_its_detail_beside(capsys):
    record = RunRecord()
    with record.stage("train"):
        record.tell("b of 3 heads")
    with record.stage("samples"):
        pass
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines == ["[7/9] training", "[1/9] reading samples, tokenizer and tasks"]
    assert [(stage["name"], stage["detail"]) for stage in record.stages] == [
        ("training", "b of 3 heads"),
        ("reading samples, tokenizer and tasks", ""),
    ]
    with pytest.raises(KeyError), record.stage("no such stage"):
        pass


def test_an_unknown_card_is_one_line_that_names_the_flag(monkeypatch, capsys, shape_only):
    with pytest.raises(UserError, match=r"^-plan: unknown card 'H900'; give here or one of") as caught:
        run(monkeypatch, ["-base_model_name", str(shape_only), "-plan", "H900", "-calib_length", "128"])
    assert "\n" not in str(caught.value)
    assert all(card in str(caught.value) for card in CARDS)


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^-base_model_name: cannot get 'nobody/nothing' from the model hub"):
        run(monkeypatch, ["-base_model_name", "nobody/nothing", "-plan", "L4"])


def test_a_method_costs_what_it_needs():
    def seconds(*more: str) -> dict[str, float]:
        args = parse_arguments(["-base_model_name", "owner/model", "-pruned_model_path", "owner/pruned", *more])
        samples = [(30, 170)] * args.num_train_samples
        target = Machine("cpu", "cpu", 10**12, 1e11, 1e11, 0.5, 0.5)
        work = workload(args, CONFIG, torch.float32, samples, samples[:9], {})
        return {stage.key: stage.seconds for stage in plan(CONFIG, work, target)}

    heads, bias, flap, blocks, nothing = (
        seconds("-method", name) for name in ("restorelcc", "output_bias", "flap_bias", "reconstruct", "none")
    )
    assert blocks["train"] > 5 * flap["train"]  # ten epochs, each forward and twice that backward
    assert heads["rank"] > 0 and heads["negatives"] > 0 and bias["rank"] == bias["negatives"] == 0
    assert bias["dense"] < heads["dense"] and bias["pruned"] < heads["pruned"]
    lofit, scaled = seconds("-method", "lofit"), seconds("-head_selection", "lofit")
    assert lofit["dense"] == bias["dense"] and lofit["negatives"] == 0
    assert 0.7 * bias["train"] < lofit["rank"] < bias["train"] < scaled["rank"]
    assert scaled["dense"] > bias["dense"] and scaled["negatives"] == 0
    assert bias["train"] > 10 * nothing["train"] and flap["dense"] == bias["dense"]
    assert flap["train"] > 2 * nothing["train"]
    once, twice, both = (
        seconds("-method", *more)["train"] - nothing["train"]
        for more in (("flap_bias",), ("flap_bias", "-calib_samples", "256"), ("eora", "-first", "flap_bias"))
    )
    assert twice == pytest.approx(2 * once, rel=1e-2) and both == pytest.approx(2 * once, rel=1e-2)
    started = seconds("-method", "output_bias", "-bias_start", "closed_form")["train"] - bias["train"]
    assert started == pytest.approx(once, rel=1e-6)
