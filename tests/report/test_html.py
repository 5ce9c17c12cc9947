"""report.html is one file that says what the record says, in both themes, on a phone, whatever a model wrote."""

import copy
import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.browser import A4, brightness, look
from tests.report.test_report import HISTORY, PROOF, RESULTS, RUN, make_results, task, with_answers
from utils.common.errors import UserError
from utils.report import __main__ as command
from utils.report import html
from utils.report.charts import WIDE, heads_picture, loss_picture, scores_picture, spectrum_picture
from utils.report.html import page, pictures_of, shared_lines, shown_examples
from utils.report.records import heads_record, spectrum_record
from utils.report.steps import next_steps
from utils.report.summary import verdict
from utils.report.svg import Scale, powers, short, ticks
from utils.report.tables import score_rows
from utils.report.write import EXAMPLES, Record, write_report

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>\"><svg onload=hacked=3>"
LAYERS, HEADS, DIM = 32, 32, 128
TRAINED = [(0, 31), (31, 0), (5, 7)]


def examples(text: str = "an answer") -> dict:
    """Three prompts in one form, and each model's answer to them."""
    answers = {
        "dense": {"text": text, "tokens": 9, "ended": True, "loss": 1.25},
        "pruned": {"text": "a" * 300, "tokens": 48, "ended": False, "loss": 2.5},
        "restored": {"text": " ", "tokens": 3, "ended": False, "loss": None},
    }
    prompts = [f"### Instruction:\nCount to {n}.\n{text}\n\n### Response:" for n in range(3)]
    return {
        "most_tokens": 48,
        "prompts": [{"prompt": prompt, "response": text, "answers": answers} for prompt in prompts],
    }


