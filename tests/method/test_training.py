"""The loss is on response tokens only, and the Trainer trains β and b alone, resumably."""

import copy
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import chain, count, product
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import LlamaForCausalLM

from models.cpu_attention import NAME, cpu_attention
from models.loading import load_model, load_tokenizer
from tests.builders import SAMPLES, batch, learned_in, masks_of, save_tiny_llama, trained, zeroed
from utils.common.errors import Stopped, UserError
from utils.common.files import MANIFEST, workspace
from utils.common.flags import parse_arguments
from utils.evaluation.token_scores import token_scores
from utils.losses import IGNORED, ResponseLoss
from utils.prompts import Encoded, encode_all
from utils.stages.train import settings as of_flags
from utils.training import (
    UNFINISHED,
    Collator,
    TrainingResult,
    TrainingSettings,
    _OneDevice,
    _ProcessBatches,
    _RestorationTrainer,
    _Watch,
    response_loss,
    train,
    validate,
)


@pytest.fixture
def model(make_tiny_llama):
    return load_model(make_tiny_llama(zeros=0.5), torch.float32, "cpu", "-p")


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"lr": 1e-2, "epochs": 2, "batch_size": 4, **changes})


def attached(folder: Path, dtype: torch.dtype = torch.float32, restoration=None) -> LlamaForCausalLM:
    return (restoration or trained()).attach(load_model(folder, dtype, "cpu", "-p"))


def encoded(model_folder, number: int) -> list[Encoded]:
    tokenizer = load_tokenizer(model_folder, "-b")
    prompts, responses = [f"say {n}" for n in range(number)], ["abc " * (n % 5 + 1) for n in range(number)]
    return encode_all(tokenizer, prompts, responses, 60)[0]


def test_a_model_that_is_not_trained_has_the_validation_loss_that_training_would_begin_with(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    samples, model = encoded(folder, 6), attached(folder)
    found = validate(model, samples[:3])
    after = train(model, samples, samples[:3], settings(epochs=1), "cpu", tmp_path)
    assert found.history == [row for row in after.history if row["step"] == 0]
    assert found.valid_rows != after.valid_rows and len(found.valid_rows) == 3
    assert validate(model, []) == TrainingResult()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="no finite number before any training"):
        validate(model, samples)


def test_labels_are_the_response_and_nothing_else():
    no = IGNORED
    wanted = [[no, no, 77, 30, no, no, no], [no, no, no, 3, 4, 60, 61], [no, 7, 9, no, no, no, no]]
    assert batch(SAMPLES)["labels"].tolist() == wanted


