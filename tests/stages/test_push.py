"""What -push_to_hub asks before anything is computed, what goes to the hub, and what is said where it doesn't."""

import signal
from unittest.mock import Mock, create_autospec

import huggingface_hub
import pytest
from huggingface_hub import constants

import RestoreLCC_train
from tests.builders import mistake, save_tiny_llama
from tests.runs import flags, run
from utils.common.errors import Stopped
from utils.common.flags import parse_arguments
from utils.common.hub import offline
from utils.stages.push import check_push, push


@pytest.fixture
def hub(monkeypatch) -> Mock:
    """Stands for the hub's own client, with a token that may write."""
    hub = create_autospec(huggingface_hub.HfApi, instance=True)
    hub.whoami.return_value = {"name": "ann", "auth": {"accessToken": {"role": "write"}}}
    hub.create_repo.return_value.repo_id = "ann/thing"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def pushing(output, name: str = "thing"):
    return parse_arguments(["-output_dir", str(output), f"-push_to_hub={name}"])


def test_a_run_asks_first_and_one_that_cannot_upload_leaves_the_result_and_says_how(world, tmp_path, hub, monkeypatch):
    output = tmp_path / "my out"
    again = f"the result is complete; to upload it, run: hf upload thing '{output}/model'"
    hub.upload_folder.side_effect = OSError("403 Forbidden\nno")
    monkeypatch.setattr(RestoreLCC_train, "restore", lambda _, __, folder: save_tiny_llama(folder / "model"))
    told = mistake(None, run, monkeypatch, flags(world, output, push_to_hub="thing"))
    assert told == f"-push_to_hub: the model was not uploaded (403 Forbidden); {again}"
    assert [name for name, *_ in hub.method_calls] == ["whoami", "create_repo", "upload_folder"]
    assert (output / "model").is_dir()
    for stop, number in ((KeyboardInterrupt(), signal.SIGINT), (Stopped(signal.SIGTERM), signal.SIGTERM)):
        hub.upload_folder.side_effect = stop
        with pytest.raises(Stopped) as ended:
            push(pushing(output))
        assert (ended.value.number, ended.value.then) == (number, again)
    hub.upload_folder.side_effect = None
    push(pushing(output))
    hub.create_repo.assert_called_with("thing", exist_ok=True)
    sent = hub.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["folder_path"]) == ("ann/thing", output / "model")


@pytest.mark.parametrize(
    ("offline", "token", "says"),
    [(True, "hf_secret", "offline mode is enabled"), (False, "hf_secret", "refused"), (False, "", "Token is")],
)
def test_a_hub_out_of_reach_or_no_token_ends_the_run_at_once(world, tmp_path, monkeypatch, offline, token, says):
    own = {"HF_HUB_OFFLINE": offline, "ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN_PATH": str(tmp_path / "none")}
    for name, value in own.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(RestoreLCC_train, "Processes", lambda *_: pytest.fail("the run began"))
    says = rf"^-push_to_hub: cannot verify the token at http://127.0.0.1:9 .*{says}"
    told = mistake(says, run, monkeypatch, flags(world, tmp_path / "out", push_to_hub="Guild/thing"))
    assert "secret" not in told and not (tmp_path / "out").exists()


def test_a_proxy_that_resolves_names_is_no_sign_of_an_unreachable_hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", Mock(side_effect=OSError))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert offline()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert not offline()


def test_one_process_of_several_asks_and_refuses_a_token_that_may_only_read(tmp_path, hub, monkeypatch):
    for rank, calls in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        check_push(pushing(tmp_path))
        assert hub.whoami.call_count == len(hub.method_calls) == calls
    hub.whoami.return_value["auth"]["accessToken"]["role"] = "read"
    monkeypatch.setenv("RANK", "1")  # which is no process of several
    monkeypatch.delenv("WORLD_SIZE")
    mistake(r"^-push_to_hub: the token may only read", check_push, pushing(tmp_path))


def test_a_name_that_no_hub_has_is_refused_where_it_is_read(tmp_path):
    for name in ("a/b/c", "", "/a", "a b", "-a", "a..b", "a.git", "ü/a", "a" * 97, "./out", "a\n"):
        assert len(mistake("-push_to_hub: must be owner/name or name", pushing, tmp_path, name)) < 400
    assert pushing(tmp_path, "Me.2/a_b-c.1").push_to_hub == "Me.2/a_b-c.1"
