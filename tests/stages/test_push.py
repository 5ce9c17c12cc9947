"""What -push_to_hub asks before anything is computed, what arrives at the hub, and what is said where it doesn't."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import _http
from utils.common.result import WRITTEN
from utils.stages.begin import INTERRUPTED, changed_flag

import RestoreLCC_train
from tests.fake_hub import ACCOUNT, TOKEN, FakeHub
from tests.stages.test_command_line import flags, run, world  # noqa: F401 - its fixture
from utils.common import commands
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.flags import parse_arguments
from utils.stages.push import check_push, push

ENTRY = Path(RestoreLCC_train.__file__)
ASKED = "GET /api/whoami-v2"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process takes for the real one."""
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            monkeypatch.setattr(constants, name, True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        for name, value in hub.environment(tmp_path / "hub").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def result(tmp_path) -> Path:
    """An output folder as a run leaves it, as far as an upload reads it, and two files of the user's in its model."""
    output = tmp_path / "out"
    (output / "model" / "more").mkdir(parents=True)
    files = {"README.md": b"---\nlanguage: en\n---\n", "config.json": b"{}", "[0].txt": b"", "more/a.txt": b"more"}
    files["model.safetensors"] = bytes(range(256)) * 9
    for name, content in files.items():
        (output / "model" / name).write_bytes(content)
    write_json(output / WRITTEN, {"files": [*(f"model/{name}" for name in files), "results.json", WRITTEN]})
    for name in ("notes.txt", "results.json"):
        (output / "model" / name).write_text("mine")
    return output


def pushing(output: Path, *more: str, name: str = "Guild/thing"):
    return parse_arguments(["-output_dir", str(output), "-push_to_hub", name, *more])


def bytes_of(output: Path) -> dict[str, bytes]:
    """What the run wrote to its model's folder."""
    names = json.loads((output / WRITTEN).read_text())["files"]
    return {name.removeprefix("model/"): (output / name).read_bytes() for name in names if name.startswith("model/")}


def in_a_process(words: list[str], hub: FakeHub, home: Path, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `hf` is
    environment = {**os.environ, **hub.environment(home), "PATH": path}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)


def test_a_run_ends_with_its_model_on_the_hub_bit_by_bit(world, tmp_path, hub, monkeypatch, capsys):  # noqa: F811
    output = tmp_path / "out"
    run(monkeypatch, [*flags(world, output), "-push_to_hub", "thing", "-hub_private_repo"])
    assert list(hub.repositories) == ["ann/thing"] and hub.repositories["ann/thing"].private is True
    arrived = hub.repositories["ann/thing"].files
    assert arrived == {path.name: path.read_bytes() for path in (output / "model").iterdir()}
    assert list(hub.stored.values()) == [arrived["model.safetensors"]]
    # Whose token it is was asked first, and nothing but the upload after that.
    assert hub.seen[:3] == [ASKED, "GET /api/models/ann/thing", "POST /api/repos/create"] and not hub.strange
    assert hub.seen.count(ASKED) == hub.seen.count("POST /api/models/ann/thing/commit/main") == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"hub:    {hub.url}/ann/thing"
    texts = [told.out, told.err, *(path.read_text("latin-1") for path in output.rglob("*") if path.is_file())]
    assert not any(TOKEN in text for text in texts)
    record = json.loads((output / "run.json").read_text())
    assert "-push_to_hub thing" in record["command"] and "push_to_hub" not in record["arguments"]

    # The card says as data what the run measured.
    card = ModelCard(arrived["README.md"].decode())
    scores = json.loads((output / "results.json").read_text())["scores"]["restored"]
    measured = {f"{task} {metric}": score["value"] for task in scores for metric, score in scores[task].items()}
    assert {each.metric_name: each.metric_value for each in card.data.eval_results} == measured and len(measured) == 4
    assert "POST /api/validate-yaml" in hub.seen


def test_an_upload_that_fails_leaves_the_result_and_says_how_it_is_done_later(world, tmp_path, hub):  # noqa: F811
    output = tmp_path / "my out"
    hub.refusals["POST .*/commit/main"] = 403, "you may not"
    words = [*flags(world, output, num_epoch=0, eval_tasks="none", report_prompts=0), "-push_to_hub", "Guild/thing"]
    done = in_a_process([sys.executable, str(ENTRY), *words], hub, tmp_path / "home", tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: -push_to_hub: the model was not uploaded (403 Forbidden: you may not")
    assert "Traceback" not in done.stderr and f"the result in {output} is whole" in line
    assert (output / "report.html").is_file() and "\nnext:   " in done.stdout
    assert hub.repositories["Guild/thing"].files == {} and hub.repositories["Guild/thing"].private is None

    hub.refusals.clear()
    command = re.search(r"whole: (.*) uploads it$", line)[1]
    again = in_a_process(shlex.split(command), hub, tmp_path / "home", tmp_path)
    assert again.returncode == 0, again.stderr
    assert hub.repositories["Guild/thing"].files == bytes_of(output)


@pytest.mark.parametrize("xet", [True, False], ids=["as hf_xet does", "by LFS"])
def test_files_that_the_run_did_not_write_stay_here(result, hub, monkeypatch, xet):
    if xet:
        pytest.importorskip("hf_xet")
        hub.large = "nothing"  # what is small goes with the commit, in either way
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    push(pushing(result))
    assert hub.repositories["Guild/thing"].files == bytes_of(result) and len(bytes_of(result)) == 5
    assert bool(hub.stored) is not xet


def told_early(world: Path, output: Path, monkeypatch, *more: str) -> str:  # noqa: F811
    """What a run says that must end before anything is begun."""
    monkeypatch.setattr(RestoreLCC_train, "Processes", lambda *_: pytest.fail("the run began"))
    with pytest.raises(UserError) as found:
        run(monkeypatch, [*flags(world, output), *(more or ("-push_to_hub", "Guild/thing"))])
    assert not output.exists() and TOKEN not in str(found.value) and len(str(found.value)) < 400
    return str(found.value)


def test_offline_there_is_nothing_to_push_to(world, tmp_path, hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = told_early(world, tmp_path / "out", monkeypatch)
    assert said.startswith("-push_to_hub: the environment says offline (HF_HUB_OFFLINE); unset that")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://no-such-hub.invalid")
    said = told_early(world, tmp_path / "out", monkeypatch)
    assert said.startswith("-push_to_hub: https://no-such-hub.invalid does not resolve; check your connection")
    assert hub.seen == []


def test_without_a_token_it_is_said_where_one_is_looked_for(world, tmp_path, hub, monkeypatch):  # noqa: F811
    monkeypatch.delenv("HF_TOKEN")
    said = told_early(world, tmp_path / "out", monkeypatch)
    assert said.startswith("-push_to_hub: there is no token") and "set HF_TOKEN, or log in by hf auth login" in said
    for damaged in ("hf_a\x01b", "hf_ä", "hf a"):
        monkeypatch.setenv("HF_TOKEN", damaged)
        said = told_early(world, tmp_path / "out", monkeypatch)
        assert said.startswith("-push_to_hub: the token holds characters") and damaged not in said
    assert hub.seen == []
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "saved").write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "saved"))
    assert check_push(pushing(tmp_path / "out")) is None and hub.seen == [ASKED]


WRONG_ACCOUNTS = {
    "a token that reads": ({**ACCOUNT, "auth": {"accessToken": {"role": "read"}}}, "the token may only read; make"),
    "nobody": ({"auth": {}}, "does not answer who you are (it names nobody); check it"),
    "no object": (["ann"], "does not answer who you are (it names nobody); check it"),
    "no JSON": (b"<html>", "does not answer who you are ("),
    "odd groups": ({**ACCOUNT, "orgs": ["Guild"]}, "does not say what the token may do ("),
    "another's name": (
        {**ACCOUNT, "orgs": []},
        "ann, whose token it is, is not Guild, nor a member of it; give one of",
    ),
}


@pytest.mark.parametrize("name", WRONG_ACCOUNTS)
def test_what_the_token_may_not_do_is_said_before_the_run(world, tmp_path, hub, monkeypatch, name):  # noqa: F811
    hub.account, message = WRONG_ACCOUNTS[name]
    said = told_early(world, tmp_path / "out", monkeypatch)
    assert said.startswith("-push_to_hub: ") and message in said and hub.seen == [ASKED]


@pytest.mark.parametrize("role", ["write", "fineGrained", None])
def test_an_owner_is_judged_only_where_the_account_tells_all(tmp_path, hub, role):
    hub.account = {"name": "ann", "orgs": [{"name": "GUILD"}], "auth": {"accessToken": {"role": role}}}
    for name in ("thing", "Ann/thing", "guild/thing"):
        check_push(pushing(tmp_path, name=name))
    if role != "write":
        check_push(pushing(tmp_path, name="else/thing"))


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_hub_that_refuses_is_one_line(world, tmp_path, hub, monkeypatch, status):  # noqa: F811
    hub.refusals[ASKED] = status, f"no, not with {TOKEN}"
    said = told_early(world, tmp_path / "out", monkeypatch)
    if status == 401:
        assert f"does not know the token of HF_TOKEN; make one at {hub.url}/settings/tokens" in said
    else:
        assert f"does not answer who you are ({status} " in said and "no, not with …" in said
    assert said.startswith(f"-push_to_hub: {hub.url} ") and hub.seen == [ASKED]


def test_a_hub_that_is_gone_or_never_answers_is_one_line(world, tmp_path, hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr("utils.stages.push.PATIENCE", 0.2)
    with FakeHub() as other:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", other.url)
    said = told_early(world, tmp_path / "out", monkeypatch)
    assert said.startswith(f"-push_to_hub: {other.url} does not answer who you are (") and "refused" in said
    with FakeHub() as silent:
        monkeypatch.setattr(constants, "ENDPOINT", silent.url)
        silent.server.shutdown()
        assert "timed out" in told_early(world, tmp_path / "out", monkeypatch)


def test_what_shall_be_private_is_not_put_where_all_can_read_it(world, result, tmp_path, hub, monkeypatch):  # noqa: F811
    HfApi().create_repo("Guild/thing")
    words = ("-push_to_hub", "Guild/thing", "-hub_private_repo")
    said = told_early(world, tmp_path / "new", monkeypatch, *words)
    assert said.startswith("-hub_private_repo: Guild/thing exists, and is public; make it private at ")
    with pytest.raises(UserError, match=r"exists, and is public; .* the result in \S+ is whole: hf upload"):
        push(pushing(result, "-hub_private_repo"))
    assert hub.repositories["Guild/thing"].files == {}
    hub.repositories["Guild/thing"].private = True
    check_push(pushing(result, "-hub_private_repo"))
    push(pushing(result, "-hub_private_repo"))
    assert hub.repositories["Guild/thing"].files == bytes_of(result)


FAILURES = {
    "no right to create": ("POST /api/repos/create", 403, "403 Forbidden: you may not"),
    "a token that was withdrawn": ("POST /api/repos/create", 401, "401 Unauthorized: you may not"),
    "a card that it does not take": ("POST /api/validate-yaml", 400, "you may not"),
    "a large file": ("PUT /store/.*|GET .*/xet-write-token/main", 403, "403 Forbidden"),
    "a broken hub": ("POST .*/commit/main", 500, "500 Internal Server Error: you may not"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("xet", [True, False], ids=["as hf_xet does", "by LFS"])
def test_whatever_fails_at_the_end_is_one_line_with_what_to_do(result, hub, monkeypatch, name, xet):
    pattern, status, why = FAILURES[name]
    hub.refusals[pattern] = status, f"you may not: {TOKEN}"
    if xet:
        pytest.importorskip("hf_xet")
        if name != "a large file":
            hub.large = "nothing"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between its five attempts
    with pytest.raises(UserError) as found:
        push(pushing(result))
    said = str(found.value)
    assert said.startswith("-push_to_hub: the model was not uploaded (") and why in said and TOKEN not in said
    assert said.endswith(f"the result in {result} is whole: hf upload Guild/thing {result}/model uploads it")
    assert found.value.__cause__ is None  # or a full disk of a library's own would be told instead


def test_a_hub_that_is_gone_at_the_end_is_one_line(result, hub, monkeypatch):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(UserError, match=r"^-push_to_hub: the model was not uploaded \(.*refused.*\); the result in"):
        push(pushing(result, "-hub_private_repo"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"^-push_to_hub: there is no token .* is whole: hf upload \S+ \S+ --private"):
        push(pushing(result, "-hub_private_repo"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_uploads_the_result_stands_and_it_is_said_so(result, hub, monkeypatch, capsys, sent):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *commands.ENDING)}
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **__: signal.raise_signal(sent))
    try:
        with pytest.raises(SystemExit) as end:
            commands.run(lambda: push(pushing(result)), then="the same command goes on from here")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 128 + sent
    assert capsys.readouterr().err == (
        f"stopped ({sent.name}); the result in {result} is whole: hf upload Guild/thing {result}/model uploads it\n"
    )


def test_a_dry_run_asks_says_where_it_would_go_and_uploads_nothing(world, tmp_path, hub, monkeypatch, capsys):  # noqa: F811
    output = tmp_path / "out"
    run(monkeypatch, [*flags(world, output), "-dry_run", "-push_to_hub", "Guild/thing", "-hub_private_repo"])
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line.split(maxsplit=1) == ["upload", f"{output}/model to Guild/thing at {hub.url}, private if it is new"]
    assert last.startswith("nothing was run") and not output.exists() and hub.repositories == {}
    assert hub.seen == [ASKED, "GET /api/models/Guild/thing"]


def test_an_interrupted_run_may_be_continued_with_it_or_without(tmp_path):
    plain, asked = parse_arguments(["-output_dir", str(tmp_path)]), pushing(tmp_path, "-hub_private_repo")

    for before, now in ((plain, asked), (asked, plain)):
        write_json(tmp_path / INTERRUPTED, before.as_json())
        assert changed_flag(now, tmp_path / INTERRUPTED) is None


def test_one_process_of_several_asks(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    check_push(pushing(tmp_path))
    assert hub.seen == []
    monkeypatch.setenv("RANK", "0")
    check_push(pushing(tmp_path))
    assert hub.seen == [ASKED]


def test_a_name_that_no_hub_has_is_refused_where_it_is_read(tmp_path):
    for name in ("a/b/c", "", "/a", "a/", "a b", "-a", "a--b", "a..b", "a.git", "ü/a", "a" * 97, "./out", "a\n"):
        with pytest.raises(UserError, match="-push_to_hub: must be owner/name or name") as found:
            parse_arguments([f"-push_to_hub={name}"])
        assert len(str(found.value)) < 400
    with pytest.raises(UserError, match=r"^-hub_private_repo: nothing is uploaded; give -push_to_hub NAME too"):
        parse_arguments(["-hub_private_repo"])
    assert parse_arguments(["-push_to_hub", "Me.2/a_b-c.1"]).push_to_hub == "Me.2/a_b-c.1"