def test_loss_and_gradient_equal_those_of_full_logits_of_unpadded_samples(model, monkeypatch):
    monkeypatch.setattr("utils.losses.CHUNK", 3)
    parameters = [p for p in trained().attach(model).parameters() if p.requires_grad]
    nats = []
    for sample in SAMPLES:
        logits = model(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        places = range(sample.prompt_length, len(sample.ids))
        nats.append(torch.stack([-logits[place - 1, sample.ids[place]] for place in places]))
    mean, seen = torch.cat(nats).mean(), masks_of(model)
    loss = ResponseLoss(model)(**batch(SAMPLES))["loss"]
    assert float(loss.detach()) == pytest.approx(float(mean.detach()), abs=1e-5)
    assert seen == [None] * 3  # rows are padded, and need no mask
    for mine, other in zip(*(torch.autograd.grad(each, parameters) for each in (loss, mean)), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7)
    of_twenty = ResponseLoss(model)(**batch(SAMPLES), num_items_in_batch=20)["loss"]
    assert float(of_twenty.detach()) == pytest.approx(float(mean.detach()) * 8 / 20, abs=1e-5)
    rows = response_loss(ResponseLoss(model).eval(), SAMPLES, 257, "").float()
    assert torch.allclose(rows, torch.tensor([[float(own.detach().sum()), len(own)] for own in nats]), atol=1e-4)


@pytest.mark.filterwarnings("ignore:.pin_memory.")
def test_training_with_its_own_attention_is_the_same_training(make_tiny_llama, tmp_path, monkeypatch):
    folder = make_tiny_llama(zeros=0.5)
    samples, histories = encoded(folder, 10), []
    # Under FSDP a model that is trained on cards is on the CPU when training begins; here it stays there.
    monkeypatch.setattr("utils.training._OneDevice", lambda place, **more: _OneDevice(place="cpu", **more))
    for attention, device in ((cpu_attention, "cpu"), (nullcontext, "cpu"), (cpu_attention, "cuda:0")):
        used, model = [], attached(folder)
        monkeypatch.setattr("utils.training.cpu_attention", attention)
        model.model.layers[1].self_attn.register_forward_hook(
            lambda module, *_, used=used: used.append(module.config._attn_implementation)
        )
        result = train(model, samples, samples[:3], settings(), device, tmp_path / str(len(histories)))
        assert set(used) == ({"sdpa"} if histories else {NAME})
        histories.append([row.get("loss", row.get("valid_loss")) for row in result.history])
    for other in histories[1:]:
        assert other == pytest.approx(histories[0], rel=1e-4)


def test_training_is_on_the_device_that_was_named(make_tiny_llama, tmp_path, monkeypatch):
    """The meta device stands for one that nothing chooses by itself, and that must do without fp64."""
    places = []

    def train_nothing(self, resume_from_checkpoint):
        places.extend([self.args.device, self.accelerator.device, *{p.device for p in self.model.parameters()}])
        assert self.args.ddp_broadcast_buffers is False
        self.evaluate()

    monkeypatch.setattr(_RestorationTrainer, "train", train_nothing)
    monkeypatch.setattr("utils.training.response_loss", lambda *_: torch.tensor([[3.0, 2.0]], dtype=torch.float64))
    folder = make_tiny_llama()
    samples = encoded(folder, 4)
    result = train(attached(folder), samples, samples, settings(), "meta", tmp_path)
    assert places == [torch.device("meta")] * 3
    assert [row["valid_loss"] for row in result.history] == [1.5]


def test_the_second_gpu_is_not_taken_for_the_first(tmp_path, monkeypatch):
    """Stand-ins for a machine with two GPUs."""
    current = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda place: current.append(str(place)))
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    arguments = _OneDevice(place="cuda:1", output_dir=str(tmp_path))
    assert arguments.device == PartialState().device == torch.device("cuda:1")
    assert current[-1] == "cuda:1"
    assert arguments.n_gpu == 1
    PartialState._reset_state()


class WithoutFp64(Tensor):
    """A tensor of a device that has no fp64, as Apple's, until it is brought to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function in (Tensor.cpu, Tensor.__float__, Tensor.item, Tensor.tolist):
            return function(arguments[0].as_subclass(Tensor))
        found = super().__torch_function__(function, types, arguments, options or {})
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return found


def test_losses_and_scores_are_summed_on_devices_without_fp64(model):
    loss = torch.nn.Linear(1, 1, device="meta")  # its inputs are where no number can be read
    loss.forward = lambda **_: {"tokens": torch.full((1, 8), 0.5).as_subclass(WithoutFp64)}
    summed = response_loss(loss, SAMPLES, 257, "")
    assert summed.dtype == torch.float64 and summed.sum(0).tolist() == [4, 8]
    hidden, targets = torch.randn(5, 24), torch.arange(5)
    expected = token_scores(model, hidden, targets)
    model.get_output_embeddings().register_forward_hook(lambda *given: given[2].as_subclass(WithoutFp64))
    found = token_scores(model, hidden, targets)
    assert found[0].dtype == torch.float64
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_lowers_the_loss_and_moves_only_beta_and_b(make_tiny_llama, tmp_path, checkpointing):
    folder = make_tiny_llama(zeros=0.5)
    model, samples = attached(folder, restoration=zeroed(trained())), encoded(folder, 20)
    before = {name: p.clone() for name, p in model.named_parameters()}
    how = settings(gradient_checkpointing=checkpointing)
    result = train(model, samples, samples[:6], how, "cpu", tmp_path)
    rates = [row["learning_rate"] for row in result.history if "loss" in row]
    assert rates == pytest.approx([0.01 * (1 - step / 10) for step in range(10)])
    losses = [row["valid_loss"] for row in result.history if "valid_loss" in row]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    assert [row["epoch"] for row in result.history if "valid_loss" in row] == [0.0, 1.0, 2.0]
    nats, tokens = (sum(column) for column in zip(*result.valid_rows, strict=True))
    assert losses[2] == nats / tokens and [row[1] for row in result.valid_rows] == [
        len(sample.ids) - sample.prompt_length for sample in samples[:6]
    ]
    assert result.tokens == 2 * sum(len(s.ids) for s in samples) <= result.padded_tokens
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.rsplit(".", 1)[1] for name in moved} == {"magnitudes", "component"}


@contextmanager
def before_each_pass(do: Callable[[bool], object]) -> Iterator[None]:
    """Within it, `do` is called before each forward pass, with whether that trains."""
    original = ResponseLoss.forward

    def forward(self, *args, **kwargs):
        do(self.training)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResponseLoss, "forward", forward)
        yield


class Cut:
    """A training of 12 samples in epochs of 3 steps, and the same one cut off and continued."""

    output: Path
    """Where it is cut off."""

    def __init__(self, folder: Path, place: Path, grouped: bool, epochs: float):
        self.folder, self.how = folder, settings(group_by_length=grouped, epochs=epochs)
        self.samples = encoded(folder, 12)
        self.whole, self.complete = self.train(place)

    def train(self, place: Path, belongs: str = "this"):
        model = attached(self.folder, restoration=zeroed(trained()))
        return model, train(model, self.samples, self.samples[:4], self.how, "cpu", place, belongs=belongs)

    def cut(self, call: int, event: Callable[[], None], ends: type[BaseException]) -> None:
        """Train until the given forward pass, at which the event happens, and the training ends by that exception."""
        passes = count(1)
        with before_each_pass(lambda _: next(passes) == call and event()), pytest.raises(ends):
            self.train(self.output)

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.output.glob("checkpoint-*"))

    def continues_to_the_same(self) -> int:
        """Steps that the continued training took; its restoration and history are those of the whole one."""
        steps = []
        with before_each_pass(steps.append):
            model, result = self.train(self.output)
        found, wanted = (learned_in(each) for each in (model, self.whole))
        assert all(torch.equal(found[name], wanted[name]) for name in ("magnitudes", "component"))
        assert json.dumps(result.history) == json.dumps(self.complete.history)
        assert result.valid_rows == self.complete.valid_rows and len(result.valid_rows) == 4
        assert result.tokens == self.complete.tokens and result.padded_tokens == self.complete.padded_tokens
        return sum(steps)


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory) -> Callable[..., Cut]:
    """Whole trainings, each made once."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("cut") / "model", zeros=0.5)
    return cache(lambda grouped, epochs: Cut(folder, tmp_path_factory.mktemp("cut"), grouped, epochs))


