"""Each broken input is answered by one line that names the flag and what is wrong: no traceback, nothing believed.

Tables over the functions that check: no run, no process, no model loaded.
"""

import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from data.sources import load_samples
from models.loading import check_model, load_model, resolve, usable_device
from pruning import calibration
from tests.builders import byte_tokenizer, mistake, rewrite, write_files
from tests.runs import flags, in_words, prepared, program, write_samples
from utils.common.flags import INPUTS, Arguments, parse_arguments
from utils.evaluation.task_loading import load_texts, plan_tasks

NORM, HEAD = "model.norm.weight", "lm_head.weight"
UP, BIAS = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"
Spoil = Callable[[Path], object]

DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 10_000
WEIGHTS = "model.safetensors"


def spoiling(change: Callable) -> Callable[..., Spoil]:
    """change(folder, …) as a function of what follows the folder."""
    return lambda *how, **named: lambda folder: change(folder, *how, **named)


tensors = spoiling(rewrite)


@spoiling
def changed(folder: Path, change: Callable[[bytes], bytes], name: str = WEIGHTS) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))


@spoiling
def index_of(folder: Path, text: str) -> None:
    (folder / WEIGHTS).rename(folder / f"{WEIGHTS}.index.json").write_text(text)


@spoiling
def pickled(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """What this makes of the tensors, as a .bin in place of the weights."""
    torch.save(change(load_file(folder / WEIGHTS)), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@spoiling
def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


@spoiling
def tied(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    config(tie_word_embeddings=True)(rewrite(folder, change))


@spoiling
def more_tokens(folder: Path, special: bool) -> None:
    """A tokenizer of a hundred tokens more than its model has embeddings for."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<more{number}>" for number in range(100)], special_tokens=special)
    tokenizer.save_pretrained(folder)


@spoiling
def twice(folder: Path) -> None:
    """The weights in two shards, of which both hold the last norm, with other values."""
    loaded = load_file(folder / WEIGHTS)
    save_file(loaded, folder / "a.safetensors", {"format": "pt"})
    save_file({NORM: loaded[NORM] + 1}, folder / "b.safetensors", {"format": "pt"})
    files = dict.fromkeys(loaded, "a.safetensors") | {NORM: "b.safetensors"}
    index_of(json.dumps({"metadata": {}, "weight_map": files}))(folder)


def config(name: str = "config.json", **changes: object) -> Spoil:
    return changed(lambda data: json.dumps({**json.loads(data), **changes}).encode(), name)


with_mark = partial(changed, lambda data: b"\xef\xbb\xbf" + data)  # UTF-8's byte order mark, and a file's name to come
with_crlf = partial(changed, lambda data: data.replace(b"\n", b"\r\n"))


class Evil:
    """Makes the file `ran` in the working folder when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


NO_WORDS = {"type": "BPE", "vocab": {"<s>": 256, "</s>": 257}, "merges": [], "unk_token": "<s>"}
ENDING = json.loads(TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)]).__getstate__())
FILES: dict[str, tuple[Spoil, str]] = {
    "a pointer of git-lfs": (changed(lambda _: b"version https://git-lfs.github.com/spec/v1\nsize 9\n"), "cannot read"),
    "no weights": (without(WEIGHTS), "holds no weights"),
    "NaN": (tensors(lambda t: t[NORM].fill_(float("nan"))), "model.norm.weight in"),
    "no projection": (tensors(lambda t: t.pop(UP)), f"lacks {UP}, which … initialize it randomly"),
    "no head": (tensors(lambda t: t.pop(HEAD)), f"lacks {HEAD}, which … initialize it randomly"),
    "another prefix": (tensors(lambda t: {f"base_model.{name}": each for name, each in t.items()}), "and 27 more"),
    "a bias of no Llama": (tensors(lambda t: t | {BIAS: torch.ones(56)}), f"holds {BIAS} that"),
    "another shape": (tensors(lambda t: t | {UP: t[UP][:-1].clone()}), f"{UP} … (55, 24), … says (56, 24)"),
    "a tied head of its own": (tied(lambda t: t[HEAD].add_(1)), f"{HEAD} of its own … tie_word_embeddings to false"),
    "index outside": (index_of('{"metadata": {}, "weight_map": {"a": "../b"}}'), "not in the folder itself"),
    "index of what is not there": (index_of('{"metadata": {}, "weight_map": {"a": "b"}}'), "lacks b, which"),
    ".bin evil": (pickled(lambda t: {NORM: Evil()}), "cannot read … of plain tensors; give a safe"),
    ".bin of a sparse tensor": (pickled(lambda t: t | {NORM: t[NORM].to_sparse()}), "does not hold plain tensors"),
    "config.json nested": (changed(lambda _: DEEP.encode(), "config.json"), "nested too deeply"),
    "generation settings": (changed(lambda _: b'{"max_new_tokens": -5}', "generation_config.json"), "max_new_tokens"),
    "generation's list": (changed(lambda _: b"[]", "generation_config.json"), "it is not a JSON object"),
    "weights in 8 bits": (tensors(lambda t: t | {UP: t[UP].to(torch.int8)}), f"{UP} in … is I8; RestoreLCC reads"),
    "a model of no kind": (config(model_type=None), "names no model_type"),
    "a window": (config(model_type="mistral", sliding_window=128), "sliding_window is 128"),
    "some layers' window": (config(model_type="qwen2", use_sliding_window=True, sliding_window=16), "sliding_window"),
    "a setting of no Llama": (config(model_type="qwen2", some_new_thing=3), "some_new_thing"),
    "heads that don't share": (config(num_key_value_heads=4), "cannot share 4"),
    "head_dim odd": (config(head_dim=7), "config.json ("),
    "unknown old rope type": (config(rope_scaling={"type": "rope"}), "has the type 'rope'"),
    "rope of factor 0": (config(rope_scaling={"rope_type": "linear", "factor": 0}), "factor is 0"),
    "tied perhaps": (config(tie_word_embeddings="yes"), "tie_word_embeddings"),
    "quantized": (config(quantization_config={"quant_method": "bitsandbytes"}), "save what model.dequantize()"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "no usable tokenizer"),
    "a tokenizer of no words": (config("tokenizer.json", model=NO_WORDS), "makes no two different tokens of a text"),
    "a tokenizer that ends texts": (config("tokenizer.json", post_processor=ENDING), "ends every text with </s>"),
    "token ids beyond the vocabulary": (more_tokens(special=False), "'<more99>' with id 357, beyond"),
    "tokenizer of an unknown kind": (config("tokenizer.json", model={"type": "Mine"}), "no usable tokenizer"),
}
VALUES = [
    ("num_attention_heads", "six", "num_attention_heads"), ("num_hidden_layers", 10**30, "num_hidden_layers is 1000"),
    ("hidden_size", 0, "hidden_size is 0"), ("hidden_act", "silo", "silo"), ("dtype", "float99", "float99"),
    ("rms_norm_eps", float("nan"), "rms_norm_eps is nan"), ("rms_norm_eps", -1e-5, "rms_norm_eps is -1e-05"),
    ("output_attentions", True, "output_attentions is on"), ("return_dict", False, "return_dict off"),
    ("attention_dropout", 2, "attention_dropout is 2"), ("pad_token_id", 300, "cannot build a model"),
    ("max_position_embeddings", 0, "max_position_embeddings is 0"),
    ("rope_parameters", {"rope_type": "yarn", "factor": 2, "rope_theta": 5, "attention_factor": "x"}, "factor is 'x'"),
    ("kept_kv_heads", [[0], [1, 0]], "kept_kv_heads has [1, 0]"), ("kept_kv_heads", [[2]], "numbers below 2"),
]  # fmt: skip
FILES |= {f"{name} {value}": (config(**{name: value}), says) for name, value, says in VALUES}
OTHERS = ("gpt2", "phi3", "mixtral", "qwen3_moe", "gemma3", "jamba")
FILES |= {it: (config(model_type=it), f"'{it}' model; RestoreLCC restores Llama, Qwen2, … Gemma 3") for it in OTHERS}
INDEXES = ("{", "[]", "{}", '{"metadata": {}, "weight_map": {"a": 1}}', '{"weight_map": {}}')
FILES |= {f"index {text}": (index_of(text), "is not an index of weights") for text in INDEXES}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_model_is_told_of_the_flag_that_named_it(make_tiny_llama, tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil, says = FILES[case]
    folder = make_tiny_llama()
    spoil(folder)
    told = mistake("^-base_model_name: ", check_model, folder, "-base_model_name")
    assert all(part in told for part in says.split(" … ")) and not (tmp_path / "ran").exists()


UNUSUAL = {
    "tokenizer_config.json with CRLF": with_crlf("tokenizer_config.json"),
    "special tokens beyond the vocabulary": more_tokens(special=True),
    "a tensor in two shards": twice(),
    "a tied head that is there": tied(lambda t: t | {HEAD: t["model.embed_tokens.weight"].clone()}),
    "a tied head that is not": tied(lambda t: t.pop(HEAD)),
    "attention by code of the hub": config(attn_implementation="a/kernels", _attn_implementation="a/kernels"),
    "a window of all": config(model_type="mistral", sliding_window=256),
    "buffers of old": tensors(lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
}


@pytest.mark.parametrize("spoil", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_in_a_model_is_no_mistake(make_tiny_llama, spoil):
    folder = make_tiny_llama()
    spoil(folder)
    (stored, settings, _), model = check_model(folder, "-b"), load_model(folder, torch.float32, "cpu", "-p")
    assert torch.equal(model.model.norm.weight, stored.read(NORM))
    assert settings._attn_implementation == model.config._attn_implementation == "sdpa"


ONE, OTHER = (json.dumps({"instruction": f"Count to {number}.", "output": f"{number} is it."}) for number in (0, 1))
RTE = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}
ONE_CHOICE = {"question": "What?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
HELLASWAG = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "ctx": "b c", "endings": ["d", "e"], "label": "0"}
BROKEN: list[tuple[str, object, str]] = [
    ("model.gguf", b"no such file" * 9, "cannot read"),
    ("model.gguf", struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 1) + bytes(200), "cannot read"),
    ("model.gguf", struct.pack("<4sIQQ", b"GGUF", 3, 3, 2) + bytes(range(256)), "cannot read"),
    ("samples.jsonl", f'{{"instruction": {DIGITS}, "output": "b"}}', ":1: not valid JSON (Exceeds the limit"),
    ("samples.jsonl", '{"instruction": "\\ud800", "output": "b"}', ":1: not valid JSON (half of"),
    ("samples.jsonl", b'{"instruction": "caf\xe9", "output": "b"}', "check that it is UTF-8"),
    ("samples.jsonl", f"{ONE}\n{OTHER[:20]}", ":2: not valid JSON"),
    ("samples.jsonl", "3\n", ":1: not an object"),
    ("samples.jsonl", '{"a\\nb\\nc": 1}\n', "field 'instruction' is missing (it has: a b c)"),
    ("samples.jsonl", f'{ONE}\n\n{{"instruction": "a", "output": 7}}', ":3: field 'output' is not a string"),
    ("samples.jsonl", {"instruction": "a", "output": "b", "input": []}, ":1: field 'input' is not a string"),
    ("samples.jsonl", {"instruction": "  ", "output": "b"}, ":1: field 'instruction' is empty"),
    ("samples.json", '"text"', "holds no list of samples"),
    ("samples.json", f"{ONE}\n{OTHER}", ":2: not valid JSON (Extra data); one object a line belongs in a .jsonl"),
    ("text.jsonl", DEEP, ":1: not valid JSON (nested too deeply)"),
    ("text.jsonl", '{"texts": "a"}', "document 1"),
    ("rte/validation.jsonl", RTE | {"label": 1.0}, "two texts or more, of which 1.0 is right)"),
    ("arc_easy/test.jsonl", ONE_CHOICE, "row 1: lm_eval cannot read it (ValueError: ['a'] are not two texts"),
    ("hellaswag/validation.jsonl", HELLASWAG | {"label": "2"}, "lm_eval cannot read it (IndexError"),
    ("rte/validation.jsonl", b"\xe9", "cannot read"),
    ("rte/validation.jsonl", "\n", "has no rows"),
    ("rte/test.jsonl", RTE, "has no validation split of rte"),
    ("rte/train.jsonl", RTE | {"label": 1.0}, "row 1: lm_eval cannot read it"),
]
TRAIN = ["-spec_task", "rte", "-eval_data_dir"]
READERS = {
    "train": ("-eval_data_dir", lambda path: load_texts(parse_arguments([*TRAIN, str(path.parents[1])]))),
    "model": ("-pruned_model_path", lambda path: resolve(str(path), "-pruned_model_path", path.parent / "cache")),
    "samples": ("-data_path", lambda path: load_samples(str(path), 8, 2)),
    "text": ("-calib_data", lambda path: calibration.load(str(path), 2, 16, byte_tokenizer(), 1)),
}


@pytest.mark.parametrize(("name", "content", "says"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_told_of_the_flag_that_named_it(tmp_path, name, content, says):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    raw = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    rows = "-eval_data_dir", lambda path: plan_tasks(path.parent.name, tmp_path, None, 64)
    flag, read = READERS.get(path.stem, rows)
    assert says in mistake(f"^{flag}: ", read, path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_pt_runs_no_code_and_holds_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    surrogate = [{"text": "a \ud800", "label": "b"}], ":1: field 'text' holds half of a surrogate pair"
    for content, says in (([Evil()], "as a PyTorch file of plain lists"), (torch.ones(3), "holds no list"), surrogate):
        torch.save(content, "samples.pt")
        assert says in mistake(None, load_samples, "samples.pt", 8, 2) and not Path("ran").exists()


@pytest.mark.parametrize("spoil", [with_mark, with_crlf])
def test_a_byte_order_mark_and_lines_of_windows_are_no_mistakes(tmp_path, spoil):
    write_files(tmp_path, {"rte/validation.jsonl": f"{json.dumps(RTE)}\n" * 3, "flags.json": '{\n"lr": 0.5}'})
    samples = write_samples(tmp_path / "samples.jsonl", [{"instruction": f"say {n}", "output": "it"} for n in range(3)])
    expected = load_samples(str(samples), 2, 1)
    for name in ("rte/validation.jsonl", "flags.json", samples.name):
        spoil(name)(tmp_path)
    assert load_samples(str(samples), 2, 1) == expected
    plan_tasks("rte", tmp_path, None, 64)
    assert parse_arguments(["-config", str(tmp_path / "flags.json")]).lr == 0.5


FLAGS = [
    *((each.name, 10**30, "must be a whole") for each in fields(Arguments) if each.type in (int, int | None)),
    *((name, "", "is empty; name") for name in ("config", "output_dir", *INPUTS)),
    *((name, value, "is longer than") for name, value in (("output_dir", "n" * 300), ("data_path", "a/" * 2500))),
    *(("use_topk_heads", value, "must be a count") for value in (10**30, 0, 1.5)),
    ("batch_size", DIGITS, "must be a whole number, 1 to 1000000000, not 999"),
    ("seed", 2**32, "must be a whole number, 0 to 4294967295"),
    ("train_seed", -1, "must be a whole number"),
    *(("lr", value, f"must be a number above 0, not {value}") for value in (0, "nan", "1e400", "fast")),
    ("num_epoch", -1, "must be a number, 0 to 1000000000"),
    ("loss", "hinge", "invalid choice"),
    ("lora_targets", "q,", "must be some of .*, not 'q', ''"),
    *((name, "\udcff", "is not UTF-8 text") for name in ("data_path", "eval_tasks")),
]


@pytest.mark.parametrize(("name", "value", "says"), FLAGS)
def test_a_flag_that_cannot_be_is_told(name, value, says):
    assert len(mistake(f"^-{name}: {says}", parse_arguments, [f"-{name}", str(value)])) < 500


@pytest.mark.parametrize("device", ["meta", "mps", "gpu", "cuda", "cuda:99"])
def test_a_device_that_is_not_there_is_told(device):
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("there is one")
    mistake(f"^-device: {device} cannot be used", usable_device, device)
    assert usable_device("cpu:0") == "cpu"


ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
FAR = {"base_model_name": "no/body"}  # what needs no model is told of before it is fetched
RUNS: dict[str, tuple[dict[str, object] | Spoil, str]] = {
    "a truncated copy": (changed(lambda data: data[:1000]), "-pruned_model_path: cannot read"),
    "other sizes": (config(intermediate_size=64), "-pruned_model_path: .*size is 64, but the base model's is 56"),
    "another tokenizer": (more_tokens(special=False), "-pruned_model_path: .*its tokenizer differs from the base"),
    "no zeros": (tensors(lambda t: [each.fill_(1) for each in t.values()]), "-pruned_model_path: .* has no zeros"),
    "a weight missing": (tensors(lambda t: t.pop(NORM)), f"-pruned_model_path: .* {NORM}"),
    "a damaged record": (lambda f: (f / "pruning.json").write_text("[]"), "-pruned_model_path: .*is not a JSON object"),
    "too many heads": ({"use_topk_heads": 19}, "-use_topk_heads: asks for 19 heads, but the model has 18"),
    "targets of a method without": ({"lora_targets": "q_proj"}, "-lora_targets: restorelcc doesn't take it"),
    "a teacher of nothing": ({"loss": "distill", "method": "none", **FAR}, "-loss: distill is a loss of training"),
    "too few samples": ({"num_train_samples": 100}, "-data_path: "),
    "prompts too long": ({"max_length": 60}, "-max_length: 1"),
    "c4": ({"loss": "distill", "calib_data": "c4", "calib_length": 32}, "-calib_data: .* 'allenai/c4' from the hub"),
    "no model": ({"base_model_name": "no/body"}, "-base_model_name: cannot get 'no/body' from the model hub"),
    "a long sample": (config(max_position_embeddings=64), "-max_length: a sample of 73 tokens is .*; give 64 or less"),
    "a long window": ({"ppl_window": 257}, "-ppl_window: 257 tokens .* 256 positions; give"),
    "a rope's": (config(max_position_embeddings=30, rope_parameters=ROPE), "-ppl_window: 64 tokens .* 60 positions"),
    "unknown pruning": ({"pruned_model_path": None, "prune_method": "wonder", **FAR}, "-prune_method"),
    "an unknown task": ({"eval_tasks": "bolq", **FAR}, "-eval_tasks"),
    "tasks and none": ({"eval_tasks": "none,rte", **FAR}, "-eval_tasks: 'none,rte' names tasks and none"),
}


@pytest.mark.parametrize("case", RUNS)
def test_what_cannot_be_run_or_is_another_models_is_told_before_any_model_loads(world, tmp_path, monkeypatch, case):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("utils.stages.context.load_model", lambda *_: pytest.fail("a model was loaded"))
    changes, says = RUNS[case]
    if callable(changes):
        folder = shutil.copytree(world / "pruned", tmp_path / "model")
        changes(folder)
        changes = {"pruned_model_path": folder}
    mistake(f"^{says}", prepared, flags(world, tmp_path / "out", **changes))


RUN, PRUNE, MERGE = "RestoreLCC_train", "pruning", "models.merge"
EARLY = [
    *((RUN, name, "./nowhere", {}) for name in ("base_model_name", "pruned_model_path", "eval_data_dir", "config")),
    *((RUN, name, "./nowhere.jsonl", {}) for name in ("data_path", "calib_data")),
    (RUN, "base_model_name", "no/body", {}),
    *((RUN, name, "./no.jsonl", {"plan": "L4"}) for name in ("base_model_name", "data_path", "eval_data_dir")),
    (RUN, "output_dir", "/proc", {}),
    (RUN, "output_dir", "..", {"cache_dir": "./cache"}),
    (RUN, "cache_dir", "/proc/none", {}),
    (PRUNE, "base_model_name", "./nowhere", {}),
    (PRUNE, "calib_data", "n.txt", {"base_model_name": "embedded"}),
    (PRUNE, "cache_dir", "/proc/none", {"base_model_name": "embedded"}),
    (MERGE, "pruned_model_path", "./nowhere", {"restoration": "restoration"}),
    (MERGE, "restoration", "./nowhere", {"pruned_model_path": "embedded"}),
    (MERGE, "tokenizer", "no/body", {"pruned_model_path": "embedded", "restoration": "restoration"}),
]
BLIND = """
import json, runpy, sys
sys.modules |= dict.fromkeys(["torch", "transformers", "huggingface_hub.hf_api"])
for name, words in json.loads(sys.argv[1]):
    sys.argv = [name, *words]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(end.code)
"""


def test_a_wrong_path_or_no_hub_is_told_before_what_takes_long_is_imported(tmp_path):
    (tmp_path / "in" / "restoration").mkdir(parents=True)
    (tmp_path / "in" / "file.csv").write_text("mine")
    common = {"output_dir": "out", "cache_dir": "cache"}
    given = [(module, in_words({**common, **others, name: value})) for module, name, value, others in EARLY]
    words = [sys.executable, "-W", "ignore", "-c", BLIND, json.dumps(given)]
    done = program(*words, cwd=tmp_path / "in", HF_HUB_OFFLINE="1")
    assert done.stdout == "2\n" * len(EARLY), done.stderr
    for (_, name, *_), told in zip(EARLY, done.stderr.splitlines(), strict=True):
        assert told.startswith(f"error: -{name}: ")
    assert {path.name for path in (tmp_path / "in").iterdir()} <= {"file.csv", "restoration", "cache"}
