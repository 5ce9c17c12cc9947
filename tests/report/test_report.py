"""The page says what the record says and nothing else, whatever a model wrote; tables and sentences claim no more."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.browser import A4, NARROW, brightness, look
from tests.builders import mistake
from tests.report.made import HISTORY, PROOF, RUN, SPACE, hostile, make_results, task, whole, with_answers
from utils.common.files import write_json
from utils.report import __main__ as command
from utils.report import charts, page, records, summary, svg, tables


def draw(results: dict, run: dict = RUN, history: list = HISTORY) -> str:
    return page.draw(page.Record(results, run, history, None))[0]


def words_of(text: str) -> str:
    """What a reader of a page sees, in one line."""
    body = re.sub(r"<(svg|script)\b.*?</\1>", "", text[text.index("<body") :], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", body)).split())


@pytest.fixture(scope="module")
def drawn() -> str:
    return page.draw(whole())[0]


def test_a_table_shows_the_values_given_dashes_for_what_is_missing_and_no_two_alike_that_differ():
    def cells(*values: float | None) -> list[str]:
        table = tables.score_table(make_results(facts=task(*values, stderr=0.0213, paired_stderr=0.0101)))
        return re.split(r"\s{2,}", table.splitlines()[2])

    shown = ["facts acc ↑", "65.12 ± 2.13", "51.34 ± 2.13", "58.00 ± 2.13", "+6.66 ± 1.01", "48 %"]
    assert cells(0.6512, 0.5134, 0.58) == shown and cells(0.6512, None, None) == [*shown[:2], *"––––"]
    assert tables.score_table({}) == "No task was evaluated."
    name = "choose_the_right_response_among_several_rather_similar_ones"
    wide = make_results(**{name: task(0.8, 0.6, 0.7), "w": task(5e3, 9e7, 4e5, "token_perplexity", 12.5, 1e5)})
    assert max(map(len, tables.score_table(wide).splitlines())) <= 100 and name in tables.score_table(wide)
    for pruned, restored, texts in (
        ((54.00012,), (54.00013,), ["54.00012", "54.00013"]),  # never printed equal
        ((123.456, 0.0004), (1,), ["123.4560 ± 0.0004", "1.0000"]),  # nor an error as 0
        ((2.455e6, 771160.0), (45.0, 1.5), ["2.46e+06 ± 7.71e+05", "45.00 ± 1.50"]),
    ):
        scores = {"pruned": tables.Score(*pruned), "restored": tables.Score(*restored)}
        assert list(tables.ScoreRow("t", "token_perplexity", scores).texts.values())[1:3] == texts


@pytest.mark.parametrize(
    ("measured", "label", "word"),
    [
        (task(0.65, 0.50, 0.60), "acc ↑", "better"),
        (task(0.65, 0.50, 0.515), "acc ↑", "within noise"),
        (task(0.65, 0.50, 0.50), "acc ↑", "equal"),
        (task(0.65, 0.50, 0.60, paired_stderr=None), "acc ↑", "no standard error"),
        # A direction is what was recorded, not what the name suggests.
        (task(0.1, 0.4, 0.5, "acc_gap", higher=False), "acc_gap ↓", "worse"),
    ],
)
def test_a_verdict_follows_the_paired_difference_and_the_recorded_direction(measured, label, word):
    results = make_results(t=measured)
    (row,) = tables.score_rows(results)
    assert (row.label, row.verdict) == (label, word)
    assert replace(row, mcnemar_p=0.06, higher_is_better=None).verdict not in ("differs", "better", "worse")
    assert replace(row, mcnemar_p=0.06).verdict == {"better": "within noise", "worse": "within noise"}.get(word, word)
    assert tables.score_rows({**results, "metrics": {}})[0].verdict not in ("better", "worse")
    (row,) = tables.score_rows({**results, "paired": {}})
    assert row.difference.value == measured["values"][2] - measured["values"][1]  # shown, and not judged
    assert row.verdict in ("no standard error", "equal")


def test_other_metrics_means_and_agreement_have_rows_of_their_own():
    results, bits = with_answers(), "answer_bits_per_byte"
    main, others = ([(row.task, row.metric) for row in tables.score_rows(results, kind)] for kind in (True, False))
    assert main == [("a", "acc"), ("b", "acc"), ("c", "token_perplexity")] and others == [("a", bits), ("b", bits)]
    (mean,) = tables.mean_rows(results)
    assert (mean.task, mean.verdict) == ("mean of 2 tasks", "better")
    assert list(mean.texts.values())[2:] == ["1.600 ± 0.020", "-0.100 ± 0.007", "33 %"]
    assert mean.texts["difference"] in tables.score_table(results)
    found = {(row.task, row.metric): (row.texts["restored"], row.verdict) for row in tables.agreement_rows(results)}
    assert found["b", "answers flipped"] == ("25.00 ± 3.00", "worse") and len(found) == 6
    assert found["all questions", "KL from dense"] == ("0.440 ± 0.060", "within noise")
    for part in results["agreement"].values():
        del part["b"]
    assert len(tables.agreement_rows(results)) == 2  # one task's questions are not told twice


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ({"tensors_identical": 37}, "untouched tensors bit-identical"),
        ({"zeros_restored": 12344}, "every zero"),
        ({"sparsity_restored": [0.5, 0.5, 0.4, 0.5, 0.5]}, "no layer has fewer"),
        ({"zeros_lost": 1}, "every zero"),
        ({"tensors_recomputed": 0}, "restored tensors as saved"),
        ({"unexplained_tensors": ["model.layers.0.self_attn.q_proj.bias"]}, "only what was restored is changed"),
        ({"logits_relative_difference": 2e-4}, "same logits"),
        ({"logits_relative_difference": None}, "same logits"),
    ],
)
def test_the_proof_says_no_to_the_broken_promise_alone(broken, promise):
    proof = {**PROOF, **broken, "passed": False}
    first, second = (line for line in tables.proof_table(proof).splitlines() if line.endswith("NO"))
    assert first.startswith(promise) and second.startswith("proof passed")


def test_the_proof_shows_its_numbers_and_calls_zeros_that_nobody_promised_a_finding():
    table = tables.proof_table({**PROOF, "new_tensors": [], "changed_tensors": ["model.norm.weight"]})
    for part in ("38 of 38 tensors", "12,345 in 24,690", "5 of 5 layers", "3.1e-06, allowed 1.0e-04", "100.0 %"):
        assert part in table and "NO" not in table
    big = {"zeros_pruned": 34_000_000_000, "zeros_restored": 33_999_999_999, "weights": 68_000_000_000}
    assert max(map(len, tables.proof_table({**PROOF, **big}).splitlines())) <= 100
    filled = tables.proof_table({**PROOF, "zeros": "reported", "zeros_restored": 247, "sparsity_restored": [0.01] * 5})
    assert "NO" not in filled and "50 % before, 1 % after" in filled


BETTER, WORSE = make_results(a=task(0.65, 0.5, 0.6)), make_results(a=task(0.65, 0.5, 0.4))


@pytest.mark.parametrize(
    ("results", "run", "sentence"),
    [
        ({}, RUN, "is not known."),
        ({"validation": {"pruned": 2.5, "start": 2.7, "restored": 2.6}}, RUN, "loss rose from 2.500 to 2.600."),
        ({"validation": {"pruned": 2.5, "start": 2.5, "restored": 2.5004}}, RUN, "is not known."),
        ({"validation": {"pruned": 2.5, "restored": 2.4}}, RUN, "known; the validation loss fell from 2.500 to 2.400."),
        ({**WORSE, "validation": {"start": 2.5, "restored": 2.4}}, RUN, "worse on 1 of 1 task, and better on none."),
        (BETTER, {"method": {"restores": False}}, "Nothing was restored"),
        ({**BETTER, "proof": {"zeros_pruned": 0}}, RUN, "Training helped: better on 1 of 1 task"),
        (BETTER, RUN, "on 1 of 1 task, worse on none, with 67 % of the gap in a’s acc"),
        (make_results(a=task(0.6, 0.05, 0.55, "mcc", paired_stderr=None)), RUN, "whether it is better is not known."),
        (make_results(a=task(0.65, 0.5, 0.515)), RUN, "No measurable effect on the score of the task."),
        (make_results(a=task(0.65, 0.5, 0.6), b=task(0.65, 0.5, 0.4)), RUN, "better on 1 of 2 tasks, worse on 1."),
        ({**with_answers(), **make_results(a=task(0.65, 0.5, 0.51))}, RUN, "but 33 % of the gap in the right"),
    ],
)
def test_the_verdict_counts_only_what_is_beyond_noise(results, run, sentence):
    assert sentence in summary.verdict(results, run)


def test_paths_become_names_and_everything_else_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/code")
    assert summary.hide_home("<code>/code/a</code>") == "<code>~/a</code>"
    line = "/usr/bin/python -data_path '/home/a b/x.jsonl' --output_dir=/tmp/out -lr 1e-3 -base_model_name me/m ../d"
    hidden = "python -data_path x.jsonl --output_dir=out -lr 1e-3 -base_model_name me/m ../d"
    assert summary.hide_paths(line) == hidden and summary.hide_path("~/models/llama") == "llama"
    assert summary.shown_name("../models/llama") == summary.shown_name("some/deep/llama") == "llama"
    assert summary.shown_name("owner/Llama-2") == summary.hide_path("owner/Llama-2") == "owner/Llama-2"


def test_a_record_keeps_each_number_at_its_layer_and_head():
    heads = whole().results["heads"]
    assert heads["scores"][3][1] is None and heads["component_sizes"][4][1] == pytest.approx(2 * heads["scores"][4][1])
    assert (heads["magnitude_sizes"], heads["bias_sizes"]) == ([2.8284] * 2, [5.6569] * 2)
    shares = (torch.linspace(1, 0.1, 8) / 4.4).repeat(5, 3, 1)
    shares[0, 0], shares[0, 1] = torch.nan, 0  # heads without a gap are left out
    shares[1], shares[3] = torch.eye(8)[0], 0
    record = records.spectrum_record(shares)
    assert record["layers"][1] == [1] * 8 and record["layers"][3] is None
    assert record["layers"][0][0] == record["layers"][2][0] == pytest.approx(1 / 4.4, rel=1e-4)
    assert record["layers"][0][0] < record["mean"][0] < 1 and records.spectrum_record(torch.zeros(5, 3, 8)) is None


def test_marks_stand_where_their_numbers_are():
    root = ElementTree.fromstring(charts.heads_picture(whole().results["heads"]).svg(alone=True))
    rings = [ring for ring in root.iter(f"{SPACE}circle") if ring.get("class") == "trained"][1:]  # after the legend's
    cells = {cell.findtext(f"{SPACE}title"): cell for cell in root.iter(f"{SPACE}rect") if len(cell)}

    def holds(cell: ElementTree.Element, ring: ElementTree.Element) -> bool:
        across, down = (float(ring.get(f"c{at}")) - float(cell.get(at)) for at in "xy")
        return 0 < across < float(cell.get("width")) and 0 < down < float(cell.get("height"))

    tips = [tip for ring in rings for tip, cell in cells.items() if holds(cell, ring)]
    assert [tip.split(" · ")[0] for tip in tips] == ["layer 4, head 0", "layer 2, head 2"] and len(cells) == 15
    assert all(tip.endswith("‖β‖ 2.828 · ‖b‖ 5.657 · trained") for tip in tips)
    assert next(cell for tip, cell in cells.items() if "cannot be" in tip).get("class") == "cell none"


def test_scales_and_ticks_are_round_and_within_and_the_mean_of_the_loss_is_over_the_steps_around():
    assert svg.ticks(0.13, 0.52, 4) == [0.2, 0.3, 0.4, 0.5] and svg.ticks(2, 2) == [2]
    assert svg.log_ticks(3, 4) == [3, 4] and svg.log_ticks(8, 60) == [10, 20, 50]
    assert svg.Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100) and svg.Scale(5, 5, 0, 10)(5) == 0
    assert [svg.short(x) for x in (0, 0.25, 1234.5, 2.2e7, 1e-6)] == ["0", "0.25", "1,234", "2.2e7", "1e-06"]

    def heights(losses: list[float]) -> list[str]:
        picture = charts.loss_picture([{"step": step, "loss": loss} for step, loss in enumerate(losses)])
        paths = ElementTree.fromstring(picture.svg(alone=True)).iter(f"{SPACE}path")
        mean = next(path.get("d") for path in paths if path.get("class") == "curve")
        return [point.split(",")[1] for point in mean.removeprefix("M").split("L")]

    around = heights([float(step % 3) for step in range(60)])  # every mean of three is 1
    assert len(around) == 60 and len(set(around[1:-1])) == 1
    assert len(set(heights([2.0] * 60))) == 1  # at both ends of fewer steps


def test_pictures_and_page_survive_what_was_not_measured():
    before = {"step": 0, "valid_loss": 2.0}
    distilled = charts.loss_picture([{"step": 1, "loss": 2}, {"step": 2, "valid_loss": 2, "valid_kl": 1}]).svg()
    assert "training, distilled" in distilled and ">0.5<" not in distilled
    assert charts.loss_picture([before]) is None and charts.scores_picture([]) is None
    assert charts.loss_picture([before, {**before, "step": 9}]) and charts.loss_picture([{"step": 1, "loss": 2}])
    assert charts.heads_picture({"scores": [[None]], "trained": [], "score_name": "accuracy"})
    odd = make_results(w=task(24.0, None, None, "token_perplexity", None, None))
    assert ">24.00<" in draw({**whole().results, **odd})


def test_every_number_of_the_tables_is_results_jsons(drawn):
    results, found = whole().results, {}
    for row in re.findall(r"<tr>\n<td>[abc]<span class.*?</tr>", drawn, re.DOTALL):
        key = re.match(r"<tr>\n<td>(.)<span class=\"unit\">(\S+?)[ <]", row).groups()
        found[key] = [float(value) if value else None for value in re.findall(r'data-value="([^"]*)"', row)]
    for name, metric in [(part, each) for part in "abc" for each in results["scores"]["dense"][part]]:
        wanted = [results["scores"][model][name][metric]["value"] for model in tables.MODELS]
        if metric in results["paired"][name]:
            wanted += [results["paired"][name][metric]["difference"], results["recovered"][name][metric]]
        assert found[name, metric][: len(wanted)] == wanted


def test_every_part_of_the_record_is_on_the_page_and_no_private_folder_network_or_markup(drawn):
    words = words_of(drawn)
    for part in (
        summary.verdict(whole().results, RUN), "38 of 38 tensors", "version of torch", "173c87a5", "alpaca.jsonl",
        "python RestoreLCC_train.py -pruned_model_path wanda-50", "probing", "100.2", "total105.03.00 GiB", "an answer",
        "loss 1.250", "loss –", "only blanks", "python -m utils.report", "lm_eval --model hf", "answers flipped",
        "One run with one seed (42)", "went from 3.000 before training to 2.100 at its end.", "of 12,345 zeros kept",
        "in 2 of its 15 attention heads (selected by chance), 1,234 trained parameters, trained on", "3.000 → 2.100",
        "50 %, the same before and after restoring", "kept every weight and every zero", "1,234trained parameters",
        "Every prompt begins with ### Instruction: and ends with an answer ### Response:.", "held-out prompts Greedy",
    ):  # fmt: skip
        assert part in words, part
    home = str(Path.home())
    text = draw(whole().results, {**RUN, "arguments": {**RUN["arguments"], "note": f"see {home}/notes"}})
    assert not re.search(r"/home/ann|/data/ann", drawn) and f"{home}/" not in text
    assert not re.findall(r"(?:src|action)=|@import|url\(|<(?:img|iframe|object|embed|base|form)\b", drawn)
    links = set(re.findall(r"href=\"([^\"]*)\"", drawn))
    assert all(re.match(r"#|figures/\w+\.svg$|data:,$", link) for link in links) and "default-src 'none'" in drawn
    drawn = page.draw(hostile())[0]
    assert not re.search("<img|<svg onload", drawn) and drawn.count("<script") == drawn.count("</script>") == 1


def test_the_page_says_what_became_of_the_zeros_and_what_its_record_lacks():
    for proof, said in (
        ({"changed_tensors": ["model.layers.0.mlp.up_proj.weight"]}, "every zero of the pruned one, and only what was"),
        ({"zeros": "reported", "zeros_restored": 247}, "Merging it filled zeros: 50 % of the linear weights were zero"),
        ({"sparsity_restored": [0.4, 0.5, 0.5, 0.5, 0.5]}, "50 %, and 40 % to 50 % after restoring: not the same."),
        ({"zeros_lost": 1, "zeros_pruned": 10**9}, "< 100 %of 1,000,000,000 zeros kept"),
    ):
        assert said in words_of(draw({"proof": {**PROOF, **proof}}))
    words = words_of(draw({}, {}, []))
    absent = "No task was scored", "nothing was proved", "restores no attention heads", "Not recorded", "None were kept"
    assert all(part in words for part in (*absent, "Nothing was trained", "No stage was recorded"))
    pruned = {"validation": {"pruned": 2.6}}
    assert "Validation loss is 3.000; the pruned model's is 2.600." in words_of(draw(pruned, RUN, HISTORY[:1]))
    assert "2.100 at its end; the pruned model's is 2.600." in words_of(draw(pruned))
    assert "2.600 → 2.100" in words_of(draw(pruned)) and "3.000 → 2.100" in words_of(draw({}))
    assert "the pruned model's is" not in words_of(draw({"validation": {"pruned": 2.999}}))  # as near as b at its start


def test_next_steps_name_the_runs_folder_and_follow_what_was_found():
    def told(results: dict, **more: object) -> str:
        text = draw(results, {**RUN, "arguments": {"output_dir": "/home/ann/out", "lr": 0.01, "num_epoch": 1, **more}})
        return unescape(re.search(r'<ol class="steps">.*?</ol>', text, re.DOTALL)[0])

    steps = told(BETTER, eval_limit=500_000)
    assert "-config out/run.json -train_seed 43 -output_dir out-seed43\npython -m utils.compare out out-seed43" in steps
    assert "-eval_limit 2000000 " in steps and not re.search("/home/ann|-lr|-allow_dense", steps)
    assert "-pruned_model_path embedded -allow_dense" in told(BETTER, base_model_name="embedded")
    assert "-lr 0.003 -output_dir out-lr0.003" in told(WORSE) and "-lr" not in told({})
    assert "-train_seed" not in draw(BETTER, {**RUN, "method": {"restores": True}})  # a closed form draws nothing


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A run's folder, and the command called with it."""
    run, record = tmp_path / "out", whole()
    for name, content in {"results": record.results, "run": RUN, "logs/examples": record.examples}.items():
        write_json(run / f"{name}.json", content)
    (run / "logs" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    monkeypatch.setattr("sys.argv", ["utils.report", str(run)])
    return run


def test_the_command_draws_the_same_page_from_the_files_alone_and_touches_no_other(folder, drawn, capsys):
    write_json(folder / "figures" / "mine.svg", "mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command.main()
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8") == drawn
    pictures = {folder / "figures" / f"{name}.svg" for name in ("scores", "heads", "spectrum", "loss")}
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() == {*before, *pictures, folder / "report.html"} and before.items() <= after.items()
    for path in pictures:  # each stands alone
        assert ElementTree.parse(path).getroot().tag == f"{SPACE}svg" and f'href="figures/{path.name}"' in drawn
        assert "prefers-color-scheme: dark" in path.read_text()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results.json", None, "give the whole folder of a run"),
        ("results.json", "{}", "has no scores and no proof"),
        ("run.json", "[]", "holds no JSON object"),
        ("logs/history.jsonl", "3", "history.jsonl: holds no JSON object"),
        ("run.json", '{"stages": [{"name": "x"}]}', "its files are not a run's, or are damaged"),
        ("results.json", json.dumps({"scores": {}, "proof": {**PROOF, "zeros": "lost", "weights": 0}}), "are damaged"),
    ],
)
def test_a_folder_that_is_no_runs_is_one_line_and_nothing_is_written(folder, name, content, words):
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    mistake(words, command.main)
    assert not (folder / "report.html").exists() and not (folder / "figures").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark", "printed", "paper", "ink"),
    [
        (NARROW, False, False, (240, 255), (0, 60)),
        (1000, True, False, (0, 60), (190, 255)),
        (A4, True, True, (250, 255), (0, 10)),
    ],
)
def test_a_browser_shows_it_whole_and_sorts_and_paper_has_all(drawn, tmp_path, width, dark, printed, paper, ink):
    (tmp_path / "report.html").write_text(drawn, encoding="utf-8")
    more = """
      const table = document.querySelector("table.sortable");
      const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value));
      const found = [read()], button = table.tHead.rows[0].cells[1].querySelector("button");
      button.click(); found.push(read()); button.click(); found.push(read());
      const cell = [...document.querySelectorAll(".cell")].find((node) => (node.dataset.tip || "").includes("trained"));
      cell.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }));
      const seen = (each) => each.checkVisibility() && each.getBoundingClientRect().height > 0;
      const folded = [...document.querySelectorAll("details > summary")].map((each) => seen(each.nextElementSibling));
      return [found, document.querySelector("#tip.shown").textContent, folded];
    """
    seen = look(tmp_path / "report.html", tmp_path, width, dark, more, printed)
    assert (seen["faults"], seen["console"], seen["overflow"], seen["outside"]) == ([], [], 0, [])
    assert seen["width"] == width and seen["pictures"] == [1] * 4
    assert paper[0] <= brightness(seen["paper"]) <= paper[1] and ink[0] <= brightness(seen["ink"]) <= ink[1]
    (before, up, down), tip, folded = seen["extra"]
    assert up == sorted(before) and down == up[::-1] != up
    assert re.fullmatch(r"layer 2, head 2 · score \S+ · ‖c‖ \S+ · ‖β‖ 2\.828 · ‖b‖ 5\.657 · trained", tip)
    assert len(folded) > 3 and folded == [printed] * len(folded)