@pytest.fixture(params=[(True, 2)], ids=str)
def cut(request, whole_once, tmp_path) -> Cut:
    found = copy.copy(whole_once(*request.param))
    found.output = tmp_path
    return found


def fails() -> None:
    raise RuntimeError("no power")


def interrupts() -> None:
    signal.raise_signal(signal.SIGINT)


# The first forward pass validates the start, 2 to 4 are steps, 5 validates, 6 to 8 are steps, 9 validates.
@pytest.mark.parametrize(("call", "steps"), [(3, 6), (5, 3), (9, 0)], ids=["first epoch", "validation", "the last"])
def test_a_killed_training_goes_on_from_its_last_checkpoint(cut, call, steps):
    cut.cut(call, fails, RuntimeError)
    assert cut.continues_to_the_same() == steps


@pytest.mark.parametrize("cut", [(True, 1.5)], indirect=True)
@pytest.mark.parametrize("ends", ["in its last step", "after its last validation"])
def test_a_fraction_of_an_epoch_goes_on_after_its_last_step_without_another(cut, ends):
    if ends == "in its last step":
        cut.cut(7, interrupts, KeyboardInterrupt)
    else:
        cut.train(cut.output)
    assert cut.checkpoints == ["checkpoint-3", "checkpoint-5"]
    assert cut.continues_to_the_same() == 0


@pytest.mark.parametrize("grouped", [True, False])
def test_no_seed_has_the_batches_of_another_seed_in_another_epoch(grouped):
    orders = []
    for seed, epoch in product(range(4), range(4)):
        drawn = _ProcessBatches([5 + n % 7 for n in range(23)], settings(seed=seed, group_by_length=grouped), 0, 1)
        drawn.epoch = epoch
        assert sorted(chain(*drawn)) == list(range(23)) and list(drawn) == list(drawn)
        orders.append(str(list(drawn)))
    assert len(set(orders)) == 16


def test_the_batches_of_several_processes_are_those_of_one():
    lengths = [5 + n % 7 for n in range(49)]
    for processes, size, accumulation, grouped in ((2, 4, 1, True), (3, 2, 2, False), (8, 1, 3, True)):
        how = settings(batch_size=size, accumulation=accumulation, group_by_length=grouped)
        alone = _ProcessBatches(lengths, settings(**{**vars(how), "batch_size": size * processes}), 0, 1)
        parts = [_ProcessBatches(lengths, how, process, processes) for process in range(processes)]
        for epoch in range(2):
            for part in (alone, *parts):
                part.epoch = epoch
            together = [sorted(chain(*batches)) for batches in zip(*parts, strict=True)]
            assert together == [sorted(batch) for batch in alone] and len(together) == len(alone) == len(parts[0])


