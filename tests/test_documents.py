"""What the documents say can be followed: links resolve, commands exist, flags are flags, the example is a method."""

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import torch

from pruning.__main__ import parser as pruning_parser
from tests.builders import save_tiny_llama
from tests.runs import ROOT, flags, prepared
from utils.common.flags import RECIPES, build_parser, parse_arguments
from utils.common.methods import METHODS, MethodSpec
from utils.stages.train import merge, train_restoration

NAMES = sorted(str(file.relative_to(ROOT)) for folder in (".", "docs", "data") for file in (ROOT / folder).glob("*.md"))
ENTRY = "RestoreLCC_train"
PARSERS = (ENTRY, "pruning", "models.merge", "utils.sweep", "utils.report", "utils.compare", "benchmarks.run")
LM_EVALS = ("utils.evaluation.restored_lm", "tests/run.sh")
"""Ours, with the flags of lm_eval and of pytest."""


def fenced(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def outside(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def inline(text: str) -> list[str]:
    """Code within lines, also where it goes on in the next one."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside(text))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line, in blocks and within lines."""
    blocks = [content.replace("\\\n", " ") for language, content in fenced(text) if language in ("", "bash")]
    for line in (*inline(text), *"\n".join(blocks).splitlines()):
        if re.match(r"(python|bash|accelerate|torchrun) ", line):
            yield shlex.split(line, comments=True)


def flags_in(words: list[str]) -> set[str]:
    return {word.lstrip("-") for word in words if re.match(r"--?[a-zA-Z]", word)}


@cache
def flags_of(name: str) -> set[str]:
    """Flags that a module or script of ours takes; read in its code, since asking some would run them."""
    name = name.removesuffix(".py").replace("/", ".")
    if parser := {ENTRY: build_parser, "train.sh": build_parser, "pruning": pruning_parser}.get(name):
        return {option.lstrip("-") for action in parser()._actions for option in action.option_strings}
    place = ROOT / name.replace(".", "/")
    code = (place / "__main__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")
    return set(re.findall(r"\.(?:flag|switch|add_argument)\(\s*\"-*(\w+)\"", code))


def anchors(text: str) -> set[str]:
    """What GitHub calls a document's headings."""
    titles = re.findall(r"^#+ (.+)$", outside(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def stands(target: str) -> bool:
    """Whether there is such a file, or such a module; looking for one imports the packages that it would be in."""
    with suppress(ModuleNotFoundError):
        return (ROOT / target).is_file() or importlib.util.find_spec(target) is not None
    return False


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def in_python(name: str) -> list[str]:
    return [content for language, content in fenced(text_of(name)) if language == "python"]


def test_what_the_documents_do_from_python_restores_and_proves(tmp_path):
    (code,) = in_python("docs/architecture.md")
    given = {name: save_tiny_llama(tmp_path / name, zeros=zeros) for name, zeros in (("DENSE", 0.0), ("PRUNED", 0.5))}
    given |= {"PROMPTS": [f"Say {n}." for n in range(12)], "RESPONSES": [f"{n} it is" for n in range(12)]}
    given["OUT"] = tmp_path / "out"
    exec(code, given)
    assert given["proof"].record["passed"] and given["proof"].record["zeros_lost"] == 0
    assert given["restoration"].heads == [(0, 1), (2, 0)]
    assert given["restoration"].of_heads("magnitudes").abs().min() > 0
    assert given["load_model"](tmp_path / "out" / "model", torch.float32, "cpu", "it").config.attention_bias


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere_and_every_command_names_what_there_is_and_flags_that_it_takes(name):
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text_of(name)):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8"))), link
    for words in commands(text_of(name)):
        files = (place for place, word in enumerate(words) if word.endswith((".py", ".sh")))
        place = 2 if words[:2] == ["python", "-m"] else next(files)
        target, rest = words[place], words[place + 1 :]
        assert stands(target), words
        if flags_in(rest) and target not in LM_EVALS:
            assert flags_in(rest) <= flags_of(target), words
    in_lines = [code.split() for code in inline(text_of(name)) if re.match(r"-[a-zA-Z]", code)]
    assert set().union(*map(flags_in, in_lines)) <= {"flag"}.union(*map(flags_of, PARSERS))


def test_every_method_is_in_the_documents_and_the_readme_is_short_enough_to_be_read():
    assert [method for method in METHODS if f"`{method}`" not in text_of("docs/methods.md")] == []
    assert len(text_of("README.md").splitlines()) <= 120
    for name in RECIPES:
        (typed,) = re.findall(rf"^\| `{name}` \| `(-[^`]+)`", text_of("docs/methods.md"), re.MULTILINE)
        assert replace(parse_arguments(typed.split()), recipe=name) == parse_arguments(["-recipe", name])


@pytest.mark.parametrize("shape", [{}, {"mlp_bias": True}])
def test_the_example_of_a_method_has_three_lines_trains_merges_and_is_proved(world, tmp_path, monkeypatch, shape):
    code, line, *_ = in_python("CONTRIBUTING.md")
    (function,) = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert len(function.body) <= 3
    name, described = next(iter(eval("{" + line + "}", {"MethodSpec": MethodSpec}).items()))
    module = described.made_by.partition(":")[0].rpartition(".")[2]
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    baselines = importlib.import_module("baselines")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"baselines.{module}", raising=False)
    monkeypatch.setitem(METHODS, name, described)
    folders = {"base_model_name": save_tiny_llama(tmp_path / "dense", **shape)}
    folders["pruned_model_path"] = save_tiny_llama(tmp_path / "pruned", zeros=0.5, **shape)
    run, models, samples, _ = prepared(flags(world, tmp_path / "out", method=name, eval_tasks="none", **folders))
    with run.stage("train"):
        trained = train_restoration(run, models, samples, None)
    _, (proof,) = merge(run, models, trained)
    assert proof["passed"] and trained.training.history[-1]["valid_loss"] < trained.training.history[0]["valid_loss"]
    assert "model.layers.2.mlp.down_proj.bias" in proof["nonzero_new_tensors"] + proof["changed_tensors"]