@pytest.fixture(scope="module")
def large() -> dict:
    """Results with the heads and the spectrum of a model of 7B."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(LAYERS, HEADS, generator=generator)
    scores[3, 4] = -torch.inf
    shares = torch.rand(LAYERS, HEADS, DIM, generator=generator).sort(descending=True).values ** 4
    learned = {"magnitudes": torch.ones(3, DIM), "component": torch.full((3, DIM), 2.0)}
    record = heads_record(scores, TRAINED, 2 * scores, learned)
    return {
        **with_answers(),
        "proof": PROOF,
        "heads": {**RESULTS["heads"], **html.without_nan(record)},
        "spectrum": spectrum_record(shares / shares.sum(-1, keepdim=True)),
    }


LONG = [{"step": 0, "valid_loss": 3.0}, *({"step": n, "loss": 3 - n / 200} for n in range(1, 200))]
LONG += [{"step": 199, "valid_loss": 2.1}]


def draw(results: dict, run: dict = RUN, history=HISTORY, asked: dict | None = None) -> str:
    return page(results, run, history, asked, pictures_of(results, run, history))


def hostile() -> tuple[dict, dict, dict]:
    """(results, run, examples) in which every text that somebody else chose is markup."""
    results = copy.deepcopy({**make_results(**{HOSTILE: task(0.65, 0.5, 0.6, HOSTILE, higher=True)}), "proof": PROOF})
    results["heads"] = {"score_name": HOSTILE, "scores": [[0.1, 0.9]], "trained": [[0, 1]], "count": 2}
    run = {
        **RUN, "command": HOSTILE, "device": HOSTILE, "models": {"dense": HOSTILE},
        "arguments": {**RUN["arguments"], "output_dir": HOSTILE, "eval_limit": 3},
        "method": {"title": HOSTILE, "parameters": 3}, "versions": {HOSTILE: HOSTILE}, "inputs": {HOSTILE: HOSTILE},
        "stages": [{"name": HOSTILE, "seconds": 1.0, "detail": HOSTILE, "reused": [HOSTILE], "peak_memory_bytes": 5}],
    }  # fmt: skip
    return results, run, examples(HOSTILE)


def test_the_page_is_one_file_without_network_and_small_for_a_model_of_7b(large):
    text = draw(large, history=LONG, asked=examples())
    assert len(text.encode()) < 3e6
    assert not re.findall(r"(?:src|action)=|@import|url\(|<(?:img|iframe|object|embed|base|form)\b", text)
    links = set(re.findall(r"href=\"([^\"]*)\"", text))
    assert all(re.match(r"#|figures/\w+\.(svg|csv)$|data:,$", link) for link in links) and len(links) > 10
    assert "default-src 'none'" in text


def test_every_part_of_the_record_is_on_the_page(large):
    text = draw(large, history=LONG, asked=examples())
    for part in (
        verdict(large, RUN), "weights bit-identical", "38 of 38 tensors", "version of torch", "173c87a5",
        "python RestoreLCC_train.py -pruned_model_path wanda-50", "probing", "100.2", "3.00 GiB", "an answer",
        "loss 1.250", "loss –", "only blanks", "layer 31, head 0", "python -m utils.report", "lm_eval --model hf",
    ):  # fmt: skip
        assert part in text, part
    assert not re.search(r"/home/ann|/data/ann", text)


def test_what_a_record_lacks_is_said_to_be_absent_and_nothing_else():
    text = draw({}, {}, [])
    for part in (
        "No task was scored", "nothing was proved", "restores no attention heads", "Not recorded",
        "Nothing was trained", "None were kept", "No stage was recorded",
    ):  # fmt: skip
        assert part in text
    old = draw(RESULTS)
    assert "made by an earlier version" in old and "restores no attention heads" not in old
    assert "No task was scored" not in old


def test_hostile_text_is_text():
    results, run, asked = hostile()
    text = draw(results, run, HISTORY, asked)
    assert "<img" not in text and "<svg onload" not in text
    assert text.count("<script") == text.count("</script>") == 2  # the data and ours


def test_the_data_in_the_page_is_the_records(large):
    _, _, asked = hostile()
    text = draw(large, history=LONG, asked=asked)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["results"]["scores"] == large["scores"] and data["results"]["heads"] == large["heads"]
    assert data["history"] == LONG and data["examples"] == asked


@pytest.mark.parametrize("width", [380, 1000])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_whole_in_both_themes_and_on_a_phone(large, tmp_path, width, dark):
    (tmp_path / "report.html").write_text(draw(large, history=LONG, asked=examples()), encoding="utf-8")
    more = """
      const table = document.querySelector("table.sortable"), cell = table.tBodies[0].rows[0].cells[0];
      table.parentNode.scrollLeft = 150;
      const apart = cell.getBoundingClientRect().left - table.parentNode.getBoundingClientRect().left;
      return [Math.abs(apart) < 1, cell.getBoundingClientRect().width > 100];
    """
    seen = look(tmp_path / "report.html", tmp_path, width, dark, more)
    assert seen["width"] == width and seen["extra"] == [True, True]  # a row's name stays in sight
    assert (seen["faults"], seen["console"]) == ([], [])
    assert seen["overflow"] == 0 and seen["outside"] == []
    assert len(seen["pictures"]) == 4 and all(len(shown) == 1 and shown[0] > 100 for shown in seen["pictures"])
    paper, ink = brightness(seen["paper"]), brightness(seen["ink"])
    assert (paper < 60 and ink > 190) if dark else (paper > 240 and ink < 60)


UNFOLDED = """
  const folded = [...document.querySelectorAll("details")];
  const content = folded.map((each) => each.querySelector("summary").nextElementSibling);
  const seen = (each) => each.checkVisibility() && each.getBoundingClientRect().height > 0;
  return [folded.length, content.filter(seen).length];
