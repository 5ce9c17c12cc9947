"""What each question came to is kept beside the scores, and pairs two runs that asked the same."""

import gzip

import pytest

from tests.evaluation.test_evaluation import data, load, one_line  # noqa: F401
from utils.evaluation.comparison import compare
from utils.evaluation.plan import plan_tasks
from utils.evaluation.rows import CHOICES, pair_rows, read_rows, write_rows
from utils.evaluation.scoring import Evaluation, evaluate
from utils.evaluation.statistics import paired_difference
from utils.evaluation.tasks import TOKEN_PERPLEXITY, WIKITEXT


@pytest.fixture
def scored(data, make_tiny_llama):  # noqa: F811
    """scored(seed, limit=None, window=32) -> a tiny model's evaluation."""

    def score(seed: int, limit: int | None = None, window: int = 32) -> Evaluation:
        plan = plan_tasks("hellaswag,wikitext2", data, limit, window)
        return evaluate(*load(make_tiny_llama(seed=seed)), plan, label="x")

    return score


def test_rows_come_back_as_they_were_scored(scored, tmp_path):
    evaluations = {"dense": scored(0), "pruned": scored(5)}
    path = tmp_path / "logs" / "rows.json.gz"
    write_rows(path, evaluations)
    kept = read_rows(path)
    assert set(kept) == {"dense", "pruned"}
    for name, evaluation in evaluations.items():
        values = {task: {m: rows.values for m, rows in metrics.items()} for task, metrics in kept[name].items()}
        assert values["hellaswag"].pop(CHOICES) == evaluation.choices["hellaswag"]
        assert values == evaluation.samples
        rows = kept[name]["hellaswag"]["acc"]
        assert (rows.aggregation, rows.higher_is_better) == ("mean", True)
        assert rows.sha256 == evaluation.provenance["tasks"]["hellaswag"]["rows_sha256"]
    assert list(path.parent.iterdir()) == [path]


def test_the_same_rows_are_the_same_bytes(scored, tmp_path, monkeypatch):
    evaluations = {"dense": scored(0)}
    write_rows(tmp_path / "one", evaluations)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_rows(tmp_path / "another", evaluations)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "another").read_bytes()


def test_two_runs_are_paired_as_two_models_of_one_run(scored, tmp_path):
    one, other = scored(0), scored(5)
    for name, evaluation in (("one", one), ("other", other)):
        write_rows(tmp_path / name, {"restored": evaluation})
    runs = [read_rows(tmp_path / name)["restored"] for name in ("one", "other")]
    for task, metrics in compare(one, other).items():
        for metric, expected in metrics.items():
            first, second = pair_rows(*runs, task, metric)
            found = paired_difference(first.values, second.values, first.aggregation)
            assert found == (expected["difference"], expected["stderr"])


def test_other_rows_are_refused(data, scored, tmp_path):  # noqa: F811
    def kept(name: str, evaluation: Evaluation):
        write_rows(tmp_path / name, {"restored": evaluation})
        return read_rows(tmp_path / name)["restored"]

    before = kept("before", scored(0))
    one_line(lambda: pair_rows(before, before, "rte", "acc"), "rte, acc", "first run", "-eval_tasks")
    one_line(lambda: pair_rows(before, {}, "hellaswag", "acc"), "second run")
    limited = kept("limited", scored(0, limit=2))
    one_line(lambda: pair_rows(before, limited, "hellaswag", "acc"), "hellaswag, acc", "different rows", "-eval_limit")
    # As many windows of the same pages, but of other tokens.
    windows = kept("windows", scored(0, limit=2, window=31))
    assert windows["hellaswag"] == limited["hellaswag"]
    assert windows[WIKITEXT]["word_perplexity"].sha256 == limited[WIKITEXT]["word_perplexity"].sha256
    one_line(lambda: pair_rows(limited, windows, WIKITEXT, TOKEN_PERPLEXITY), "different rows", "-ppl_window")
    file = data / "hellaswag" / "validation.jsonl"
    file.write_text(file.read_text().replace("paints a wall", "paints a door"))
    changed = kept("changed", scored(0))
    assert len(changed["hellaswag"]["acc"].values) == len(before["hellaswag"]["acc"].values)
    one_line(lambda: pair_rows(before, changed, "hellaswag", "acc"), "different rows")


DAMAGED = {
    "empty": b"",
    "plain": b"plain",
    "a list": gzip.compress(b"[1]"),
    "no rows": gzip.compress(b'{"a": {"b": {"c": {}}}}'),
}


# By name: compressed bytes hold the time, and two processes that collect tests must find the same ones.
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "rows.json.gz"
    path.write_bytes(content)
    one_line(lambda: read_rows(path), str(path), "rows.json.gz")
    path.unlink()
    one_line(lambda: read_rows(path), str(path))
