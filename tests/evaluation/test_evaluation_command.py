"""lm_eval's own command line on our outputs gives the numbers of the evaluation in memory."""

import json
import shutil
import sys
from functools import partialmethod

import lm_eval.__main__
import pytest
import torch
from lm_eval.tasks import TaskManager

from models.checkpoint import Checkpoint
from models.compact import in_dense_shapes, write_compact
from models.loading import load_model, load_tokenizer
from models.merge import merge, probe_logits
from models.restoration import save_restoration
from tests.builders import attached, mistake, trained
from utils.evaluation import restored_lm
from utils.evaluation.scoring import evaluate
from utils.evaluation.task_loading import plan_tasks
from utils.evaluation.tasks import BUNDLED_FOLDER

TASKS, METRICS, ROWS = "bundled_response,bundled_facts,bundled_arithmetic", ("acc", "acc_norm"), 6


@pytest.fixture
def files(make_tiny_llama, tmp_path):
    """(pruned, restoration/, model/) of a run."""
    pruned, restoration = make_tiny_llama(zeros=0.5, max_position_embeddings=512), trained()
    save_restoration(tmp_path / "restoration", restoration, {"pruned_sha256": Checkpoint(pruned).fingerprint})
    merge(pruned, restoration, tmp_path / "model", pruned)
    return pruned, tmp_path / "restoration", tmp_path / "model"


def command(monkeypatch, main, output, *more: str) -> dict:
    words = ["lm_eval", "--include_path", str(BUNDLED_FOLDER), "--tasks", TASKS, "--limit", str(ROWS)]
    # Indexing all of lm_eval's own tasks takes ten seconds.
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu", "--output_path", str(output), *more])
    main()
    (written,) = output.rglob("results_*.json")
    return json.loads(written.read_text())["results"]


def test_lm_evals_command_line_gives_the_scores_in_memory(files, monkeypatch, tmp_path):
    pruned, restoration, merged = files
    model = trained().attach(load_model(pruned, "auto", "cpu", "-p"))
    found = evaluate(model, load_tokenizer(pruned, "-p"), plan_tasks(TASKS, None, ROWS, 64), label="restored").scores
    expected = [pytest.approx(list(found[task][metric].values())) for task in TASKS.split(",") for metric in METRICS]

    def scores(name: str, main, *words: str) -> list[list[float]]:
        results = command(monkeypatch, main, tmp_path / name, *words)
        keys = [(f"{metric},none", f"{metric}_stderr,none") for metric in METRICS]
        return [[results[task][key] for key in two] for task in TASKS.split(",") for two in keys]

    plain = lm_eval.__main__.cli_evaluate
    assert scores("merged", plain, "--model_args", f"pretrained={merged}") == expected
    assert scores("pruned", plain, "--model_args", f"pretrained={pruned}") != expected
    attached = f"pruned={pruned},restoration={restoration}"
    assert scores("attached", restored_lm.main, "--model", "restorelcc", "--model_args", attached) == expected


def test_mistakes_in_the_model_types_arguments_are_one_line(files, make_tiny_llama, monkeypatch, tmp_path, capsys):
    words = "--model", "restorelcc", "--model_args"
    for more, says in ((f",restoration={tmp_path}/absent", "restoration: "), ("", "--model_args: give pruned=PRUNED,")):
        with pytest.raises(SystemExit, match="2"):
            command(monkeypatch, restored_lm.main, tmp_path, *words, f"pruned={files[0]}{more}")
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {says}")
    bare = shutil.copytree(files[0], tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    mistake(r"^pruned: .* has no tokenizer; add tokenizer=", restored_lm.RestoredLM, str(bare), str(files[1]))
    other = str(make_tiny_llama(seed=3))
    mistake(r"^pruned: .* is not the pruned checkpoint", restored_lm.RestoredLM, other, str(files[1]), device="cpu")


def test_a_compact_checkpoint_is_scored_with_the_restoration_trained_on_it(make_tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(restored_lm, "DEFAULT_CACHE", tmp_path / "cache")
    small, place = tmp_path / "small", tmp_path / "restoration"
    write_compact(make_tiny_llama(zeros=0.5), small)
    expanded, _ = in_dense_shapes(small, tmp_path / "cache")
    about = {"pruned_sha256": Checkpoint(small).fingerprint, "expanded_sha256": Checkpoint(expanded).fingerprint}
    save_restoration(place, trained(), about)
    model = restored_lm.RestoredLM(str(small), str(place), device="cpu", dtype="float32")
    assert torch.equal(*(probe_logits(each, [[5, 9, 77]])[0] for each in (model.model, attached(expanded))))
