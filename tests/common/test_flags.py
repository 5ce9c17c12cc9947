"""Flags from a file are checked as those of the command line are; paths have one spelling, seeds their own flags."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import mistake
from utils.common.flags import INPUTS, RECIPES, Arguments, as_flags, parse_arguments
from utils.common.methods import Options, parts_of


def from_config(folder: Path, content: object, *flags: str, name: str = "config.json") -> Arguments:
    (path := folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return parse_arguments(["-config", str(path), *flags])


def test_what_run_json_holds_repeats_the_run_but_not_how_it_was_started(tmp_path):
    given = ["-lr", "0.02", "-use_topk_heads", "7", "-eval_limit", "3", "-overwrite", "-data_seed", "5"]
    written = parse_arguments([*given, "-plan", "here", "-push_to_hub", "a/b"]).as_json()
    assert not {"overwrite", "plan", "config", "push_to_hub"} & set(written)
    again = from_config(tmp_path, {"arguments": json.loads(json.dumps(written)), "seed": 42})
    assert again.as_json() == written and (again.overwrite, again.plan, again.push_to_hub) == (False, None, None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_flags_and_what_is_typed_wins(tmp_path, name):
    made = parse_arguments(["-recipe", name])
    typed = parse_arguments(as_flags({**RECIPES[name], "overwrite": False, "eval_limit": None}).split())
    assert made == replace(typed, recipe=name) != replace(parse_arguments([]), recipe=name)
    assert parse_arguments(["-lr", "0.5", "-recipe", name]).lr == 0.5
    run = {"arguments": parse_arguments(["-recipe", "biases", "-lr", "0.25"]).as_json()}
    assert from_config(tmp_path, run) == replace(parse_arguments(["-recipe", "biases"]), lr=0.25)
    assert from_config(tmp_path, run, "-recipe", name).lr == made.lr
    for before in (f"-recipe {name}", "-method lora -first eora -lora_targets q_proj -lora_rank 3"):
        run = {"arguments": parse_arguments([*before.split(), "-seed", "3", "-use_topk_heads", "5"]).as_json()}
        for other in RECIPES:
            wanted = replace(parse_arguments(["-recipe", other]), seed=3, use_topk_heads=5)
            assert from_config(tmp_path, run, "-recipe", other) == wanted


def test_another_method_than_a_runs_ranks_heads_as_it_does_unless_the_run_was_told(tmp_path):
    of_lofit = {"arguments": parse_arguments(["-method", "lofit"]).as_json()}
    assert from_config(tmp_path, of_lofit, "-method", "restorelcc") == parse_arguments([])
    told = {"arguments": parse_arguments(["-head_selection", "gap"]).as_json()}
    assert from_config(tmp_path, told, "-method", "lofit").head_selection == "gap"
    for moved in ([], ["-spec_task", "rte", "-base_model_name", "a/b"]):  # what followed from others' values does again
        assert from_config(tmp_path, of_lofit, *moved) == parse_arguments(["-method", "lofit", *moved])


JSON, YAML = "config.json", "config.yml"
WRONG = [
    (JSON, {"allow_dense": "yes"}, 'allow_dense is "yes"; a switch is true or false'),
    (JSON, {"data_path": ["a" * 5000]}, "data_path is .{60,70}…; give a number or a text"),
    (JSON, {"lr": None}, "lr is null; give a number or a text"),
    (JSON, {"batch_size": True}, "batch_size is true; give a number or a text"),
    (JSON, '{"lr": NaN}', "-lr: must be a number above 0, not nan"),
    (JSON, {"lr": 1e39}, "-lr: must be a number above 0, not 1e"),
    (JSON, {"recipe": "x"}, "-recipe: invalid choice"),
    (JSON, {"learning_rate": 1, "help": True}, "names unknown flags: help, learning_rate"),
    (JSON, {"lr": 1, "push_to_hub": 0}, "push_to_hub: given on the command line only"),
    (JSON, "null", "holds no flags"),
    (JSON, "{}", "holds no flags"),
    (JSON, "{", "cannot read"),
    (JSON, '{"lr": 1, "seed": 2, "lr": 3}', "cannot read .*'lr' stands there twice"),
    (YAML, "lr: [1", "is not valid YAML in line "),
    (YAML, "lr: 1\nlr: 2", "'lr' stands there twice"),
    (YAML, "- lr", "holds no flags"),
]


@pytest.mark.parametrize(("name", "content", "says"), WRONG)
def test_a_wrong_value_is_one_line_that_names_file_and_flag(tmp_path, name, content, says):
    line = mistake(says, from_config, tmp_path, content, name=name)
    assert line.startswith("-config: ") and name in line and len(line) < 400


def test_a_share_of_one_is_all_heads_and_a_count_of_one_is_one(tmp_path):
    assert parse_arguments([]).head_count(30, 9) == 68  # of 270 a quarter
    for given, heads in (("1", 1), ("7", 7), ("0.5", 12), ("1.0", 24), (1.0, 24), (1, 1)):
        args = from_config(tmp_path, {"use_topk_heads": given})
        again = from_config(tmp_path, {"use_topk_heads": args.as_json()["use_topk_heads"]})
        assert args.head_count(4, 6) == again.head_count(4, 6) == heads


def test_yaml_is_read_as_it_is_written_and_json_as_the_flag_takes_it(tmp_path):
    text = "sparsity: 2:4\nlr: 1e-3\ntrain_norms: true\neval_limit: null\nuse_topk_heads: 0.5\n"
    of_yaml = from_config(tmp_path, text, name="flags.yaml")
    given, numbers = {"sparsity": "2:4", "train_norms": True, "eval_limit": None}, {"lr": 1e-3, "use_topk_heads": 0.5}
    of_json = from_config(tmp_path, {**given, "lr": "1e-3", "use_topk_heads": 0.5})
    assert of_yaml == of_json == replace(parse_arguments([]), **given, **numbers)


def test_an_unknown_flag_names_the_nearest_one():
    meant = {"-lrr": "-lr", "--use_top_heads=3": "-use_topk_heads", "-num_train": "-num_train_samples", "–lr": "-lr"}
    for given, near in {**meant, "-xyzzy": None, "word": None}.items():
        asked = f"; did you mean {near}?" if near else "; --help has all flags"
        assert mistake(None, parse_arguments, [given]) == f"unrecognized arguments: {given}{asked}"


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [*INPUTS, "output_dir"]
    args = parse_arguments([word for name in names for word in (f"-{name}", f"~/{name}")])
    assert {name: str(getattr(args, name)) for name in names} == {name: str(tmp_path / name) for name in names}
    assert from_config(tmp_path, {name: f"~/{name}" for name in names}) == args
    assert parse_arguments(["-config", "~/config.json"]) == args


def test_each_seed_follows_seed_unless_it_is_given():
    for words, seeds in {"-seed 7 -calib_seed 0": (0, 7, 7), "-data_seed 1 -train_seed 2": (42, 1, 2)}.items():
        args = parse_arguments(words.split())
        assert (args.calibration_seed, args.samples_seed, args.training_seed) == seeds


def test_a_flag_that_the_run_has_no_use_for_is_named():
    for words, says in (
        ("", []),
        ("-recipe inside_mask -prune_method sparsegpt", []),
        ("-recipe biases -lora_rank 16 -use_topk_heads 8", ["-use_topk_heads", "-lora_rank"]),
        ("-pruned_model_path FOLDER -sparsity 2:4 -calib_length 64", ["-sparsity", "-calib_length"]),
        ("-prune_method magnitude -sparsity 0.4 -calib_seed 3", ["-calib_seed"]),
        ("-head_selection gap -num_probe_samples 50 -basis random", ["-num_probe_samples"]),
        ("-method lofit -basis random", ["-basis"]),
        ("-method lora -head_selection random", ["-head_selection"]),
        ("-method output_bias -first eora -lora_rank 4", []),
        ("-method none -lr 0.1 -num_valid_samples 9 -num_epoch 1", ["-num_epoch", "-lr"]),
        ("-num_epoch 0 -loss distill -pruned_model_path A -calib_samples 2 -lr 2", ["-calib_samples", "-lr"]),
        ("-spec_task rte -num_valid_samples 9", ["-num_valid_samples"]),
    ):
        assert parse_arguments(words.split()).unused() == says, words


def test_a_closed_form_that_would_spoil_what_follows_is_refused():
    mistake("^-apply_to: restorelcc compensates attention, ffn leaves", parts_of, "restorelcc", Options("ffn"))
    for first, says in (("lora", "is the method itself"), ("dora", "is trained; give a closed form")):
        mistake(f"^-first: {first} {says}", parts_of, "lora", Options(first=first))
    assert parts_of("none", Options(first="none")) == parts_of("none", Options())
    inside = ("masked_lora", "masked_dora", "masked_full", "admm_update", "admm_residual", "reconstruct")
    for first, methods in (("eora", inside), ("flap_bias", ("eora", "admm_update", "admm_residual"))):
        for method in methods:
            mistake(f"^-first: {method} can't follow {first}, which", parts_of, method, Options(first=first))
        assert [part.name for part in parts_of("flap_bias" if first == "eora" else "lora", Options(first=first))]
