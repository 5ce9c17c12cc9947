"""The loss is on response tokens only, and the Trainer trains β and b alone, resumably."""

import copy
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from models.cpu_attention import NAME
from models.loading import load_model, load_tokenizer
from models.restoration import Restoration
from tests.builders import SAMPLES, attached, inputs_of, learned_in, mistake, rewrite, save_tiny_llama, scaled, trained
from utils.common.commands import ENDING
from utils.common.errors import Stopped, UserError
from utils.common.methods import Options
from utils.distillation import Distillation
from utils.evaluation.perplexity import token_scores
from utils.losses import ResponseLoss, TrainingResult, response_loss, validate
from utils.prompts import IGNORED, Encoded, encode_all
from utils.training import TrainingSettings, _OneDevice, _ProcessBatches, _RestorationTrainer, tokens_read, train


@pytest.fixture
def model(make_tiny_llama):
    return load_model(make_tiny_llama(zeros=0.5), torch.float32, "cpu", "-p")


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"lr": 1e-2, "num_epoch": 2, "batch_size": 4, **changes})


def encoded(model_folder, number: int) -> list[Encoded]:
    prompts, responses = [f"say {n}" for n in range(number)], ["abc " * (n % 5 + 1) for n in range(number)]
    return encode_all(load_tokenizer(model_folder, "-b"), prompts, responses, 60)[0]


def test_a_model_that_is_not_trained_has_the_validation_loss_that_training_would_begin_with(make_tiny_llama, tmp_path):
    folder = make_tiny_llama(zeros=0.5)
    samples, model = encoded(folder, 6), attached(folder)
    found = validate(model, samples[:3])
    after = train(model, samples, samples[:3], settings(num_epoch=1), "cpu", tmp_path)
    assert found.history == [row for row in after.history if row["step"] == 0]
    assert found.valid_rows != after.valid_rows
    assert [count for _, count in found.valid_rows] == [len(each.ids) - each.prompt_length for each in samples[:3]]
    assert validate(model, []) == TrainingResult()
    model.model.norm.weight.data.fill_(torch.nan)
    mistake("not finite before any training", validate, model, samples)


def test_training_is_on_the_device_that_was_named(make_tiny_llama, tmp_path, monkeypatch):
    """The meta device stands for one that nothing chooses by itself, and that must do without fp64."""
    places = []

    def train_nothing(self, resume_from_checkpoint):
        places.extend([self.args.device, self.accelerator.device, *{p.device for p in self.model.parameters()}])
        assert self.args.ddp_broadcast_buffers is False  # frozen buffers are not sent before each step
        self.evaluate()

    monkeypatch.setattr(_RestorationTrainer, "train", train_nothing)
    monkeypatch.setattr("utils.training.response_loss", lambda *_: torch.tensor([[3.0, 2.0]], dtype=torch.float64))
    folder = make_tiny_llama()
    samples = encoded(folder, 4)
    result = train(attached(folder), samples, samples, settings(), "meta", tmp_path)
    assert places == [torch.device("meta")] * 3 and result.history[0]["valid_loss"] == 1.5


def test_attention_is_the_devices_though_a_model_to_be_sharded_is_on_the_cpu(make_tiny_llama, tmp_path, monkeypatch):
    found, folder = [], make_tiny_llama()
    chosen = lambda self, **_: found.append(self.model.model.config._attn_implementation)  # noqa: E731
    monkeypatch.setattr(_RestorationTrainer, "train", chosen)
    monkeypatch.setattr("utils.training._OneDevice", lambda place, **more: _OneDevice(place="cpu", **more))
    for device in ("cpu", "meta"):
        train(attached(folder), encoded(folder, 4), [], settings(), device, tmp_path)
    assert found == [NAME, "sdpa"]