def test_a_process_that_has_no_sample_of_a_step_computes_one_that_counts_nothing():
    taught = {"number": 3, "input_ids": [5, 9, 77], "prompt_length": 1, "teacher": torch.ones(2, 24)}
    found = Collator(257, taught)([])
    assert found["input_ids"].tolist() == [[5, 9]] and found["labels"].tolist() == [[IGNORED] * 2]
    assert found["numbers"].tolist() == [0] and found["teacher"].shape == (0, 24)


def test_each_epoch_has_an_order_of_its_own(make_tiny_llama, tmp_path, monkeypatch):
    orders, original = [], _ProcessBatches.order
    monkeypatch.setattr(_ProcessBatches, "order", lambda self: orders.append(original(self)) or orders[-1])
    folder = make_tiny_llama()
    train(attached(folder), encoded(folder, 9), [], settings(epochs=3, group_by_length=False), "cpu", tmp_path)
    assert len({str(order) for order in orders}) == len(orders) == 3


def gradient(folder: Path, dtype: torch.dtype, monkeypatch, narrow: float = float("inf")) -> tuple[Tensor, list[float]]:
    """b's gradient of one step on 22 × 248 labelled tokens in two batches, as AdamW gets it; and the largest number
    that passed back through the last layer, of each batch.

    narrow: what at most passes there as it is; what is larger is infinite, as in a narrower fp16.
    """
    samples = [Encoded([(7 * n + at * at) % 256 for at in range(250)], 2) for n in range(22)]
    found, passed = [], []

    def pass_back(values: Tensor) -> Tensor:
        passed.append(float(values.abs().max()))
        return values.masked_fill(values.abs() > narrow, float("inf"))

    def keep(self, args, state, control, model, **_) -> None:
        found.extend(p.grad.clone() for name, p in model.named_parameters() if name.endswith("component"))

    model = attached(folder, dtype)
    model.model.layers[-1].register_forward_hook(lambda *given: given[2].register_hook(pass_back) and None)
    how = settings(epochs=1, batch_size=11, accumulation=2, max_grad_norm=1e9)
    with monkeypatch.context() as patched, workspace("gradient") as place:
        patched.setattr(_Watch, "on_pre_optimizer_step", keep)
        train(model, samples, [], how, "cpu", place)
    return torch.cat(found), passed


@pytest.mark.slow
def test_fp16_has_the_gradient_of_fp32_on_many_tokens(make_tiny_llama, monkeypatch):
    folder = make_tiny_llama(zeros=0.5)
    wanted, _ = gradient(folder, torch.float32, monkeypatch)
    found, passed = gradient(folder, torch.float16, monkeypatch)
    assert (found - wanted).norm() < 0.01 * wanted.norm() and len(passed) == 2
    # Where the scale leaves no room it is made smaller, for the same gradient; where none helps, training ends.
    found, again = gradient(folder, torch.float16, monkeypatch, max(passed) / 2)
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    assert len(again) == 4 and max(again[2:]) == pytest.approx(max(passed) / 16, rel=1e-2)
    with pytest.raises(UserError, match="the gradient is no finite number at step 1 of 1, on training samples 1, 2"):
        gradient(folder, torch.float16, monkeypatch, 0)


@pytest.mark.parametrize(
    ("cut", "number", "ends"),
    [
        ((True, 2), signal.SIGTERM, Stopped),
        ((False, 2), signal.SIGUSR1, Stopped),
        ((False, 2), signal.SIGINT, KeyboardInterrupt),
    ],
    indirect=["cut"],
)
def test_a_training_that_is_told_to_end_loses_no_step(cut, number, ends):
    def never(*_) -> None:
        raise AssertionError("the signal was not kept")

    before = signal.signal(number, never)
    try:
        cut.cut(7, lambda: signal.raise_signal(number), ends)
        assert signal.getsignal(number) is never
    finally:
        signal.signal(number, before)
    assert cut.checkpoints == ["checkpoint-3", "checkpoint-5"]
    assert cut.continues_to_the_same() == 1


def test_a_second_signal_ends_at_once(cut):
    cut.cut(7, lambda: (interrupts(), interrupts()), KeyboardInterrupt)
    assert cut.checkpoints == ["checkpoint-3"]


