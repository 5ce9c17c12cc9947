"""What holds of any input: it is taken as it stands, or refused by one line."""

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources import alpaca_prompt, load_samples
from utils.common.errors import UserError
from utils.common.flags import build_parser, parse_arguments
from utils.evaluation.task_loading import plan_tasks
from utils.evaluation.tasks import PAPER_TASKS

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)
"""The same examples each time, so that no change is blamed for what another one broke."""

whole_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(["instruction", "input", "output", "response", "text", "label"])
rows = st.dictionaries(fields, whole_text | anything, max_size=4)


def taken(read, *given):
    """What a loader makes of its input; None where it refuses it by one line that begins with a flag."""
    try:
        return read(*given)
    except UserError as error:
        assert str(error).startswith("-") and "\n" not in str(error) and len(str(error)) < 1100
        return None


def in_file(name: str, raw: bytes, read):
    """What `read` makes of a file of this name and content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(raw)
        return taken(read, path)


def samples(path: Path) -> list[tuple[str, str]]:
    split = load_samples(str(path), 1, 1)
    return [(sample.prompt, sample.response) for sample in (*split.train, *split.valid)]


@some
@given(st.lists(rows, max_size=3), st.booleans())
def test_any_rows_are_texts_or_refused(given_rows, as_list):
    encoded = [json.dumps(row) for row in given_rows]
    name, raw = ("a.json", f"[{','.join(encoded)}]") if as_list else ("a.jsonl", "\n".join(encoded))
    found = in_file(name, raw.encode(), samples)
    for prompt, response in found or ():
        assert prompt.strip() and response.strip() and (prompt + response).encode()


@some
@given(st.lists(st.tuples(whole_text, whole_text, whole_text), min_size=2, max_size=2), st.sampled_from(["", "\ufeff"]))
def test_texts_arrive_as_they_are_written(texts, mark):
    written = [{"instruction": f"Do {a}", "input": b, "output": f"It is {c}"} for a, b, c in texts]
    expected = [(alpaca_prompt(row["instruction"], row["input"]), row["output"]) for row in written]
    for name, raw in {"a.json": json.dumps(written), "a.jsonl": "\r\n".join(map(json.dumps, written))}.items():
        assert in_file(name, (mark + raw).encode(), samples) == expected


@some
@given(st.dictionaries(st.sampled_from(sorted(a.dest for a in build_parser()._actions)), anything, max_size=4))
def test_any_config_gives_flags_or_is_refused(content):
    args = in_file("config.json", json.dumps(content).encode(), lambda path: parse_arguments(["-config", str(path)]))
    if args is not None:
        json.dumps(args.as_json(), ensure_ascii=False).encode()


@some
@given(st.sampled_from(sorted(PAPER_TASKS)), st.dictionaries(st.sampled_from(
    ["passage", "question", "label", "sentence1", "choices", "answerKey", "endings", "ctx_a", "answer", "sentence"]
), anything | st.fixed_dictionaries({"text": st.lists(anything), "label": st.lists(anything)})))  # fmt: skip
def test_any_task_row_is_refused_or_whole(task, row):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / task / f"{PAPER_TASKS[task].split}.jsonl"
        path.parent.mkdir()
        path.write_text(json.dumps(row))
        taken(plan_tasks, task, Path(folder), None, 64)