def test_the_second_gpu_is_not_taken_for_the_first(tmp_path, monkeypatch):
    """Stand-ins for a machine with two GPUs."""
    current = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda place: current.append(str(place)))
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    arguments = _OneDevice(place="cuda:1", output_dir=str(tmp_path))
    assert arguments.device == PartialState().device == torch.device("cuda:1")
    assert current[-1] == "cuda:1" and arguments.n_gpu == 1
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
    summed = response_loss(loss, SAMPLES, 257)
    assert summed.dtype == torch.float64 and summed.sum(0).tolist() == [4, 8]
    hidden, targets = torch.randn(5, 24), torch.arange(5)
    expected = token_scores(model, hidden, targets)
    model.get_output_embeddings().register_forward_hook(lambda *given: given[2].as_subclass(WithoutFp64))
    found = token_scores(model, hidden, targets)
    assert found[0].dtype == torch.float64
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_lowers_the_loss_and_moves_only_beta_and_b(make_tiny_llama, tmp_path, monkeypatch, checkpointing):
    orders, original = [], _ProcessBatches.order
    monkeypatch.setattr(_ProcessBatches, "order", lambda self: orders.append(original(self)) or orders[-1])
    folder = make_tiny_llama(zeros=0.5)
    model, samples = attached(folder, scaled(trained(), 0)), encoded(folder, 20)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = train(model, samples, samples[:6], settings(gradient_checkpointing=checkpointing), "cpu", tmp_path)
    assert len(orders) == 2 and orders[0] != orders[1]  # each epoch has its own
    rates = [row["learning_rate"] for row in result.history if "loss" in row]
    assert rates == pytest.approx([0.01 * (1 - step / 10) for step in range(10)])
    losses = [row["valid_loss"] for row in result.history if "valid_loss" in row]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    assert [row["epoch"] for row in result.history if "valid_loss" in row] == [0.0, 1.0, 2.0]
    nats, tokens = (sum(column) for column in zip(*result.valid_rows, strict=True))
    counts = [len(sample.ids) - sample.prompt_length for sample in samples[:6]]
    assert losses[2] == nats / tokens and [row[1] for row in result.valid_rows] == counts
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.rsplit(".", 1)[1] for name in moved} == {"magnitudes", "component"}


@contextmanager
def forward_passes(at: int = 0, do: Callable[[], object] | None = None) -> Iterator[list[bool]]:
    """The forward passes within it, each by whether it trains; `do` is called before the one with the number `at`."""
    passes, original = [], ResponseLoss.forward

    def forward(self, *args, **kwargs):
        passes.append(self.training)
        if len(passes) == at:
            do()
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResponseLoss, "forward", forward)
        yield passes


class Cut:
    """A training of 12 samples in epochs of 3 steps; of its copies the same one is cut off in `output` and goes on."""

    def __init__(self, folder: Path, output: Path, grouped: bool, epochs: float):
        self.folder, self.output, self.how = folder, output, settings(random_batches=not grouped, num_epoch=epochs)
        self.samples = encoded(folder, 12)
        self.learned, self.complete = self.train()

    def train(self, belongs: str = "this") -> tuple[dict[str, Tensor], TrainingResult]:
        model = attached(self.folder, scaled(trained(), 0))
        result = train(model, self.samples, self.samples[:4], self.how, "cpu", self.output, belongs=belongs)
        return learned_in(model), result

    def cut(self, call: int, signals: tuple[int, ...], ends: type[BaseException]) -> None:
        """Train until the given forward pass, at which signals come, or else the power fails; it ends by `ends`."""

        def end() -> None:
            for number in signals:
                signal.raise_signal(number)
            if not signals:
                raise RuntimeError("no power")

        with forward_passes(call, end), pytest.raises(ends):
            self.train()

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.output.glob("checkpoint-*"))

    def continues_to_the_same(self) -> int:
        """Steps that the continued training took; its restoration and history are those of the whole one."""
        with forward_passes() as passes:
            learned, result = self.train()
        torch.testing.assert_close(learned, self.learned, rtol=0, atol=0)
        assert json.dumps(vars(result)) == json.dumps(vars(self.complete)) and len(result.valid_rows) == 4
        return sum(passes)


