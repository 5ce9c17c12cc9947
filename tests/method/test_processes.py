"""Two processes over gloo train what one would, sharded or not; one of them writes and speaks.

Run as a program this file is what each of two processes does. Their environment is the one that `accelerate launch
--use_fsdp` makes. accelerate chooses FSDP for the processes of accelerators only: that one choice is made here for
CPUs, and all that follows is accelerate's and the Trainer's own.
"""

import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor

from baselines.lofit import scale_norms
from models.loading import load_model
from models.merge import probe_logits
from models.restoration import load_restoration, save_restoration
from models.terms import MaskedChange, MaskedLowRank
from tests.builders import attached, learned_in, mistake, trained
from tests.method.test_training import encoded, forward_passes, settings
from tests.runs import ROOT, flags, program
from utils.common.commands import run
from utils.common.errors import Stopped, UserError
from utils.common.processes import Processes, is_main_process, leave
from utils.distillation import Distillation, by_sample, teacher_states
from utils.losses import TrainingResult, check_gathered
from utils.prompts import Encoded
from utils.training import train


def training(folder: Path, place: Path) -> tuple[TrainingResult, dict[str, Tensor]]:
    """Train HEADS of the model; what it says and learned."""
    samples, model = encoded(folder, 24), attached(folder)
    return train(model, samples, samples[:7], settings(batch_size=2), "cpu", place), learned_in(model)


def cut(output: Path, folder: Path) -> None:
    """A whole training, and one whose first process is told to end within a step of the second epoch, and goes on."""
    state, place = PartialState(cpu=True), output / "cut"
    whole = training(folder, output / "whole")
    tell = lambda: state.is_main_process and signal.raise_signal(signal.SIGINT)  # noqa: E731
    # Of 12 steps the eighth: passes 1 and 8 validate.
    with suppress(KeyboardInterrupt, Stopped), forward_passes(10, tell):
        training(folder, place)
    state.wait_for_everyone()
    checkpoints = sorted(path.name for path in place.glob("checkpoint-*"))
    continued = training(folder, place)
    if state.is_main_process:
        torch.save({"whole": whole, "checkpoints": checkpoints, "continued": continued}, output / "found.pt")
    torch.distributed.destroy_process_group()


def choose_fsdp_on_cpus() -> None:
    """Make accelerate's state say FSDP wherever it was given a plugin for it.

    And let gathered parameters lie where they lay before, as a GPU's allocator, which keeps what was freed, often does:
    an address then doesn't tell whether a parameter is still what it was.
    """
    begin = AcceleratorState.__init__

    def begin_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded
    _fsdp_param.free_storage = lambda tensor: None


def restored(folder: Path, dtype: torch.dtype, dense: Path | None, place: Path, size: int) -> tuple:
    """LoFiT's norms, by a penalty that is large enough to be seen; then a training: its result, restoration, model and
    samples. size: of the batches of both."""
    samples, scaled = encoded(folder, 24), load_model(folder, dtype, "cpu", "-p")
    how = settings(lr=0.05, batch_size=size)
    norms = scale_norms(scaled, samples, how, 0.05, "cpu", place / "lofit")
    restoration, how, taught = trained(), settings(lr=0.1, batch_size=size), None
    draw = torch.Generator().manual_seed(0)
    change, down, up = (0.1 * torch.randn(shape, generator=draw) for shape in ((56, 24), (4, 24), (56, 4)))
    beside = MaskedLowRank(down, up, torch.tensor(2.0))  # a closed form, and what is trained beside it
    restoration.terms["model.layers.1.mlp.up_proj.weight"] = [MaskedChange(change).requires_grad_(False), beside]
    if dense:
        teacher = load_model(dense, torch.float32, "cpu", "-b")
        states = by_sample(teacher_states(teacher, samples, ""), samples)
        text = [Encoded(samples[0].ids, 0)]  # one, since two processes read two windows a step
        texts = {"text": tuple(text), "of_text": by_sample(teacher_states(teacher, text, ""), text)}
        head = 20 * teacher.lm_head.weight  # so large that it is sure
        taught = Distillation(0.5, head, states, states[:9], **texts)
    model = attached(folder, restoration, dtype)
    result = train(model, samples, samples[:9], how, "cpu", place, distillation=taught)
    return norms, result, restoration, model, samples


