"""lm_eval's own command line on our outputs gives the numbers of the evaluation in memory."""

import json
import sys
from functools import partialmethod

import lm_eval.__main__
import pytest
import torch
from lm_eval.tasks import TaskManager

import utils.evaluation.restored_lm
from models.checkpoint import fingerprint
from models.compact import in_dense_shapes
from models.loading import load_model, load_tokenizer
from models.merge import merge, probe_logits
from models.restoration import save_restoration
from tests.builders import compact_checkpoint, trained
from utils.common.errors import UserError
from utils.common.names import ANSWER_BITS
from utils.evaluation.scoring import evaluate
from utils.evaluation.task_loading import plan_tasks
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


def command(monkeypatch, main, output, *more: str) -> dict:
    """The scores that lm_eval's command line writes, in the form of Evaluation.scores."""
    words = ["lm_eval", "--include_path", str(BUNDLED_FOLDER), "--tasks", ",".join(TASKS), "--limit", str(ROWS)]
    # Indexing all of lm_eval's own tasks takes ten seconds.
    index = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", index)
    monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu", "--output_path", str(output), *more])
    main()
    (written,) = output.rglob("results_*.json")
    return {
        task: {
            metric: {"value": measured[f"{metric},none"], "stderr": measured[f"{metric}_stderr,none"]}
            for metric in ("acc", "acc_norm")
        }
        for task, measured in json.loads(written.read_text())["results"].items()
        if task in TASKS
    }


def test_lm_evals_command_line_gives_the_scores_in_memory(run, monkeypatch):
    pruned, folder, evaluation = run
    expected = {
        task: {metric: pytest.approx(score) for metric, score in scores.items() if metric != ANSWER_BITS}
        for task, scores in evaluation.scores.items()
    }
    plain = lm_eval.__main__.cli_evaluate
    merged, unrestored = f"pretrained={folder / 'model'}", f"pretrained={pruned}"
    assert command(monkeypatch, plain, folder / "merged", "--model_args", merged) == expected
    assert command(monkeypatch, plain, folder / "pruned", "--model_args", unrestored) != expected
    attached = f"pruned={pruned},restoration={folder / 'restoration'}"
    ours = ("--model", "restorelcc", "--model_args", attached)
    assert command(monkeypatch, utils.evaluation.restored_lm.main, folder / "attached", *ours) == expected


def test_mistakes_in_the_model_types_arguments_are_one_line(run, make_tiny_llama, monkeypatch, capsys):
    pruned, folder, _ = run
    model = ("--model", "restorelcc", "--model_args", f"pruned={pruned},restoration={folder}/absent")
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, utils.evaluation.restored_lm.main, folder, *model)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: restoration: ")
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