@pytest.fixture(scope="module", params=[(True, 2)], ids=str)
def whole(request, tmp_path_factory) -> Cut:
    folder = save_tiny_llama(tmp_path_factory.mktemp("cut") / "model", zeros=0.5)
    return Cut(folder, tmp_path_factory.mktemp("cut"), *request.param)


@pytest.fixture
def cut(whole, tmp_path) -> Cut:
    found = copy.copy(whole)
    found.output = tmp_path
    return found


# The first forward pass validates the start, 2 to 4 are steps, 5 validates, 6 to 8 are steps, 9 validates.
@pytest.mark.parametrize(
    ("whole", "call", "signals", "ends", "kept", "steps"),
    [
        ((True, 2), 3, (), RuntimeError, [], 6),
        ((True, 2), 5, (), RuntimeError, [3], 3),
        ((True, 2), 9, (), RuntimeError, [3, 6], 0),
        ((True, 2), 7, (signal.SIGTERM,), Stopped, [3, 5], 1),
        ((False, 2), 7, (signal.SIGUSR1,), Stopped, [3, 5], 1),
        ((True, 2), 7, (signal.SIGINT, signal.SIGINT), KeyboardInterrupt, [3], 3),
        ((True, 2), 9, (signal.SIGINT,), KeyboardInterrupt, [3, 6], 0),
        ((True, 1.5), 7, (signal.SIGINT,), KeyboardInterrupt, [3, 5], 0),
        ((True, 1.5), 8, (), RuntimeError, [3, 5], 0),
    ],
    indirect=["whole"],
)
def test_a_training_that_was_ended_goes_on_to_the_same_bits(request, cut, call, signals, ends, kept, steps):
    """Told once it loses no step, told twice it ends at once; a fraction of an epoch goes on without another step."""
    never = Mock(side_effect=AssertionError("the signal was not kept"))
    for number in ENDING:  # the handlers that a command has
        request.addfinalizer(partial(signal.signal, number, signal.signal(number, never)))
    cut.cut(call, signals, ends)
    assert {signal.getsignal(number) for number in ENDING} == {never}
    assert cut.checkpoints == [f"checkpoint-{step}" for step in kept]
    assert cut.continues_to_the_same() == steps


def test_the_batches_of_several_processes_are_those_of_one_and_of_no_other_seed_or_epoch():
    lengths = [5 + n % 7 for n in range(49)]
    for processes, size, accumulation, grouped in ((2, 4, 1, True), (3, 2, 2, False), (8, 1, 3, True)):
        orders = []
        for seed, epoch in product(range(4), range(4)):
            how = settings(training_seed=seed, batch_size=size, random_batches=not grouped)
            how = replace(how, gradient_accumulation=accumulation)
            alone = _ProcessBatches(lengths, replace(how, batch_size=size * processes), 0, 1)
            parts = [_ProcessBatches(lengths, how, process, processes) for process in range(processes)]
            for part in (alone, *parts):
                part.epoch = epoch
            together = [sorted(chain(*batches)) for batches in zip(*parts, strict=True)]
            assert together == [sorted(batch) for batch in alone] and len(together) == len(alone) == len(parts[0])
            assert sorted(chain(*alone)) == list(range(49))
            first = [lengths[row] for row in alone.order()[: alone.of_update]]
            assert (first == sorted(first, reverse=True)) == grouped
            per_epoch = -(-len(alone) // accumulation)
            steps = [parts[1].of_step(epoch * per_epoch + step) for step in range(1, per_epoch + 1)]
            made = [sorted(chain(*together[n : n + accumulation])) for n in range(0, len(together), accumulation)]
            assert [sorted(step) for step in steps] == made
            orders.append(str(list(alone)))
        assert len(set(orders)) == 16


def test_a_process_that_has_no_sample_of_a_step_computes_one_that_counts_nothing(model, tmp_path):
    taught = Distillation(0.5, train=[torch.ones(2, 24)] * 3)
    arguments = _OneDevice(output_dir=str(tmp_path), use_cpu=True)
    found = _RestorationTrainer(model, SAMPLES, [], settings(), arguments, taught, None, "").batch([])
    assert found["input_ids"].tolist() == [[5, 9]] and found["labels"].tolist() == [[IGNORED] * 2]
    assert found["teacher"].shape == (0, 24)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (3, 1), (1, 4), (3, 2)])
