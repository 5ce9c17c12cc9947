"""The page says what the record says and nothing else, whatever a model wrote; tables and sentences claim no more."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from pathlib import Path

import pytest
import torch

from tests.browser import A4, brightness, look
from tests.report.made import (
    DIM,
    HEADS,
    HISTORY,
    HOSTILE,
    LAYERS,
    PROOF,
    RUN,
    TRAINED,
    examples,
    hostile,
    make_results,
    task,
    whole,
    with_answers,
)
from utils.common.errors import UserError
from utils.report import __main__ as command
from utils.report import page as page_module
from utils.report.charts import heads_picture, loss_picture, scores_picture, smooth
from utils.report.page import Record, page, pictures_of, shared_lines, shown_examples, write_report
from utils.report.records import heads_record, spectrum_record
from utils.report.summary import (
    hide_path,
    hide_paths,
    proof_sentence,
    shown_name,
    sparsity_sentence,
    validation_sentence,
    verdict,
    what_was_done,
)
from utils.report.svg import Scale, log_ticks, short, ticks
from utils.report.tables import (
    Score,
    ScoreRow,
    agreement_rows,
    mean_rows,
    proof_table,
    score_rows,
    score_table,
    stage_table,
)

SPACE = "{http://www.w3.org/2000/svg}"
FACTS = make_results(facts=task(0.6512, 0.5134, 0.58, stderr=0.0213, paired_stderr=0.0101))


def draw(results: dict, run: dict = RUN, history: list = HISTORY, asked: dict | None = None) -> str:
    record = Record(results, run, history, asked)
    return page(record, pictures_of(record))


@pytest.fixture(scope="module")
def drawn() -> str:
    """The page of a run that recorded all there is."""
    return page(whole(), pictures_of(whole()))


# Tables.


def test_a_table_for_the_terminal_shows_the_values_given_and_dashes_for_what_is_missing():
    def cells(results: dict) -> list[str]:
        line = next(line for line in score_table(results).splitlines() if line.startswith("facts"))
        return re.split(r"\s{2,}", line)

    values = ["65.12 ± 2.13", "51.34 ± 2.13", "58.00 ± 2.13", "+6.66 ± 1.01", "48 %"]
    assert cells(FACTS) == ["facts acc ↑", *values]
    assert (
        cells({**FACTS, "scores": {"dense": FACTS["scores"]["dense"]}, "paired": {}, "recovered": {}})[2:] == ["–"] * 4
    )
    assert score_table({}) == "No task was evaluated."
    assert proof_table({}).startswith("No proof") and stage_table({}) == "No stage was recorded."


def test_a_table_stays_within_100_columns_and_keeps_long_names_whole():
    name = "choose_the_right_response_among_several_rather_similar_ones"
    results = make_results(**{name: task(0.8, 0.6, 0.7), "w": task(5e3, 9e7, 4e5, "token_perplexity", 12.5, 1e5)})
    assert max(map(len, score_table(results).splitlines())) <= 100 and name in score_table(results)


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        ({"pruned": Score(54.00012), "restored": Score(54.00013)}, ["54.00012", "54.00013"]),  # never printed equal
        ({"pruned": Score(123.456, 0.0004), "restored": Score(1, None)}, ["123.4560 ± 0.0004", "1.0000"]),  # never 0
        ({"pruned": Score(2.455e6, 771160.0), "restored": Score(45.0, 1.5)}, ["2.46e6 ± 7.71e5", "45.00 ± 1.50"]),
        ({"pruned": Score(float("inf")), "restored": Score(float("nan"))}, ["inf", "nan"]),
    ],
)
def test_no_rounding_hides_what_differs(scores, texts):
    assert list(ScoreRow("t", "token_perplexity", scores).texts.values())[1:3] == texts


@pytest.mark.parametrize(
    ("measured", "label", "word"),
    [
        (task(0.65, 0.50, 0.60), "acc ↑", "better"),
        (task(0.65, 0.50, 0.40), "acc ↑", "worse"),
        (task(0.65, 0.50, 0.515), "acc ↑", "within noise"),
        (task(0.65, 0.50, 0.50), "acc ↑", "equal"),
        (task(0.65, 0.50, 0.60, paired_stderr=None), "acc ↑", "no stderr"),
        (task(24, 54, 45, "token_perplexity", 0.3, 0.2), "token_perplexity ↓", "better"),
        # A direction is what was recorded, not what the name suggests.
        (task(3.0, 1.0, 2.0, "loss_avoided", higher=True), "loss_avoided ↑", "better"),
        (task(0.1, 0.4, 0.5, "acc_gap", higher=False), "acc_gap ↓", "worse"),
    ],
)
def test_a_verdict_follows_the_paired_difference_and_the_recorded_direction(measured, label, word):
    (row,) = score_rows(make_results(t=measured))
    assert (row.label, row.verdict) == (label, word)


def test_what_was_not_recorded_is_shown_and_not_judged():
    (row,) = score_rows({**FACTS, "metrics": {}})
    assert (row.label, row.verdict) == ("acc", "differs")
    (row,) = score_rows({**FACTS, "paired": {}})
    assert row.difference.value == pytest.approx(0.0666) and row.verdict == "no stderr"
    (row,) = score_rows(make_results(facts=task(0.65, 0.51, 0.58, stderr="N/A")))
    assert row.scores["dense"] == Score(0.65, None)


def test_other_metrics_means_and_agreement_have_rows_of_their_own():
    results = with_answers()
    assert [(row.task, row.metric) for row in score_rows(results)] == [
        ("a", "acc"), ("b", "acc"), ("c", "token_perplexity"),
    ]  # fmt: skip
    assert {row.metric for row in score_rows(results, main=False)} == {"answer_bits_per_byte"}
    (mean,) = mean_rows(results)
    assert (mean.task, mean.label, mean.verdict) == ("mean of 2 tasks", "answer bits/byte ↓", "better")
    assert list(mean.texts.values())[2:] == ["1.600 ± 0.020", "-0.100 ± 0.007", "33 %"]
    assert mean.texts["difference"] in score_table(results) and mean_rows({**results, "answers": None}) == []
    found = {(row.task, row.metric): (row.texts["restored"], row.verdict) for row in agreement_rows(results)}
    assert found["b", "answers flipped"] == ("25.00 ± 3.00", "worse")
    assert found["all questions", "KL from dense"] == ("0.440 ± 0.030", "better") and len(found) == 6
    for part in results["agreement"].values():
        del part["b"]
    assert len(agreement_rows(results)) == 2  # one task's questions are not told twice


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ({"tensors_identical": 37}, "weights bit-identical"),
        ({"zeros_restored": 12344}, "every zero"),
        ({"sparsity_restored": [0.5, 0.5, 0.4, 0.5, 0.5]}, "no layer has fewer"),
        ({"zeros_lost": 1}, "every zero"),
        ({"tensors_recomputed": 0}, "restored tensors as saved"),
        ({"unexplained_tensors": ["model.layers.0.self_attn.q_proj.bias"]}, "nothing else is new"),
        ({"logits_relative_difference": 2e-4}, "same logits"),
        ({"logits_relative_difference": float("nan")}, "same logits"),
        ({"logits_relative_difference": None, "logits_finite": False}, "same logits"),
    ],
)
def test_the_proof_says_no_to_the_broken_promise_alone(broken, promise):
    proof = {**PROOF, **broken, "passed": False}
    refused = [line for line in proof_table(proof).splitlines() if line.endswith("NO")]
    assert [line.startswith(start) for line, start in zip(refused, (promise, "proof passed"), strict=True)] == [
        True
    ] * 2
    assert "FAILED" in proof_sentence(proof)


def test_the_proof_shows_its_numbers_and_calls_zeros_that_nobody_promised_a_finding():
    table = proof_table({**PROOF, "new_tensors": [], "changed_tensors": ["model.layers.0.self_attn.o_proj.bias"]})
    for part in ("38 of 38 tensors", "12,345 of 24,690", "5 of 5 layers", "apart 3.1e-06", "top token 100.0 %"):
        assert part in table
    big = {"zeros_pruned": 34_000_000_000, "zeros_restored": 33_999_999_999, "weights": 68_000_000_000}
    assert "NO" not in table and max(map(len, proof_table({**PROOF, **big}).splitlines())) <= 100
    filled = {**PROOF, "zeros": "reported", "zeros_restored": 247, "sparsity_restored": [0.01] * LAYERS}
    assert "NO" not in proof_table(filled) and "50.0% before, 1.0% after" in proof_table(filled)
    assert "**Merging it filled zeros**: 50 %" in proof_sentence(filled)
    assert "50 %, and 1 % after restoring: **not the same**" in sparsity_sentence(filled)
    inside = proof_sentence({**PROOF, "changed_tensors": ["model.layers.0.mlp.up_proj.weight"]})
    assert "every zero of the pruned one" in inside and "every weight" not in inside


def test_stages_add_seconds_and_take_the_highest_peak():
    assert re.split(r"\s{2,}", stage_table(RUN).splitlines()[-1]) == ["total", "105.0", "3.00 GiB"]
    assert "GPU" not in stage_table(RUN)
    with_gpu = {"stages": [{**RUN["stages"][0], "peak_gpu_memory_bytes": 2**31}, RUN["stages"][1]]}
    assert stage_table(with_gpu).splitlines()[-1].endswith("2.00 GiB")


# Sentences.


@pytest.mark.parametrize(
    ("results", "run", "sentence"),
    [
        ({}, RUN, "is not known."),
        ({"validation": {"start": 2.5, "restored": 2.6}}, RUN, "known; the validation loss rose from 2.500 to 2.600."),
        ({"validation": {"pruned": 2.5, "start": 2.7, "restored": 2.6}}, RUN, "loss rose from 2.500 to 2.600."),
        ({**make_results(a=task(0.65, 0.5, 0.4)), "validation": {"start": 2.5, "restored": 2.4}}, RUN, "on none."),
        ({"proof": {**PROOF, "passed": False}}, RUN, "failed its proof: do not use"),
        (make_results(a=task(0.65, 0.5, 0.6)), {"arguments": {"num_epoch": 0}}, "Nothing was restored"),
        (
            make_results(a=task(0.65, 0.5, 0.6)), RUN,
            "Restoring helped: better on 1 of 1 task, worse on none, with 67 % of the gap in a’s acc recovered.",
        ),
        (make_results(a=task(0.65, 0.5, 0.515)), RUN, "No measurable effect on the score of the task."),
        (
            make_results(a=task(0.65, 0.5, 0.6), b=task(0.65, 0.5, 0.4)), RUN,
            "The result is mixed: better on 1 of 2 tasks, worse on 1.",
        ),
        (
            {**make_results(a=task(0.65, 0.5, 0.51)), "answers": with_answers()["answers"]}, RUN,
            "but 33 % of the gap in the right answers’ likelihood recovered.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_counts_only_what_is_beyond_noise(results, run, sentence):
    assert sentence in verdict(results, run)


def test_sentences_say_what_was_done_and_what_was_not():
    done = what_was_done(whole().results, RUN)
    assert "2 of its 15 attention heads (chosen at random), trained on 2000 samples for 3 epochs." in done
    assert "50 %, the same before and after restoring" in sparsity_sentence(PROOF)
    assert "Nothing was trained" in what_was_done({}, {**RUN, "arguments": {"num_epoch": 0}})
    pruned = {"validation": {"pruned": 2.6}}
    assert validation_sentence(pruned, HISTORY[:1]) == "Validation loss is 3.000; the pruned model's is 2.600."
    assert validation_sentence(pruned, HISTORY).endswith("to 2.100 at its end; the pruned model's is 2.600.")
    assert "pruned" not in validation_sentence({"validation": {"pruned": 2.999}}, HISTORY)  # as near as b at its start


def test_paths_become_names_and_everything_else_stays():
    line = "/usr/bin/python -data_path '/home/a b/x.jsonl' -output_dir=/tmp/out -lr 1e-3 -base_model_name me/model ../d"
    assert hide_paths(line) == "python -data_path x.jsonl -output_dir=out -lr 1e-3 -base_model_name me/model ../d"
    assert hide_path("~/models/llama") == hide_path("C:\\Users\\ann\\llama") == "llama"
    assert shown_name("../models/llama") == shown_name("some/deep/llama") == "llama"
    assert shown_name("meta-llama/Llama-2-7b-hf") == hide_path("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"


# Records and pictures.


def test_a_record_keeps_each_number_at_its_layer_and_head():
    scores = torch.rand(LAYERS, HEADS, generator=torch.Generator().manual_seed(0))
    learned = {"magnitudes": torch.tensor([[3.0, 4.0], [0, 1]]), "component": torch.tensor([[0.0, 2.0], [6, 8]])}
    record = heads_record(scores, TRAINED, 2 * scores, learned)
    assert record["scores"][4][1] == pytest.approx(float(scores[4, 1]), rel=1e-4)
    assert record["component_sizes"][4][1] == pytest.approx(2 * float(scores[4, 1]), rel=1e-4)
    assert (record["magnitude_sizes"], record["bias_sizes"]) == ([5, 1], [2, 10])
    shares = torch.linspace(1, 0.1, DIM).expand(LAYERS, HEADS, DIM) / 4.4
    shares = shares.clone()
    shares[0, 0], shares[0, 1] = torch.nan, 0  # heads without a gap are left out
    shares[1], shares[3] = torch.nn.functional.one_hot(torch.tensor(0), DIM), 0
    record = spectrum_record(shares)
    assert record["layers"][1] == [1] * DIM and record["layers"][3] is None
    assert record["layers"][0][0] == record["layers"][2][0] == pytest.approx(1 / 4.4, rel=1e-4)
    assert record["low"][0] < record["mean"][0] < record["high"][0] == 1
    assert spectrum_record(torch.zeros(LAYERS, HEADS, DIM)) is None


def test_marks_stand_where_their_numbers_are():
    root = ElementTree.fromstring(heads_picture(whole().results["heads"]).alone())
    rings = [ring for ring in root.iter(f"{SPACE}circle") if ring.get("class") == "trained"]
    cells = {cell.findtext(f"{SPACE}title"): cell for cell in root.iter(f"{SPACE}rect") if len(cell)}
    assert len(cells) == LAYERS * HEADS and len(rings) == 1 + len(TRAINED)  # one is the legend's
    tips = []
    for ring in rings[1:]:
        at = {name: float(ring.get(f"c{name}")) for name in "xy"}
        sizes = {"x": "width", "y": "height"}
        tips += [
            tip for tip, cell in cells.items()
            if all(0 < at[name] - float(cell.get(name)) < float(cell.get(sizes[name])) for name in "xy")
        ]  # fmt: skip
    assert [tip.split(" · ")[0] for tip in tips] == ["layer 4, head 0", "layer 2, head 2"]
    assert all(tip.endswith("‖β‖ 2.828 · ‖b‖ 5.657 · trained") for tip in tips)
    assert next(cell for tip, cell in cells.items() if "cannot be" in tip).get("class") == "cell none"
    heights = [float(next(c for t, c in cells.items() if t.startswith(f"layer 1, head {h}")).get("y")) for h in (0, 2)]
    assert heights[1] < heights[0]  # upwards


def test_scales_ticks_and_means_are_round_and_within():
    assert ticks(0.13, 0.52, 4) == [0.2, 0.3, 0.4, 0.5] and ticks(-3, 47, 5) == [0, 10, 20, 30, 40]
    assert ticks(2, 2) == [2] and log_ticks(3, 4) == [3, 4] and log_ticks(8, 60) == [10, 20, 50]
    assert log_ticks(8, 9e4) == [10, 100, 1000, 10000]
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100) and Scale(5, 5, 0, 10)(5) == 0
    assert [short(x) for x in (0, 0.25, 1234.5, 2.2e7, 1e-6)] == ["0", "0.25", "1,234", "2.2e7", "1e-6"]
    assert smooth([3.0] * 7, 4) == pytest.approx([3.0] * 7) and smooth([0.0, 3, 6, 0], 3) == pytest.approx(
        [1.5, 3, 3, 3]
    )


def test_pictures_survive_numbers_that_are_none():
    odd = score_rows(make_results(w=task(24.0, float("inf"), float("nan"), "token_perplexity", None, None)))
    assert "nan" not in scores_picture(odd).alone().partition("</style>")[2]
    assert scores_picture(score_rows(make_results(w=task(*[float("nan")] * 3)))) is None
    before = {"step": 0, "valid_loss": 2.0}
    assert loss_picture([]) is loss_picture([before]) is loss_picture([{"step": 3, "loss": float("nan")}]) is None
    assert loss_picture([before, {"step": 9, "valid_loss": 2.0}]) and loss_picture([{"step": 1, "loss": 2.0}])
    assert heads_picture({"scores": [[None]], "trained": [], "count": 1})
    collapsed = make_results(w=task(24.0, float("inf"), float("nan"), "token_perplexity", None, None))
    assert "inf" in draw({**whole().results, **collapsed}) and "helped" not in draw({**whole().results, **collapsed})


# The page.


def test_every_number_of_the_tables_is_results_jsons(drawn):
    results = whole().results
    rows = re.findall(r"<tr>\n<td>(.*?)<span class=\"unit\">(\S+?)[ <].*?</tr>", drawn, re.DOTALL)
    assert len(rows) == len(set(rows)) == 12
    for row in re.findall(r"<tr>\n<td>[abc]<span class.*?</tr>", drawn, re.DOTALL):
        name, metric = re.match(r"<tr>\n<td>(.)<span class=\"unit\">(\S+?)[ <]", row).groups()
        values = [float(value) if value else None for value in re.findall(r'data-value="([^"]*)"', row)]
        if metric in results["scores"]["dense"][name]:
            assert values[:3] == [
                results["scores"][model][name][metric]["value"] for model in ("dense", "pruned", "restored")
            ]
            if metric in results["paired"][name]:
                assert values[3] == results["paired"][name][metric]["difference"]
                assert values[4] == results["recovered"][name][metric]


def test_every_part_of_the_record_is_on_the_page_and_no_private_folder(drawn):
    home = str(Path.home())
    text = draw(whole().results, {**RUN, "arguments": {**RUN["arguments"], "note": f"see {home}/notes"}})
    for part in (
        verdict(whole().results, RUN), "38 of 38 tensors", "version of torch", "173c87a5", "alpaca.jsonl",
        "python RestoreLCC_train.py -pruned_model_path wanda-50", "probing", "100.2", "3.00 GiB", "an answer",
        "loss 1.250", "loss –", "only blanks", "layer 4, head 0", "python -m utils.report", "lm_eval --model hf",
        "One run with one seed (42)", "answers flipped", "from 3.000 before training to 2.100",
    ):  # fmt: skip
        assert part in unescape(drawn), part
    assert not re.search(r"/home/ann|/data/ann", drawn) and f"{home}/" not in text


def test_what_a_record_lacks_is_said_to_be_absent_and_nothing_else():
    text = draw({}, {}, [])
    for part in (
        "No task was scored", "nothing was proved", "restores no attention heads", "Not recorded",
        "Nothing was trained", "None were kept", "No stage was recorded",
    ):  # fmt: skip
        assert part in text
    old = draw({**with_answers(), "heads": {"selection": "random", "count": 15, "trained": [[4, 0]]}})
    assert "made by an earlier version" in old and "restores no attention heads" not in old
    assert "No task was scored" not in old


def test_the_page_is_one_file_without_network(drawn):
    assert not re.findall(r"(?:src|action)=|@import|url\(|<(?:img|iframe|object|embed|base|form)\b", drawn)
    links = set(re.findall(r"href=\"([^\"]*)\"", drawn))
    assert all(re.match(r"#|figures/\w+\.svg$|data:,$", link) for link in links) and len(links) > 10
    assert "default-src 'none'" in drawn


def test_hostile_text_is_text_and_the_data_in_the_page_is_the_records():
    record = hostile()
    text = page(record, pictures_of(record))
    assert "<img" not in text and "<svg onload" not in text
    assert text.count("<script") == text.count("</script>") == 2  # the data and ours
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["results"]["scores"] == record.results["scores"] and data["results"]["heads"] == record.results["heads"]
    assert data["history"] == HISTORY and data["examples"] == record.examples


def test_next_steps_name_the_runs_folder_and_follow_what_was_found():
    def told(results: dict, **more: object) -> str:
        text = draw(results, {**RUN, "arguments": {"output_dir": "/home/ann/out", "lr": 0.01, "num_epoch": 1, **more}})
        return unescape(re.search(r'<ol class="steps">.*?</ol>', text, re.DOTALL)[0])

    better, worse = make_results(a=task(0.65, 0.5, 0.6)), make_results(a=task(0.65, 0.5, 0.4))
    steps = told(better, eval_limit=50)
    assert "-config out/run.json -train_seed 43 -output_dir out-seed43\npython -m utils.compare out out-seed43" in steps
    assert (
        "-eval_limit 200" in steps and "/home/ann" not in steps and "-lr" not in steps and "-allow_dense" not in steps
    )
    assert "-pruned_model_path embedded -allow_dense" in told(better, base_model_name="embedded")
    assert "-lr 0.003 -output_dir out-lr0.003" in told(worse)
    failed = told({"proof": {**PROOF, "passed": False}})
    assert "-config out/run.json -output_dir out-2" in failed and failed.count("<li>") == 1


def test_lines_that_all_prompts_share_are_said_once():
    assert shared_lines(["a\nb\nc", "a\nx\ny\nc"]) == (["a"], ["c"])
    assert shared_lines(["a\nb", "a\nb"]) == (["a", "b"], []) and shared_lines(["a\nb"]) == ([], [])
    assert shown_examples(examples())["prompts"][0]["prompt"] == "Count to 0."
    same = {"prompts": [{"prompt": "same", "response": "", "answers": {}}] * 2}
    assert [each["prompt"] for each in shown_examples(same)["prompts"]] == ["same", "same"]


# The command.


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A run's folder, and the command called with it."""
    run, record = tmp_path / "out", whole()
    (run / "logs").mkdir(parents=True)
    parts = {"results.json": record.results, "run.json": RUN, "logs/examples.json": record.examples}
    for name, content in parts.items():
        (run / name).write_text(json.dumps(content), encoding="utf-8")
    (run / "logs" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["utils.report", str(run)])
    return run


