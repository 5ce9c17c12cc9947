"""What the documents say can be followed: links resolve, commands exist, flags are flags, the example is a method."""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from models.checkpoint import Checkpoint, fingerprint
from models.contract import MethodInputs
from models.loading import load_config, load_model, load_tokenizer
from models.merge import merge_and_prove, record_logits
from models.restoration import Restoration, save_restoration
from tests.builders import SAMPLES, save_tiny_llama
from utils.activations import last_token_activations
from utils.common.flags import build_parser
from utils.common.methods import METHODS, MethodSpec, Options
from utils.components import lost_components
from utils.packing import PromptWithContinuations
from utils.prompts import encode_all
from utils.training import TrainingSettings, train

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*.md")])
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
ENTRY = "RestoreLCC_train"
PARSERS = (ENTRY, "pruning", "models.merge", "utils.sweep", "utils.report", "utils.compare", "benchmarks.run")
LM_EVALS = ("utils.evaluation.restored_lm", "tests/run.sh")
"""Ours, with the flags of lm_eval and of pytest."""


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def inline(text: str) -> list[str]:
    """Code within lines, also where it goes on in the next one."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line, in blocks and within lines."""
    lines = list(inline(text))
    for language, content in fenced(text):
        if language in ("", "bash"):
            lines += content.replace("\\\n", " ").splitlines()
    for line in lines:
        if re.match(r"(python|bash|accelerate|torchrun) ", line):
            yield shlex.split(line, comments=True)


def called(words: list[str]) -> tuple[str, list[str]]:
    """(module or file, what follows it) that a command runs."""
    if words[:2] == ["python", "-m"]:
        return words[2], words[3:]
    place = next(place for place, word in enumerate(words) if word.endswith((".py", ".sh")))
    return words[place], words[place + 1 :]


def flags_in(words: list[str]) -> set[str]:
    """Names of the flags among a command's words, without dashes."""
    return {word.lstrip("-") for word in words if re.match(r"--?[a-zA-Z]", word)}


@cache
def flags_of(name: str) -> set[str]:
    """Flags that a module or script of ours takes; read in its code, since asking some would run them."""
    name = name.removesuffix(".py").replace("/", ".")
    if name in (ENTRY, "train.sh"):
        return {option.lstrip("-") for action in build_parser()._actions for option in action.option_strings}
    place = ROOT / name.replace(".", "/")
    code = (place / "__main__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")
    return set(re.findall(r"\.(?:flag|switch|add_argument)\(\s*\"-*(\w+)\"", code))


def anchors(document: Path) -> set[str]:
    """What GitHub calls a document's headings."""
    outside = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def stands(target: str) -> bool:
    """Whether there is such a file, or such a module; looking for one imports the packages that it would be in."""
    if target.endswith((".py", ".sh")):
        return (ROOT / target).is_file()
    try:
        return importlib.util.find_spec(target) is not None
    except ModuleNotFoundError:
        return False


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def in_python(name: str) -> list[str]:
    """The document's blocks of Python."""
    return [content for language, content in fenced(text_of(name)) if language == "python"]


def test_what_the_documents_do_from_python_restores_and_proves(tmp_path):
    (code,) = in_python("docs/architecture.md")
    names = [
        load_tokenizer, load_model, encode_all, PromptWithContinuations, last_token_activations, lost_components,
        Restoration, Options, MethodInputs, train, TrainingSettings, save_restoration, fingerprint, record_logits,
        Checkpoint, merge_and_prove,
    ]  # fmt: skip
    given = {each.__name__: each for each in names} | {"torch": torch, "OUT": tmp_path / "out"}
    for name, seed, zeros in (("DENSE", 0, 0.0), ("PRUNED", 0, 0.5)):
        given[name] = save_tiny_llama(tmp_path / name, seed, zeros)
    given |= {"PROMPTS": [f"Say {n}." for n in range(12)], "RESPONSES": [f"{n} it is" for n in range(12)]}
    exec(code, given)
    assert given["proof"].record["passed"] and given["proof"].record["zeros_lost"] == 0
    assert given["restoration"].heads == [(0, 1), (2, 0)]
    assert given["restoration"].of_heads("magnitudes").abs().min() > 0
    assert load_model(tmp_path / "out" / "model", torch.float32, "cpu", "it").config.attention_bias


def test_the_readme_is_short_enough_to_be_read():
    assert len(text_of("README.md").splitlines()) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_names_what_there_is_and_flags_that_it_takes(name):
    wrong = []
    for words in commands(text_of(name)):
        target, rest = called(words)
        if not stands(target):
            wrong.append(" ".join(words))
        elif target not in LM_EVALS and flags_in(rest):
            wrong += [f"{target}: -{flag}" for flag in flags_in(rest) - flags_of(target)]
    ours = {"flag"}.union(*map(flags_of, PARSERS))
    in_lines = [code.split() for code in inline(text_of(name)) if re.match(r"-[a-zA-Z]", code)]
    assert [*wrong, *set().union(*map(flags_in, in_lines)) - ours] == []


def test_every_method_is_in_the_documents():
    assert [method for method in METHODS if f"`{method}`" not in text_of("docs/methods.md")] == []


@pytest.fixture
def example(tmp_path, monkeypatch) -> str:
    """The method that CONTRIBUTING.md writes out, in the table by the line that it gives; its name."""
    code, line, *_ = in_python("CONTRIBUTING.md")
    name, described = next(iter(eval("{" + line + "}", {"MethodSpec": MethodSpec}).items()))
    module = described.made_by.partition(":")[0].rpartition(".")[2]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / f"{module}.py").write_text(code, encoding="utf-8")
    baselines = importlib.import_module("baselines")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path / "more")])
    monkeypatch.delitem(sys.modules, f"baselines.{module}", raising=False)
    monkeypatch.setitem(METHODS, name, described)
    return name


@pytest.mark.parametrize("shape", [{}, {"mlp_bias": True}])
def test_the_example_of_a_method_trains_merges_and_is_proved(example, make_tiny_llama, tmp_path, shape):
    folder = make_tiny_llama(zeros=0.5, **shape)
    inputs = MethodInputs(load_config(folder, "-pruned_model_path"), 1)
    restoration = Restoration.start(example, Options("both"), inputs)
    model = restoration.attach(load_model(folder, torch.float32, "cpu", "-pruned_model_path"))
    ids = torch.tensor([[5, 9, 77, 30]])
    before = model(ids).logits
    result = train(model, SAMPLES, [], TrainingSettings(lr=0.1, epochs=2), "cpu", tmp_path / "checkpoints")
    assert len(result.history) == 2 and not torch.equal(model(ids).logits, before)
    save_restoration(tmp_path / "restoration", restoration, {"pruned_sha256": fingerprint(folder)})
    reference = record_logits(model, restoration, Checkpoint(folder), ids.tolist(), "cpu")
    saved, merged = tmp_path / "restoration", tmp_path / "merged"
    proof = merge_and_prove(folder, saved, merged, tokenizer_from=folder, reference=reference)
    assert proof.record["passed"]
    assert "model.layers.2.mlp.down_proj.bias" in proof.record["nonzero_new_tensors"] + proof.record["changed_tensors"]


def test_the_example_has_three_lines_of_body():
    code, *_ = in_python("CONTRIBUTING.md")
    (function,) = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert len(function.body) <= 3