def test_windows_of_text_follow_each_other_over_steps_processes_and_epochs(processes, accumulation):
    how = settings(batch_size=4, gradient_accumulation=accumulation)
    parts = [_ProcessBatches([9] * 21, how, each, processes, windows=5) for each in range(processes)]
    windows = []
    for epoch in range(3):
        for part in parts:
            part.epoch = epoch
        rows = [list(chain(*together)) for together in zip(*parts, strict=True)]
        drawn = [[row for row in batch if row >= 21] for batch in rows]
        assert [len(each) / processes for each in drawn] == [n % (accumulation + 1) == 0 for n in range(len(parts[0]))]
        windows += chain(*drawn)
        assert sorted(row for row in chain(*rows) if row < 21) == list(range(21))
    assert windows == [21 + place % 5 for place in range(len(windows))] and len(windows) >= 6


def test_a_part_of_an_epoch_reads_the_tokens_of_whole_steps(make_tiny_llama, tmp_path, monkeypatch):
    folder, rows, batch = make_tiny_llama(zeros=0.5), [], _RestorationTrainer.batch
    samples, how = encoded(folder, 11), settings(batch_size=2, gradient_accumulation=2, num_epoch=1.1)
    monkeypatch.setattr(_RestorationTrainer, "batch", lambda self, drawn: rows.extend(drawn) or batch(self, drawn))
    train(attached(folder), samples, [], how, "cpu", tmp_path)
    assert len(rows) == 11 + 4 and len({len(sample.ids) for sample in samples}) > 1
    assert tokens_read(samples, how, 1, window=9) == sum(len(samples[row].ids) for row in rows) + (3 + 1) * 9


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

    model = attached(folder, dtype=dtype)
    components = [p for name, p in model.named_parameters() if name.endswith("component")]
    model.model.layers[-1].register_forward_hook(lambda *given: given[2].register_hook(pass_back) and None)
    how = settings(num_epoch=1, batch_size=11, gradient_accumulation=2, max_grad_norm=1e9)
    with monkeypatch.context() as patched, TemporaryDirectory() as place:
        keep = lambda *_, **__: found.extend(p.grad.clone() for p in components)  # noqa: E731
        patched.setattr(_RestorationTrainer, "on_pre_optimizer_step", keep)
        train(model, samples, [], how, "cpu", Path(place))
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
    with pytest.raises(UserError, match="the gradient is not finite at step 1 of 1, on training samples 1, 2"):
        gradient(folder, torch.float16, monkeypatch, 0)


@pytest.mark.parametrize(("call", "step", "kept"), [(3, 2, None), (6, 4, "checkpoint-3")])
def test_a_loss_that_is_no_number_names_step_samples_and_the_last_good_checkpoint(cut, monkeypatch, call, step, kept):
    forward, seen = ResponseLoss.forward, []

    def broken(self, *args, **kwargs):
        seen.append(kwargs.get("input_ids"))
        found = forward(self, *args, **kwargs)
        return {name: value * (float("nan") if len(seen) == call else 1) for name, value in found.items()}

    with monkeypatch.context() as patched, pytest.raises(UserError) as found:
        patched.setattr(ResponseLoss, "forward", broken)
        cut.train()
    good = rf"the last good checkpoint is {cut.output / kept}" if kept else "there is no checkpoint before it"
    place = rf"step {step} of 6, on training samples (.*) of those kept"
    said = rf"-lr: the loss is not finite at {place}; lower it \(now 0.01\), .*; {good}"
    numbers = re.fullmatch(said, str(found.value))[1].split(", ")
    rows = {tuple(row[row != 257].tolist()) for row in seen[-1]}
    assert {tuple(cut.samples[int(number) - 1].ids) for number in numbers} == rows and len(rows) == 4
    assert cut.checkpoints == ([kept] if kept else [])
    assert cut.continues_to_the_same() == (3 if kept else 6)