def test_the_command_draws_the_same_page_from_the_files_alone_and_touches_no_other(folder, drawn, capsys):
    (folder / "figures").mkdir()
    (folder / "figures" / "mine.svg").write_text("mine")
    before = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    command.main()
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8") == drawn
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    pictures = {f"figures/{name}.svg" for name in ("scores", "heads", "spectrum", "loss")}
    assert files - before == {"report.html", *pictures} and (folder / "figures" / "mine.svg").read_text() == "mine"
    for name in pictures:  # each stands alone
        assert ElementTree.parse(folder / name).getroot().tag == f"{SPACE}svg"
        assert "prefers-color-scheme: dark" in (folder / name).read_text()
        assert f'href="{name}"' in drawn


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results.json", None, "give the whole folder of a run"),
        ("run.json", "[]", "holds no JSON object"),
        ("logs/history.jsonl", "{", "history"),
        ("logs/history.jsonl", "3", "history.jsonl: holds no JSON object"),
        ("logs/examples.json", "{", "cannot be read"),
        ("results.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_folder_that_is_no_runs_is_one_line(folder, name, content, words):
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UserError, match=words):
        command.main()
    assert not (folder / "report.html").exists()


def test_nothing_is_written_when_drawing_fails(folder, monkeypatch):
    def fail(*_):
        raise RuntimeError("no canvas")

    monkeypatch.setattr(page_module, "spectrum_picture", fail)
    with pytest.raises(RuntimeError, match="no canvas"):
        write_report(folder, whole())
    assert not (folder / "report.html").exists() and not (folder / "figures").exists()


