"""Each broken input is answered by one line that names the flag and what is wrong: no traceback, nothing believed.

Through the commands themselves, in this process, and each only until its answer: what is taken ends where the first
model would be loaded.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import models.merge
import pruning.__main__
import RestoreLCC_train
from models.checkpoint import fingerprint
from models.restoration import save_restoration
from tests.builders import byte_tokenizer, save_tiny_llama, trained
from tests.inputs import broken
from tests.inputs.broken import DEEP, DIGITS, Evil, Spoil
from utils.common.commands import run

ROOT = Path(RestoreLCC_train.__file__).parent


class Taken(Exception):
    """The inputs were found good, and a model would be loaded now."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[Path]:
    """Whole inputs of all kinds, which the tests copy and spoil."""
    root = tmp_path_factory.mktemp("world")
    save_tiny_llama(root / "dense")
    save_tiny_llama(root / "pruned", zeros=0.5)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(root / "encoder")
    byte_tokenizer().save_pretrained(root / "encoder")
    (root / "samples.jsonl").write_text("".join(line(n) + "\n" for n in range(12)))
    (root / "text.txt").write_text("Some words to be fed. " * 20)
    save_restoration(root / "restoration", trained(), {"pruned_sha256": fingerprint(root / "pruned")})
    gc.freeze()  # a stage collects before it begins, and would walk over all of the libraries each time
    yield root
    gc.unfreeze()


def line(number: int) -> str:
    return json.dumps({"instruction": f"Count to {number}.", "output": f"{number} is it."})