@pytest.mark.parametrize(("call", "step", "kept"), [(3, 2, None), (6, 4, "checkpoint-3")])
def test_a_loss_that_is_no_number_names_step_samples_and_the_last_good_checkpoint(cut, monkeypatch, call, step, kept):
    forward, seen = ResponseLoss.forward, []

    def broken(self, *args, **kwargs):
        seen.append(kwargs.get("input_ids"))
        found = forward(self, *args, **kwargs)
        return {**found, "loss": found["loss"] * (float("nan") if len(seen) == call else 1)}

    with monkeypatch.context() as patched, pytest.raises(UserError) as found:
        patched.setattr(ResponseLoss, "forward", broken)
        cut.train(cut.output)
    good = rf"the last good checkpoint is {cut.output / kept}" if kept else "there is no checkpoint before it"
    place = rf"step {step} of 6, on training samples (.*)"
    said = rf"-lr: the loss is no finite number at {place}; lower it \(now 0.01\), .*; {good}"
    numbers = re.fullmatch(said, str(found.value))[1].split(", ")
    rows = {tuple(row[row != 257].tolist()) for row in seen[-1]}
    assert {tuple(cut.samples[int(number) - 1].ids) for number in numbers} == rows and len(rows) == 4
    assert cut.checkpoints == ([kept] if kept else [])
    assert cut.continues_to_the_same() == (3 if kept else 6)


def test_a_validation_loss_that_is_no_number_ends_the_training(cut, monkeypatch):
    values = iter([1.0, float("inf")])
    found = lambda *_: torch.tensor([[next(values), 1]], dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr("utils.training.response_loss", found)
    with pytest.raises(UserError, match=r"^-lr: the validation loss is no finite number at step 3 of 6; lower it"):
        cut.train(cut.output)
    values = iter([float("nan")])
    with pytest.raises(UserError, match=r"^-dtype: the validation loss is no finite number before any training"):
        cut.train(cut.output / "other")


def test_a_restoration_that_is_not_finite_is_no_checkpoint(cut, monkeypatch):
    def spoil(self) -> None:
        with torch.no_grad():
            next(p for p in self.model.parameters() if p.requires_grad).fill_(float("inf"))

    save = _RestorationTrainer._save_checkpoint
    monkeypatch.setattr(_RestorationTrainer, "_save_checkpoint", lambda self, *a: (spoil(self), save(self, *a)))
    with pytest.raises(UserError, match=r"^-lr: the restoration is no finite number at step 3; .* no checkpoint"):
        cut.train(cut.output)
    assert cut.checkpoints == []


def test_minutes_of_training_are_saved_within_an_epoch(cut, monkeypatch):
    monkeypatch.setattr("utils.training.SAVED_EVERY", -1)
    cut.cut(8, fails, RuntimeError)
    assert cut.checkpoints == ["checkpoint-4", "checkpoint-5"]
    assert cut.continues_to_the_same() == 1


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("model.safetensors", lambda kept: kept[:-1] + bytes([kept[-1] ^ 1])),
        ("optimizer.pt", lambda kept: kept[: len(kept) // 2]),
        (MANIFEST, lambda kept: b""),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(cut, capsys, name, damaged):
    cut.cut(7, interrupts, KeyboardInterrupt)
    file = cut.output / "checkpoint-5" / name
    file.write_bytes(damaged(file.read_bytes()))
    assert cut.continues_to_the_same() == 3
    assert "checkpoint-5 is " in "".join(capsys.readouterr())


def test_a_checkpoint_of_another_training_is_passed_over(cut, capsys):
    cut.cut(7, interrupts, KeyboardInterrupt)
    _, result = cut.train(cut.output, belongs="other heads")
    assert "checkpoint-5 is of other samples, weights, heads or processes" in "".join(capsys.readouterr())
    assert len([row for row in result.history if "loss" in row]) == 6 and result.tokens == cut.complete.tokens


def test_what_a_kill_left_unfinished_is_never_taken_for_a_checkpoint(cut, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("utils.training.seal", lambda *_: fails())
        with pytest.raises(RuntimeError, match="no power"):
            cut.train(cut.output)
    assert cut.checkpoints == [] and (cut.output / UNFINISHED / "checkpoint-3").is_dir()
    assert cut.continues_to_the_same() == 6
    assert not (cut.output / UNFINISHED / "checkpoint-3").exists()


def test_settings_that_nobody_gave_are_those_of_the_flags():
    assert of_flags(parse_arguments([])) == TrainingSettings()