def test_a_validation_loss_that_is_no_number_ends_the_training(cut, monkeypatch):
    values = iter([float("nan"), 1.0, float("inf")])
    monkeypatch.setattr("utils.training.response_loss", lambda *_: torch.tensor([[next(values), 1]]).double())
    for said in ("-dtype: {} before any training", "-lr: {} at step 3 of 6; lower it"):
        mistake("^" + said.format("the validation loss is not finite"), cut.train)


def test_a_restoration_that_is_not_finite_is_no_checkpoint(cut, monkeypatch):
    def spoil(self) -> None:
        next(p for p in self.model.parameters() if p.requires_grad).data.fill_(float("inf"))

    save = _RestorationTrainer._save_checkpoint
    monkeypatch.setattr(_RestorationTrainer, "_save_checkpoint", lambda self, *a: (spoil(self), save(self, *a)))
    mistake(r"^-lr: the restoration is not finite at step 3; .* no checkpoint", cut.train)
    assert cut.checkpoints == []


def test_minutes_of_training_are_saved_within_an_epoch(cut, monkeypatch):
    monkeypatch.setattr("utils.training.SAVED_EVERY", -1)
    cut.cut(8, (), RuntimeError)
    assert cut.checkpoints == ["checkpoint-4", "checkpoint-5"]
    assert cut.continues_to_the_same() == 1


def test_a_checkpoint_that_is_unfinished_damaged_or_of_another_training_is_passed_over(cut, monkeypatch, capsys):
    with monkeypatch.context() as killed, pytest.raises(TypeError):
        killed.setattr("utils.training.write_manifest", None)  # the last that is written
        cut.train()
    assert cut.continues_to_the_same() == 6
    assert "skipping checkpoint-3: it is incomplete (no whole manifest.json)" in "".join(capsys.readouterr())
    file = cut.output / "checkpoint-6" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    assert cut.continues_to_the_same() == 3
    assert "skipping checkpoint-6: it is damaged (optimizer.pt)" in "".join(capsys.readouterr())
    for rate, resumed in ((2e-2, False), (1e-3, False), (1e-3, True)):  # by default of samples and settings
        cut.how = settings(lr=rate)
        cut.train(belongs="")
        assert ("resuming" in "".join(capsys.readouterr())) == resumed
    _, result = cut.train(belongs="other heads")
    said = "skipping checkpoint-6: it was made with other samples, weights, heads, processes, code"
    assert said in "".join(capsys.readouterr())
    assert len([row for row in result.history if "loss" in row]) == 6


def test_what_has_no_gradient_does_not_decay_and_gradients_are_clipped(make_tiny_llama, tmp_path, monkeypatch):
    flat = rewrite(make_tiny_llama(zeros=0.5), lambda tensors: tensors["lm_head.weight"].zero_())
    start, norms = Restoration.start("lora", Options(lora_rank=2), inputs_of(flat, flat, None, seed=1)), []
    before, nothing = start.gathered().tensors(), start.gathered(keep=False)
    train(attached(flat, start), encoded(flat, 8), [], settings(), "cpu", tmp_path / "flat")
    torch.testing.assert_close(start.tensors(), before, rtol=0, atol=0)
    assert (nothing.method, nothing.terms) == ("lora", {})

    def keep(self, *_, **__) -> None:
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.requires_grad]))

    monkeypatch.setattr(_RestorationTrainer, "on_pre_optimizer_step", keep, raising=False)
    folder = make_tiny_llama(zeros=0.5)
    for most in (1e-3, 0):
        how = settings(num_epoch=1, max_grad_norm=most)
        train(attached(folder), encoded(folder, 4), [], how, "cpu", tmp_path / f"{most}")
    assert norms[0] == pytest.approx(1e-3, rel=1e-3) and norms[1] > 2e-3