def sharded(output: Path, folder: Path, dtype: torch.dtype, dense: Path | None = None) -> None:
    """What was trained, gathered, saved, and checked as a run does."""
    choose_fsdp_on_cpus()
    PartialState(cpu=True)  # before loading, which asks whether there are several processes
    place = output / "checkpoints"
    norms, result, restoration, model, samples = restored(folder, dtype, dense, place, size=4)
    assert all(isinstance(parameter, DTensor) for parameter in model.model.layers.parameters())
    assert GradientState().plugin_kwargs["sync_each_batch"] and not list(place.rglob("checkpoint-*"))
    restoration = restoration.gathered(keep=is_main_process())
    torch.distributed.destroy_process_group()
    if not is_main_process():
        return
    save_restoration(output / "restoration", restoration, {})
    whole = attached(folder, load_restoration(output / "restoration")[0], dtype)
    check_gathered(whole, samples[:9], result)
    with pytest.raises(UserError, match=r"the validation loss is \S+ with the saved restoration, but was"):
        check_gathered(attached(folder, dtype=dtype), samples[:9], result)  # what was never trained
    logits = probe_logits(whole, [samples[0].ids])
    torch.save({"result": result, "restoration": restoration, "logits": logits, "norms": norms}, output / "found.pt")


def launch(*words, count: int = 2, **variables: str) -> CompletedProcess:
    """`count` processes over gloo; accelerate starts its own the same way, but on GPUs only."""
    words = ["--nproc_per_node", count, "--standalone", "--local_addr", "127.0.0.1", *words]
    return program(sys.executable, "-m", "torch.distributed.run", *words, **{"OMP_NUM_THREADS": "1", **variables})


def found_by(*words, **variables: str) -> dict:
    """What two processes of this file kept in the folder that is the second word."""
    done = launch(__file__, *words, **variables)
    assert done.returncode == 0, done.stderr
    return torch.load(words[1] / "found.pt", weights_only=False)


@pytest.mark.slow
def test_two_processes_of_four_samples_train_what_one_of_eight_does(world, tmp_path, make_tiny_llama):
    """Though an epoch's last step has one sample, and thus nothing for the second process.

    Of text there is one window, since two processes read two at a time.
    """
    folders = {"base_model_name": make_tiny_llama(), "pruned_model_path": make_tiny_llama(zeros=0.5)}
    done, histories, results, saved = [], [], [], []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        given = {"method": "lofit", "loss": "distill", "use_topk_heads": 4, "eval_tasks": "none"}
        given |= {"num_train_samples": 17, "batch_size": 8 // processes, "gradient_accumulation": 2}
        given |= {"calib_data": "bundled", "calib_samples": 1, "calib_length": 32}
        words = flags(world, output, cache_dir=tmp_path / "cache", **folders, **given)
        done.append(launch(ROOT / "RestoreLCC_train.py", *words, count=processes))
        assert done[-1].returncode == 0, done[-1].stderr
        histories.append([json.loads(line) for line in (output / "logs" / "history.jsonl").read_text().splitlines()])
        assert json.loads((output / "run.json").read_text())["processes"] == processes
        results.append(json.loads((output / "results.json").read_text()))
        saved.append(load_file(output / "restoration" / "restoration.safetensors"))
    assert "deprecated" not in done[1].stderr
    for name, count in (("loss", 4), ("valid_loss", 3), ("valid_kl", 3)):
        wanted, found = ([row[name] for row in history if name in row] for history in histories)
        assert len(found) == len(wanted) == count and found == pytest.approx(wanted, rel=1e-5)
    assert done[1].stdout.count("[1/9]") == done[1].stdout.count("next:") == 1
    # LoFiT's first step chose the same heads, by the norms alone, for b alone.
    assert results[0]["heads"] == results[1]["heads"] and results[1]["proof"]["passed"]
    kept = [load_file(file)["norms"] for file in (tmp_path / "cache" / "lofit").rglob("*.safetensors")]
    assert len(kept) == 2 and torch.allclose(*kept, atol=1e-5)
    best = sorted([*divmod(int(place), 6)] for place in kept[0].flatten().argsort(descending=True)[:4])
    assert results[1]["heads"]["trained"] == best and results[1]["heads"]["selection"] == "lofit"
    assert not {"activations", "components"} & {path.name for path in (tmp_path / "cache").iterdir()}
    assert {name.rpartition(".")[2] for name in saved[1]} == {"heads", "basis", "component"}
    assert all(torch.allclose(tensor, saved[0][name], atol=1e-5) for name, tensor in saved[1].items())


@pytest.mark.slow
def test_two_processes_that_go_on_within_an_epoch_train_what_was_left_of_it(tmp_path, make_tiny_llama):
    found = found_by("cut", tmp_path, make_tiny_llama(zeros=0.5))
    assert found["checkpoints"] == ["checkpoint-6", "checkpoint-8"]
    (wanted, state), (continued, learned) = found["whole"], found["continued"]
    assert continued.history == wanted.history
    assert all(torch.equal(tensor, state[part]) for part, tensor in learned.items())


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
FSDP |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What `accelerate launch` sets for the flags that the README gives."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tied", "efficient", "distils"), [("float32", True, "true", True), ("bfloat16", False, "false", False)]
)
def test_sharded_training_equals_unsharded(tmp_path, make_tiny_llama, dtype, tied, efficient, distils):
    folder = make_tiny_llama(zeros=0.5, tie_word_embeddings=tied)
    dense = make_tiny_llama(seed=5) if distils else None
    found = found_by(dtype, tmp_path, folder, *[dense] * distils, **FSDP, FSDP_CPU_RAM_EFFICIENT_LOADING=efficient)
    alone = restored(folder, getattr(torch, dtype), dense, tmp_path / "whole", size=8)
    norms, result, restoration, model, samples = alone
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # in bf16, batches of other shapes round differently
    for name, count in (("loss", 6), ("valid_loss", 3), *[("valid_kl", 3)] * distils):
        sharded, whole = ([row[name] for row in r.history if name in row] for r in (found["result"], result))
        assert len(sharded) == len(whole) == count
        assert sharded == pytest.approx(whole, rel=tolerance)
        assert abs(whole[-1] - whole[0]) > (0.01 if distils else 0.1)
    assert torch.allclose(found["norms"], norms, atol=tolerance)
    assert found["restoration"].heads == restoration.heads
    for name in ("magnitudes", "component"):
        assert torch.allclose(found["restoration"].of_heads(name), restoration.of_heads(name), atol=tolerance)
    ups = [each.terms["model.layers.1.mlp.up_proj.weight"][1].up for each in (found["restoration"], restoration)]
    assert torch.allclose(*ups, atol=tolerance)
    (reattached,), (trained_logits,) = found["logits"], probe_logits(model, [samples[0].ids])
    assert torch.allclose(reattached, trained_logits, atol=tolerance * float(trained_logits.abs().max()))


