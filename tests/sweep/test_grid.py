"""A sweep's file: each mistake is one line, and known before anything runs."""

from itertools import product

import pytest

from tests.builders import mistake, write_files
from tests.sweep.conftest import FILE
from utils.sweep.__main__ import ENTRY
from utils.sweep.grid import CONTROL, read_sweep

START = "flags: {num_train_samples: 20}\nseeds: [1]\nlr: [1e-3]\n"

WRONG = {
    "{learning: 1}": "configuration 1: unrecognized arguments: -learning=1",
    "{method: [lora, dora]}": "configuration 1: method is",
    "lora": "configuration 1: lora is not a mapping of flags",
    "{lr: fast}": "configuration 1: -lr",
    "{lr: []}": "configuration 1: has no learning rate; give 'lr:",
    "{lr: [1, 1.0]}": "each rate and each seed once",
    "{lr: [1, 2], num_valid_samples: 0}": "rates are chosen on validation loss",
    "{lr: [1, 2], spec_task: rte}": "rates are chosen on validation loss",
    "{method: lora}, {name: a, lr: [1, 2]}": "lora chooses from 1 rates, a chooses from 2 rates",
    "{method: lora}, {method: lora}": "appears twice; give each configuration its own 'name:'",
    "{overwrite: true}": "overwrite: the sweep gives it",
    "{method: lora, lr: [1e-2, null]}": "-lr: must be a number above 0, not null",
    "": "configurations: give a list",
}
WRONG = {f"{START}configurations: [{text}]": expected for text, expected in WRONG.items()} | {
    "flags: {lr: 1e-3}\nseeds: [1]\nconfigurations: [{}]": "lr: the sweep gives it",
    "configuration: []": "configuration is not a key of a sweep; give a mapping of flags, prunings",
    f"{START}prunings: [{{calib_seed: 1}}, {{calib_seed: 2}}]\nconfigurations: [{{}}]": "and each pruning another",
    f"{START}prunings: {{sparsity: 0.5}}\nconfigurations: [{{method: lora}}]": "prunings: give a list",
    "flags: {a: [1, 2}": "is not valid YAML in line 1",
    "configurations: [{}]": "seeds: give a list",
    "lr: 1e-2\nseeds: [42, ~]\nconfigurations: [{}]": "-train_seed: must be a whole number",
    "search: {num_valid_samples: 0}\nseeds: [1]\nlr: [1, 2]\nconfigurations: [{}]": "rates are chosen on",
    START + "search: {num_epoh: 1}\nconfigurations: [{method: lora}]": "num_epoh",
    START + "compare_to: x\nconfigurations: [{method: lora}]": "no configuration is named 'x'",
    START + "compare_to: [x]\nconfigurations: [{method: lora}]": "no configuration is named ['x']",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    assert WRONG[text] in mistake(f"^{path}: ", read_sweep, path)


def test_values_are_what_they_would_be_on_the_command_line_and_can_be_taken_back(world):
    text = "flags: {sparsity: 2:4, eval_limit: 5, train_norms: true}\nseeds: [1]\nlr: 1e-3\nconfigurations:\n"
    rows = world.rows(text + "  - {name: a}\n  - {name: b, eval_limit: ~, train_norms: false}")
    one, other = (row.finals[0] for row in rows)
    given = [[run.arguments[name] for name in ("sparsity", "eval_limit", "train_norms")] for run in (one, other)]
    assert given == [["2:4", 5, True], ["2:4", None, False]]
    assert (one.rate, one.seed, one.words[-2:]) == (1e-3, 1, ("-lr=1e-3", "-train_seed=1"))


def test_every_pruning_has_every_configuration_and_what_is_not_trained_has_no_rate_and_runs_once(world):
    assert len(read_sweep(ENTRY.parent / "docs" / "sweep.yaml")) == 7  # the documents' example
    untrained = "  - {name: nothing, method: none}\n  - {name: no steps, num_epoch: 0}\n"
    rows = world.rows(FILE + untrained + "prunings: [{sparsity: 0.5}, {sparsity: 2:4, prune_method: sparsegpt}]\n")
    every = product(("wanda 0.5", "sparsegpt 2:4"), ("ours", "theirs", "nothing", "no steps"))
    assert [(row.pruning, row.name, row.compare_to) for row in rows] == [(*pair, "ours") for pair in every]
    trained, untrained = (2, 4, [1e-3, 1e-2]), (0, 1, [])
    found = [(len(row.searches), len(row.finals), row.rates) for row in rows]
    assert found == [trained, trained, untrained, untrained] * 2


def test_a_control_is_run_at_the_rate_that_the_pruned_model_chose(world):
    dense = "{method: lora, lora_rank: 2, name: theirs, pruned_model_path: ROOT/model, allow_dense: true"
    _, theirs, control = world.rows(FILE + f"  - {dense}}}\n")
    assert control.pruning == CONTROL and control.searches == theirs.searches and control.finals != theirs.finals
    _, theirs, control = world.rows(FILE + f"  - {dense}, lr: [1, 2]}}\n")
    assert control.searches != theirs.searches
    filled = world.rows(FILE + f"  - {dense}}}\n".replace("ROOT/model", "ROOT"))[-1]
    assert filled.pruning == world.root.name, "a model without zeros, and not the dense one"
    same = "  - {pruned_model_path: huggyllama/llama-7b, base_model_name: llama_7B, allow_dense: true}\n"
    assert world.rows(FILE + same)[-1].pruning == CONTROL
    (pruned,) = world.rows("seeds: [1]\nlr: 1e-3\nconfigurations: [{allow_dense: true}]")
    assert pruned.pruning == "wanda 0.5", "it may be dense, and isn't"


def test_a_closed_form_that_draws_by_the_seed_has_a_run_of_each(world):
    named = "seeds: [1, 2, 3]\nconfigurations: [{method: reconstruct}, {method: admm_update}]"
    assert [[run.seed for run in row.finals] for row in world.rows(named)] == [[1, 2, 3], [1]]


def test_a_run_is_known_by_its_arguments_and_by_the_content_of_what_it_reads(world):
    def identity(**flags) -> str:
        given = "".join(f"  {name}: {value}\n" for name, value in flags.items())
        text = f"seeds: [1]\nlr: 1e-2\nconfigurations: [{{method: lora}}]\nflags:\n  dtype: float32\n{given}"
        return world.rows(text)[0].finals[0].id

    models = [world.root / place / "model" for place in ("a", "deep/b", "c")]
    for model, text in zip(models, "xxy", strict=True):
        write_files(model, {"weights": text, "test.jsonl": text, "pruning.json": str(model)})  # the last: its seconds
    changes = {"lora_rank": 3, "sparsity": "2:4", "eval_limit": 5, "train_norms": "true", "max_length": 99}
    assert len({identity(), *(identity(**{name: value}) for name, value in changes.items())}) == 1 + len(changes)
    one, moved, other = (identity(pruned_model_path=model) for model in models)
    assert one == moved != other
    tasks = [world.root / place for place in ("x", "y", "z")]
    for folder, text in zip(tasks, "xxy", strict=True):
        write_files(folder, {"rte": models["xxy".index(text)], "model/weights": str(folder)})  # which are no task's
    one, moved, other = (identity(eval_data_dir=folder) for folder in tasks)
    assert one == moved != other
