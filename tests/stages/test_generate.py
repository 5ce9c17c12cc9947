"""What a run's models answer, as somebody sees it: columns side by side, and a talk with the restored model."""

import io
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import RestoreLCC_train
from data.loading import alpaca_prompt
from tests.builders import byte_tokenizer, save_tiny_llama
from tests.stages.test_command_line import flags, write_samples
from utils.common.errors import UserError
from utils.generate import main, side_by_side

NEW_TOKENS = 9


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of a method that trains a norm's scales, on a model that it prunes itself."""
    root = tmp_path_factory.mktemp("generate")
    save_tiny_llama(root / "dense")
    save_tiny_llama(root / "pruned", zeros=0.5)
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": f"{n}"} for n in range(12)]
    write_samples(root / "samples.jsonl", rows)
    return root


def restored(world, monkeypatch, output, **changes) -> None:
    common = {"method": "norms_biases", "num_train_samples": 8, "num_valid_samples": 0, "num_epoch": 1}
    more = {"sentence_encoder": None, "num_probe_samples": None, "eval_tasks": "none", "eval_data_dir": None}
    monkeypatch.setattr(sys, "argv", ["it", *flags(world, output, **common, **more, **changes)])
    RestoreLCC_train.main()


def greedy(folder, text: str) -> str:
    """What transformers' own generate answers."""
    tokenizer = byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer(text).input_ids])
    made = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, attention_mask=torch.ones_like(ids))
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()


def shown(out: str, column: int) -> str:
    """One column's answer, its lines joined."""
    lines = out.split("dense", 1)[1].splitlines()[2:]
    return "".join(line[column * 34 : column * 34 + 32].strip() for line in lines).replace(" ", "")


@pytest.mark.parametrize("given", [True, False], ids=["a given pruned model", "one that the run made"])
def test_the_answers_are_those_of_the_three_models(world, monkeypatch, capsys, tmp_path, given):
    pruning = {} if given else {"pruned_model_path": None, "prune_method": "magnitude"}
    restored(world, monkeypatch, tmp_path / "out", lr=0.5, **pruning)
    pruned = world / "pruned" if given else next((world / "cache" / "pruned").glob("*/config.json")).parent
    capsys.readouterr()
    words = ["-prompt", "Say it", "-max_new_tokens", str(NEW_TOKENS), "-cache_dir", str(world / "cache")]
    main([str(tmp_path / "out"), *words])
    out = capsys.readouterr().out
    assert out.startswith("> Say it\n")
    expected = [greedy(folder, alpaca_prompt("Say it")) for folder in (world / "dense", pruned, tmp_path / "out/model")]
    assert len(set(expected)) == 3
    assert [shown(out, column) for column in range(3)] == ["".join(each.split()) for each in expected]


def test_a_talk_goes_on_from_what_was_said(world, monkeypatch, capsys, tmp_path):
    restored(world, monkeypatch, tmp_path / "out", lr=1e-3)
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\n\nSay it\n/new\nSay it\n"))
    main([str(tmp_path / "out"), "-chat", "-max_new_tokens", str(NEW_TOKENS)])
    model = tmp_path / "out" / "model"
    first = greedy(model, alpaca_prompt("One"))
    second = greedy(model, f"{alpaca_prompt('One')} {first}\n\n{alpaca_prompt('Say it')}")
    alone = greedy(model, alpaca_prompt("Say it"))
    assert first and second != alone
    assert capsys.readouterr().out == f"{first}\n{second}\n{alone}\n"


def test_columns_are_as_wide_as_the_terminal_and_lines_stay(capsys):
    found = {"dense": ["one two three\n\nfour"], "pruned": ["x" * 20]}
    assert side_by_side(["Why?"], found, 20).splitlines() == [
        "> Why?", "", "dense      pruned", "---------  ---------", "one two    xxxxxxxxx", "three      xxxxxxxxx",
        "           xx", "four",
    ]  # fmt: skip


def test_mistakes_are_told_before_a_model_loads(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^OUT: .* holds no result of a run"):
        main([str(tmp_path), "-prompt", "x"])
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text('{"arguments": {}}')
    with pytest.raises(UserError, match=r"^-chat: "):
        main([str(tmp_path), "-chat", "-prompt", "x"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UserError, match=r"^-prompt: nothing to answer"):
        main([str(tmp_path)])