@pytest.mark.slow
def test_a_mistake_is_told_though_the_process_that_tells_it_is_the_last_to_meet_it():
    done = launch(__file__, "late", "no", "folders")
    assert done.returncode != 0
    assert done.stderr.count("error: -lr: wrong") == 1


def test_a_process_that_leaves_runs_its_exit_handlers_and_says_all_it_had_to_say_and_nothing_after():
    code = """
        import atexit; from utils.common.processes import leave
        atexit.register(print, "handled"); print("said", end=" "); leave(); print("never")
    """
    done = program(sys.executable, "-c", dedent(code), PYTHONUNBUFFERED="")  # as if that were not set
    assert (done.returncode, done.stdout, done.stderr) == (0, "said handled\n", "")


SHARDED = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    ("device", "environment", "said"),
    [
        ("cuda:1", {"WORLD_SIZE": "2"}, "-device: cuda:1 is one device for 2 processes"),
        ("cpu", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP needs several processes"),
        ("cpu", SHARDED, "launch: FSDP version 1.*add --fsdp_version 2"),
        ("cpu", {**SHARDED, "FSDP_VERSION": "1"}, "launch: FSDP version 1.*add --fsdp_version 2"),
        ("cpu", {**SHARDED, "FSDP_VERSION": "2"}, "FSDP shards over GPUs only"),
        ("cpu", {"ACCELERATE_USE_DEEPSPEED": "true"}, "launch: --use_deepspeed is not supported; leave it out"),
        ("cpu", {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "is 'INDUCTOR' .* --dynamo_backend no, or unset it"),
        ("cpu", {"WORLD_SIZE": "two"}, "^WORLD_SIZE: is set, but not by a launcher .*; unset it"),
        ("cpu", {"ACCELERATE_MIXED_PRECISION": "bf16"}, "is 'bf16' .accelerate launch .* --mixed_precision no, or un"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(monkeypatch, device, environment, said):
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(device=torch.device(device)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    mistake(said, Processes, device)


def late() -> None:
    time.sleep(4 * is_main_process())
    raise UserError("-lr: wrong")


if __name__ == "__main__":
    kind, *folders = sys.argv[1:]
    output, folder, *dense = map(Path, folders)
    if kind == "late":
        run(late)
    elif kind == "cut":
        cut(output, folder)
    else:
        sharded(output, folder, getattr(torch, kind), *dense)
    leave()