"""
"""(details, those whose content is seen)."""


@pytest.mark.parametrize("dark", [False, True])
def test_paper_has_all_that_is_folded_away_in_dark_ink_and_no_controls(large, tmp_path, dark):
    (tmp_path / "report.html").write_text(draw(large, history=LONG, asked=examples()), encoding="utf-8")
    more = """
      const hidden = ["nav", ".links", ".screen", "#tip"].map((kind) => document.querySelector(kind));
      const left = hidden.filter((each) => getComputedStyle(each).display !== "none").length;
      const figures = [...document.querySelectorAll("figure")];
      return [left, figures.filter((each) => getComputedStyle(each).breakInside !== "avoid").length];
    """
    seen = look(tmp_path / "report.html", tmp_path, A4, dark, more, printed=True)
    assert brightness(seen["paper"]) > 250 and brightness(seen["ink"]) < 10
    assert (seen["width"], seen["overflow"], seen["outside"], seen["faults"]) == (A4, 0, [], [])
    assert all(len(shown) == 1 for shown in seen["pictures"]) and seen["extra"] == [0, 0]


def test_what_is_folded_away_is_printed(large, tmp_path):
    (tmp_path / "report.html").write_text(draw(large, history=LONG, asked=examples()), encoding="utf-8")
    count, shown = look(tmp_path / "report.html", tmp_path, A4, more=UNFOLDED)["extra"]
    assert count > 3 and shown == 0
    count, shown = look(tmp_path / "report.html", tmp_path, A4, more=UNFOLDED, printed=True)["extra"]
    assert shown == count
    # Browsers that cannot style it have it opened for them.
    more = """
      const open = () => document.querySelectorAll("details[open]").length;
      dispatchEvent(new Event("beforeprint")); const during = open();
      dispatchEvent(new Event("afterprint")); return [during, open()];
    """
    assert look(tmp_path / "report.html", tmp_path, A4, more=more)["extra"] == [count, 0]


def test_a_browser_runs_nothing_of_a_hostile_text_and_shows_it(tmp_path):
    results, run, asked = hostile()
    (tmp_path / "report.html").write_text(draw(results, run, HISTORY, asked), encoding="utf-8")
    seen = look(tmp_path / "report.html", tmp_path, 380)
    assert seen["hacked"] is None and seen["images"] == 0 and seen["console"] == []
    assert HOSTILE in seen["text"].replace("\n", " ") and seen["overflow"] == 0


def test_a_click_sorts_the_table_and_pointing_shows_a_heads_numbers(large, tmp_path):
    (tmp_path / "report.html").write_text(draw(large), encoding="utf-8")
    more = """
      const table = document.querySelector("table.sortable");
      const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value));
      const found = [read()];
      const button = table.tHead.rows[0].cells[1].querySelector("button");
      button.click(); found.push(read()); button.click(); found.push(read());
      const cell = [...document.querySelectorAll(".cell")].find((node) => (node.dataset.tip || "").includes("trained"));
      cell.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }));
      return [found, document.querySelector("#tip.shown").textContent];
    """
    (before, up, down), tip = look(tmp_path / "report.html", tmp_path, more=more)["extra"]
    assert up == sorted(before) and down == up[::-1] != up
    assert re.fullmatch(r"layer 0, head 31 · score \S+ · ‖c‖ \S+ · ‖β‖ 11\.31 · ‖b‖ 22\.63 · trained", tip)


@pytest.mark.parametrize(
    ("results", "run", "sentence"),
    [
        ({}, RUN, "is not known."),
        ({"validation": {"start": 2.5, "restored": 2.6}}, RUN, "known; the validation loss rose from 2.500 to 2.600."),
        (
            {"validation": {"pruned": 2.5, "start": 2.7, "restored": 2.6}}, RUN,
            "known; the validation loss rose from 2.500 to 2.600.",
        ),
        ({**make_results(a=task(0.65, 0.5, 0.4)), "validation": {"start": 2.5, "restored": 2.4}}, RUN, "on none."),
        ({"proof": {**PROOF, "passed": False}}, RUN, "failed its proof: do not use"),
        (make_results(a=task(0.65, 0.5, 0.6)), {"arguments": {"num_epoch": 0}}, "Nothing was restored"),
        (
            make_results(a=task(0.65, 0.5, 0.6)), RUN,
            "Restoring helped: better on 1 of 1 task, worse on none, with 67 % of the gap in a’s acc recovered.",
        ),
        (make_results(a=task(0.65, 0.5, 0.515)), RUN, "No measurable effect on the score of the task."),
        (make_results(a=task(0.65, 0.5, 0.4)), RUN, "worse on 1 of 1 task, and better on none."),
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


def test_next_steps_name_the_runs_folder_and_follow_what_was_found():
    run = {**RUN, "arguments": {"output_dir": "/home/ann/out", "lr": 0.01, "eval_limit": 50, "num_epoch": 1}}
    commands = "\n".join(command for _, command in next_steps(make_results(a=task(0.65, 0.5, 0.6)), run))
    assert "-config out/run.json -train_seed 43 -output_dir out-seed43" in commands and "-eval_limit 200" in commands
    assert "/home/ann" not in commands and "-lr" not in commands
    control = {"arguments": {**run["arguments"], "base_model_name": "embedded"}}
    told = "\n".join(command for _, command in next_steps(make_results(a=task(0.65, 0.5, 0.6)), {**run, **control}))
    assert "-pruned_model_path embedded -allow_dense" in told and "-allow_dense" not in commands
    worse = "\n".join(command for _, command in next_steps(make_results(a=task(0.65, 0.5, 0.4)), run))
    assert "-lr 0.003" in worse
    (failed,) = next_steps({"proof": {**PROOF, "passed": False}}, run)
    assert "-config out/run.json" in failed[1]


def test_the_numbers_beside_a_picture_are_the_records(large):
    rows = list(csv.DictReader(heads_picture(large["heads"]).csv().splitlines()))
    assert len(rows) == LAYERS * HEADS
    of = {(int(row["layer"]), int(row["head"])): row for row in rows}
    assert float(of[31, 0]["score"]) == large["heads"]["scores"][31][0]
    assert (of[3, 4]["score"], of[0, 31]["trained"], of[31, 1]["trained"]) == ("", "True", "False")
    spectrum = list(csv.DictReader(spectrum_picture(large["spectrum"], 10).csv().splitlines()))
    assert float(spectrum[9]["layer_31"]) == large["spectrum"]["layers"][31][9]
    scores = list(csv.DictReader(scores_picture(score_rows(RESULTS)).csv().splitlines()))
    assert (scores[0]["task"], scores[0]["pruned"], scores[0]["restored_stderr"]) == ("facts", "0.51", "0.02")
    loss = list(csv.DictReader(loss_picture(HISTORY).csv().splitlines()))
    assert [row["valid_loss"] for row in loss] == ["2.75", "", "", "2.5"]


def test_marks_stand_where_their_numbers_are(large):
    drawing = heads_picture(large["heads"]).draw(WIDE)
    root = ElementTree.fromstring(drawing.alone())
    space = "{http://www.w3.org/2000/svg}"
    rings = [ring for ring in root.iter(f"{space}circle") if ring.get("class") == "trained"]
    cells = [cell for cell in root.iter(f"{space}rect") if cell.find(f"{space}title") is not None]
    assert len(cells) == LAYERS * HEADS and len(rings) == 1 + len(TRAINED)  # one is the legend's
    for ring in rings[1:]:
        x, y = float(ring.get("cx")), float(ring.get("cy"))
        inside = [
            cell.find(f"{space}title").text for cell in cells
            if 0 < x - float(cell.get("x")) < float(cell.get("width"))
            and 0 < y - float(cell.get("y")) < float(cell.get("height"))
        ]  # fmt: skip
        assert len(inside) == 1 and inside[0].endswith("trained")
    tops = {title.text: float(cell.get("y")) for cell in cells if (title := cell.find(f"{space}title")) is not None}
    upper, lower = (next(y for tip, y in tops.items() if tip.startswith(f"layer 9, head {h} ")) for h in (31, 0))
    assert upper < lower


def test_scales_and_ticks_are_round_and_within():
    assert ticks(0.13, 0.52, 4) == [0.2, 0.3, 0.4, 0.5]
    assert ticks(-3, 47, 5) == [0, 10, 20, 30, 40]
    assert ticks(2, 2) == [2]
    assert powers(1, 64, 2)[-1] == 64 and powers(3, 5, 10) == [3, 5]
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert Scale(5, 5, 0, 10)(5) == 0
    assert [short(x) for x in (0, 0.25, 1234.5, 2.2e7, 1e-6)] == ["0", "0.25", "1,234", "2.2e7", "1e-6"]


def test_pictures_survive_numbers_that_are_none():
    results = make_results(w=task(24.0, float("inf"), float("nan"), "token_perplexity", None, None))
    assert "nan" not in scores_picture(score_rows(results)).draw(WIDE).inline()
    assert scores_picture(score_rows(make_results(w=task(float("nan"), float("nan"), float("nan"))))) is None
    assert loss_picture([]) is None and loss_picture([{"step": 3, "loss": float("nan")}]) is None
    before = {"step": 0, "valid_loss": 2.0}
    assert loss_picture([before]) is None  # nothing was trained
    assert loss_picture([before, {"step": 9, "valid_loss": 2.0}]).draw(WIDE)
    assert heads_picture({"scores": [[None]], "trained": [], "count": 1}).draw(WIDE)


def test_lines_that_all_prompts_share_are_said_once():
    assert shared_lines(["a\nb\nc", "a\nx\ny\nc"]) == (["a"], ["c"])
    assert shared_lines(["a\nb", "a\nb"]) == (["a", "b"], [])
    assert shared_lines(["a\nb"]) == ([], [])
    assert shown_examples(examples())["prompts"][0]["prompt"] == "Count to 0."
    same = {"prompts": [{"prompt": "same", "response": "", "answers": {}}] * 2}
    assert [each["prompt"] for each in shown_examples(same)["prompts"]] == ["same", "same"]


@pytest.fixture
def folder(tmp_path, large):
    """A run's folder, without its pages."""
    run = tmp_path / "out"
    (run / "logs").mkdir(parents=True)
    for name, content in (("results.json", large), ("run.json", RUN), (EXAMPLES, examples())):
        (run / name).write_text(json.dumps(content), encoding="utf-8")
    (run / "logs" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LONG), encoding="utf-8")
    return run


