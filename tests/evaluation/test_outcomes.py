"""What each question came to is kept beside the scores, and pairs two runs that asked the same."""

import gzip
from dataclasses import replace

from tests.builders import mistake
from utils.evaluation.outcomes import CHOICES, KeptRows, Outcome, pair_rows, read_rows, write_rows
from utils.evaluation.scoring import evaluate
from utils.evaluation.task_loading import plan_tasks
from utils.evaluation.tasks import TOKEN_PERPLEXITY, WIKITEXT

TASKS = "hellaswag,arc_easy,wikitext2"


def test_rows_come_back_as_they_were_scored_and_pair_two_runs(data, load, tmp_path, monkeypatch):
    plan = plan_tasks(TASKS, data, None, 32)
    dense, one, other = (evaluate(*load(seed), plan, label="x") for seed in (3, 0, 5))
    path, more = tmp_path / "logs" / "rows.json.gz", {"validation": {"loss": KeptRows([[1.0, 2]], "", False, "")}}
    write_rows(path, {"dense": dense, "restored": one}, {"dense": more})
    assert list(path.parent.iterdir()) == [path]
    first = read_rows(path)
    assert {"validation": first["dense"].pop("validation")} == more
    for name, evaluation in (("dense", dense), ("restored", one)):
        values = {task: {m: rows.values for m, rows in metrics.items()} for task, metrics in first[name].items()}
        assert {task: values[task].pop(CHOICES) for task in evaluation.choices} == evaluation.choices
        assert values == evaluation.samples
    rows, asked = first["dense"]["hellaswag"]["acc"], dense.provenance["tasks"]["hellaswag"]["rows_sha256"]
    assert (rows.aggregation, rows.higher_is_better, rows.sha256) == ("mean", True, asked)
    write_rows(tmp_path / "other", {"restored": other})
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_rows(tmp_path / "later", {"restored": other})
    assert (tmp_path / "other").read_bytes() == (tmp_path / "later").read_bytes()
    second = read_rows(tmp_path / "other")["restored"]
    for task, metrics in other.samples.items():
        for metric in metrics:
            pair = pair_rows(first["restored"], second, task, metric)
            assert [rows.values for rows in pair] == [each.samples[task][metric] for each in (one, other)]


def test_other_rows_and_a_damaged_file_are_refused(data, tiny, tmp_path):
    def kept(limit: int | None = None, window: int = 32, **definition):
        plan = plan_tasks(TASKS, data, limit, window)
        for record in (record for part in plan.planned for record in part.records.values()):
            record |= definition
        write_rows(tmp_path / "kept", {"restored": evaluate(*tiny, plan, label="x")})
        return read_rows(tmp_path / "kept")["restored"]

    def refused(first, second, task: str, metric: str, says: str) -> None:
        mistake(f"^{task}, {metric}: .*{says}", pair_rows, first, second, task, metric)

    before, limited, windows = kept(), kept(limit=2), kept(limit=2, window=31)
    refused({}, before, "hellaswag", "acc", "first run .*-eval_tasks")
    refused(before, {}, "hellaswag", "acc", "second run")
    refused(before, limited, "hellaswag", "acc", "different rows .*-eval_limit")
    # As many windows of the same pages, but of other tokens.
    assert windows["hellaswag"] == limited["hellaswag"]
    refused(limited, windows, WIKITEXT, TOKEN_PERPLEXITY, "different rows .*-ppl_window")
    refused(limited, windows, WIKITEXT, "word_perplexity", "windows of the same rows.*-ppl_window")
    for changed in ({"version": 9}, {"num_fewshot": 1}, {"config": {}}, {"examples_sha256": ""}):
        again = kept(limit=2, **changed)
        refused(limited, again, "hellaswag", "acc", "other templates, examples .*lm_eval")
    older = {"hellaswag": {"acc": replace(again["hellaswag"]["acc"], definition=None)}}  # which didn't tell
    assert pair_rows(limited, older, "hellaswag", "acc")[1] is older["hellaswag"]["acc"]
    path = tmp_path / "rows.json.gz"
    mistake(str(path), read_rows, path)
    for content in (b"", b"plain", gzip.compress(b"[1]"), gzip.compress(b'{"a": {"b": {"c": {}}}}')):
        path.write_bytes(content)
        mistake(str(path), read_rows, path)


def test_minutes_count_what_the_cache_knew_and_are_not_known_of_a_run_that_did_not_tell():
    stages = [{"seconds": 60, "reused": ["starts"], "saved_seconds": 120}, {"seconds": 30, "reused": []}]
    assert Outcome({}, {"stages": stages}, {}).minutes == 3.5
    assert Outcome({}, {"stages": [{"seconds": 60, "reused": ["starts"]}]}, {}).minutes is None
