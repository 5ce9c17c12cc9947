"""A run on a disk that fills, or out of memory: one line each, and the same command goes on to the same bits."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from utils.common.result import STAGING
from utils.stages.room import stored_bytes

from tests.common.test_disk import no_file_above
from tests.stages.test_command_line import finished, flags, run, world  # noqa: F401 - its fixtures
from utils.common.errors import UserError
from utils.common.flags import parse_arguments
from utils.plan.command import count_samples, count_tasks, read_model, workload
from utils.plan.disk import written as planned_disk


def kept_bits(output: Path) -> dict[str, bytes]:
    """What the same command gives again bit by bit; the rest tells of seconds and of days."""
    names = ("results.json", "model/model.safetensors", "restoration/restoration.safetensors", "logs/history.jsonl")
    return {name: (output / name).read_bytes() for name in names}


def check_nothing_half_written(*folders: Path) -> None:
    found = [
        path for folder in folders for path in folder.rglob("*") if "partial-" in path.name or "making" in path.name
    ]
    assert not found, found


def test_room_is_asked_for_before_a_model_loads(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("utils.stages.context.load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr("utils.common.disk.free_bytes", lambda folder: 10_000_000)
    says = r"^-output_dir, -cache_dir: up to \S+ MB will be written to \S+/out and \S+/cache, where 10 MB are free"
    with pytest.raises(UserError, match=says):
        run(monkeypatch, flags(world, tmp_path / "out", cache_dir=tmp_path / "cache"))
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").rglob("*.*"))


def test_no_more_is_written_than_was_planned(world, finished, tmp_path, monkeypatch):  # noqa: F811
    """The cold run's own files; what is in the cache already is not asked for again."""
    asked = []
    monkeypatch.setattr("RestoreLCC_train.check_room", lambda needs: asked.append({n.flag: n.size for n in needs}))
    written = tmp_path / "cache"
    for name in ("cold", "warm"):
        run(monkeypatch, flags(world, tmp_path / name, cache_dir=written))
        kept = {kind.name: sum(file.stat().st_size for file in kind.iterdir()) for kind in written.iterdir()}
        assert (
            sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
            < asked[-1]["-output_dir"]
        )
    assert asked[0]["-cache_dir"] - asked[1]["-cache_dir"] > kept["activations"] - 1000
    args = parse_arguments(["-config", str(finished / "run.json")])
    config, tokenizer, stored = read_model(args.base_model_name)
    samples, valid, _ = count_samples(args, tokenizer)
    work = workload(args, config, stored, samples, valid, count_tasks(args)[0])
    planned = planned_disk(config, work, pruned=stored_bytes(world / "pruned"))
    assert asked[0]["-cache_dir"] == sum(planned.cache.values()) and asked[0]["-output_dir"] == planned.output
    for kind in ("activations", "components"):
        assert kept[kind] - 2000 < planned.cache[kind] < 1.5 * kept[kind]
    assert kept.keys() <= planned.cache.keys()


def test_a_disk_full_at_any_size_of_file_is_one_line(world, finished, tmp_path, monkeypatch):  # noqa: F811
    """The system's own limit on files, ever higher: each run ends at the first that is larger, and the next goes on."""
    output, cache, said = tmp_path / "out", tmp_path / "cache", []
    for size in (4_500, 9_000, 20_000, 40_000, 100_000):
        with pytest.raises(UserError, match="cannot be written") as found, no_file_above(size):
            run(monkeypatch, flags(world, output, cache_dir=cache))
        said.append(str(found.value))
        assert re.match(r"^-(output|cache)_dir: \S+ cannot be written \(.*; \S+ \S+ are free.*\); make room", said[-1])
        check_nothing_half_written(output, cache)
        assert {path.name for path in output.glob("*")} <= {STAGING}
    assert len({line.split()[0] for line in said}) == 2
    run(monkeypatch, flags(world, output, cache_dir=cache))
    assert kept_bits(output) == kept_bits(finished)