def test_the_command_draws_the_same_page_from_the_files_alone(folder, large, monkeypatch, capsys):
    write_report(folder, Record(large, RUN, LONG, examples()))
    before = {path.name: path.read_bytes() for path in [folder / "report.html", *folder.glob("figures/*.svg")]}
    for path in (folder / "report.html", folder / "report.md"):
        path.unlink()
    (folder / "figures" / "mine.png").write_text("mine")
    monkeypatch.setattr("sys.argv", ["utils.report", str(folder)])
    command.main()
    assert {
        name: (folder / ("" if name == "report.html" else "figures") / name).read_bytes() for name in before
    } == before
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "figures" / "mine.png").read_text() == "mine"
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert [path.name for path in folder.parent.iterdir() if "out" in path.name] == ["out"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results.json", None, "give the folder of a run"),
        ("run.json", "[]", "holds no JSON object"),
        ("logs/history.jsonl", "{", "history"),
        (EXAMPLES, "{", "cannot be read"),
    ],
)
def test_a_folder_that_is_no_runs_is_one_line(folder, monkeypatch, name, content, words):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    monkeypatch.setattr("sys.argv", ["utils.report", str(folder)])
    with pytest.raises(UserError, match=words):
        command.main()
    assert not (folder / "report.html").exists()


def test_every_picture_is_a_file_that_stands_alone(folder, large):
    write_report(folder, Record(large, RUN, LONG, examples()))
    files = sorted(folder.glob("figures/*.svg"))
    assert [file.stem for file in files] == ["heads", "loss", "scores", "spectrum"]
    for file in files:
        root = ElementTree.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "prefers-color-scheme: dark" in file.read_text()
        assert file.with_suffix(".csv").read_text().count("\n") > 1
