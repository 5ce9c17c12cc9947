"""What train.sh runs: its head's values, but what arguments, a recipe, a method, a task or a file decide."""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from tests.builders import write_files
from tests.runs import ROOT, program
from utils.common.flags import RECIPES, SPEC_TRAIN_SAMPLES, Arguments, parse_arguments
from utils.common.methods import METHODS


@pytest.fixture
def runs(tmp_path):
    """runs(*words, NAME=value in the script's head) -> the flags of the run that it starts; nothing is installed."""
    here, bin_ = tmp_path / "copy", tmp_path / "bin"
    write_files(here, {name: ROOT / name for name in ("utils", "requirements.txt", "requirements-embedded.txt")})
    for name, code in (("python", 'test "$1" = -m || printf "%s\\0" "$@"'), ("python3", "true")):
        write_files(bin_, {name: f"#!/bin/sh\n{code}\n"})
        (bin_ / name).chmod(0o755)

    def resolved(*words: str, **head: str) -> Arguments:
        lines = (ROOT / "train.sh").read_text().splitlines()
        for name, value in head.items():
            (place,) = (number for number, line in enumerate(lines) if line.startswith(f"{name}="))
            lines[place] = f"{name}={value}"
        (here / "train.sh").write_text("\n".join(lines))
        variables = {"PATH": f"{bin_}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
        done = program("bash", "train.sh", *words, cwd=here, **variables)
        assert done.returncode == 0, done.stderr
        script, *typed = done.stdout.removesuffix("\0").split("\0")
        assert script.splitlines()[-1] == "RestoreLCC_train.py"
        return parse_arguments(typed)

    return resolved


def test_the_head_is_where_values_are_edited_and_arguments_win_over_it(runs):
    plain = runs()
    assert (plain.lr, plain.head_selection, plain.num_train_samples) == (1e-2, "contrastive", 512)
    edited = runs(LR="5e-4", HEAD_SELECTION="gap", SPEC_TASK="rte", EVAL_LIMIT="", OUTPUT_DIR="'two words'")
    wanted = {"lr": 5e-4, "head_selection": "gap", "spec_task": "rte", "data_path": None, "eval_limit": None}
    assert edited == replace(plain, **wanted, output_dir=Path("two words"))
    assert runs("-lr", "1e-3", "--num_components=3", LR="5e-4") == replace(plain, lr=1e-3, num_components=3)


def test_a_recipe_a_method_and_a_task_bring_values_of_their_own(runs):
    plain = runs()
    for name, typed in product(RECIPES, ("-recipe {}", "--recipe {}", "-recipe={}", "-recipe {} -lr 3e-4")):
        rate = {"lr": 3e-4} if "-lr" in typed else {}
        assert runs(*typed.format(name).split()) == replace(plain, recipe=name, **RECIPES[name] | rate)
    of_head = replace(plain, recipe="inside_mask", **RECIPES["inside_mask"])
    assert runs(RECIPE="inside_mask", LR="1e-4") == of_head == runs("-recipe", "inside_mask", RECIPE="biases")
    for method in ("bias_only", "lofit"):
        assert runs("-method", method) == replace(plain, method=method, head_selection=METHODS[method].selection)
    assert runs("-method", "lofit", HEAD_SELECTION="gap") == replace(plain, method="lofit", head_selection="gap")
    of_task = replace(plain, spec_task="rte", data_path=None, num_train_samples=SPEC_TRAIN_SAMPLES)
    assert runs("-spec_task", "rte", SPEC_TASK="boolq") == of_task == runs("--spec_task=rte")


def test_a_file_of_flags_is_not_overridden(runs, tmp_path):
    file = tmp_path / "flags.json"
    file.write_text('{"lr": 2e-4, "num_components": 3, "recipe": "biases", "dtype": "float32"}')
    for words in (["-config", str(file)], [f"--config={file}"]):
        assert runs(*words, "-seed", "7") == replace(parse_arguments(words), seed=7)