@pytest.fixture
def answer(world, tmp_path, monkeypatch, capfd) -> Callable[..., str]:
    """answer(command, flag=value, …) -> the one line on stderr; Taken if there is nothing to say."""
    monkeypatch.chdir(tmp_path)

    def stop(*_, **__):
        raise Taken

    for place in ("utils.stages.prune.pruned_checkpoint", "pruning.checkpoint.load_model", "models.merging.load_model"):
        monkeypatch.setattr(place, stop)

    def ask(command: str, **changes: object) -> str:
        main, defaults = COMMANDS[command]
        given = {name: world / value[1:] if str(value)[:1] == "@" else value for name, value in defaults.items()}
        given |= {"output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache", **changes}
        words = [word for name, value in given.items() if value is not None for word in (f"-{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [command, *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            run(main)
        (said,) = capfd.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and said.startswith("error: ")
        assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()
        return said.removeprefix("error: ")

    return ask


COMMANDS = {
    "restore": (
        RestoreLCC_train.main,
        {
            "base_model_name": "@dense",
            "pruned_model_path": "@pruned",
            "data_path": "@samples.jsonl",
            "num_train_samples": 8,
            "num_valid_samples": 2,
            "num_probe_samples": 10,
            "use_topk_heads": 3,
            "sentence_encoder": "@encoder",
            "eval_tasks": "none",
            "dtype": "float32",
            "device": "cpu",
        },
    ),
    "prune": (
        pruning.__main__.main,
        {
            "base_model_name": "@dense",
            "calib_data": "@text.txt",
            "calib_samples": 2,
            "calib_length": 16,
            "dtype": "float32",
            "device": "cpu",
        },
    ),
    "merge": (
        models.merge.main,
        {"pruned_model_path": "@pruned", "restoration": "@restoration", "dtype": "float32"},
    ),
}

NORM = "model.norm.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 9\n"
NO_INDEX = "is no index of weights"

FILES: dict[str, tuple[Spoil, str]] = {
    "truncated": (broken.raw(lambda data: data[:1000]), "cannot read"),
    "one byte short": (broken.raw(lambda data: data[:-1]), "cannot read"),
    "empty": (broken.raw(lambda data: b""), "cannot read"),
    "length of the header flipped": (broken.raw(lambda data: data[:7] + b"\xff" + data[8:]), "cannot read"),
    "header flipped": (broken.raw(lambda data: data[:9] + bytes([data[9] ^ 64]) + data[10:]), "cannot read"),
    "a pointer of git-lfs": (broken.file(broken.WEIGHTS, LFS), "cannot read"),
    "a folder for a file": (broken.as_folder(broken.WEIGHTS), "holds no weights"),
    "no weights": (broken.without(broken.WEIGHTS), "holds no weights"),
    "no tensors": (broken.tensors(dict.clear), "lacks model.embed_tokens.weight"),
    "another shape": (broken.tensors(lambda t: t.update({NORM: torch.ones(25)})), "has the shape (25,)"),
    "NaN": (broken.tensors(lambda t: t[NORM].fill_(float("nan"))), "model.norm.weight in"),
    "int8": (broken.tensors(lambda t: t.update({NORM: t[NORM].to(torch.int8)})), "dequantize"),
    "a weight missing": (broken.tensors(lambda t: t.pop(NORM)), "lacks model.norm.weight"),
    "a weight too much": (broken.tensors(lambda t: t.update(more=torch.ones(2))), "holds more that a Llama"),
    "index without weight_map": (broken.instead(broken.INDEX, "{}"), "weight_map is missing"),
    "index null": (broken.instead(broken.INDEX, "null"), NO_INDEX),
    "index nested": (broken.instead(broken.INDEX, DEEP), "nested too deeply"),
    "index with digits": (broken.instead(broken.INDEX, f'{{"weight_map": {DIGITS}}}'), "thousands of digits"),
    "index of numbers": (broken.instead(broken.INDEX, '{"weight_map": {"a": 3}}'), NO_INDEX),
    "index as a list": (broken.instead(broken.INDEX, '{"weight_map": ["a"]}'), NO_INDEX),
    "index of nothing": (broken.instead(broken.INDEX, '{"weight_map": {}}'), "holds no weights"),
    "index of a NUL": (broken.instead(broken.INDEX, '{"weight_map": {"a": "b\\u0000"}}'), "which"),
    "index of half a surrogate": (broken.instead(broken.INDEX, '{"weight_map": {"a": "\\ud800"}}'), "surrogate"),
    "index of a long name": (broken.instead(broken.INDEX, f'{{"weight_map": {{"a": "{"b" * 300}"}}}}'), "lacks bbb"),
    "index outside": (broken.instead(broken.INDEX, '{"weight_map": {"a": "../b"}}'), "not in the folder itself"),
    "index of what is not there": (broken.instead(broken.INDEX, '{"weight_map": {"a": "b"}}'), "lacks b, which"),
    ".bin of anything": (broken.instead(broken.PICKLE, b"anything"), "cannot read"),
    ".bin empty": (broken.instead(broken.PICKLE, b""), "cannot read"),
    ".bin evil": (broken.pickled(lambda t: {NORM: Evil()}), "cannot read"),
    ".bin of a list": (broken.pickled(lambda t: [1, 2]), "no plain tensors by name"),
    ".bin of numbered tensors": (broken.pickled(lambda t: dict(enumerate(t.values()))), "no plain tensors by name"),
    ".bin of a sparse tensor": (broken.pickled(lambda t: t | {NORM: t[NORM].to_sparse()}), "no plain tensors"),
    ".bin without numbers": (broken.pickled(lambda t: t | {NORM: t[NORM].to("meta")}), "no plain tensors"),
    "config.json empty": (broken.file("config.json", ""), "cannot read"),
    "config.json null": (broken.file("config.json", "null"), "names no model_type"),
    "config.json as a list": (broken.file("config.json", "[]"), "names no model_type"),
    "config.json cut": (broken.file("config.json", '{"model_type": "ll'), "cannot read"),
    "config.json in UTF-16": (broken.file("config.json", "{}".encode("utf-16")), "cannot read"),
    "config.json with a byte order mark": (broken.with_mark("config.json"), "config.json: "),
    "config.json nested": (broken.file("config.json", DEEP), "nested too deeply"),
    "config.json with digits": (broken.file("config.json", f'{{"hidden_size": {DIGITS}}}'), "thousands of digits"),
    "config.json with half a surrogate": (broken.config(model_type="\ud800"), "surrogate"),
    "no model_type": (broken.config(model_type=None), "names no model_type"),
    "another model_type": (broken.config(model_type="gpt2"), "is a 'gpt2' model"),
    "model_type with code": (
        broken.config(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
        "is a 'mine' model",
    ),
    "no heads": (broken.config(num_attention_heads=0), "num_attention_heads is 0"),
    "fewer heads than none": (broken.config(num_attention_heads=-6), "num_attention_heads is -6"),
    "heads as text": (broken.config(num_attention_heads="six"), "num_attention_heads is 'six'"),
    "heads true": (broken.config(num_attention_heads=True), "num_attention_heads is True"),
    "heads and a half": (broken.config(num_attention_heads=6.5), "num_attention_heads is 6.5"),
    "heads that don't share": (broken.config(num_key_value_heads=4), "cannot share 4"),
    "no KV heads": (broken.config(num_key_value_heads=0), "num_key_value_heads is 0"),
    "layers null": (broken.config(num_hidden_layers=None), "num_hidden_layers is None"),
    "layers 10^30": (broken.config(num_hidden_layers=10**30), "num_hidden_layers is 10000"),
    "a layer more": (broken.config(num_hidden_layers=4), "lacks model.layers.3"),
    "a layer less": (broken.config(num_hidden_layers=2), "holds model.layers.2"),
    "hidden_size null": (broken.config(hidden_size=None), "hidden_size is None"),
    "hidden_size of another model": (broken.config(hidden_size=30), "has the shape (300, 24)"),
    "head_dim odd": (broken.config(head_dim=7), "config.json: "),
    "vocab_size of nothing": (broken.config(vocab_size=0), "vocab_size is 0"),
    "vocab_size 10^30": (broken.config(vocab_size=10**30), "vocab_size is 1000"),
    "no context": (broken.config(max_position_embeddings=0), "max_position_embeddings is 0"),
    "unknown hidden_act": (broken.config(hidden_act="silo"), "hidden_act is 'silo'"),
    "hidden_act a list": (broken.config(hidden_act=["silu"]), "hidden_act is ['silu']"),
    "unknown rope type": (broken.config(rope_parameters={"rope_type": "rope"}), "has the type 'rope'"),
    "unknown old rope type": (broken.config(rope_scaling={"type": "rope"}), "has the type 'rope'"),
    "rope as text": (broken.config(rope_scaling="linear"), "rope_scaling is 'linear'"),
    "rope without its factor": (broken.config(rope_parameters={"rope_type": "linear"}), "factor"),
    "rope of factor 0": (broken.config(rope_scaling={"rope_type": "linear", "factor": 0}), "factor is 0"),
    "rope of factor text": (broken.config(rope_scaling={"rope_type": "yarn", "factor": "x"}), "factor is 'x'"),
    "rope_theta as text": (broken.config(rope_theta="x"), "rope_theta is 'x'"),
    "unknown dtype": (broken.config(dtype="float99"), "dtype is 'float99'"),
    "unknown torch_dtype": (broken.config(torch_dtype="float99"), "torch_dtype is 'float99'"),
    "dtype a number": (broken.config(dtype=5), "dtype is 5"),
    "dtype of integers": (broken.config(dtype="int8"), "dtype is 'int8'"),
    "rms_norm_eps as text": (broken.config(rms_norm_eps="x"), "rms_norm_eps"),
    "dropout of more than all": (broken.config(attention_dropout=2), "attention_dropout is 2"),
    "generation_config.json []": (broken.file("generation_config.json", "[]"), "is no JSON object"),
    "generation_config.json cut": (broken.file("generation_config.json", "{"), "is no JSON object"),
    "generation_config.json nested": (broken.file("generation_config.json", DEEP), "is no JSON object"),
    "tied perhaps": (broken.config(tie_word_embeddings="yes"), "tie_word_embeddings"),
    "padding beyond": (broken.config(pad_token_id=300), "pad_token_id is 300, beyond vocab_size 300"),
    "bitsandbytes": (
        broken.config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "is quantized by bitsandbytes, and RestoreLCC reads plain weights; save what model.dequantize()",
    ),
    "bitsandbytes unnamed": (broken.config(quantization_config={"load_in_8bit": True}), "quantized by bitsandbytes"),
    "gptq": (
        broken.config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "is quantized by gptq, and RestoreLCC reads plain weights; give the checkpoint it was made from",
    ),
    "awq": (broken.config(quantization_config={"quant_method": "awq"}), "quantized by awq"),
    "compressed-tensors": (
        broken.config(quantization_config={"quant_method": "compressed-tensors"}),
        "is quantized by compressed-tensors, and RestoreLCC reads plain weights; save what transformers makes of it",
    ),
    "quantized somehow": (broken.config(quantization_config="x"), "quantized by a method it doesn't name"),
    "tokenizer.json {}": (broken.file("tokenizer.json", "{}"), "no usable tokenizer"),
    "tokenizer.json cut": (broken.file("tokenizer.json", '{"model": '), "no usable tokenizer"),
    "tokenizer.json nested": (broken.file("tokenizer.json", DEEP), "no usable tokenizer"),
    "tokenizer of no words": (broken.tokenizer_model(vocab={}), "no usable tokenizer"),
    "tokenizer of an unknown kind": (broken.tokenizer_model(type="Mine"), "no usable tokenizer"),
    "tokenizer with a negative id": (broken.tokenizer_model(vocab={"a": -1}), "no usable tokenizer"),
    "tokenizer_config.json []": (broken.file("tokenizer_config.json", "[]"), "no usable tokenizer"),
    "tokenizer_config.json null": (broken.file("tokenizer_config.json", "null"), "no usable tokenizer"),
    "tokenizer_config.json nested": (broken.file("tokenizer_config.json", DEEP), "no usable tokenizer"),
    "tokenizer_class a number": (broken.values("tokenizer_config.json", tokenizer_class=3), "no usable tokenizer"),
    "model_max_length as text": (broken.values("tokenizer_config.json", model_max_length="x"), "no usable tokenizer"),
    "special_tokens_map.json []": (broken.file("special_tokens_map.json", "[]"), "no usable tokenizer"),
}


@pytest.mark.parametrize("flag", ["base_model_name", "pruned_model_path"])
@pytest.mark.parametrize("case", FILES)
def test_a_broken_model_is_told_of_the_flag_that_named_it(world, tmp_path, answer, flag, case):
    spoil, says = FILES[case]
    folder = shutil.copytree(world / ("dense" if flag == "base_model_name" else "pruned"), tmp_path / "model")
    spoil(folder)
    said = answer("restore", **{flag: folder})
    # A pruned model of other sizes is held against the dense one's before its weights are looked for.
    of_sizes = flag == "pruned_model_path" and "but the base model's is" in said
    assert said.startswith(f"-{flag}: ") and (says in said or of_sizes)
    assert "no zeros" not in said


ONLY_DENSE = {
    "no tokenizer": (broken.without("tokenizer.json", "tokenizer_config.json"), "no usable tokenizer"),
    "token ids beyond the vocabulary": (broken.more_tokens(special=False), "'<more99>' with id 357, beyond"),
    "no token to pad with": (
        broken.values("tokenizer_config.json", pad_token=None, eos_token=None, unk_token=None),
        "no padding, end or unknown token",
    ),
}


@pytest.mark.parametrize("case", ONLY_DENSE)
def test_a_tokenizer_that_does_not_belong_to_its_model_is_told(world, tmp_path, answer, case):
    spoil, says = ONLY_DENSE[case]
    folder = shutil.copytree(world / "dense", tmp_path / "model")
    spoil(folder)
    said = answer("restore", base_model_name=folder)
    assert said.startswith("-base_model_name: ") and says in said


PRUNING = {
    "truncated": (broken.raw(lambda data: data[:1000]), "cannot read"),
    "a weight missing": (broken.tensors(lambda t: t.pop(NORM)), "lacks model.norm.weight"),
    "another shape": (broken.tensors(lambda t: t.update({NORM: torch.ones(25)})), "has the shape (25,)"),
    "infinity": (broken.tensors(lambda t: t[NORM].fill_(float("inf"))), "NaN or infinity"),
    "gptq": (broken.config(quantization_config={"quant_method": "gptq"}), "quantized by gptq"),
    "no heads": (broken.config(num_attention_heads=0), "num_attention_heads is 0"),
    "tokenizer.json {}": (broken.file("tokenizer.json", "{}"), "no usable tokenizer"),
    "token ids beyond the vocabulary": (broken.more_tokens(special=False), "beyond the model's vocab_size 300"),
}


@pytest.mark.parametrize("case", PRUNING)
def test_nothing_broken_is_pruned(world, tmp_path, answer, case):
    spoil, says = PRUNING[case]
    folder = shutil.copytree(world / "dense", tmp_path / "model")
    spoil(folder)
    said = answer("prune", base_model_name=folder)
    assert said.startswith("-base_model_name: ") and says in said


GGUFS = {
    "empty": (b"", "no whole GGUF file"),
    "text": (b"no such file" * 9, "no whole GGUF file"),
    "tensors without number": (broken.gguf(2**60, 1), "no whole GGUF file"),
    "metadata without number": (broken.gguf(1, 2**60), "no whole GGUF file"),
    "another edition": (broken.gguf(1, 1, edition=9), "no whole GGUF file"),
    "metadata of nothing": (broken.gguf(1, 1), "cannot unpack"),
    "a name of 2^60 letters": (broken.gguf(1, 1, rest=(2**60).to_bytes(8, "little") * 20), "cannot unpack"),
    "cut": (broken.gguf(3, 2, rest=bytes(range(256))), "cannot unpack"),
}


@pytest.mark.parametrize("flag", ["base_model_name", "pruned_model_path"])
@pytest.mark.parametrize("case", GGUFS)
def test_a_broken_gguf_is_told(tmp_path, answer, flag, case):
    content, says = GGUFS[case]
    (tmp_path / "model.gguf").write_bytes(content)
    said = answer("restore", **{flag: tmp_path / "model.gguf"})
    assert said.startswith(f"-{flag}: ") and says in said


LONG = json.dumps({"instruction": "so " * 400, "output": "yes"}) + "\n"

SAMPLES: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("jsonl", "", "has 0 samples"),
    "nested": ("jsonl", DEEP, ":1: not valid JSON (nested too deeply)"),
    "nested in a row": ("jsonl", f'{line(0)}\n{{"instruction": {DEEP}}}\n', ":2: not valid JSON (nested"),
    "digits": ("jsonl", f'{{"instruction": {DIGITS}, "output": "b"}}', ":1: not valid JSON (a number of thousands"),
    "half a surrogate": ("jsonl", '{"instruction": "\\ud800", "output": "b"}', ":1: not valid JSON (half of"),
    "half a surrogate unread": ("jsonl", '{"instruction": "a", "output": "b", "x": "\\udfff"}', "half of"),
    "Latin-1": ("jsonl", b'{"instruction": "caf\xe9", "output": "b"}', "check that it is UTF-8"),
    "UTF-16": ("jsonl", line(0).encode("utf-16"), "check that it is UTF-8"),
    "cut": ("jsonl", line(0) + "\n" + line(1)[:20], ":2: not valid JSON"),
    "no object": ("jsonl", "3\n", ":1: not an object"),
    "null": ("jsonl", "null\n", ":1: not an object"),
    "other fields": ("jsonl", '{"question": "a"}\n', "field 'instruction' is missing (it has: question)"),
    "a field of a thousand letters": ("jsonl", f'{{"{"a" * 1000}": 1}}\n', "field 'instruction' is missing"),
    "a field with line breaks": ("jsonl", '{"a\\nb\\nc": 1}\n', "(it has: a b c)"),
    "all too long": ("jsonl", LONG * 12, "-max_length: 8 training samples with a prompt of"),
    "list nested": ("json", DEEP, ": not valid JSON (nested too deeply)"),
    "list with digits": ("json", f"[{DIGITS}]", ": not valid JSON (a number of thousands of digits)"),
    "list cut": ("json", f"[{line(0)},\n{line(1)}", ":2: not valid JSON"),
    "text for a list": ("json", '"text"', "holds no list of samples"),
    "rows for a list": ("json", f"{line(0)}\n{line(1)}", "one object a line belongs in a .jsonl file"),
    ".pt of anything": ("pt", b"anything", "as a PyTorch file of plain lists"),
    ".pt empty": ("pt", b"", "as a PyTorch file of plain lists"),
}


@pytest.mark.parametrize("flag", ["data_path", "valid_data_path"])
@pytest.mark.parametrize("case", SAMPLES)
def test_broken_samples_are_told(tmp_path, answer, flag, case):
    kind, content, says = SAMPLES[case]
    path = tmp_path / f"samples.{kind}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = answer("restore", **{flag: path})
    if case == "all too long":
        assert said.startswith(says.replace("8 training", "8 training" if flag == "data_path" else "2 validation"))
    else:
        assert said.startswith(f"-{flag}: ") and str(path) in said and says in said


PICKLED = {
    "evil": ([Evil()], "as a PyTorch file of plain lists"),
    "a tensor": (torch.ones(3), "holds no list of samples"),
    "tensors": ([torch.ones(3)], ":1: not an object"),
    "numbers": ([{"text": 1, "label": 2}], ":1: field 'text' is no text"),
    "half a surrogate": ([{"text": "a \ud800", "label": "b"}], ":1: field 'text' holds half of a surrogate pair"),
}


@pytest.mark.parametrize("case", PICKLED)
def test_a_broken_pt_is_told(tmp_path, answer, case):
    content, says = PICKLED[case]
    torch.save(content, tmp_path / "samples.pt")
    assert says in answer("restore", data_path=tmp_path / "samples.pt")


CALIBRATION = {
    "nested": ("jsonl", DEEP, ":1: not valid JSON (nested too deeply)"),
    "digits": ("jsonl", f'"text"\n{DIGITS}', ":2: not valid JSON (a number of thousands of digits)"),
    "half a surrogate": ("jsonl", '{"text": "\\udc00"}', ":1: not valid JSON (half of"),
    "list nested": ("json", DEEP, "nested too deeply"),
    "no list": ("json", '{"text": "a"}', "holds no list"),
    "no text": ("jsonl", '{"texts": "a"}', "document 1"),
    "null": ("jsonl", "null", "document 1"),
    "Latin-1": ("txt", b"caf\xe9", "give UTF-8 text"),
    "empty": ("txt", "", "holds 0 tokens"),
    "too short": ("txt", "short", "holds 5 tokens"),
    "another kind": ("csv", "a,b", "is no calibration set"),
}


@pytest.mark.parametrize("case", CALIBRATION)
def test_a_broken_calibration_text_is_told(tmp_path, answer, case):
    kind, content, says = CALIBRATION[case]
    path = tmp_path / f"text.{kind}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = answer("prune", calib_data=path)
    assert said.startswith("-calib_data: ") and says in said


RTE = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}
ARC = {"question": "What?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
HELLASWAG = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "ctx": "b c", "endings": ["d", "e"], "label": "0"}
WINOGRANDE = {"sentence": "The _ is.", "option1": "cat", "option2": "dog", "answer": "1"}

TASKS: dict[str, tuple[str, object, str]] = {
    "a float label": ("rte/validation", RTE | {"label": 1.0}, "row 1: field 'label' is 1.0, not one of [0, 1]"),
    "a label true": ("rte/validation", RTE | {"label": True}, "row 1: field 'label' is True"),
    "a label as text": ("rte/validation", RTE | {"label": "0"}, "row 1: field 'label' is '0'"),
    "no label": ("rte/validation", {"sentence1": "a", "sentence2": "b"}, "row 1: field 'label' is missing"),
    "text null": ("rte/validation", RTE | {"sentence1": None}, "row 1: field 'sentence1' is not text"),
    "one choice": (
        "arc_easy/test",
        ARC | {"choices": {"text": ["a"], "label": ["A"]}},
        "row 1: field 'choices' has no lists of texts, two or more",
    ),
    "choices of numbers": ("arc_easy/test", ARC | {"choices": {"text": [1, 2], "label": ["A", "B"]}}, "no lists of"),
    "choices as a text": ("arc_easy/test", ARC | {"choices": {"text": "ab", "label": "AB"}}, "no lists of texts"),
    "fewer labels": ("arc_easy/test", ARC | {"choices": {"text": ["a", "b", "c"], "label": ["A", "B"]}}, "different"),
    "another answer": ("arc_easy/test", ARC | {"answerKey": "C"}, "field 'answerKey' is 'C'"),
    "one ending": ("hellaswag/validation", HELLASWAG | {"endings": ["d"]}, "not a list of texts, two or more"),
    "a float label of endings": ("hellaswag/validation", HELLASWAG | {"label": 1.0}, "field 'label' is 1.0"),
    "a label beyond": ("hellaswag/validation", HELLASWAG | {"label": "2"}, "field 'label' is '2'"),
    "no gap": ("winogrande/validation", WINOGRANDE | {"sentence": "None."}, "has no '_'"),
    "an answer as a number": ("winogrande/validation", WINOGRANDE | {"answer": 1}, "field 'answer' is 1"),
    "no object": ("rte/validation", [1], "row 1: no JSON object"),
    "nested": ("rte/validation", DEEP, "row 1: no whole JSON object (nested too deeply)"),
    "digits": ("rte/validation", DIGITS, "row 1: no whole JSON object (a number of thousands of digits)"),
    "half a surrogate": ("rte/validation", '{"sentence1": "\\ud800"}', "row 1: no whole JSON object (half of"),
    "Latin-1": ("rte/validation", b"\xe9", "cannot read"),
    "no rows": ("rte/validation", "\n", "has no rows"),
    "no such split": ("rte/train", RTE, "has no validation split of rte"),
}


@pytest.mark.parametrize("case", TASKS)
def test_broken_task_rows_are_told(tmp_path, answer, case):
    place, content, says = TASKS[case]
    path = tmp_path / "tasks" / f"{place}.jsonl"
    path.parent.mkdir(parents=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = answer("restore", eval_tasks=place.partition("/")[0], eval_data_dir=tmp_path / "tasks")
    assert said.startswith("-eval_data_dir: ") and says in said


@pytest.mark.parametrize("content", ["[]", "null", '{"sha256": 3}', "{", DEEP], ids=lambda text: text[:14])
def test_a_broken_record_of_a_mirror_is_told(tmp_path, answer, content):
    (tmp_path / "tasks" / "rte").mkdir(parents=True)
    (tmp_path / "tasks" / "rte" / "validation.jsonl").write_text(json.dumps(RTE))
    (tmp_path / "tasks" / "mirror.json").write_text(content)
    said = answer("restore", eval_tasks="rte", eval_data_dir=tmp_path / "tasks")
    assert said.startswith("-eval_data_dir: cannot read") and "copy the mirror again" in said


def test_a_broken_row_to_train_on_is_told(tmp_path, answer):
    (tmp_path / "tasks" / "rte").mkdir(parents=True)
    (tmp_path / "tasks" / "rte" / "train.jsonl").write_text(json.dumps(RTE | {"label": 1.0}))
    said = answer("restore", data_path=None, spec_task="rte", eval_data_dir=tmp_path / "tasks")
    assert said.startswith("-eval_data_dir: ") and "field 'label' is 1.0" in said


ENCODER = {
    "no config.json": (broken.without("config.json"), "holds no config.json"),
    "no weights": (broken.without(broken.WEIGHTS), "holds no weights"),
    "truncated": (broken.raw(lambda data: data[:1000]), "cannot read"),
}


@pytest.mark.parametrize("case", ENCODER)
def test_a_broken_encoder_is_told(world, tmp_path, answer, case):
    spoil, says = ENCODER[case]
    folder = shutil.copytree(world / "encoder", tmp_path / "encoder")
    spoil(folder)
    said = answer("restore", sentence_encoder=folder)
    assert said.startswith("-sentence_encoder: ") and says in said


JSON, TENSORS = "restoration.json", "restoration.safetensors"


def heads(*pairs: tuple[int, int]) -> Spoil:
    """Other heads, in the tensors and in the json."""

    def spoil(folder: Path) -> None:
        loaded = load_file(folder / TENSORS)
        save_file({**loaded, "heads": torch.tensor(pairs)}, folder / TENSORS)
        broken.values(JSON, heads=[list(pair) for pair in pairs])(folder)

    return spoil


def state(**changes: torch.Tensor | None) -> Spoil:
    """Other tensors; None takes one out."""

    def spoil(folder: Path) -> None:
        loaded = {**load_file(folder / TENSORS), **changes}
        save_file({name: tensor for name, tensor in loaded.items() if tensor is not None}, folder / TENSORS)

    return spoil


RESTORATIONS: dict[str, tuple[Spoil, str]] = {
    "no json": (broken.without(JSON), "is no restoration folder"),
    "json null": (broken.file(JSON, "null"), "names no format"),
    "json as a list": (broken.file(JSON, "[]"), "names no format"),
    "json nested": (broken.file(JSON, DEEP), "nested too deeply"),
    "json with digits": (broken.file(JSON, f'{{"format": {DIGITS}}}'), "thousands of digits"),
    "json with half a surrogate": (broken.values(JSON, method="\ud800"), "surrogate"),
    "no format": (broken.file(JSON, "{}"), "names no format"),
    "another format": (broken.values(JSON, format=[2]), "has format [2]"),
    "no tensors": (broken.without(TENSORS), "is no restoration folder"),
    "tensors empty": (broken.file(TENSORS, b""), "is no restoration folder"),
    "tensors cut": (
        lambda folder: (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9]),
        "is no restoration folder",
    ),
    "unknown method": (broken.values(JSON, method="magic"), "unknown method magic"),
    "method a list": (broken.values(JSON, method=[]), "is damaged"),
    "options a list": (broken.values(JSON, options=[1]), "is damaged"),
    "unknown option": (broken.values(JSON, options={"apply": 1}), "is damaged"),
    "option of another type": (broken.values(JSON, options={"train_norms": "no"}), "option train_norms is 'no'"),
    "option that no flag takes": (broken.values(JSON, options={"apply_to": "nowhere"}), "is damaged"),
    "json of other heads": (broken.values(JSON, heads=[[0, 0]]), "its heads are not those of"),
    "json without heads": (broken.values(JSON, heads=None), "its heads are not those of"),
    "a head beyond": (heads((0, 1), (2, 0), (2, 6)), "not ascending pairs"),
    "a layer beyond": (heads((0, 1), (2, 0), (3, 5)), "not ascending pairs"),
    "a head below": (heads((0, -1), (2, 0), (2, 5)), "not ascending pairs"),
    "a head twice": (heads((0, 1), (2, 0), (2, 0)), "not ascending pairs"),
    "heads out of order": (heads((2, 0), (0, 1), (2, 5)), "not ascending pairs"),
    "fewer heads": (heads((0, 1), (2, 0)), "has the shape"),
    "NaN": (state(component=torch.full((3, 8), float("nan"))), "component holds something else than finite"),
    "half precision": (state(component=torch.ones(3, 8).half()), "component holds something else than finite"),
    "another shape": (state(magnitudes=torch.ones(3, 9)), "magnitudes has the shape (3, 9), not (3, 8)"),
    "a tensor missing": (state(basis=None), "it holds"),
    "a tensor too much": (state(more=torch.ones(1)), "it holds"),
}


@pytest.mark.parametrize("case", RESTORATIONS)
def test_a_broken_restoration_is_told(world, tmp_path, answer, case):
    spoil, says = RESTORATIONS[case]
    folder = shutil.copytree(world / "restoration", tmp_path / "restoration")
    spoil(folder)
    said = answer("merge", restoration=folder)
    assert said.startswith("-restoration: ") and says in said


def test_a_checkpoint_that_a_restoration_does_not_know_is_told(world, tmp_path, answer):
    folder = shutil.copytree(world / "pruned", tmp_path / "pruned")
    broken.raw(lambda data: data[:-1] + bytes([data[-1] ^ 1]))(folder)
    assert answer("merge", pruned_model_path=folder).startswith("-pruned_model_path: ")


NOTHING = "n" * 300
MOST = "must be at most 1000000000"

FLAGS: dict[str, tuple[str, dict[str, object], str]] = {
    **{
        f"10^30 for {name}": ("restore", {name: 10**30}, f"-{name}/--{name}: {MOST}")
        for name in (
            "num_train_samples", "num_valid_samples", "max_length", "num_components", "num_probe_samples",
            "lora_rank", "batch_size", "gradient_accumulation", "eval_limit", "eval_batch_size", "ppl_window",
            "calib_samples", "calib_length", "num_epoch",
        )
    },
    **{
        f"a name of 300 letters for {name}": ("restore", {name: NOTHING}, f"-{name}/--{name}: is longer than")
        for name in (
            "base_model_name", "pruned_model_path", "data_path", "valid_data_path", "calib_data", "eval_data_dir",
            "sentence_encoder", "output_dir", "cache_dir", "config",
        )
    },
    "10^30 heads": ("restore", {"use_topk_heads": 10**30}, "-use_topk_heads/--use_topk_heads: must be a count"),
    "10^30 windows to prune with": ("prune", {"calib_samples": 10**30}, f"-calib_samples/--calib_samples: {MOST}"),
    "digits": ("restore", {"batch_size": DIGITS}, "-batch_size/--batch_size: must be a whole number, 1 or above"),
    "a path of 5,000 letters": ("restore", {"data_path": "a/" * 2500}, "-data_path/--data_path: is longer than"),
    "a seed too large": ("restore", {"seed": 2**32}, "-seed/--seed: must be a whole number, 0 to 4294967295"),
    "a training seed too large": ("restore", {"train_seed": 2**32}, "-train_seed/--train_seed: must be a whole"),
    "a seed too large to prune": ("prune", {"seed": 2**32}, "-seed/--seed: must be a whole number, 0 to 4294967295"),
    "a seed of digits": ("restore", {"seed": DIGITS}, "-seed/--seed: must be a whole number"),
    "a rate that is none": ("restore", {"lr": "nan"}, "-lr/--lr: must be a number above 0"),
    "a rate without end": ("restore", {"lr": "1e400"}, "-lr/--lr: must be a number above 0"),
    "a text for a number": ("restore", {"lr": "fast"}, "-lr/--lr: invalid"),
    "a name that is no text": ("restore", {"data_path": "\udcff"}, "-data_path/--data_path: is no UTF-8 text"),
    "tasks that are no text": ("restore", {"eval_tasks": "\udcff"}, "-eval_tasks/--eval_tasks: is no UTF-8 text"),
    "an abbreviation": ("restore", {"num_ep": 3}, "unrecognized arguments: -num_ep 3; did you mean -num_epoch?"),
    "an abbreviation to prune": ("prune", {"spars": 0.5}, "unrecognized arguments: -spars 0.5"),
    "an abbreviation to merge": ("merge", {"tok": "x"}, "unrecognized arguments: -tok x"),
    "the device meta": ("restore", {"device": "meta"}, "-device: meta cannot be used"),
    "the device hpu": ("restore", {"device": "hpu"}, "-device: hpu cannot be used"),
    "the device mps": ("restore", {"device": "mps"}, "-device: mps cannot be used"),
    "the device xpu": ("restore", {"device": "xpu"}, "-device: xpu cannot be used"),
    "a device that is none": ("restore", {"device": "gpu"}, "-device: gpu cannot be used"),
    "the 99th GPU": ("restore", {"device": "cuda:99"}, "-device: cuda:99 cannot be used"),
    "meta to prune": ("prune", {"device": "meta"}, "-device: meta cannot be used"),
    "meta to merge": ("merge", {"device": "meta"}, "-device: meta cannot be used"),
    "2^10000:4": ("prune", {"sparsity": f"{DIGITS}:4"}, "-sparsity: '999"),
    "4:2": ("prune", {"sparsity": "4:2"}, "-sparsity: '4:2' needs 0 < N < M"),
    "a share that is none": ("prune", {"sparsity": "nan"}, "-sparsity: 'nan' is no share"),
    "a hub id offline": ("restore", {"base_model_name": "no/body"}, "-base_model_name: cannot get 'no/body'"),
    "a pruned hub id offline": ("restore", {"pruned_model_path": "no/body"}, "-pruned_model_path: cannot get"),
    "a hub id to prune": ("prune", {"base_model_name": "no/body"}, "-base_model_name: cannot get 'no/body'"),
    "a hub id to merge": ("merge", {"tokenizer": "no/body"}, "-tokenizer: cannot get 'no/body'"),
    "an encoder offline": ("restore", {"sentence_encoder": "no/body"}, "-sentence_encoder: cannot get 'no/body'"),
    "no restoration": ("merge", {"restoration": "./nowhere"}, "-restoration: nowhere is not a folder"),
    "no tasks": ("restore", {"eval_data_dir": "./nowhere"}, "-eval_data_dir: nowhere is not a folder"),
    "a cache that can't be made": ("restore", {"cache_dir": "/proc/none"}, "-cache_dir: /proc/none cannot be written"),
    "a cache to prune with": ("prune", {"cache_dir": "/proc/none"}, "-cache_dir: /proc/none cannot be written"),
    "a cache to merge with": ("merge", {"cache_dir": "/proc/none"}, "-cache_dir: /proc/none cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAGS)
def test_a_flag_that_cannot_be_is_told(answer, monkeypatch, case):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command, changes, says = FLAGS[case]
    said = answer(command, **changes)
    assert said.startswith(says) and len(said) < 500


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("inside", ["", "/inside"])
def test_a_cache_that_is_a_file_is_told(tmp_path, answer, command, inside):
    (tmp_path / "file").write_text("mine")
    said = answer(command, cache_dir=f"{tmp_path}/file{inside}")
    assert said.startswith(f"-cache_dir: {tmp_path}/file{inside} cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_gpu_that_is_not_there_is_told(answer):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert answer("restore", device="cuda").startswith("-device: cuda cannot be used")


MODEL_FILES = {
    "config.json with CRLF": broken.with_crlf("config.json"),
    "tokenizer_config.json with CRLF": broken.with_crlf("tokenizer_config.json"),
    "no pad_token_id, as the first Llamas say it": broken.config(pad_token_id=-1),
    "special tokens beyond the vocabulary": broken.more_tokens(special=True),
}


@pytest.mark.parametrize("case", MODEL_FILES)
def test_what_is_unusual_in_a_model_is_no_mistake(world, tmp_path, answer, case):
    folder = shutil.copytree(world / "dense", tmp_path / "model")
    MODEL_FILES[case](folder)
    other = shutil.copytree(world / "pruned", tmp_path / "pruned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, other)
    with pytest.raises(Taken):
        answer("restore", base_model_name=folder, pruned_model_path=other)


@pytest.mark.parametrize("spoil", [broken.with_mark, broken.with_crlf])
def test_a_byte_order_mark_and_lines_of_windows_are_no_mistakes(world, tmp_path, answer, spoil):
    shutil.copy(world / "samples.jsonl", tmp_path)
    spoil("samples.jsonl")(tmp_path)
    (tmp_path / "list.json").write_text("[\n" + ",\n".join(line(n) for n in range(4)) + "]")
    spoil("list.json")(tmp_path)
    (tmp_path / "tasks" / "rte").mkdir(parents=True)
    (tmp_path / "tasks" / "rte" / "validation.jsonl").write_text(f"{json.dumps(RTE)}\n" * 3)
    spoil("tasks/rte/validation.jsonl")(tmp_path)
    given = {"data_path": "samples.jsonl", "valid_data_path": "list.json"}
    (tmp_path / "flags.json").write_text('{\n"lr": 0.5}')
    spoil("flags.json")(tmp_path)
    given |= {"eval_tasks": "rte", "eval_data_dir": "tasks", "config": "flags.json"}
    with pytest.raises(Taken):
        answer("restore", **given)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "Some words to be fed. " * 9}) + "\n")
    spoil("text.jsonl")(tmp_path)
    with pytest.raises(Taken):
        answer("prune", calib_data="text.jsonl")
    restoration = shutil.copytree(world / "restoration", tmp_path / "restoration")
    spoil(JSON)(restoration)
    with pytest.raises(Taken):
        answer("merge", restoration=restoration)


# What only a process of its own can show


def python(*words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run a command of Python in the project's folder, with what follows it in a shell's line."""
    line = f'"$0" "$@" {shell}' if shell else 'exec "$0" "$@"'
    command = ["bash", "-o", "pipefail", "-c", line, sys.executable, *words]
    return subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, **environment})


BLIND = "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'huggingface_hub.hf_api']); "
BLIND += "sys.argv = sys.argv[1:]; "
BLIND += "runpy.run_path(sys.argv[0], run_name='__main__') if sys.argv[0].endswith('.py') else "
BLIND += "runpy.run_module(sys.argv[0], run_name='__main__')"

WRONG_PATHS = {
    "-base_model_name": ["RestoreLCC_train.py", "-base_model_name", "./nowhere"],
    "-base_model_name of the hub": ["RestoreLCC_train.py", "-base_model_name", "no/body"],
    "-pruned_model_path": ["RestoreLCC_train.py", "-pruned_model_path", "./nowhere"],
    "-data_path": ["RestoreLCC_train.py", "-data_path", "./nowhere.jsonl"],
    "-valid_data_path": ["RestoreLCC_train.py", "-valid_data_path", "./nowhere.jsonl"],
    "-calib_data": ["RestoreLCC_train.py", "-calib_data", "./nowhere.jsonl"],
    "-eval_data_dir": ["RestoreLCC_train.py", "-eval_data_dir", "./nowhere"],
    "-config": ["RestoreLCC_train.py", "-config", "./nowhere"],
    "-push_to_hub": ["RestoreLCC_train.py", "-push_to_hub", "no/body"],
    "-base_model_name of a plan": ["RestoreLCC_train.py", "-plan", "here", "-base_model_name", "./nowhere"],
    "-base_model_name to prune": ["pruning", "-base_model_name", "./nowhere", "-output_dir", "O"],
    "-calib_data to prune": ["pruning", "-base_model_name", "embedded", "-calib_data", "n.txt", "-output_dir", "O"],
    "-pruned_model_path to merge": ["models.merge", "-pruned_model_path", "./n", "-restoration=.", "-output_dir", "O"],
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_PATHS)
def test_a_wrong_path_or_no_hub_is_told_before_what_takes_long_is_imported(tmp_path, case):
    words = [str(tmp_path / "out") if word == "O" else word for word in WRONG_PATHS[case]]
    if words[0].endswith(".py"):
        words += ["-output_dir", str(tmp_path / "out"), "-cache_dir", str(tmp_path / "cache")]
    done = python("-c", BLIND, *words, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"error: {case.split()[0]}: ")


def test_a_home_that_cannot_be_written_is_told(tmp_path):
    done = python("RestoreLCC_train.py", "-output_dir", str(tmp_path / "out"), HOME="/proc/none")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: -cache_dir: /proc/none/.cache/restorelcc cannot be written")


PRINTING = "from utils.common.commands import run; run(lambda: [print('a line') for _ in range(100_000)])"


@pytest.mark.parametrize("words", [["-c", PRINTING], ["RestoreLCC_train.py", "--help"]], ids=["lines", "help"])
def test_a_reader_who_goes_leaves_no_traceback(words):
    done = python(*words, shell="| head -1")
    assert len(done.stdout.splitlines()) == 1 and done.stderr == b""
    assert done.returncode in ((141,) if PRINTING in words else (0, 141))  # help may all fit into the pipe


@pytest.mark.parametrize("words", [["--help"], ["-base_model_name", "./naïve"]])
def test_a_terminal_of_ascii_gets_ascii(tmp_path, words):
    words = [*words, "-output_dir", str(tmp_path / "out")]  # not the folder that train.sh may have filled
    done = python("RestoreLCC_train.py", *words, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == (0 if "--help" in words else 2)
    assert b"Traceback" not in done.stderr and (done.stdout + done.stderr).isascii()
    assert b"na?ve does not exist" in done.stderr or b"lost component" in done.stdout.lower()