# A browser.

UNFOLDED = """
  const folded = [...document.querySelectorAll("details")];
  const seen = (each) => each.checkVisibility() && each.getBoundingClientRect().height > 0;
  return [folded.length, folded.filter((each) => seen(each.querySelector("summary").nextElementSibling)).length];
"""
"""(details, those whose content is seen)."""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(380, False), (1000, True)])
def test_a_browser_shows_it_whole_sorts_and_tells_a_heads_numbers(drawn, tmp_path, width, dark):
    (tmp_path / "report.html").write_text(drawn, encoding="utf-8")
    more = """
      const table = document.querySelector("table.sortable");
      const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value));
      const found = [read()], button = table.tHead.rows[0].cells[1].querySelector("button");
      button.click(); found.push(read()); button.click(); found.push(read());
      const cell = [...document.querySelectorAll(".cell")].find((node) => (node.dataset.tip || "").includes("trained"));
      cell.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }));
      return [found, document.querySelector("#tip.shown").textContent];
    """
    seen = look(tmp_path / "report.html", tmp_path, width, dark, more)
    assert (seen["width"], seen["faults"], seen["console"], seen["overflow"]) == (width, [], [], 0)
    assert seen["outside"] == [] and [len(shown) for shown in seen["pictures"]] == [1] * 4
    paper, ink = brightness(seen["paper"]), brightness(seen["ink"])
    assert (paper < 60 and ink > 190) if dark else (paper > 240 and ink < 60)
    (before, up, down), tip = seen["extra"]
    assert up == sorted(before) and down == up[::-1] != up
    assert re.fullmatch(r"layer 2, head 2 · score \S+ · ‖c‖ \S+ · ‖β‖ 2\.828 · ‖b‖ 5\.657 · trained", tip)


@pytest.mark.slow
def test_paper_has_all_that_is_folded_away_in_dark_ink(drawn, tmp_path):
    (tmp_path / "report.html").write_text(drawn, encoding="utf-8")
    seen = look(tmp_path / "report.html", tmp_path, A4, dark=True, more=UNFOLDED, printed=True)
    assert brightness(seen["paper"]) > 250 and brightness(seen["ink"]) < 10
    assert (seen["overflow"], seen["outside"], seen["faults"]) == (0, [], [])
    assert seen["extra"][0] == seen["extra"][1] > 3


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_hostile_text_and_shows_it(tmp_path):
    record = hostile()
    (tmp_path / "report.html").write_text(page(record, pictures_of(record)), encoding="utf-8")
    seen = look(tmp_path / "report.html", tmp_path, 380)
    assert (seen["hacked"], seen["images"], seen["console"], seen["overflow"]) == (None, 0, [], 0)
    assert HOSTILE in seen["text"].replace("\n", " ")