def test_a_disk_full_at_any_kind_of_file_is_one_line(world, tmp_path, monkeypatch):  # noqa: F811
    """The last step of each file and folder, which gives it its name: refused once of each kind, then gone on from."""
    output, cache, refused = tmp_path / "out", tmp_path / "cache", []
    renames = {name: getattr(Path, name) for name in ("rename", "replace")}

    def full(name: str):
        def rename(self, target):
            # Numbers of steps, digests and processes are left out of the names.
            kind = name, *(re.sub(r"partial-.*|[0-9a-f]{24}|\d+", "N", part) for part in Path(target).parts[-2:])
            if kind not in refused:
                refused.append(kind)
                raise OSError(28, "No space left on device", str(self))
            return renames[name](self, target)

        return rename

    quick = {"num_epoch": 1, "eval_tasks": "none"}
    run(monkeypatch, flags(world, tmp_path / "whole", **quick))
    for name in renames:
        monkeypatch.setattr(Path, name, full(name))
    for _ in range(60):
        try:
            run(monkeypatch, flags(world, output, cache_dir=cache, **quick))
            break
        except UserError as error:
            check_nothing_half_written(cache)
            if "already holds files" in str(error):
                break  # the exchange was all that had been left
            assert re.match(r"^(-(output|cache)_dir: )?/\S+ cannot be written \(No space left on device; ", str(error))
    monkeypatch.undo()
    assert len(refused) > 15 and kept_bits(output) == kept_bits(tmp_path / "whole"), refused
    assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    check_nothing_half_written(output, cache)


def taken_for_a_broken_file() -> None:
    raise UserError("-base_model_name: cannot load it; copy it again") from MemoryError()


def cuda_says() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")


SHORT = {
    "prune": ("utils.stages.prune.pruning.prune", "-calib_samples: .*'pruned checkpoint'.* a smaller -calib_length"),
    "negatives": ("utils.negatives.sentence_embeddings", "-num_train_samples: .*'contrastive negatives'"),
    "dense": ("utils.stages.measure.activations", r"-max_length: .*'dense model: .* -eval_batch_size 1 \(now auto\)"),
    "rank": ("utils.stages.rank.find_components", "-num_train_samples: .*'lost components and head ranking'"),
    "train": (
        "utils.stages.train.train",
        r"-batch_size: out of memory in 'training' .*; try a smaller -batch_size with more -gradient_accumulation "
        r"\(now 8\), or a smaller -max_length \(now 500\), or -gradient_checkpointing .* add -resume never$",
    ),
    "merge": ("utils.stages.merge.merge_and_prove", "-max_length: .*'merge and proof'"),
    "restored": ("utils.stages.merge.scores", r"-eval_batch_size: .*'restored model: scores'.*-ppl_window \(now 64\)"),
}
SAID = (
    lambda: torch.empty(2**60, dtype=torch.uint8),  # refused for real
    lambda: np.ones(2**59, dtype=np.uint8),
    cuda_says,
    taken_for_a_broken_file,
)


@pytest.mark.parametrize("stage", SHORT)
def test_memory_that_runs_out_names_the_flags_of_its_stage(world, tmp_path, monkeypatch, stage):  # noqa: F811
    place, says = SHORT[stage]
    changes = {"eval_tasks": "none", "num_epoch": 1}
    if stage == "prune":
        (tmp_path / "text.txt").write_text("Some text to be fed. " * 30)
        changes |= {
            "pruned_model_path": None,
            "calib_data": tmp_path / "text.txt",
            "calib_samples": 4,
            "calib_length": 32,
        }
    if stage in ("negatives", "dense", "rank"):
        changes["cache_dir"] = tmp_path / "cache"
    for what in SAID if stage == "train" else SAID[:1]:
        monkeypatch.setattr(place, lambda *_, what=what, **__: what())
        with pytest.raises(UserError, match=f"^{says}") as found:
            run(monkeypatch, flags(world, tmp_path / "out", **changes))
        assert "\n" not in str(found.value)
