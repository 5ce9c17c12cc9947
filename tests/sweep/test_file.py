"""A sweep's file: each mistake is one line, and known before anything runs."""

import re

import pytest

from tests.sweep.conftest import FILE
from utils.common.errors import UserError
from utils.sweep.file import CONTROL, command_line, read_sweep
from utils.sweep.runs import ROOT, planned, resolved

START = "flags: {num_train_samples: 20}\nseeds: [1]\nlr: [1e-3]\n"

WRONG = {
    "unknown flag": (START + "configurations: [{learning: 1}]", "configuration 1: unknown flag 'learning'"),
    "unknown common flag": ("flags: {sede: 1}", "flags: unknown flag 'sede'"),
    "unknown key": (START + "configuration: []", "unknown key 'configuration'"),
    "list for a value": (START + "configurations: [{method: [lora, dora]}]", "configuration 1: method is"),
    "mapping for a value": (START + "configurations: [{method: {a: b}}]", "give one value"),
    "wrong value": (START + "configurations: [{name: x, lora_rank: none}]", "configuration 1 (x): -lora_rank"),
    "unknown method": (START + "configurations: [{method: lorra}]", "-method"),
    "switch with a value": (START + "configurations: [{train_norms: 3}]", "a switch is true or false"),
    "options that don't go together": (START + "configurations: [{apply_to: ffn}]", "configuration 1: -apply_to"),
    "no yaml": ("flags: {a: [1, 2}", "is no YAML in line 1"),
    "key twice": ("flags: {}\nflags: {}", "'flags' stands there twice"),
    "not a mapping": ("- method: lora", "holds no mapping"),
    "empty": ("", "holds no mapping"),
    "no configurations": (START, "no configurations"),
    "empty configurations": (START + "configurations: []", "no configurations"),
    "configurations no list": (START + "configurations: {method: lora}", "configurations: is"),
    "configuration no mapping": (START + "configurations: [lora]", "configuration 1: is no set of flags"),
    "no seeds": ("lr: 1e-3\nconfigurations: [{method: lora}]", "seeds: give a list"),
    "seed twice": ("lr: 1e-3\nseeds: [1, 1]\nconfigurations: [{method: lora}]", "each once"),
    "seed no number": ("lr: 1e-3\nseeds: [x]\nconfigurations: [{method: lora}]", "seeds: must be a whole number"),
    "no rate": ("seeds: [1]\nconfigurations: [{method: lora}]", "is trained, and has no rate"),
    "rate no number": (START + "configurations: [{lr: fast}]", "lr: 'fast' is no number"),
    "rate below zero": (START + "configurations: [{lr: -1}]", "must be a number above 0"),
    "unequal numbers of rates": (
        START + "configurations: [{method: lora}, {lr: [1e-3, 1e-2]}]",
        "restorelcc chooses from 2 rates, lora from 1",
    ),
    "name twice": (
        START + "configurations: [{name: a}, {name: a, method: lora}]",
        "'a' on wanda 0.5 stands there twice",
    ),
    "the same twice": (START + "configurations: [{method: lora}, {method: lora}]", "stands there twice"),
    "rate among flags": ("flags: {lr: 1e-3}", "flags: lr: stands beside"),
    "seed among flags": (START + "configurations: [{train_seed: 3}]", "its values are `seeds:`"),
    "folder among flags": (START + "configurations: [{output_dir: x}]", "output_dir: each run has a folder"),
    "overwrite among flags": (START + "configurations: [{overwrite: true}]", "overwrite: says how a run is started"),
    "an upload among flags": (START + "configurations: [{push_to_hub: x}]", "push_to_hub: says how a run is started"),
    "nothing to choose on": (
        "seeds: [1]\nlr: [1e-3, 1e-2]\nconfigurations: [{num_valid_samples: 0}]",
        "rates are chosen on validation loss",
    ),
    "nothing to choose on in a search": (
        "seeds: [1]\nlr: [1e-3, 1e-2]\nsearch: {num_valid_samples: 0}\nconfigurations: [{method: lora}]",
        "rates are chosen on validation loss",
    ),
    "a task to train on has nothing to choose on": (
        "seeds: [1]\nlr: [1e-3, 1e-2]\nconfigurations: [{spec_task: rte}]",
        "-spec_task has no validation samples",
    ),
    "compared to nobody": (START + "compare_to: x\nconfigurations: [{method: lora}]", "no configuration is named 'x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, name):
    text, expected = WRONG[name]
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_sweep(path)
    line = str(caught.value)
    assert expected in line and line.startswith(f"{path}: ") and "\n" not in line


def test_a_mistake_ends_the_command_before_anything_is_written(world, capfd):
    world.write(START + "configurations: [{method: lorra}]")
    assert world.sweep() == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {world.file}: configuration 1: -method")
    assert not world.output.exists()


def test_values_are_what_they_would_be_on_the_command_line(world):
    world.write("flags: {sparsity: 2:4, allow_dense: true}\nseeds: [1]\nlr: 1e-3\nconfigurations: [{basis: random}]")
    (each,) = read_sweep(world.file).configurations
    assert (each.args.sparsity, each.args.allow_dense, each.args.basis, each.rates) == ("2:4", True, "random", (1e-3,))
    assert each.pruning == "dense (control)"


def test_a_configuration_can_take_back_what_is_common(world):
    text = "flags: {eval_limit: 5, train_norms: true}\nseeds: [1]\nlr: 1e-3\nconfigurations:\n"
    world.write(text + "  - {name: a}\n  - {name: b, eval_limit: ~, train_norms: false}")
    one, other = (each.args for each in read_sweep(world.file).configurations)
    assert (one.eval_limit, one.train_norms, other.eval_limit, other.train_norms) == (5, True, None, False)


def test_what_is_not_trained_has_no_rate_and_runs_once(world):
    world.write(FILE + "  - {name: nothing, method: none}\n  - {name: no steps, num_epoch: 0}\n")
    rows, _ = planned(read_sweep(world.file))
    assert [(len(row.searches), len(row.finals)) for row in rows] == [(2, 4), (2, 4), (0, 1), (0, 1)]
    assert [row.finals[0].rate for row in rows[2:]] == [None, None]


def test_a_search_has_flags_of_its_own(world):
    world.write(FILE + "search: {num_epoch: 1, eval_tasks: none}\n")
    rows, commands = planned(read_sweep(world.file))
    search, final = (commands[each.id].arguments for each in (rows[0].searches[0], rows[0].finals[0]))
    assert (search["num_epoch"], search["eval_tasks"]) == (1.0, "none")
    assert (final["num_epoch"], final["eval_tasks"]) == (3.0, "bundled")


def test_every_pruning_has_every_configuration_and_is_compared_with_its_own(world):
    world.write(FILE + "prunings: [{sparsity: 0.5}, {sparsity: 2:4, prune_method: sparsegpt}]\n")
    rows, _ = planned(read_sweep(world.file))
    assert [(row.name, row.pruning, row.compare_to) for row in rows] == [
        ("ours", "wanda 0.5", "ours"),
        ("theirs", "wanda 0.5", "ours"),
        ("ours", "sparsegpt 2:4", "ours"),
        ("theirs", "sparsegpt 2:4", "ours"),
    ]


def test_a_control_is_run_at_the_rate_that_the_pruned_model_chose(world):
    dense = "{method: lora, lora_rank: 2, name: theirs, pruned_model_path: embedded, allow_dense: true"
    world.write(FILE + f"  - {dense}}}\n")
    rows, commands = planned(read_sweep(world.file))
    assert [(row.name, row.pruning) for row in rows[1:]] == [("theirs", "wanda 0.5"), ("theirs", CONTROL)]
    assert rows[2].searches == rows[1].searches and rows[2].finals != rows[1].finals
    assert all(commands[each.id].arguments["allow_dense"] for each in rows[2].finals)
    world.write(FILE + f"  - {dense}, lr: [1, 2]}}\n")
    rows, _ = planned(read_sweep(world.file))
    assert rows[2].searches != rows[1].searches


CHANGES = {
    "lora_rank": "3", "num_train_samples": "21", "sparsity": "2:4", "seed": "7", "dtype": "float32", "lr": "0.02",
    "train_seed": "9", "eval_limit": "5", "train_norms": None, "num_epoch": "1", "max_length": "99",
}  # fmt: skip


def ids(flags: dict) -> str:
    from utils.common.files import digest

    return digest(resolved(command_line(flags)))


def test_the_same_arguments_have_the_same_id_and_each_change_another(world):
    samples = str(world.root / "samples.jsonl")
    base = {"data_path": samples, "method": "lora", "lr": "0.01", "train_seed": "1"}
    assert ids(base) == ids({**base, "output_dir": "/elsewhere", "cache_dir": "/other"})
    assert ids(base) == ids({**base, "lr": "1e-2"})
    assert ids(base) == ids({**base, "push_to_hub": "me/x"})
    found = [ids({**base, name: value}) for name, value in CHANGES.items()]
    assert len({ids(base), *found}) == len(CHANGES) + 1


def test_a_moved_file_is_the_same_run_and_a_changed_one_another(tmp_path):
    moved = tmp_path / "far" / "moved.jsonl"
    moved.parent.mkdir()
    for path, text in ((tmp_path / "a.jsonl", "x"), (moved, "x"), (tmp_path / "b.jsonl", "y")):
        path.write_text(text)
    one, two, three = (ids({"data_path": str(path)}) for path in (tmp_path / "a.jsonl", moved, tmp_path / "b.jsonl"))
    assert one == two != three


def test_a_folder_is_known_by_all_its_files(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text(name if name == "three" else "same")
    one, two, three = (ids({"eval_data_dir": str(tmp_path / name)}) for name in ("one", "two", "three"))
    assert one == two != three


def test_a_model_pruned_once_more_is_the_same_run_and_other_weights_are_another(tmp_path):
    for name, weights, seconds in (("one", "w", "3"), ("two", "w", "4"), ("three", "v", "3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(weights)
        (tmp_path / name / "pruning.json").write_text(f'{{"seconds": {seconds}}}')
    one, two, three = (ids({"pruned_model_path": str(tmp_path / name)}) for name in ("one", "two", "three"))
    assert one == two != three


def test_the_examples_of_the_documents_are_sweeps(tmp_path):
    assert len(read_sweep(ROOT / "docs" / "sweep.yaml").configurations) == 7
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "running.md").read_text(), re.DOTALL)
    (tmp_path / "block.yaml").write_text(block)
    assert len(read_sweep(tmp_path / "block.yaml").configurations) == 3
