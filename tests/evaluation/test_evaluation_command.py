"""lm_eval's own command line on our outputs gives the numbers of the evaluation in memory."""

import json
import subprocess
import sys

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager

import utils.evaluation.restored_lm
from models.checkpoint import fingerprint
from models.compact import compact_checkpoint, in_dense_shapes
from models.loading import load_model, load_tokenizer
from models.merge import merge
from models.proof import probe_logits
from models.restoration import save_restoration
from tests.builders import trained
from utils.common.errors import UserError
from utils.common.names import ANSWER_BITS
from utils.evaluation.plan import plan_tasks
from utils.evaluation.scoring import evaluate
from utils.evaluation.tasks import BUNDLED_FOLDER

TASKS = ["bundled_response", "bundled_facts", "bundled_arithmetic"]
ROWS = 6


@pytest.fixture
def run(make_tiny_llama, tmp_path):
    """The files of a run (pruned, restoration, merged model), and its scores in memory."""
    pruned = make_tiny_llama(zeros=0.5, max_position_embeddings=512)
    restoration = trained()
    save_restoration(tmp_path / "restoration", restoration, {"pruned_sha256": fingerprint(pruned)})
    merge(pruned, restoration, tmp_path / "model", pruned)
    model = restoration.attach(load_model(pruned, "auto", "cpu", "-p"))
    plan = plan_tasks(",".join(TASKS), None, ROWS, 64)
    evaluation = evaluate(model, load_tokenizer(pruned, "-p"), plan, label="restored")
    return pruned, tmp_path, evaluation


def scores(results: dict) -> dict:
    """In the form of Evaluation.scores."""
    return {
        task: {
            metric: {"value": measured[f"{metric},none"], "stderr": measured[f"{metric}_stderr,none"]}
            for metric in ("acc", "acc_norm")
            if f"{metric},none" in measured
        }
        for task, measured in results["results"].items()
    }


def assert_same(measured: dict, expected: dict) -> None:
    for task in TASKS:
        for metric in expected[task].keys() - {ANSWER_BITS}:  # which lm_eval doesn't have
            score = expected[task][metric]
            assert measured[task][metric] == pytest.approx(score), (task, metric)


def test_lm_eval_command_on_the_merged_model_gives_the_scores_in_memory(run):
    _, folder, evaluation = run
    ended = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder / 'model'}"]
        + ["--tasks", ",".join(TASKS), "--include_path", str(BUNDLED_FOLDER), "--device", "cpu"]
        + ["--limit", str(ROWS), "--output_path", str(folder / "cli")],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    (written,) = (folder / "cli").rglob("results_*.json")
    assert_same(scores(json.loads(written.read_text())), evaluation.scores)


def test_restorelcc_model_type_through_simple_evaluate(run):
    pruned, folder, evaluation = run
    manager = TaskManager(include_path=str(BUNDLED_FOLDER), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model="restorelcc",
        model_args=f"pruned={pruned},restoration={folder / 'restoration'}",
        tasks=TASKS,
        task_manager=manager,
        limit=ROWS,
        device="cpu",
    )
    assert_same(scores(results), evaluation.scores)
    plain = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={pruned}", tasks=TASKS, task_manager=manager, limit=ROWS, device="cpu"
    )
    assert (
        plain["samples"]["bundled_facts"][0]["filtered_resps"]
        != results["samples"]["bundled_facts"][0]["filtered_resps"]
    )


def test_command_line_knows_the_model_type_and_says_mistakes_in_one_line(run, monkeypatch, capsys):
    pruned, folder, _ = run
    model = f"pruned={pruned},restoration={folder}/absent"
    command = ["utils.evaluation.restored_lm", "--model", "restorelcc", "--model_args", model]
    command += ["--tasks", str(BUNDLED_FOLDER / "bundled_facts.yaml"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        utils.evaluation.restored_lm.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: restoration: ")


def test_restoration_of_another_model_is_refused(run, make_tiny_llama):
    _, folder, _ = run
    with pytest.raises(UserError, match=r"restoration: .* is not the pruned checkpoint"):
        utils.evaluation.restored_lm.RestoredLM(str(make_tiny_llama(seed=3)), str(folder / "restoration"), device="cpu")


def test_a_compact_checkpoint_is_scored_with_the_restoration_trained_on_it(make_tiny_llama, tmp_path, monkeypatch):
    """Its layers have other widths than what was restored: it is put into the dense model's shapes again."""
    monkeypatch.setattr(utils.evaluation.restored_lm, "DEFAULT_CACHE", tmp_path / "cache")
    compact_checkpoint(make_tiny_llama(zeros=0.5), tmp_path / "small")
    expanded, _ = in_dense_shapes(tmp_path / "small", tmp_path / "cache")
    about = {"pruned_sha256": fingerprint(tmp_path / "small"), "expanded_sha256": fingerprint(expanded)}
    save_restoration(tmp_path / "restoration", trained(), about)
    model = utils.evaluation.restored_lm.RestoredLM(
        str(tmp_path / "small"), str(tmp_path / "restoration"), device="cpu", dtype="float32"
    )
    (found,) = probe_logits(model.model, [[5, 9, 77]])
    whole = trained().attach(load_model(expanded, torch.float32, "cpu", "-p"))
    assert torch.equal(found, probe_logits(whole, [[5, 9, 77]])[0])
